"""The user's cache: where it lies, who may read it, what goes from it."""

from __future__ import annotations

import os
import stat
import time
from pathlib import Path

import pytest

from memvec.cache import SECONDS_UNUSED, cache_folder, drop_unused, mark_used, private_shelf


def test_the_cache_is_the_users_unless_one_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("MEMVEC_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert cache_folder() == tmp_path / ".cache" / "memvec"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "memvec"
    monkeypatch.setenv("MEMVEC_CACHE", "~/models")
    assert cache_folder() == tmp_path / "models"


def test_a_shelf_is_its_owners_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEMVEC_CACHE", str(tmp_path / "cache"))
    shelf = private_shelf("inputs")
    assert shelf == tmp_path / "cache" / "inputs"
    assert stat.S_IMODE(shelf.stat().st_mode) == 0o700


def test_what_nobody_used_for_two_weeks_goes(tmp_path: Path) -> None:
    long_ago = time.time() - SECONDS_UNUSED - 60
    for name in ("old", "used"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "data.jsonl").touch()
        os.utime(tmp_path / name, (long_ago, long_ago))
    (tmp_path / "new.json").touch()
    mark_used(tmp_path / "used")
    drop_unused(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new.json", "used"]
