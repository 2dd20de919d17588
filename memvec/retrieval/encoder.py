"""The encoder of a finished run's queries: the model, layer, prompt and precision that its manifest names.

In: a finished run. Out: an `Encoder` whose vectors are comparable with the run's.

How: a manifest is data that may come from somebody else. It says which weights and which numbers, in texts and numbers
alone (`memvec.run.manifest`), but never that code may run: code or pickles of a model have to be allowed by whoever
searches. What was computed is compared with the encoder by its fingerprint before anything is encoded.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf

from memvec.encoder import Encoder, usable_device
from memvec.encoding import device_of, precision_dtypes
from memvec.errors import ConfigError, ModelError, RunFolderError
from memvec.model.adapter import COMMIT, at_commit
from memvec.prompt.template import Prompt
from memvec.retrieval.exact import Vectors
from memvec.run.folder import RunFolder
from memvec.run.manifest import Manifest
from memvec.units import as_units

# What the fingerprint says of a prompt, which queries may have another of.
OF_PROMPT = ("template", "chat", "tokenizer", "max_length")


@dataclass(frozen=True)
class QueryOptions:
    """How queries are embedded where the run does not say it.

    Args:
        prompt: What each query is put into; None is the run's own.
        accelerator: As `trainer.accelerator`.
        trust_remote_code: Whether code that comes with the model may run.
        use_safetensors: Whether pickled weights, which can run code, are refused.
    """

    prompt: Prompt | None = None
    accelerator: str = "auto"
    trust_remote_code: bool = False
    use_safetensors: bool = True


def query_options(cfg: DictConfig) -> QueryOptions:
    """Returns what a configuration asks for (conf/search.yaml, conf/evaluate.yaml)."""
    group: Any = None if cfg.get("prompt") is None else OmegaConf.to_container(cfg.prompt, resolve=True)
    prompt = None if group is None else Prompt(**{name: group[name] for name in group if name != "_target_"})
    return QueryOptions(prompt, str(cfg.accelerator), cfg.model.trust_remote_code, cfg.model.use_safetensors)


def query_encoder(folder: RunFolder, manifest: Manifest, options: QueryOptions) -> Encoder:
    """Returns the encoder of a run's queries, loaded.

    Args:
        folder: A finished run.
        manifest: What its manifest says.
        options: What it does not.

    Raises:
        ConfigError: An option cannot be used.
        ModelError: The run's model is gone, or is another one now.
        RunFolderError: The run has no vectors, or no encoder can be made as its manifest says.
    """
    device = _device(options.accelerator)
    prompt = options.prompt or manifest.prompt
    if prompt is None:
        raise RunFolderError(folder.root, found="holds memory texts and no vectors to search")
    digest, adapter_digest = (str(manifest.fingerprint.get(name)) for name in ("model", "adapter"))
    try:
        dtype, autocast = precision_dtypes(manifest.precision)
        encoder = Encoder(
            manifest.name_or_path,
            prompt=prompt,
            layer=manifest.layer,
            dtype=dtype,
            autocast=autocast,
            device=device,
            max_length=manifest.max_length,
            # A Hub model as it was then, whatever its main branch is now.
            revision=digest if COMMIT.fullmatch(digest) else manifest.revision,
            adapter=None if manifest.adapter is None else at_commit(manifest.adapter, adapter_digest),
            prefix_cache=cast(Any, manifest.prefix_cache),
            tune=cast(Any, manifest.tune),
            probe=cast(Any, manifest.probe),
            trust_remote_code=options.trust_remote_code,
            use_safetensors=options.use_safetensors,
        ).load()
    except ConfigError as error:
        raise RunFolderError(folder.manifest, found=f"queries cannot be encoded as it says: {error}") from error
    except ModelError as error:
        raise ModelError(folder.root, found=f"the model it was made with cannot be used: {error}") from error
    _refuse_other_model(folder, manifest, encoder, has_own_prompt=options.prompt is not None)
    return encoder


def query_vectors(encoder: Encoder, manifest: Manifest, queries: Sequence[str]) -> dict[int, Vectors]:
    """Returns the queries' vectors at each of the run's layers, `[Q, D]` float32, at unit length where the run's are.

    Raises:
        InputError: A query cannot be used.
        ModelError: A query's vector is not finite.
    """
    found = encoder.encode(queries).numpy()
    by_layer = (
        {manifest.layer: found}
        if isinstance(manifest.layer, int)
        else dict(zip(manifest.layer, np.moveaxis(found, 1, 0), strict=True))
    )
    return {layer: as_units(vectors) if manifest.normalize else vectors for layer, vectors in by_layer.items()}


def _device(accelerator: str) -> str:
    """Returns the device of an accelerator's name.

    Raises:
        ConfigError: There is no such device.
    """
    name = device_of(accelerator)
    try:
        usable_device(name)
    except ConfigError as error:
        allowed = ("auto", "cpu", *(["gpu"] if torch.accelerator.is_available() else []))
        raise ConfigError("accelerator", accelerator, found="this machine has none", allowed=allowed) from error
    return name


def _refuse_other_model(folder: RunFolder, manifest: Manifest, encoder: Encoder, *, has_own_prompt: bool) -> None:
    """Refuses vectors of another model: their cosines with the run's would be numbers without a meaning."""
    found = encoder.fingerprint
    for name in {**manifest.fingerprint, "token_types": None}:  # which a fingerprint names where there are such
        was = manifest.fingerprint.get(name)
        if was != found.get(name) and not (has_own_prompt and name in OF_PROMPT):
            change = f"{name} was {was!r}, is {found.get(name)!r}"
            what = f"{manifest.name_or_path} is no longer the model it was made with"
            raise ModelError(folder.root, found=f"{what}: {change}")
