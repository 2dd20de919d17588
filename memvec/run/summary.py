"""What a finished run came to: the manifest and metrics it leaves, and the lines it closes with."""

from __future__ import annotations

import platform
from dataclasses import asdict, dataclass, field, fields
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any, TypeVar, cast

from memvec.fields import JsonObject
from memvec.files import read_json, write_json
from memvec.run.folder import RunFolder
from memvec.run.manifest import Manifest, known_of, read_manifest
from memvec.run.parts import check_parts, part_rows
from memvec.writer.finalize import Counts

LIBRARIES = ("memvec", "torch", "lightning", "transformers", "tokenizers", "datasets", "pyarrow", "numpy")
# So many runs whose vectors were taken are named in one line.
RUNS_SHOWN = 3

Numbers = TypeVar("Numbers")


@dataclass(frozen=True)
class RunSummary:
    """A finished run.

    Args:
        folder: Where it lies.
        manifest: Content of `manifest.json`.
        metrics: Content of `metrics.json`.
    """

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
    def counts(self) -> Counts:
        """What became of the rows."""
        return self.counts_as(Counts)

    def counts_as(self, kind: type[Numbers]) -> Numbers:
        """Returns the manifest's counts as a dataclass of integers."""
        counts = self._content.within("counts")
        return kind(**{one.name: counts.take(one.name, int) for one in fields(cast(Any, kind))})

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


def write_summary(
    folder: RunFolder,
    *,
    counts: Any,
    config: dict[str, Any],
    metrics: dict[str, Any],
    notes: dict[str, Any],
    summary: type[RunSummary] = RunSummary,
) -> RunSummary:
    """Writes `metrics.json`, then `manifest.json`, with which the run is complete.

    Args:
        folder: The run's folder; its results are written.
        counts: What became of the rows, as a dataclass.
        config: The configuration, resolved.
        metrics: For `metrics.json`.
        notes: What the run found out about itself (the prefix shared, the path taken), for the manifest.
        summary: The class of what is returned.
    """
    manifest = {
        "fingerprint": read_json(folder.fingerprint),
        "counts": asdict(counts),
        "parts": part_rows(folder),
        "notes": notes,
        "config": config,
        "versions": {"python": platform.python_version(), **{name: version(name) for name in LIBRARIES}},
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    write_json(folder.metrics, metrics)
    write_json(folder.manifest, manifest)
    return summary(folder, manifest, metrics)


def read_summary(folder: RunFolder, summary: type[RunSummary] = RunSummary) -> RunSummary:
    """Reads what a finished run left, as the given class.

    Raises:
        RunFolderError: A file of it is missing or damaged.
    """
    check_parts(folder, read_manifest(folder))
    return summary(folder, JsonObject.read(folder.manifest).content, JsonObject.read(folder.metrics).content)
