"""The Parquet files of a result: those that the manifest names, and no row of them taken on trust.

In: a run's folder, which may be anybody's. Out: its files, none missing, none too many, each with its rows; and their
rows, batch by batch, verified.

How: every page's checksum is compared as it is read, and what memvec never writes is refused: rows without a value,
vectors that are not finite, columns of another type.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from memvec.digest import DIGEST_BYTES, from_hex
from memvec.errors import RunFolderError, one_line
from memvec.layout import RunLayout
from memvec.run.manifest import Manifest
from memvec.schema import NUM_TOKENS, PROMPT_DIGEST, is_own_column, is_vector_column

ROWS_PER_BATCH = 5_000
PART = re.compile(r"part-(\d{5,})-of-(\d{5,})\.parquet")


def part_rows(folder: RunLayout) -> dict[str, int]:
    """Returns how many rows each Parquet file of a result has, by its name in the run's folder.

    Raises:
        RunFolderError: A file cannot be read.
    """
    paths = [*sorted(folder.vectors.glob("*.parquet")), *folder.root.glob(folder.memories.name)]
    return {str(path.relative_to(folder.root)): count_rows(path) for path in paths}


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
            raise RunFolderError(path, found="missing, though the run is complete")
        if name not in wanted:
            raise RunFolderError(path, found=f"not a file of this run, whose manifest names {len(wanted)}")
        if found[name] != wanted[name]:
            raise RunFolderError(path, found=f"holds {found[name]:,} rows; the run's manifest says {wanted[name]:,}")
    if (rows := sum(found.values())) != manifest.rows:
        holds = f"its Parquet files hold {rows:,} rows; its manifest says {manifest.rows:,}"
        raise RunFolderError(folder.root, found=holds)
    return [folder.root / name for name in found]


def has_column(path: Path, name: str) -> bool:
    """Whether a Parquet file has a column."""
    with damage_as_one_line(path):
        return name in open_part(path).schema_arrow.names


def count_rows(path: Path) -> int:
    """Returns how many rows a Parquet file says it has.

    Raises:
        RunFolderError: It cannot be read.
    """
    with damage_as_one_line(path):
        return int(open_part(path).metadata.num_rows)


def open_part(path: Path) -> pq.ParquetFile:
    """Opens a Parquet file, of which each page's checksum is compared when it is read.

    Raises:
        RunFolderError: It is no regular file.
    """
    if not path.is_file():  # a named pipe would never answer
        raise RunFolderError(path, found="not a regular file")
    return pq.ParquetFile(path, page_checksum_verification=True)


def read_batches(path: Path, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    """Yields the rows of a Parquet file of a result, verified; an error of whoever takes them is not one of the file's.

    Args:
        path: The file.
        schema: The columns that are read, each of the type that memvec writes.

    Raises:
        RunFolderError: A column is not there, is of another type, or holds what memvec never writes.
    """
    with damage_as_one_line(path):
        for batch in open_part(path).iter_batches(ROWS_PER_BATCH, columns=schema.names):
            found = {field.name: field for field in batch.schema}
            for field in schema:
                if field.name not in found or not _is_of_type(found[field.name].type, field.type):
                    raise ValueError(f"column {field.name!r} is not of {field.type}")
            columns = [batch.column(name) for name in schema.names]
            columns = [column.cast(field.type) for column, field in zip(columns, schema, strict=True)]
            batch = checked(pa.RecordBatch.from_arrays(columns, schema=schema), schema)
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


def checked(batch: pa.RecordBatch, schema: pa.Schema) -> pa.RecordBatch:
    """Returns rows as they are, and refuses those that memvec never writes, whose use could end the process.

    Args:
        batch: The rows.
        schema: Which of their columns are looked at.

    Raises:
        ValueError: There are such rows; or Arrow's own errors.
    """
    batch.validate(full=True)
    for name in filter(is_own_column, schema.names):
        column = batch.column(name)
        if column.null_count or (is_vector_column(name) and column.flatten().null_count):
            raise ValueError(f"column {name!r} has rows without a value")
    if NUM_TOKENS in schema.names and (pc.min(batch.column(NUM_TOKENS)).as_py() or 0) < 0:
        raise ValueError(f"column {NUM_TOKENS!r} counts less than nothing")
    return batch


@contextmanager
def damage_as_one_line(path: Path) -> Iterator[None]:
    """Turns whatever reading a damaged file raises into one line that names it.

    Args:
        path: The file.
    """
    try:
        yield
    except RunFolderError:
        raise
    except (pa.ArrowException, OSError, ValueError, TypeError, LookupError, OverflowError, MemoryError) as error:
        raise RunFolderError.damaged(path, one_line(error)) from error


def _parts_of_an_earlier_version(found: dict[str, int]) -> dict[str, int]:
    """Returns the files that there have to be, going by the names of those that are there."""
    wanted = dict(found)
    for name in found:
        if match := PART.fullmatch(Path(name).name):
            parts = int(match[2])
            names = [f"{Path(name).parent}/part-{part:05d}-of-{parts:05d}.parquet" for part in range(min(parts, 10**6))]
            return {name: found.get(name, 0) for name in names}
    return wanted


def _is_of_type(found: pa.DataType, wanted: pa.DataType) -> bool:
    """Whether a column has a type; what a list calls its values is no matter."""
    if pa.types.is_fixed_size_list(wanted) and pa.types.is_fixed_size_list(found):
        return bool(found.list_size == wanted.list_size and found.value_type == wanted.value_type)
    return bool(found == wanted)
