"""memvec from Python: texts to a tensor, a configuration to a run, a run to a dataset."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from datasets import Dataset

from memvec.config.compose import compose
from memvec.config.prompts import plain, prompt_config
from memvec.encoding import check_texts, encode_texts
from memvec.errors import RunFolderError
from memvec.run.folder import RunFolder
from memvec.run.manifest import read_manifest
from memvec.run.result import mapped_result


def encode(
    texts: Sequence[str],
    *,
    model: str | Path | None = None,
    prompt: str = "one_token_zh",
    layer: int = -1,
    precision: str = "32-true",
    accelerator: str = "auto",
    batch_size: int = 1024,
    max_tokens: int | None = None,
    max_length: int | None = None,
    progress: bool = False,
) -> torch.Tensor:
    """Returns the supervision vectors of texts.

    The same flow as `python -m memvec.predict`, in one process and a temporary folder.

    Args:
        texts: N texts; each must be a string with something in it.
        model: Model folder, GGUF file or Hub name; None is the embedded default.
        prompt: A name from conf/prompt, or a template of one's own that contains `{text}`.
        layer: Which hidden state, as in `hidden_states[layer]`; -1 is after the final norm.
        precision: As `trainer.precision`.
        accelerator: As `trainer.accelerator`.
        batch_size: Most texts in a batch.
        max_tokens: Most tokens in a batch; None chooses by the device.
        max_length: Most tokens in one prompt; None is the model's own limit.
        progress: Whether to show a progress bar.

    Returns:
        `[N, D]` float32 on the CPU, row i for `texts[i]`.

    Raises:
        ConfigError: The prompt or model contains `${`.
        InputError: A text cannot be used, or there is none.
        ModelError: There is no such model.
    """
    check_texts(texts, name="texts")
    cfg = compose([] if model is None else ["model=hub"])
    cfg.prompt = prompt_config(prompt)
    if model is not None:
        cfg.model.name_or_path = plain(model)
    cfg.model.layer = layer
    cfg.trainer.update(precision=precision, accelerator=accelerator, devices=1, enable_progress_bar=progress)
    cfg.data.update(batch_size=batch_size, max_tokens=max_tokens, max_length=max_length)
    return encode_texts(cfg, texts)[0]


def load(output_dir: str | Path) -> Dataset:
    """Returns the vectors of a finished run.

    Args:
        output_dir: The run's folder.

    Returns:
        A memory-mapped dataset with columns `id`, `text` (where kept), `vector` and `num_tokens`, in input order; its
        format is torch: `dataset["vector"][:]` is a `[N, D]` float32 tensor.

    Raises:
        RunFolderError: There is no finished run, or a file of it is missing or damaged.
    """
    folder = RunFolder(output_dir)
    manifest = read_manifest(folder)
    if manifest.dimension is None:
        raise RunFolderError(
            f"{folder.root}: holds memory texts; memvec.predict data.path={folder.memories} computes their vectors"
        )
    return mapped_result(folder, manifest).with_format("torch")
