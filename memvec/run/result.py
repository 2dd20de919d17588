"""The vectors of a finished run: all there, as its manifest says, and mapped from disk.

In: a run's folder, which may be anybody's. Out: its Parquet files, none missing, none too many, each with its rows; or
a memory-mapped dataset.

How: the Parquet files are copied once into one Arrow file, which is mapped; while they are, every page's checksum is
verified. What is mapped is validated each time before it is touched, since an Arrow file with a wrong offset in it can
end the process. The schema, and what its types mean, is memvec's own, whatever the files say of themselves.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from datasets import Dataset
from numpy.typing import NDArray

from memvec.digest import DIGEST_BYTES, from_hex
from memvec.errors import RunFolderError, one_line
from memvec.features import vector_features
from memvec.files import atomic_file, make_folder, make_root
from memvec.layout import RunLayout
from memvec.run.manifest import Manifest, read_manifest
from memvec.run.remote import local_run
from memvec.schema import ID, NUM_TOKENS, PROMPT_DIGEST, is_own_column, is_vector_column

ROWS_PER_BATCH = 5_000
PART = re.compile(r"part-(\d{5,})-of-(\d{5,})\.parquet")


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
        raise RunFolderError(
            f"{folder.root}: holds memory texts; memvec.predict data.path={folder.memories} computes their vectors"
        )
    dataset = mapped_result(folder, manifest)
    if not manifest.keep_columns:
        return dataset.with_format("torch")
    own = [name for name in dataset.column_names if name not in manifest.keep_columns]
    return dataset.with_format("torch", columns=own, output_all_columns=True)


def part_rows(folder: RunLayout) -> dict[str, int]:
    """Returns how many rows each Parquet file of a result has, by its name in the run's folder.

    Raises:
        RunFolderError: A file cannot be read.
    """
    paths = [*sorted(folder.vectors.glob("*.parquet")), *folder.root.glob(folder.memories.name)]
    return {str(path.relative_to(folder.root)): _rows(path) for path in paths}


def check_parts(folder: RunLayout, manifest: Manifest) -> list[Path]:
    """Returns the Parquet files of a result, in the order of its rows.

    Raises:
        RunFolderError: They are not those that the manifest names.
    """
    found = part_rows(folder)
    wanted = manifest.parts if manifest.parts is not None else _parts_of_an_earlier_version(found)
    for name in sorted({*wanted, *found}):
        path = folder.root / name
        if name not in found:
            raise RunFolderError(f"{path}: missing, though the run is complete")
        if name not in wanted:
            raise RunFolderError(f"{path}: not a file of this run, whose manifest names {len(wanted)}")
        if found[name] != wanted[name]:
            raise RunFolderError(f"{path}: holds {found[name]:,} rows; the run's manifest says {wanted[name]:,}")
    if (rows := sum(found.values())) != manifest.rows:
        raise RunFolderError(
            f"{folder.root}: its Parquet files hold {rows:,} rows; its manifest says {manifest.rows:,}"
        )
    return [folder.root / name for name in found]


def mapped_result(folder: RunLayout, manifest: Manifest) -> Dataset:
    """Returns the vectors of a finished run as a memory-mapped dataset, in input order.

    Raises:
        RunFolderError: A file is missing, damaged or none of this run's; or the copy to map cannot be written.
    """
    parts = check_parts(folder, manifest)
    if not manifest.rows:
        raise RunFolderError(f"{folder.manifest}: damaged, or not of memvec: a run of no rows")
    schema = _schema(parts[0], manifest)
    copy = _place_of_copy(folder, parts)
    try:
        if not _is_sound(copy, schema, rows=manifest.rows):
            _write_copy(parts, schema, copy)
            for old in set(folder.mapped.glob("*.arrow")) - {copy}:  # of files that were there before
                old.unlink(missing_ok=True)
    except OSError as error:
        raise RunFolderError(f"{copy}: cannot be written: {one_line(error)}") from error
    with _damage(copy):
        return Dataset.from_file(str(copy))


def _is_sound(copy: Path, schema: pa.Schema, *, rows: int) -> bool:
    """Whether a copy is there and can be mapped; it may have been damaged, or made by somebody else."""
    if not copy.is_file():
        return False
    try:
        with _damage(copy), pa.memory_map(str(copy)) as source, pa.ipc.open_stream(source) as stream:
            is_known = stream.schema.equals(schema, check_metadata=True)
            return is_known and sum(len(_checked(batch, schema)) for batch in stream) == rows
    except RunFolderError:
        return False


def _parts_of_an_earlier_version(found: dict[str, int]) -> dict[str, int]:
    """Returns the files that there have to be, going by the names of those that are there."""
    wanted = dict(found)
    for name in found:
        if match := PART.fullmatch(Path(name).name):
            parts = int(match[2])
            names = [f"{Path(name).parent}/part-{part:05d}-of-{parts:05d}.parquet" for part in range(min(parts, 10**6))]
            return {name: found.get(name, 0) for name in names}
    return wanted


def _rows(path: Path) -> int:
    with _damage(path):
        return int(_opened(path).metadata.num_rows)


def _opened(path: Path) -> pq.ParquetFile:
    if not path.is_file():  # a named pipe would never answer
        raise RunFolderError(f"{path}: not a regular file")
    return pq.ParquetFile(path, page_checksum_verification=True)


def _schema(part: Path, manifest: Manifest) -> pa.Schema:
    """Returns the schema of the vectors, which is memvec's own in all that the files may not decide."""
    with _damage(part):
        found = _opened(part).schema_arrow
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
    with (
        atomic_file(copy) as partial,
        pa.OSFile(str(partial), "wb") as sink,
        pa.ipc.new_stream(sink, schema) as stream,
    ):
        for path in parts:
            rows = 0
            for batch in read_batches(path, schema):
                stream.write_batch(batch)
                rows += len(batch)
            if rows != _rows(path):
                raise RunFolderError(f"{path}: damaged, or not of memvec: {rows:,} rows of {_rows(path):,} can be read")


