"""Queries to vectors, with the model, layer, prompt and precision that a run's manifest names.

In: a finished run and texts. Out: `[Q, D]`, comparable with the run's vectors.

How: the same flow as the run (`memvec.encoding`), without compiling, which pays only in long runs. A manifest is data
that may come from somebody else: it says which weights and which numbers, but never that code may run. So classes come
from conf/, and code or pickles of a model have to be allowed by whoever searches.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from omegaconf import DictConfig

from memvec.config.compose import compose
from memvec.data.texts import as_texts
from memvec.encoding import encode_texts
from memvec.errors import ModelError
from memvec.run.folder import RunFolder
from memvec.run.manifest import Manifest, read_manifest

COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class QueryEncoder:
    """How queries are embedded where the run does not say it.

    Args:
        prompt: A `prompt` group; None is the run's own.
        accelerator: As `trainer.accelerator`.
        trust_remote_code: Whether code that comes with the model may run.
        use_safetensors: Whether pickled weights, which can run code, are refused.
    """

    prompt: DictConfig | None = None
    accelerator: str = "auto"
    trust_remote_code: bool = False
    use_safetensors: bool = True

    def encode(self, folder: RunFolder, queries: Sequence[str]) -> torch.Tensor:
        """Returns the queries' vectors, `[Q, D]` float32 on the CPU.

        Args:
            folder: A finished run.
            queries: Q texts.

        Raises:
            InputError: A query cannot be used.
            ModelError: The run's model is gone, or is another one now.
        """
        queries = as_texts(queries, name="queries")
        manifest = read_manifest(folder)
        try:
            vectors, made = encode_texts(self.config(manifest), queries)
        except ModelError as error:
            raise ModelError(f"{folder.root}: the model it was made with cannot be used: {error}") from error
        _refuse_other_model(folder, manifest, made)
        return vectors

    def config(self, manifest: Manifest) -> DictConfig:
        """Returns the configuration that embeds queries for the run of a manifest."""
        cfg = compose(["model=hub"])
        is_commit = COMMIT.fullmatch(manifest.model_digest)  # a Hub model as it was then, whatever main is now
        cfg.model.update(
            name_or_path=manifest.name_or_path,
            revision=manifest.model_digest if is_commit else manifest.revision,
            layer=manifest.layer,
            prefix_cache=manifest.prefix_cache,
            tune=manifest.tune,
            probe=manifest.probe,
            trust_remote_code=self.trust_remote_code,
            use_safetensors=self.use_safetensors,
        )
        if self.prompt is None:
            cfg.prompt.update(template=manifest.template, chat=manifest.chat)
        else:
            cfg.prompt = self.prompt
        cfg.data.max_length = manifest.max_length
        cfg.trainer.update(accelerator=self.accelerator, devices=1, enable_progress_bar=False)
        cfg.trainer.precision = manifest.precision
        return cfg


def query_encoder(cfg: DictConfig) -> QueryEncoder:
    """Returns the encoder that a configuration asks for (conf/search.yaml, conf/evaluate.yaml)."""
    model = cfg.model
    return QueryEncoder(cfg.get("prompt"), str(cfg.accelerator), model.trust_remote_code, model.use_safetensors)


def _refuse_other_model(folder: RunFolder, run: Manifest, queries: dict[str, Any]) -> None:
    """Refuses vectors of another model: their cosines with the run's would be numbers without a meaning."""
    for name, was in (("model", run.model_digest), ("layer", run.layer), ("dtype", run.dtype)):
        now = queries["fingerprint"][name]
        if was != now:
            raise ModelError(
                f"{folder.root}: {run.name_or_path} is no longer the model it was made with: "
                f"{name} was {was!r}, is {now!r}"
            )
