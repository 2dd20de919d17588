"""With what tests sign frames: as the rows that are prepared in a run's folder, or where there is no run, as `MINE`."""

from __future__ import annotations

from pathlib import Path

from memvec.data.prepared import Signature, read_signature
from memvec.layout import RunLayout

MINE = Signature(b"this run" * 2, b"its rows" * 2)
ANOTHER_RUN = Signature(b"another " * 2, b"its rows" * 2)


def signature_of(journal: Path) -> Signature:
    """Returns what signs the frames in a journal's folder."""
    layout = RunLayout(journal.parent)
    return read_signature(layout) if journal.name == "journal" and layout.prepared.exists() else MINE
