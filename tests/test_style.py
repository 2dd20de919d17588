"""How tests are written: names that are read at a glance, no clock, no chance that is not seeded, lanes."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

MOST_CHARACTERS = 60
TESTS = Path(__file__).parent
CLOCKS = {"monotonic", "perf_counter", "process_time", "time_ns", "perf_counter_ns", "monotonic_ns"}
GENERATORS = {"Random", "default_rng"}
STARTS = {"start", "start_disturbed", "slurm_tasks"}
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


@cache
def trees() -> dict[Path, ast.Module]:
    """Returns the tests' files as they parse."""
    return {path: ast.parse(path.read_text(encoding="utf-8")) for path in TESTS.rglob("test_*.py")}


def found_in_tests(offends: Callable[[ast.Module], Iterator[int]]) -> list[str]:
    """Returns the lines of the tests that something objects to, as `folder/test_file.py:7`."""
    return [f"{path.relative_to(TESTS)}:{line}" for path, tree in trees().items() for line in offends(tree)]


def test_names_are_at_most_sixty_characters() -> None:
    def long_names(tree: ast.Module) -> Iterator[int]:
        for node in ast.walk(tree):
            name = node.name if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) else ""
            if name.startswith("test_") and len(name) > MOST_CHARACTERS:
                yield node.lineno  # type: ignore[attr-defined]

    assert found_in_tests(long_names) == []


def test_no_assertion_is_about_a_clock() -> None:
    def clocks(tree: ast.Module) -> Iterator[int]:
        for node in ast.walk(tree):
            if isinstance(node, ast.Assert) and any(name in CLOCKS for _, name, _ in calls(node.test)):
                yield node.lineno

    assert found_in_tests(clocks) == []


def test_every_random_choice_is_seeded() -> None:
    def unseeded(tree: ast.Module) -> Iterator[int]:
        for module, name, call in calls(tree):
            if (name in GENERATORS and not call.args) or (module == "random" and name in UNSEEDED):
                yield call.lineno

    assert found_in_tests(unseeded) == []


def test_tests_that_start_processes_are_in_their_lane() -> None:
    def unmarked(tree: ast.Module) -> Iterator[int]:
        marks = [ast.unparse(node) for node in tree.body if isinstance(node, ast.Assign)]
        for node in tree.body:
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                decorated = " ".join(marks + [ast.unparse(decorator) for decorator in node.decorator_list])
                starts = any(
                    module == "subprocess" or (not module and name in STARTS) for module, name, _ in calls(node)
                )
                if starts and not re.search(r"mark\.(processes|gpu)", decorated):
                    yield node.lineno

    assert [line for line in found_in_tests(unmarked) if not line.startswith("test_smoke.py")] == []
