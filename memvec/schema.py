"""Column names and `datasets.Features` of every table memvec reads or writes, written once.

    entries   memory texts that passed validation          (data/dataset.py writes, writer/finalize.py reads)
    prompts   the same rows, tokenised                     (data/datamodule.py writes, data/collator.py reads)
    vectors   what a finished run leaves for its user      (writer/finalize.py writes, `memvec.load` reads)

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
NUM_TOKENS = "num_tokens"

ENTRY_FEATURES = Features(
    {
        ID: Value("string"),
        TEXT: Value("string"),
        FILE: Value("int32"),  # which input file, as a position in the list of them
        ROW: Value("int64"),  # where in that file: a line number (from 1) for text formats, else a row (from 0)
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
