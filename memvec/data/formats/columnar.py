"""Parquet, Arrow and loaded datasets: a table's rows, a record batch at a time.

In: a `.parquet .arrow .feather` file, or a `datasets.Dataset`. Out: its rows.

Why every batch is validated before its values are touched: a file of a stranger's may hold an offset that points
anywhere, and following it ends the process without a word. UUIDs, which have no type of their own in JSON, are ids.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from datasets import Dataset

from memvec.data.formats.fields import MISSING, Record, Wanted, check_columns, missing_column, paths
from memvec.data.formats.files import LONGEST, file_format
from memvec.errors import InputError, one_line

ROWS_PER_READ = 10_000
BYTES_PER_READ = 64 * 2**20
UUID_BYTES = 16

Tables = Iterable[pa.RecordBatch | pa.Table]


def read_parquet(path: Path, wanted: Wanted) -> Iterator[Record]:
    """Yields the rows of a Parquet file.

    Raises:
        InputError: There is no text column, or a value cannot be read.
    """
    with pq.ParquetFile(path) as file:
        schema = file.schema_arrow
        places = [place for name in wanted.names if (place := _path(name, schema))]
        columns = list(dict.fromkeys(".".join(place) for place in places))
        # Not within objects, for which Arrow cannot do that.
        strings = {name for name, *inner in places if not inner and _is_string(schema.types[schema.names.index(name)])}
        groups = (file.metadata.row_group(number) for number in range(file.num_row_groups))
        bytes_per_row = max((group.total_byte_size // max(1, group.num_rows) for group in groups), default=0)
    # A text that many rows share is stored once, and stays so: 50 kB may hold 10,000 texts of a megabyte.
    with pq.ParquetFile(path, read_dictionary=sorted(strings)) as file:
        batches = file.iter_batches(min(ROWS_PER_READ, BYTES_PER_READ // max(1, bytes_per_row) + 1), columns=columns)
        yield from _records(_validated(batches, str(path)), schema, str(path), wanted)


def read_arrow(path: Path, wanted: Wanted) -> Iterator[Record]:
    """Yields the rows of an Arrow file in either form: `datasets` writes streams, `pyarrow.feather` writes files.

    Raises:
        InputError: There is no text column, or a batch or a value is broken.
    """
    with pa.memory_map(str(path)) as source:
        schema = _open_arrow(source, None).schema
        present = columns_with(wanted.names, schema)
        reader = _open_arrow(source, [at for at, name in enumerate(schema.names) if name in present])
        is_file = isinstance(reader, pa.RecordBatchFileReader)
        batches = (reader.get_batch(number) for number in range(reader.num_record_batches)) if is_file else reader
        yield from _records(_validated(batches, str(path)), schema, str(path), wanted)


def read_dataset(dataset: Dataset, *, name: str, wanted: Wanted) -> Iterator[Record]:
    """Yields the rows of a loaded dataset; `name` stands for it in messages.

    Raises:
        InputError: There is no text column, or a batch or a value is broken.
    """
    schema = dataset.data.schema
    tables = dataset_tables(dataset, columns_with(wanted.names, schema), name=name)
    yield from _records(tables, schema, name, wanted)


def dataset_tables(dataset: Dataset, columns: Sequence[str], *, name: str) -> Iterator[pa.Table]:
    """Yields some columns of a dataset that may come from a stranger's files, validated.

    Args:
        dataset: Its rows, in its order.
        columns: Names of columns at the top level.
        name: What messages call it.

    Raises:
        InputError: A batch is broken.
    """
    selected = dataset.select_columns(list(columns))
    if selected._indices is not None:  # rows are gathered, which follows the offsets
        for _ in _validated(selected.data.to_batches(), name):
            pass
    yield from _validated(selected.with_format("arrow").iter(ROWS_PER_READ), name)


def read_schema(content: Path | Dataset) -> pa.Schema:
    """Returns the schema of a `.parquet .arrow .feather` file, or of a loaded dataset."""
    if isinstance(content, Dataset):
        return content.data.schema
    if file_format(content) == ".parquet":
        return pq.read_schema(content)
    with pa.memory_map(str(content)) as source:
        return _open_arrow(source, None).schema


def column_types(schema: pa.Schema, names: Sequence[str]) -> dict[str, pa.DataType]:
    """Returns the types of fields by their names, as far as they are there; a UUID is read as a string."""
    found = {}
    for name in names:
        if path := _path(name, schema):
            kind = schema.field(path[0]).type
            for inner in path[1:]:
                kind = kind.field(inner).type
            found[name] = pa.string() if kind in (pa.binary(UUID_BYTES), pa.uuid()) else kind
    return found


def _open_arrow(
    source: pa.MemoryMappedFile, fields: list[int] | None
) -> pa.RecordBatchStreamReader | pa.RecordBatchFileReader:
    options = pa.ipc.IpcReadOptions(included_fields=fields)
    try:
        return pa.ipc.open_file(source, options=options)
    except pa.ArrowInvalid:
        source.seek(0)
        return pa.ipc.open_stream(source, options=options)


def columns_with(names: Iterable[str | None], schema: pa.Schema) -> list[str]:
    """Returns the columns at the top level that hold the fields of these names, as far as there are any."""
    found = (_path(name, schema) for name in names)
    return list(dict.fromkeys(path[0] for path in found if path))


def _path(name: str | None, kind: pa.Schema | pa.StructType) -> list[str] | None:
    """Returns where a field lies, from the outermost name inwards; None where there is none."""
    if name is None:
        return None
    if name in kind.names:
        return [name]
    for outer, inner in paths(name):
        at = kind.get_field_index(outer)
        if at >= 0 and pa.types.is_struct(kind.field(at).type) and (rest := _path(inner, kind.field(at).type)):
            return [outer, *rest]
    return None


def _is_string(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _validated(tables: Tables, source: str) -> Iterator[Any]:
    row = 0
    for table in tables:
        try:
            table.validate(full=True)
        except pa.ArrowException as error:
            rows = f"the {table.num_rows} rows from row {row} on"
            if "UTF8" in str(error):
                raise InputError(source, found=f"not UTF-8 in {rows}") from error
            raise InputError(source, found=f"{rows} cannot be read ({one_line(error)})") from error
        yield table
        row += table.num_rows


def _records(tables: Tables, schema: pa.Schema, source: str, wanted: Wanted) -> Iterator[Record]:
    if _path(wanted.text, schema) is None:
        raise missing_column(source, wanted.text, list(names_of(schema)))
    check_columns(source, schema.names, wanted)
    row = 0
    for table in tables:
        columns = [_column(table, name) for name in wanted.names]
        longest = max(max(_longest(column, source, row), _mean_bytes(column)) for column in columns)
        step = BYTES_PER_READ // max(1, longest) + 1  # so many rows are Python's own strings at a time
        for start in range(0, table.num_rows, step):
            rows = min(step, table.num_rows - start)
            slices = [None if column is None else column.slice(start, rows) for column in columns]
            ids, texts, *more = (_values(column, rows, source, row) for column in slices)
            ids, *more = (_as_ids(*pair) for pair in zip((ids, *more), (slices[0], *slices[2:]), strict=True))
            for fields in zip(ids, texts, *more, strict=True):
                yield row, *fields
                row += 1


def names_of(schema: pa.Schema) -> Iterator[str]:
    """Yields the names that a user may mean: of columns, and of the fields of objects in them."""
    for field in schema:
        if pa.types.is_struct(field.type):
            yield from (f"{field.name}.{inner}" for inner in field.type.names)
        else:
            yield str(field.name)


def _column(table: Any, name: str | None) -> Any:
    """Returns a column, or a field within one; None where there is none."""
    path = _path(name, table.schema)
    if path is None:
        return None
    column = table.column(path[0])
    for inner in path[1:]:
        column = pc.struct_field(column, [column.type.get_field_index(inner)])
    return column


def _longest(column: Any, source: str, row: int) -> int:
    """Returns the bytes of the longest string; refuses one so long that a few of them would fill the memory."""
    longest = 0
    for chunk in getattr(column, "chunks", [] if column is None else [column]):
        values = chunk.dictionary if pa.types.is_dictionary(chunk.type) else chunk
        if _is_string(values.type):
            longest = max(longest, pc.max(pc.binary_length(values)).as_py() or 0)
    if longest > LONGEST:
        raise InputError(f"{source}, row {row} or soon after", found=f"a string longer than {LONGEST // 2**20} MB")
    return longest


def _mean_bytes(column: Any) -> int:
    """Returns the bytes of a row of a list or an object; of other types those of the longest string say more."""
    if column is None or not pa.types.is_nested(column.type) or len(column) == 0:
        return 0
    return int(column.nbytes) // len(column)


def _values(column: Any, rows: int, source: str, row: int) -> list[Any]:
    if column is None:
        return [MISSING] * rows
    try:
        # With its values in their places, where it has positions in a dictionary: value by value those are slow.
        values: list[Any] = column.cast(_plain_type(column)).to_pylist()
    except (ValueError, OverflowError) as error:  # a date that Python's own types cannot hold
        raise InputError(source, found=f"{rows} rows from row {row} on cannot be read ({one_line(error)})") from error
    return values


def _plain_type(column: Any) -> pa.DataType:
    return column.type.value_type if pa.types.is_dictionary(column.type) else column.type


def _as_ids(values: list[Any], column: Any) -> list[Any]:
    """Returns UUIDs as they are commonly written, whether they have Arrow's type or are their 16 bytes."""
    if column is None:
        return values
    if _plain_type(column) == pa.binary(UUID_BYTES):
        values = [value if value is None else uuid.UUID(bytes=value) for value in values]
    return [str(value) if isinstance(value, uuid.UUID) else value for value in values]
