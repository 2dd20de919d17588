"""What a finished run came to: the manifest and metrics it leaves, and the lines it closes with."""

from __future__ import annotations

import platform
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Any, ClassVar, Generic, TypeVar

from memvec import __version__
from memvec.fields import JsonObject
from memvec.files import read_json, write_json
from memvec.run.folder import RunFolder
from memvec.run.manifest import Manifest, known_of, read_manifest
from memvec.run.parts import check_parts, part_rows
from memvec.writer.finalize import Counts

LIBRARIES = ("torch", "lightning", "transformers", "tokenizers", "datasets", "pyarrow", "numpy")
# So many runs whose vectors were taken are named in one line.
RUNS_SHOWN = 3

Counted = TypeVar("Counted")


@dataclass(frozen=True)
class FinishedRun(Generic[Counted]):
    """A finished run, whatever its rows are.

    Args:
        folder: Where it lies.
        manifest: Content of `manifest.json`.
        metrics: Content of `metrics.json`.
    """

    kind: ClassVar[type[Any]]  # of `counts`, a dataclass of integers

    folder: RunFolder
    manifest: dict[str, Any] = field(repr=False)
    metrics: dict[str, Any] = field(repr=False)

    @property
    def known(self) -> Manifest:
        """What memvec reads of the manifest.

        Raises:
            RunFolderError: It is damaged.
        """
        return known_of(self._content)

    @property
    def numbers(self) -> JsonObject:
        """The metrics, each taken by its name."""
        return JsonObject(self.folder.metrics, self.metrics)

    @property
    def counts(self) -> Counted:
        """What became of the rows."""
        counts = self._content.within("counts")
        found: Counted = self.kind(**{one.name: counts.take(one.name, int) for one in fields(self.kind)})
        return found

    @property
    def computed(self) -> str:
        """How batches were computed, in words."""
        return self._content.take("notes.path", str)

    @property
    def _content(self) -> JsonObject:
        return JsonObject(self.folder.manifest, self.manifest)

    @property
    def reused(self) -> dict[str, int]:
        """How many vectors were taken from which finished run; none in a manifest of an earlier version."""
        notes = self._content.within("notes")
        return notes.within("reused").take_all(int) if notes.has("reused") else {}

    def id_lines(self) -> list[str]:
        """Returns the line that says where ids come from; none of a run that did not record it."""
        ids = self.manifest["notes"].get("ids")
        return [] if ids is None else [f"ids        {ids}"]


class RunSummary(FinishedRun[Counts]):
    """A finished run of vectors."""

    kind = Counts

    def lines(self) -> list[str]:
        """Returns the closing summary."""
        counts, numbers, known = self.counts, self.numbers, self.known
        where = "each" if isinstance(known.layer, int) else f"at each of {len(known.layer)} layers"
        rejected = f"{counts.rejected:,}" + (f" (why: {self.folder.rejected})" if counts.rejected else "")
        tokens, entries = (numbers.take(f"{name}_per_second", float) for name in ("tokens", "entries"))
        speed = f"{tokens:,.0f} ({entries:,.1f} entries/s; {self.computed})"
        reused, computed = self.reused, numbers.take("computed_entries", int)
        if computed < counts.unique - sum(reused.values()):
            speed += f", over the {computed:,} computed since the run was resumed"
        elif reused:
            speed += f", over the {computed:,} computed"
        return [
            f"entries    {counts.entries:,} ({counts.unique:,} different) of {counts.dimension} numbers {where}",
            *self.id_lines(),
            f"rejected   {rejected}",
            f"truncated  {counts.truncated:,}",
            *reused_lines(reused),
            f"tokens/s   {speed}",
            f"vectors    {self.folder.vectors}",
        ]


def reused_lines(reused: dict[str, int]) -> list[str]:
    """Returns the line that says how many vectors were taken from which finished run; none where none were."""
    if len(reused) > RUNS_SHOWN:
        return [f"reused     {sum(reused.values()):,} from {len(reused)} runs"]
    return [f"reused     {', '.join(f'{rows:,} from {name}' for name, rows in reused.items())}"] if reused else []


Summary = TypeVar("Summary", bound=FinishedRun[Any])


def write_summary(
    folder: RunFolder,
    summary: type[Summary],
    *,
    counts: Any,
    config: dict[str, Any],
    metrics: dict[str, Any],
    notes: dict[str, Any],
) -> Summary:
    """Writes `metrics.json`, then `manifest.json`, with which the run is complete.

    Args:
        folder: The run's folder; its results are written.
        summary: The class of what is returned.
        counts: What became of the rows, as a dataclass.
        config: The configuration, resolved.
        metrics: For `metrics.json`.
        notes: What the run found out about itself (the prefix shared, the path taken), for the manifest.
    """
    manifest = {
        "fingerprint": read_json(folder.fingerprint),
        "counts": asdict(counts),
        "parts": part_rows(folder),
        "notes": notes,
        "config": config,
        "versions": {"python": platform.python_version(), "memvec": __version__, **_versions(LIBRARIES)},
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    write_json(folder.metrics, metrics)
    write_json(folder.manifest, manifest)
    return summary(folder, manifest, metrics)


def _versions(distributions: Iterable[str]) -> dict[str, str]:
    """Returns the versions of those packages that are installed, and not just put on the path."""
    found = {}
    for name in distributions:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def read_summary(folder: RunFolder, summary: type[Summary]) -> Summary:
    """Reads what a finished run left, as the given class.

    Raises:
        RunFolderError: A file of it is missing or damaged.
    """
    check_parts(folder, read_manifest(folder))
    return summary(folder, JsonObject.read(folder.manifest).content, JsonObject.read(folder.metrics).content)
