"""Rooms import only downwards, so that every part can be read without what uses it."""

from __future__ import annotations

import ast
from pathlib import Path

import memvec

PACKAGE = Path(memvec.__file__).parent
# From the ground up; a name is a folder, or files of the package itself.
FLOORS: list[set[str]] = [
    {
        "errors",
        "urls",
        "schema",
        "files",
        "fields",
        "units",
        "digest",
        "features",
        "extras",
        "table",
        "quiet",
        "layout",
        "process",
        "streams",
    },
    {"cache", "remote"},
    {"config"},
    {"prompt"},
    {"data"},
    {"model"},
    {"writer"},
    {"trainer"},
    {"encoder", "encoding"},
    {"run"},
    {"generation"},
    {"sweep"},
    {"retrieval"},
    {"page"},
    {"predict", "generate", "extract", "search", "evaluate", "report", "cli", "__main__"},
]
FLOOR = {room: height for height, rooms in enumerate(FLOORS) for room in rooms}


def imported(path: Path) -> set[str]:
    """Returns the rooms that a module imports from, wherever in it it does."""
    rooms = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module is not None and node.module.split(".")[0] == "memvec":
            names = [node.module] if node.module != "memvec" else [f"memvec.{alias.name}" for alias in node.names]
            rooms |= {name.split(".")[1] for name in names}
        elif isinstance(node, ast.Import):
            rooms |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith("memvec.")}
    return rooms


def test_rooms_import_only_downwards() -> None:
    upward = []
    for path in sorted(PACKAGE.rglob("*.py")):
        room = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        if room == "__init__":  # the package itself, which hands out names when they are asked for
            continue
        assert room in FLOOR, f"{path}: on which floor is {room}?"
        upward += [f"{path.name} -> {other}" for other in imported(path) if FLOOR.get(other, 0) > FLOOR[room]]
    assert upward == []


def test_a_group_of_conf_has_a_room_and_a_test_folder() -> None:
    conf = PACKAGE.parent / "conf"
    tests = Path(__file__).parent
    for group in (path.name for path in conf.iterdir() if path.is_dir()):
        if group not in ("experiment", "launch"):  # settings of several groups at a time
            assert (PACKAGE / group).is_dir()
            assert (tests / group).is_dir()
