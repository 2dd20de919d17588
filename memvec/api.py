"""memvec from Python: texts to a tensor, a configuration to a run, a run to a dataset."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

import pyarrow.parquet as pq
import torch
from datasets import Dataset, load_dataset

from memvec.config import compose
from memvec.data.dataset import reject_reason
from memvec.data.tokenise import without_progress_bars
from memvec.errors import ConfigError, InputError, RunFolderError
from memvec.run import RunFolder
from memvec.schema import VECTOR


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
    from memvec.predict import predict

    if isinstance(texts, str):
        raise InputError("encode takes a list of texts; found one string")
    if not len(texts):
        raise InputError("encode takes a list of texts; found none")
    for position, text in enumerate(texts):
        if reason := reject_reason(None, text, has_ids=False):
            raise InputError(f"texts[{position}]: {reason}")
    template = "{text}" in prompt
    cfg = compose(["prompt=raw" if template else f"prompt={prompt}", *([] if model is None else ["model=hub"])])
    if template:
        cfg.prompt.template = _plain(prompt)
    if model is not None:
        cfg.model.name_or_path = _plain(model)
    cfg.model.layer = layer
    cfg.trainer.update(precision=precision, accelerator=accelerator, devices=1, enable_progress_bar=progress)
    cfg.data.update(id_column=None, on_error="fail")
    cfg.data.update(batch_size=batch_size, max_tokens=max_tokens, max_length=max_length)
    with tempfile.TemporaryDirectory(prefix="memvec-") as scratch:
        path = Path(scratch) / "texts.jsonl"
        with path.open("w", encoding="utf-8") as stream:
            stream.writelines(json.dumps({"text": text}) + "\n" for text in texts)
        cfg.data.path, cfg.output_dir = _plain(path), _plain(Path(scratch) / "run")
        predict(cfg)
        return read_vectors(cfg.output_dir)


def _plain(value: str | Path) -> str:
    """Returns a value for the configuration, where it would not be taken for an interpolation of OmegaConf's.

    OmegaConf's own escape does not survive Hydra's `instantiate`, which resolves twice.
    """
    if "${" in str(value):
        raise ConfigError(f"{str(value)!r} contains '${{', which a configuration takes for a reference; leave it out")
    return str(value)


def load(output_dir: str | Path) -> Dataset:
    """Returns the vectors of a finished run.

    Args:
        output_dir: The run's folder.

    Returns:
        A memory-mapped dataset with columns `id`, `text` (where kept), `vector` and `num_tokens`, in input order; its
        format is torch: `dataset["vector"][:]` is a `[N, D]` float32 tensor.

    Raises:
        RunFolderError: There is no finished run.
    """
    folder = RunFolder(output_dir)
    if not folder.is_finished:
        state = "an unfinished run; run the same command again to go on" if folder.journal.is_dir() else "no run"
        raise RunFolderError(f"{folder.root}: holds {state}")
    files = [str(path) for path in sorted(folder.vectors.glob("*.parquet"))]
    if not files:
        raise RunFolderError(f"{folder.vectors}: holds no Parquet file, though the run is complete")
    # The mapped copy that `datasets` makes lies beside the vectors and goes with them: the texts in it are private.
    cache = str(folder.root / ".datasets") if os.access(folder.root, os.W_OK) else None
    with without_progress_bars():
        return load_dataset("parquet", data_files=files, split="train", cache_dir=cache).with_format("torch")


def read_vectors(output_dir: str | Path) -> torch.Tensor:
    """Returns all vectors of a finished run in memory, `[N, D]` float32, in input order.

    Unlike `load` this leaves nothing in the datasets cache.
    """
    files = sorted(RunFolder(output_dir).vectors.glob("*.parquet"))
    tables = [pq.read_table(path, columns=[VECTOR]).column(VECTOR).combine_chunks() for path in files]
    dimension = tables[0].type.list_size
    return torch.cat([torch.tensor(table.flatten().to_numpy()).view(-1, dimension) for table in tables])