def has_column(path: Path, name: str) -> bool:
    """Whether a Parquet file has a column."""
    with _damage(path):
        return name in _opened(path).schema_arrow.names


def read_batches(path: Path, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    """Yields the rows of a Parquet file of a result, verified; an error of whoever takes them is not one of the file's.

    Args:
        path: The file.
        schema: The columns that are read, each of the type that memvec writes.

    Raises:
        RunFolderError: A column is not there, is of another type, or holds what memvec never writes.
    """
    with _damage(path):
        for batch in _opened(path).iter_batches(ROWS_PER_BATCH, columns=schema.names):
            found = {field.name: field for field in batch.schema}
            for field in schema:
                if field.name not in found or not _is_of_type(found[field.name].type, field.type):
                    raise ValueError(f"column {field.name!r} is not of {field.type}")
            columns = [batch.column(name) for name in schema.names]
            columns = [column.cast(field.type) for column, field in zip(columns, schema, strict=True)]
            batch = _checked(pa.RecordBatch.from_arrays(columns, schema=schema), schema)
            for name in filter(is_vector_column, schema.names):
                vectors = batch.column(name).flatten().to_numpy().astype(np.float32).reshape(len(batch), -1)
                if not np.isfinite(np.einsum("nd,nd->n", vectors, vectors)).all():
                    raise ValueError("a vector has no finite length")
            if PROMPT_DIGEST in schema.names:
                digests_of(batch)
            yield batch


def digests_of(batch: pa.RecordBatch) -> NDArray[np.uint64]:
    """Returns the digests of the rows' prompts, `[B, 2]` uint64.

    Raises:
        ValueError: One is none.
    """
    size = 2 * DIGEST_BYTES  # hex digits
    digits = batch.column(PROMPT_DIGEST).cast(pa.binary()).cast(pa.binary(size))  # which refuses other lengths
    return from_hex(memoryview(digits.buffers()[1])[size * digits.offset : size * (digits.offset + len(digits))])


def _is_of_type(found: pa.DataType, wanted: pa.DataType) -> bool:
    """Whether a column has a type; what a list calls its values is no matter."""
    if pa.types.is_fixed_size_list(wanted) and pa.types.is_fixed_size_list(found):
        return bool(found.list_size == wanted.list_size and found.value_type == wanted.value_type)
    return bool(found == wanted)


def _checked(batch: pa.RecordBatch, schema: pa.Schema) -> pa.RecordBatch:
    """Refuses rows that memvec never writes, and whose use could end the process."""
    batch.validate(full=True)
    for name in filter(is_own_column, schema.names):
        column = batch.column(name)
        if column.null_count or (is_vector_column(name) and column.flatten().null_count):
            raise ValueError(f"column {name!r} has rows without a value")
    if NUM_TOKENS in schema.names and (pc.min(batch.column(NUM_TOKENS)).as_py() or 0) < 0:
        raise ValueError(f"column {NUM_TOKENS!r} counts less than nothing")
    return batch


@contextmanager
def _damage(path: Path) -> Iterator[None]:
    """Turns whatever reading a damaged file raises into one line that names it."""
    try:
        yield
    except RunFolderError:
        raise
    except (pa.ArrowException, OSError, ValueError, TypeError, LookupError, OverflowError, MemoryError) as error:
        raise RunFolderError(f"{path}: damaged, or not of memvec: {one_line(error)}") from error
