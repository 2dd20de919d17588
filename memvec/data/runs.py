"""Leaves folders of runs out of what a folder or glob names.

In: paths of data files. Out: those that no run has written.

Why: a run whose folder lies in the one that it reads would find its own results there when it resumes.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

from memvec.errors import InputError
from memvec.layout import RunLayout

log = logging.getLogger(__name__)


def _is_run(folder: Path) -> bool:
    return RunLayout(folder).holds_run


def outside_runs(
    files: Sequence[Path], *, root: Path, name: str, is_run: Callable[[Path], bool] = _is_run
) -> list[Path]:
    """Returns the files that do not lie in a run's folder below `root`.

    Args:
        files: Paths below `root`.
        root: What the user has named, a pattern's up to its first wildcard: it may be in a run's folder itself.
        name: What messages call the input.
        is_run: Whether a folder is a run's; asked once of each.

    Raises:
        InputError: None is left.
    """
    holds_run = cache(is_run)
    runs: set[Path] = set()
    kept = []
    for path in files:
        below = path.relative_to(root).parents
        inside = {root / folder for folder in below if folder != Path() and holds_run(root / folder)}
        runs |= inside
        if not inside:
            kept.append(path)
    if runs:
        found = ", ".join(sorted(map(str, runs))[:3])
        log.info("%s: what runs have written is not read (%s)", name, found)
        if not kept:
            only = f"holds only what runs have written ({found})"
            raise InputError(name, found=only, advice="to read that, name a file of it")
    return kept
