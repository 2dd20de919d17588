"""Texts in memory to vectors in memory: the whole flow, once, in a temporary folder.

In: a configuration and texts. Out: a vector for each text, and the manifest of the run that computed them.

`memvec.encode` and the queries of `memvec.search` come this way, so that their vectors are those of `memvec.predict`.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch
from omegaconf import DictConfig

from memvec.config.prompts import plain
from memvec.errors import SIGNALLED, Interrupted
from memvec.run.folder import RunFolder
from memvec.schema import VECTOR


def encode_texts(cfg: DictConfig, texts: Sequence[str]) -> tuple[torch.Tensor, dict[str, Any]]:
    """Runs texts through the flow.

    Args:
        cfg: A configuration; its input, ids and `output_dir` are set here, its `trainer` must use one device.
        texts: N texts that `as_texts` has let pass.

    Returns:
        `[N, D]` float32 on the CPU, row i for `texts[i]`, and the run's manifest.
    """
    from memvec.predict import predict  # Lightning and transformers, which `memvec.load` does not need

    cfg.data.update(id_column=None, on_error="fail", text_column="text", limit=None)
    with tempfile.TemporaryDirectory(prefix="memvec-") as scratch:
        path = Path(scratch) / "texts.jsonl"
        with path.open("w", encoding="utf-8") as stream:
            stream.writelines(json.dumps({"text": text}) + "\n" for text in texts)
        cfg.data.path, cfg.output_dir = plain(path), plain(Path(scratch) / "run")
        try:
            manifest = predict(cfg).manifest
        except Interrupted as error:  # what it says about going on is true of folders that stay
            raise Interrupted(error.exit_code - SIGNALLED) from error
        return read_vectors(cfg.output_dir), manifest


def read_vectors(output_dir: str | Path) -> torch.Tensor:
    """Returns all vectors of a finished run in memory, `[N, D]` float32, in input order.

    Unlike `memvec.load` this leaves nothing in the datasets cache.
    """
    files = sorted(RunFolder(output_dir).vectors.glob("*.parquet"))
    tables = [pq.read_table(path, columns=[VECTOR]).column(VECTOR).combine_chunks() for path in files]
    dimension = tables[0].type.list_size
    return torch.cat([torch.tensor(table.flatten().to_numpy()).view(-1, dimension) for table in tables])
