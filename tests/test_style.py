"""How tests are written: names that are read at a glance, no clock that decides, no chance that is not seeded."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

MOST_CHARACTERS = 60
TESTS = sorted(path for path in Path(__file__).parent.rglob("test_*.py"))
CLOCKS = {"monotonic", "perf_counter", "process_time", "time_ns", "perf_counter_ns", "monotonic_ns"}
GENERATORS = {"Random", "default_rng"}
UNSEEDED = {"random", "randint", "randrange", "choice", "choices", "shuffle", "sample", "uniform"}


def calls(tree: ast.AST) -> Iterator[tuple[str, str, ast.Call]]:
    """Yields what is called of which module, such as `random`, `choice`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            function = node.func
            if isinstance(function, ast.Attribute) and isinstance(function.value, ast.Name):
                yield function.value.id, function.attr, node
            elif isinstance(function, ast.Name):
                yield "", function.id, node


@pytest.mark.parametrize("path", TESTS, ids=lambda path: path.stem)
def test_names_are_at_most_sixty_characters(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    names = [node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    assert [name for name in names if name.startswith("test_") and len(name) > MOST_CHARACTERS] == []


@pytest.mark.parametrize("path", TESTS, ids=lambda path: path.stem)
def test_no_assertion_is_about_a_clock(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    asserted = [node for node in ast.walk(tree) if isinstance(node, ast.Assert)]
    assert [node.lineno for node in asserted for _, name, _ in calls(node.test) if name in CLOCKS] == []


@pytest.mark.parametrize("path", TESTS, ids=lambda path: path.stem)
def test_every_random_choice_is_seeded(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found = [
        node.lineno
        for module, name, node in calls(tree)
        if (name in GENERATORS and not node.args and not node.keywords) or (module == "random" and name in UNSEEDED)
    ]
    assert found == []
