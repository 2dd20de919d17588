"""Validation of one row: why it cannot be used, in words.

In: what stood in a row's columns. Out: a reason, or None; and `Rejection`, a line of `rejected.jsonl`.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from typing import Any

from memvec.data.formats.fields import MISSING, Malformed
from memvec.schema import ID, TEXT


@dataclass(frozen=True)
class Rejection:
    """A row that could not be used: where it stood, its id as it was, and why."""

    file: str
    row: int
    id: Any
    reason: str

    def to_json(self) -> str:
        """Returns the line of `rejected.jsonl`; characters that are not UTF-8 are escaped, never written."""
        try:
            return json.dumps(asdict(self), ensure_ascii=True, allow_nan=False, default=repr)
        except ValueError:  # NaN and the infinities are not JSON: other programs would stop at the line
            return replace(self, id=repr(self.id)).to_json()


def reject_reason(
    record_id: Any,
    text: Any,
    *,
    has_ids: bool = True,
    ids_asked: bool = False,
    text_column: str = TEXT,
    id_column: str | None = ID,
) -> str | None:
    """Says why a row cannot be used, or None where it can.

    Args:
        record_id: What stood in the id column, or `MISSING`.
        text: What stood in the text column, or `MISSING`.
        has_ids: Whether the rows of this input have ids; else their row numbers serve.
        ids_asked: Whether that is so because the user named the column.
        text_column: Its name, for the reason.
        id_column: Its name, for the reason.
    """
    if text is MISSING:
        return f"no {text_column!r} field"
    if isinstance(text, Malformed):
        return text.reason
    if text is None:
        return f"{text_column!r} is null"
    if not isinstance(text, str):
        return f"{text_column!r} is of type {type(text).__name__}, not a string"
    if not text.strip():
        return f"{text_column!r} is {'blank' if text else 'empty'}"
    if (at := lone_surrogate(text)) is not None:
        return f"{text_column!r} has a lone surrogate at character {at}, which is not a Unicode text"
    if not has_ids:
        return None
    if record_id is MISSING:
        why = "data.id_column names" if ids_asked else "the first row of the input has"
        return f"no {id_column!r} field, which {why}"
    if record_id is None or record_id == "":
        return f"{id_column!r} is {'null' if record_id is None else 'empty'}"
    if isinstance(record_id, bool) or not isinstance(record_id, int | str):
        return f"{id_column!r} is of type {type(record_id).__name__}, not an integer or a string"
    if isinstance(record_id, str) and lone_surrogate(record_id) is not None:
        return f"{id_column!r} has a lone surrogate"
    return None


def lone_surrogate(text: str) -> int | None:
    """Returns where a text first has half of a surrogate pair, which makes it no Unicode text, or None."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        return error.start
    return None
