"""Outputs in the journal, as the writer puts them there."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from memvec.generation.completions import COMPLETION_SCHEMA
from memvec.generation.parser import Outcome, parse
from memvec.writer.journal import JournalWriter
from tests.helpers.signatures import signature_of


def said(index: int, text: str, **other: Any) -> dict[str, Any]:
    """Returns an output of the first attempt; `other` sets further columns."""
    row = {"index": index, "attempt": 0, "text": text, "num_tokens": len(text) + 1, "is_cut": False}
    return {**row, "outcome": parse(text).outcome.value, **other}


def no_output(index: int, reason: str, *, attempt: int = 0) -> dict[str, Any]:
    """Returns the row of a window about which nothing could be written."""
    row = {"index": index, "attempt": attempt, "num_tokens": 0, "is_cut": False, "reason": reason}
    return {**row, "outcome": Outcome.UNPARSEABLE.value}


def write_frames(journal: Path, *frames: Sequence[dict[str, Any]], rank: int = 0) -> Path:
    """Writes a journal file of a frame each, and returns its path."""
    journal.mkdir(parents=True, exist_ok=True)
    with JournalWriter(journal, rank=rank, signature=signature_of(journal)) as writer:
        for frame in frames:
            writer.append_rows(pa.RecordBatch.from_pylist(list(frame), schema=COMPLETION_SCHEMA))
    return writer.path
