"""Column names and `datasets.Features` of every table memvec reads or writes, written once.

    entries   memory texts that passed validation          (data/dataset.py writes, writer/finalize.py reads)
    prompts   the same rows, tokenised                     (data/datamodule.py writes, data/collator.py reads)
    vectors   what a finished run leaves for its user      (writer/finalize.py writes, `memvec.load` reads)

and, of the earlier stage, conversations -> memory texts:

    windows   pieces of conversations, in the place of entries   (generation/datamodule.py, generation/finalize.py)
    memories  what a finished run leaves for its user            (generation/finalize.py writes, predict reads)

Row `i` of prompts is row `i` of entries: the position is the key everywhere, called `index`.
"""

from __future__ import annotations

from datasets import Features, List, Value

ID = "id"
TEXT = "text"
FILE = "file"
ROW = "row"

INDEX = "index"
INPUT_IDS = "input_ids"
LENGTH = "length"
SHARED = "shared"
TRUNCATED = "truncated"
DIGEST = "digest"

VECTOR = "vector"
REASON = "reason"
NUM_TOKENS = "num_tokens"

CONVERSATION_ID = "conversation_id"
MESSAGE_START = "message_start"
MESSAGE_END = "message_end"
DATE = "date"
SPEAKERS = "speakers"

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


def vector_features(*, dimension: int, integer_ids: bool, keep_text: bool) -> Features:
    """Returns the features of the finished table.

    Args:
        dimension: D, the length of a vector.
        integer_ids: Whether every id of the input was an integer; then the column is int64, else string.
        keep_text: Whether the `text` column is there.
    """
    columns = {ID: Value("int64" if integer_ids else "string")}
    if keep_text:
        columns[TEXT] = Value("string")
    columns[VECTOR] = List(Value("float32"), length=dimension)
    columns[NUM_TOKENS] = Value("int32")
    return Features(columns)


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
