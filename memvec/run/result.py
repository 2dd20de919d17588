"""The vectors of a finished run: all there, as its manifest says, and mapped from disk.

In: a run's folder, which may be anybody's, or the address of a published one. Out: a memory-mapped dataset.

How: the Parquet files (`memvec.run.parts`) are copied once into one Arrow file, which is mapped. What is mapped is
validated each time before it is touched, since an Arrow file with a wrong offset in it can end the process. The schema,
and what its types mean, is memvec's own, whatever the files say of themselves.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

import datasets
import pyarrow as pa
from datasets import Dataset

from memvec.errors import RunFolderError, one_line
from memvec.features import vector_features
from memvec.files import atomic_file, make_folder, make_root
from memvec.layout import RunLayout
from memvec.run.manifest import Manifest, read_manifest
from memvec.run.parts import check_parts, checked, count_rows, damage_as_one_line, open_part, read_batches
from memvec.run.remote import local_run
from memvec.schema import ID, PROMPT_DIGEST
from memvec.streams import write_stream


def load(output_dir: str | Path) -> Dataset:
    """Returns the vectors of a finished run.

    Args:
        output_dir: The run's folder, or the address that it was published at (`s3://…`, `hf://datasets/NAME`).

    Returns:
        A memory-mapped dataset with columns `id`, `text` (where kept), those of `data.keep_columns`, `vector`,
        `num_tokens` and `prompt_digest`, in input order; its format is torch: `dataset["vector"][:]` is a `[N, D]`
        tensor. A run of several layers has a column for each: `vector_8`, `vector_-1`. Vectors are kept in the run's
        dtype; `datasets` makes float32 tensors of float16 ones. Values of the columns of `data.keep_columns` are
        Python's, not tensors.

    Raises:
        RunFolderError: There is no finished run, or a file of it is missing or damaged.
    """
    folder = RunLayout(local_run(output_dir))
    manifest = read_manifest(folder)
    if manifest.prompt is None:
        advice = f"memvec.predict data.path={folder.memories} computes their vectors"
        raise RunFolderError(folder.root, found="holds memory texts", advice=advice)
    dataset = mapped_result(folder, manifest)
    if not manifest.keep_columns:
        return dataset.with_format("torch")
    own = [name for name in dataset.column_names if name not in manifest.keep_columns]
    return dataset.with_format("torch", columns=own, output_all_columns=True)


def mapped_result(folder: RunLayout, manifest: Manifest) -> Dataset:
    """Returns the vectors of a finished run as a memory-mapped dataset, in input order.

    Raises:
        RunFolderError: A file is missing, damaged or none of this run's; or the copy to map cannot be written.
    """
    parts = check_parts(folder, manifest)
    if not manifest.rows:
        raise RunFolderError.damaged(folder.manifest, "a run of no rows")
    schema = _schema(parts[0], manifest)
    copy = _place_of_copy(folder, parts)
    try:
        if not _is_sound(copy, schema, rows=manifest.rows):
            _write_copy(parts, schema, copy)
            for old in set(folder.mapped.glob("*.arrow")) - {copy}:  # of files that were there before
                old.unlink(missing_ok=True)
    except OSError as error:
        raise RunFolderError(copy, found=f"cannot be written: {one_line(error)}") from error
    with damage_as_one_line(copy):
        return Dataset.from_file(str(copy))


def _is_sound(copy: Path, schema: pa.Schema, *, rows: int) -> bool:
    """Whether a copy is there and can be mapped; it may have been damaged, or made by somebody else."""
    if not copy.is_file():
        return False
    try:
        with damage_as_one_line(copy), pa.memory_map(str(copy)) as source, pa.ipc.open_stream(source) as stream:
            is_known = stream.schema.equals(schema, check_metadata=True)
            return is_known and sum(len(checked(batch, schema)) for batch in stream) == rows
    except RunFolderError:
        return False


def _schema(part: Path, manifest: Manifest) -> pa.Schema:
    """Returns the schema of the vectors, which is memvec's own in all that the files may not decide."""
    with damage_as_one_line(part):
        found = open_part(part).schema_arrow
        features = vector_features(
            dimension=manifest.dimension or 0,
            integer_ids=pa.types.is_integer(found.field(ID).type),
            keep_text=manifest.keep_text,
            kept={name: found.field(name).type for name in manifest.keep_columns},
            columns=manifest.columns().values(),
            dtype=manifest.vector_dtype,
            has_digests=PROMPT_DIGEST in found.names,
        )
        return features.arrow_schema


def _place_of_copy(folder: RunLayout, parts: list[Path]) -> Path:
    """Returns where the mapped copy lies: beside the vectors, and goes with them, since the texts in it are private."""
    state = hashlib.sha256()
    for path in parts:
        state.update(f"{path}\0{path.stat().st_size}\0{path.stat().st_mtime_ns}\0".encode("utf-8", "surrogateescape"))
    is_writable = os.access(folder.root, os.W_OK)
    place = folder.mapped if is_writable else Path(datasets.config.HF_DATASETS_CACHE) / "memvec"
    return place / f"{state.hexdigest()}.arrow"


def _write_copy(parts: list[Path], schema: pa.Schema, copy: Path) -> None:
    make_root(copy.parent.parent)
    make_folder(copy.parent)
    with atomic_file(copy) as partial:
        write_stream(partial, _all_rows(parts, schema), schema=schema)


def _all_rows(parts: list[Path], schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    """Yields the rows of all parts, and refuses one that reads as fewer than it says."""
    for path in parts:
        rows, wanted = 0, count_rows(path)
        for batch in read_batches(path, schema):
            yield batch
            rows += len(batch)
        if rows != wanted:
            raise RunFolderError.damaged(path, f"{rows:,} rows of {wanted:,} can be read")
