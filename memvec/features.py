"""`datasets.Features` of every table memvec reads or writes, apart from the names of their columns (`memvec.schema`).

Why apart: a program's encoder needs the names, and not the seconds that importing `datasets` takes.
"""

from __future__ import annotations

from collections.abc import Iterable

from datasets import Features, List, Value

from memvec.schema import (
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
    ROW,
    SHARED,
    SPEAKERS,
    TEXT,
    TRUNCATED,
    VECTOR,
)

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


def vector_features(
    *, dimension: int, integer_ids: bool, keep_text: bool, columns: Iterable[str] = (VECTOR,), dtype: str = "float32"
) -> Features:
    """Returns the features of the finished table.

    Args:
        dimension: D, the length of a vector.
        integer_ids: Whether every id of the input was an integer; then the column is int64, else string.
        keep_text: Whether the `text` column is there.
        columns: Of the vectors, one a layer.
        dtype: Of the vectors.
    """
    features = {ID: Value("int64" if integer_ids else "string")}
    if keep_text:
        features[TEXT] = Value("string")
    features |= {name: List(Value(dtype), length=dimension) for name in columns}
    features[NUM_TOKENS] = Value("int32")
    return Features(features)


def memory_features(*, integer_ids: bool) -> Features:
    """Returns the features of `memories.parquet`.

    Args:
        integer_ids: Whether every conversation's id was an integer; then that column is int64, else string.
    """
    return Features(
        {
            ID: Value("string"),
            TEXT: Value("string"),
            CONVERSATION_ID: Value("int64" if integer_ids else "string"),
            MESSAGE_START: Value("int32"),
            MESSAGE_END: Value("int32"),
            DATE: Value("string"),
        }
    )
