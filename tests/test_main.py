"""The command `memvec` lists its commands at once, and runs each as `python -m memvec.<command>` does."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

import memvec
from memvec.__main__ import COMMANDS
from memvec.files import read_json
from tests.helpers.processes import arguments, finish, start, write_texts

# What may be imported before a task begins: Hydra with what it needs, or tries (`org`, by `copy`; `attr`).
COMPOSING = {"memvec", "hydra", "omegaconf", "antlr4", "yaml", "_yaml", "packaging", "attr", "org"}
# Packages that only some runs need, but for those that torchmetrics imports where they are.
EXTRAS = {"peft", "sklearn", "faiss", "duckdb", "openai", "s3fs", "gcsfs", "adlfs", "ray", "joblib", "submitit"}
SCRIPT = "import sys; from memvec.__main__ import script; sys.argv[0] = 'memvec'; script()"


def run(*arguments: str, folder: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Runs the function that `pip install` makes the command of."""
    return subprocess.run(
        [sys.executable, "-c", SCRIPT, *arguments], capture_output=True, text=True, cwd=folder, check=False
    )


@pytest.mark.parametrize("arguments", [(), ("--help",), ("-h",)])
def test_it_lists_its_commands(arguments: tuple[str, ...]) -> None:
    done = run(*arguments)
    assert (done.returncode, done.stderr) == (0, "")
    for command in COMMANDS:
        assert f"\n  {command} " in done.stdout
        assert (Path(memvec.__file__).parent / f"{command}.py").is_file()


def by_module(command: str, *arguments: str) -> list[str]:
    return [sys.executable, "-m", f"memvec.{command}", *arguments]


def by_command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "memvec.__main__", *arguments]


def imported_by(command: Sequence[str]) -> tuple[int, set[str]]:
    """Returns the exit code of a command line, and the packages it imports, but for those of Python and its site."""
    python, *others = command
    done = subprocess.run([python, "-X", "importtime", *others], capture_output=True, text=True, check=False)
    _, _, behind_site = done.stderr.partition("| site\n")  # which Python imports first
    modules = re.findall(r"^import time:.*\| +([\w.]+)$", behind_site, re.MULTILINE)
    return done.returncode, {module.partition(".")[0] for module in modules} - sys.stdlib_module_names


@pytest.mark.parametrize("arguments", [[], ["--version"]])
def test_the_list_of_commands_imports_no_package(arguments: list[str]) -> None:
    assert imported_by(by_command(*arguments)) == (0, {"memvec"})


@pytest.mark.processes
@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("by", [by_module, by_command])
def test_help_imports_what_composes_and_no_more(by: Callable[..., list[str]], command: str) -> None:
    code, packages = imported_by(by(command, "--help"))
    assert code == 0
    assert packages <= COMPOSING


def test_a_command_is_imported_without_its_parts() -> None:
    modules = ", ".join(f"memvec.{command}" for command in COMMANDS)
    assert imported_by([sys.executable, "-c", f"import {modules}"])[1] <= COMPOSING


@pytest.mark.processes
def test_what_tasks_import_needs_no_extra() -> None:
    parts = "import memvec.run.build, memvec.generation.build, memvec.retrieval.evaluation"
    code, packages = imported_by([sys.executable, "-c", parts])
    assert code == 0
    assert not packages & EXTRAS


@pytest.mark.processes
@pytest.mark.parametrize(
    ("command", "typed"),
    [
        ("predict", "data.batchsize=3"),
        ("generate", "generation=facts_fr"),
        ("extract", "--data.limit=3"),
        ("search", "-m"),
        ("evaluate", "querys=a.jsonl"),
        ("report", "layer=3"),
    ],
)
def test_a_misspelt_override_waits_for_no_more(command: str, typed: str) -> None:
    code, packages = imported_by(by_module(command, typed, *["x"] * (command == "report")))
    assert code == 2
    assert packages <= COMPOSING


@pytest.mark.parametrize(
    ("typed", "advice"),
    [
        ("predcit", "did you mean predict? (memvec --help lists them)"),
        (
            "data.path=a.jsonl",
            "allowed: predict, generate, extract, search, evaluate, report; memvec --help lists them",
        ),
        ("se\x1b[31march", "did you mean search? (memvec --help lists them)"),
    ],
)
def test_a_command_that_is_none_is_one_line(typed: str, advice: str) -> None:
    done = run(typed, "data.limit=3")
    assert (done.returncode, done.stdout) == (2, "")
    shown = typed.replace("\x1b", "\\x1b")
    assert done.stderr == f"memvec: error: {shown}: no such command; {advice}\n"


@pytest.mark.processes
def test_python_m_memvec_is_the_same() -> None:
    command = [sys.executable, "-m", "memvec", "--version"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == run("--version").stdout == f"memvec {memvec.__version__}\n"


@pytest.mark.processes
def test_what_it_starts_imports_from_where_it_does(tmp_path: Path) -> None:
    """A folder with a `memvec` of its own, in which the command is typed, gives its ranks no other one."""
    (tmp_path / "memvec").mkdir()
    (tmp_path / "memvec" / "__init__.py").write_text("raise SystemExit('another memvec')")
    script = f"{SCRIPT.replace('script()', '')}import os, subprocess; sys.argv[1:] = ['--version']; script()\n"
    script += "subprocess.run([sys.executable, '-m', 'memvec', '--version'], check=True)"
    inherited = {name: value for name, value in os.environ.items() if name != "PYTHONSAFEPATH"}
    environment = {**inherited, "PYTHONPATH": str(Path(memvec.__file__).parent.parent)}
    command = [sys.executable, "-P", "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment, check=False)
    assert done.stdout == f"memvec {memvec.__version__}\n" * 2, done.stderr


@pytest.mark.parametrize(
    ("command", "typed", "code"),
    [
        ("predict", ["--help"], 0),
        ("predict", ["--cfg", "job", "prompt=one_word_en"], 0),
        ("predict", ["data.batchsize=3"], 2),
        ("predict", ["data.path=missing.jsonl", "output_dir=run"], 1),
        ("generate", ["--help"], 0),
        ("extract", ["--cfg", "job"], 0),
        ("search", ["output_dir=nothing", "query=tea"], 1),
        ("search", ["-m", "query=tea"], 2),
        ("evaluate", ["--help"], 0),
        ("report", ["--help"], 0),
        ("report", ["nothing"], 1),
    ],
)
@pytest.mark.processes
def test_a_command_does_what_its_module_does(command: str, typed: list[str], code: int, tmp_path: Path) -> None:
    started = [start(by(command, *typed), folder=tmp_path) for by in (by_module, by_command)]
    said = [process.communicate() for process in started]
    assert [process.returncode for process in started] == [code, code]
    assert said[0] == said[1]


@pytest.mark.processes
def test_a_sweep_of_several_ranks_is_started_by_the_command(llama: Path, tmp_path: Path) -> None:
    path = write_texts(tmp_path / "memories.jsonl", 20)
    options = arguments(path, tmp_path / "sweep", llama, "trainer.strategy=ddp", "trainer.devices=2")[3:]
    code, said = finish(start(by_command("predict", "-m", *options, "data.batch_size=4")))
    assert code == 0, said
    assert read_json(tmp_path / "sweep/0/metrics.json")["ranks"] == 2
    assert len(memvec.load(tmp_path / "sweep/0")) == 20
