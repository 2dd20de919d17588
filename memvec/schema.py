"""Column names of every table memvec reads or writes, written once (`memvec.features`: their types).

    entries   memory texts that passed validation          (data/dataset.py writes, writer/finalize.py reads)
    prompts   the same rows, tokenised                     (data/datamodule.py writes, data/collator.py reads)
    vectors   what a finished run leaves for its user      (writer/finalize.py writes, `memvec.load` reads)

and, of the earlier stage, conversations -> memory texts:

    windows   pieces of conversations, in the place of entries   (generation/datamodule.py, generation/finalize.py)
    memories  what a finished run leaves for its user            (generation/finalize.py writes, predict reads)

Row `i` of prompts is row `i` of entries: the position is the key everywhere, called `index`.
"""

from __future__ import annotations

from collections.abc import Sequence

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
PROMPT_DIGEST = "prompt_digest"
# What the numbers of a vector may be; Arrow and Parquet have no bfloat16.
VECTOR_DTYPES = ("float32", "float16")

CONVERSATION = "conversation"
CONVERSATION_ID = "conversation_id"
MESSAGE_START = "message_start"
MESSAGE_END = "message_end"
DATE = "date"
SPEAKERS = "speakers"
# Where a memory comes from.
PROVENANCE = (CONVERSATION_ID, MESSAGE_START, MESSAGE_END, DATE)


def is_vector_column(name: str) -> bool:
    """Whether a name is one that a column of vectors may have in a finished table."""
    return name == VECTOR or name.startswith(f"{VECTOR}_")


def is_own_column(name: str) -> bool:
    """Whether a name is one of a finished table's own columns, and not of a column of the input that is kept."""
    return name in (ID, TEXT, NUM_TOKENS, PROMPT_DIGEST) or is_vector_column(name)


def vector_columns(layer: int | Sequence[int]) -> dict[int, str]:
    """Returns the column of each layer's vectors in the finished table: one, or of a list one a layer."""
    return {layer: VECTOR} if isinstance(layer, int) else {each: f"{VECTOR}_{each}" for each in layer}
