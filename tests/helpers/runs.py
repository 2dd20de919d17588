"""Finished runs of given vectors, for what only reads them: made by memvec's own writing code, without a model."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from memvec.config.compose import to_container
from memvec.features import vector_features
from memvec.files import write_json
from memvec.run.folder import RunFolder
from memvec.run.summary import RunSummary, write_summary
from memvec.schema import ID, NUM_TOKENS, PROMPT_DIGEST, TEXT, vector_columns
from memvec.writer.finalize import Counts
from tests.helpers.configs import compose


def write_run(
    root: Path,
    vectors: NDArray[np.float32] | Iterable[NDArray[np.float32]],
    *,
    ids: Sequence[int | str] | None = None,
    texts: Sequence[str] | None = None,
    keep_text: bool = True,
    overrides: Sequence[str] = (),
    rejected: Sequence[str] = (),
) -> RunFolder:
    """Writes a finished run's folder.

    Args:
        root: Where.
        vectors: `[N, D]`, of several layers `[N, L, D]`, or blocks of them, of which each becomes a row group.
        ids: Theirs; by default `group-<0 to 4>/<row>`.
        texts: Theirs; by default `text <row>`.
        keep_text: Whether there is a text column.
        overrides: Of the configuration that its manifest holds; layers and dtype are as it says.
        rejected: Lines of `rejected.jsonl`.
    """
    folder = RunFolder(root)
    folder.vectors.mkdir(parents=True)
    cfg = compose(overrides)
    layer = to_container(cfg)["model"]["layer"]
    columns_of_layers = list(vector_columns(layer).values())
    row = 0
    writer = None
    for block in [vectors] if isinstance(vectors, np.ndarray) else vectors:
        layers = np.split(block.reshape(len(block), -1).astype(cfg.writer.dtype), len(columns_of_layers), axis=1)
        dimension = layers[0].shape[1]
        names = ids or [f"group-{n % 5}/{n}" for n in range(row, row + len(block))]
        integer_ids = isinstance(names[0], int)
        features = vector_features(
            dimension=dimension,
            integer_ids=integer_ids,
            keep_text=keep_text,
            columns=columns_of_layers,
            dtype=cfg.writer.dtype,
        )
        schema = features.arrow_schema
        columns: dict[str, Any] = {
            ID: names,
            TEXT: texts or [f"text {n}" for n in range(row, row + len(block))],
            **{
                name: pa.FixedSizeListArray.from_arrays(pa.array(each.reshape(-1)), dimension)
                for name, each in zip(columns_of_layers, layers, strict=True)
            },
            NUM_TOKENS: [5 + n % 20 for n in range(len(block))],
            PROMPT_DIGEST: [f"{n:032x}" for n in range(row, row + len(block))],
        }
        path, options = folder.vectors / "part-00000-of-00001.parquet", {"write_page_checksum": True}
        writer = writer or pq.ParquetWriter(path, schema, compression="none", **options)
        writer.write_table(pa.table({name: columns[name] for name in schema.names}, schema=schema))
        row += len(block)
    assert writer is not None
    writer.close()
    folder.rejected.write_text("".join(f"{line}\n" for line in rejected), encoding="utf-8")
    write_json_under(folder.fingerprint, {"model": "0" * 64, "layer": layer, "dtype": "float32"})
    cfg.output_dir, cfg.writer.keep_text = str(folder.root), keep_text
    metrics = {
        **dict.fromkeys(("entries_per_second", "tokens_per_second", "padding_share"), 0.5),
        **{"computed_entries": row, "seconds": {"build": 1.0}, "peak_memory_bytes": 2**30, "max_tokens": 1024},
    }
    counts = Counts(entries=row, rejected=len(rejected), truncated=0, unique=row, dimension=dimension)
    write_summary(
        folder, RunSummary, counts=counts, config=to_container(cfg), metrics=metrics, notes={"path": "batched"}
    )
    folder.release(remove_journal=True)
    return folder


def write_json_under(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, content)


def random_vectors(rows: int, dimension: int = 16, *, seed: int = 0) -> NDArray[np.float32]:
    """Returns vectors with a large mean in common, as language models' states have, `[rows, dimension]`."""
    noise = np.random.default_rng(seed).standard_normal((rows, dimension), dtype=np.float32)
    return noise + np.float32(5) * np.linspace(-1, 1, dimension, dtype=np.float32)
