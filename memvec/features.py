"""`datasets.Features` of every table memvec reads or writes, apart from the names of their columns (`memvec.schema`).

Why apart: a program's encoder needs the names, and not the seconds that importing `datasets` takes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import pyarrow as pa
from datasets import Features, List, Value

from memvec.schema import (
    CONVERSATION,
    CONVERSATION_ID,
    DATE,
    DIGEST,
    FILE,
    ID,
    INPUT_IDS,
    LENGTH,
    MESSAGE_END,
    MESSAGE_START,
    NUM_TOKENS,
    PROMPT_DIGEST,
    ROW,
    SHARED,
    SPEAKERS,
    TEXT,
    TRUNCATED,
    VECTOR,
)

# Types that show values which stand elsewhere, with which Arrow can do little, and those that hold them.
VIEWS = {pa.string_view(): pa.string(), pa.binary_view(): pa.binary()}

ENTRY_FEATURES = Features(
    {
        ID: Value("string"),
        TEXT: Value("string"),
        FILE: Value("int32"),  # which input file, as a position in the list of them
        ROW: Value("int64"),  # where in that file: a line number (from 1) for text formats, else a row (from 0)
    }
)

WINDOW_FEATURES = Features(
    {
        **ENTRY_FEATURES,  # the id is the conversation's, a dash, and which of its windows it is, from 0
        CONVERSATION: Value("int64"),  # its row among the usable conversations
        CONVERSATION_ID: Value("string"),
        MESSAGE_START: Value("int32"),  # the window's first message, from 0
        MESSAGE_END: Value("int32"),  # its last message, which belongs to it
        DATE: Value("string"),
        SPEAKERS: List(Value("string")),
    }
)

PROMPT_FEATURES = Features(
    {
        INPUT_IDS: List(Value("int32")),
        LENGTH: Value("int32"),  # tokens
        SHARED: Value("int32"),  # leading tokens in common with the template's own, at most length - 1
        TRUNCATED: Value("bool"),
        DIGEST: List(Value("uint64"), length=2),  # 128 bits of the tokens' content: equal prompts are computed once
    }
)


# What `datasets` marks a feature with, in the place of an object's field.
MARK = "_type"


def kept_features(types: Mapping[str, pa.DataType]) -> Features:
    """Returns the features of columns of an input that are kept, as they are held: a dictionary's values in place.

    Args:
        types: Of the columns, by their names.

    Raises:
        ValueError: A column is of a type that a dataset or a Parquet file cannot hold, such as a map.
    """
    types = {name: VIEWS.get(kind, kind) for name, kind in types.items()}
    for name, kind in types.items():
        try:
            _check_kept(kind)
            Features.from_arrow_schema(pa.schema({name: kind}))
        except ValueError as error:
            raise ValueError(f"column {name!r} of type {kind} cannot be kept: {error}") from error
    return Features.from_arrow_schema(pa.schema(types))


def _check_kept(kind: pa.DataType) -> None:
    if kind in VIEWS or pa.types.is_list_view(kind) or pa.types.is_large_list_view(kind):
        raise ValueError("it holds views")
    if isinstance(kind, pa.BaseExtensionType):  # which a library might decode in ways of its own
        raise ValueError("it is another library's type")
    if pa.types.is_struct(kind) and (MARK in kind.names or not kind.names):
        raise ValueError(f"an object has a field {MARK!r}" if kind.names else "an object has no field in any row")
    for position in range(kind.num_fields):
        _check_kept(kind.field(position).type)


def vector_features(
    *,
    dimension: int,
    integer_ids: bool,
    keep_text: bool,
    kept: Mapping[str, pa.DataType] | None = None,
    columns: Iterable[str] = (VECTOR,),
    dtype: str = "float32",
    has_digests: bool = True,
) -> Features:
    """Returns the features of the finished table.

    Args:
        dimension: D, the length of a vector.
        integer_ids: Whether every id of the input was an integer; then the column is int64, else string.
        keep_text: Whether the `text` column is there.
        kept: Types of the columns of the input that are kept, by their names.
        columns: Of the vectors, one a layer.
        dtype: Of the vectors.
        has_digests: Whether the prompts' digests are there, which an earlier version did not write.
    """
    features = {ID: Value("int64" if integer_ids else "string")}
    if keep_text:
        features[TEXT] = Value("string")
    features |= kept_features(kept or {})
    features |= {name: List(Value(dtype), length=dimension) for name in columns}
    features[NUM_TOKENS] = Value("int32")
    if has_digests:
        features[PROMPT_DIGEST] = Value("string")  # 32 hex digits; equal for equal tokens, whatever the run
    return Features(features)


def memory_features(*, integer_ids: bool, kept: Mapping[str, pa.DataType]) -> Features:
    """Returns the features of `memories.parquet`.

    Args:
        integer_ids: Whether every conversation's id was an integer; then that column is int64, else string.
        kept: Types of the columns of the conversations that are kept, by their names.
    """
    return Features(
        {
            ID: Value("string"),
            TEXT: Value("string"),
            CONVERSATION_ID: Value("int64" if integer_ids else "string"),
            MESSAGE_START: Value("int32"),
            MESSAGE_END: Value("int32"),
            DATE: Value("string"),
            **kept_features(kept),
        }
    )
