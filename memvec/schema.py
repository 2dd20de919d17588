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

CONVERSATION = "conversation"
CONVERSATION_ID = "conversation_id"
MESSAGE_START = "message_start"
MESSAGE_END = "message_end"
DATE = "date"
SPEAKERS = "speakers"
# Where a memory comes from.
PROVENANCE = (CONVERSATION_ID, MESSAGE_START, MESSAGE_END, DATE)


def is_own_column(name: str) -> bool:
    """Whether a name is one of a finished table's own columns, and not of a column of the input that is kept."""
    return name in (ID, TEXT, VECTOR, NUM_TOKENS, PROMPT_DIGEST) or name.startswith(f"{VECTOR}_")
