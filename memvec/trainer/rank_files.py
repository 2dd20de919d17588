"""What every rank of a run leaves for the first one: a small JSON file of each kind in the journal's folder.

In: what a rank has found out. Out: what all of them have, in order of rank. Why files and not a collective: spawned and
remote ranks end before the first one goes on, and a file outlives them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from memvec.fields import JsonObject
from memvec.files import write_json


class RankFiles:
    """The files of one kind.

    Args:
        journal: The journal's folder.
        kind: Such as `metrics`.
    """

    def __init__(self, journal: Path, kind: str) -> None:
        self.journal = journal
        self.kind = kind

    def write(self, rank: int, content: dict[str, Any]) -> None:
        """Writes a rank's file, in place of the one it has written before."""
        write_json(self._path(rank), content)

    def read(self, rank: int) -> JsonObject | None:
        """Returns what a rank has written, or None."""
        path = self._path(rank)
        return JsonObject.read(path) if path.exists() else None

    def read_all(self) -> list[JsonObject]:
        """Returns what all ranks have written, in order."""
        return [JsonObject.read(path) for path in self._paths()]

    def forget(self) -> None:
        """Removes what an earlier attempt has left, so that a run's numbers are those of the attempt that ended it."""
        for path in self._paths():
            path.unlink()

    def _path(self, rank: int) -> Path:
        return self.journal / f"{self.kind}-rank-{rank:05d}.json"

    def _paths(self) -> list[Path]:
        return sorted(self.journal.glob(f"{self.kind}-rank-*.json"))
