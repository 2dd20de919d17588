"""The command line, as real processes: what goes wrong is said in one line, and a good run closes with its summary."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import memvec
from tests.fixtures import TEXTS
from tests.helpers.processes import SECONDS_TO_START, start

pytestmark = pytest.mark.processes

Done = subprocess.CompletedProcess[str]

HYDRA_ADVICE = ("HYDRA_FULL_ERROR", "To append to your config", "full_key", "Error executing job", "hydra.verbose")
SUMMARY = ["entries", "ids", "rejected", "truncated", "tokens/s", "vectors"]

# What is typed, what the line has to name, and the exit code: 2 for the configuration, 1 for all else.
WRONG: dict[str, tuple[list[str], list[str], int]] = {
    "a misspelt override": (["data.batchsize=3"], ["batchsize"], 2),
    "an option that a group has not": (["prompt=one_token_fr"], ["prompt", "one_token_fr", "one_word_en"], 2),
    "a model folder that is not there": (["model.name_or_path=./no-model"], ["model.name_or_path=./no-model"], 1),
    "an input file that is not there": (["data.path=missing.jsonl"], ["missing.jsonl", "no such file"], 1),
    "a folder of something else": (["output_dir=photos"], ["photos", "holiday.jpg"], 1),
    "a file in the folder's place": (
        ["output_dir=memories.jsonl"],
        ["output_dir", "cannot be made", "memories.jsonl"],
        1,
    ),
    "a folder that cannot be made": (["output_dir=/proc/x"], ["output_dir", "cannot be made", "/proc/x"], 1),
    "an address as the run's folder": (["output_dir=s3://bucket/run"], ["s3://bucket/run", "publish="], 2),
    "a place to publish in the run's own folder": (
        ["output_dir=out/own", "publish=out/own/b"],
        ["publish=out/own/b"],
        2,
    ),
    "a sweep that is to be published": (
        ["hydra.mode=MULTIRUN", "data.batch_size=1,2", "publish=s3://bucket/a,s3://bucket/b"],
        ["publish=s3://bucket/a,s3://bucket/b", "every job of a sweep"],
        2,
    ),
    "a password in an address": (["data.path=s3://ann:word@bucket/a.jsonl"], ["data.path=s3://…@bucket/a.jsonl"], 2),
    "devices that are no number": (["trainer.devices=abc"], ["trainer.devices=abc"], 2),
    "a batch size of zero": (["data.batch_size=0"], ["data.batch_size=0", "at least 1"], 2),
    "a template without its field": (["prompt.template=summarise"], ["prompt.template", "{text}"], 2),
    "a template that is typed as it stands": (
        ['prompt.template=Say "{text}" as {one} word: ', "model.layer=99"],
        ["model.layer=99"],
        2,
    ),
    "a value that Hydra cannot read": (
        ["trainer.precision=16=true"],
        ["trainer.precision=16=true", "\"trainer.precision='16=true'\""],
        2,
    ),
    "a word that is no override": (["data.path=my", "file.jsonl"], ["file.jsonl", "NAME=VALUE"], 2),
    "an override that is typed as a flag": (["--data.limit=3"], ["--data.limit=3", "data.limit=3"], 2),
    "a list of text columns": (["data.text_column=[text,id]"], ["data.text_column=['text', 'id']", "one name"], 2),
    "an id column that no row has": (["data.id_column=key"], ["'key'", "data.id_column"], 1),
    "a split that is not there": (["data.split=dev"], ["'dev'", "data.split"], 1),
    "an encoding that there is not": (["data.encoding=utf9"], ["data.encoding=utf9", "utf-8"], 2),
    "a strategy that is unknown": (["trainer.strategy=dpp"], ["strategy", "dpp"], 2),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("cli")
    rows = [{"id": n, "text": text} for n, text in enumerate([*TEXTS, " "])]
    (root / "memories.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    (root / "photos").mkdir()
    (root / "photos" / "holiday.jpg").touch()
    return root


@pytest.fixture(scope="module")
def runs(folder: Path, llama: Path) -> dict[str, Done]:
    """Runs every command of this file."""
    command = [sys.executable, "-m", "memvec.predict"]
    good = [
        *("data.path=memories.jsonl", "model=hub", f"model.name_or_path={llama}", "trainer.accelerator=cpu"),
        *("trainer.devices=1", "trainer.enable_progress_bar=false"),
    ]
    processes = {
        "a good run": start([*command, *good], folder=folder, fresh=True),
        "help": start([*command, "--help"], folder=folder, fresh=True),
    }
    for name, (arguments, _, _) in WRONG.items():
        has_folder = any(argument.startswith("output_dir") for argument in arguments)
        output = [] if has_folder else [f"output_dir=out/{name.replace(' ', '-')}"]
        processes[name] = start([*command, *good, *output, *arguments], folder=folder)
    runs = {}
    for name, process in processes.items():
        out, err = process.communicate(timeout=SECONDS_TO_START)
        assert process.returncode is not None
        runs[name] = Done(process.args, process.returncode, out, err)
    return runs


@pytest.mark.parametrize("wrong", WRONG)
def test_what_is_wrong_is_said_in_one_line(wrong: str, runs: dict[str, Done]) -> None:
    _, named, code = WRONG[wrong]
    done = runs[wrong]
    lines = done.stderr.splitlines()
    assert [line for line in lines if line.startswith("memvec:")] == lines[-1:], done.stderr
    assert lines[-1].startswith("memvec: error: ")
    for word in named:
        assert word in lines[-1]
    assert done.returncode == code
    assert "Traceback" not in done.stderr + done.stdout


@pytest.mark.parametrize("name", [*WRONG, "a good run", "help"])
def test_no_advice_of_hydra_is_shown(name: str, runs: dict[str, Done]) -> None:
    for advice in HYDRA_ADVICE:
        assert advice not in runs[name].stderr + runs[name].stdout


@pytest.mark.parametrize("name", [*WRONG, "a good run"])
def test_nothing_but_what_the_user_needs_is_shown(name: str, runs: dict[str, Done]) -> None:
    for noise in ("Warning:", "litlogger", "rank_zero_warn"):
        assert noise not in runs[name].stderr + runs[name].stdout


def test_a_wrong_command_leaves_no_run_behind(folder: Path, runs: dict[str, Done]) -> None:
    assert runs
    assert [path for path in (folder / "out").rglob("*") if path.is_file()] == []
    assert [path.name for path in (folder / "photos").iterdir()] == ["holiday.jpg"]


def test_help_names_the_overrides_and_the_choices_of_the_groups(runs: dict[str, Done]) -> None:
    done = runs["help"]
    assert done.returncode == 0
    assert done.stderr == ""
    for override in ("data.path", "data.max_tokens", "model.layer", "trainer.devices", "output_dir", "resume"):
        assert re.search(rf"^ *{re.escape(override)}  ", done.stdout, re.MULTILINE)
    assert re.search(r"^prompt: .*one_token_zh", done.stdout, re.MULTILINE)


def test_a_good_run_closes_with_its_summary(runs: dict[str, Done]) -> None:
    done = runs["a good run"]
    assert done.returncode == 0, done.stderr
    closing = done.stdout.splitlines()[-6:]
    assert [line.split()[0] for line in closing] == SUMMARY
    assert closing[0].split()[1] == "12"
    assert closing[1].split(maxsplit=1)[1] == "column 'id'"
    assert closing[2].split()[1] == "1"


def test_the_default_folder_is_named_by_date_and_time(folder: Path, runs: dict[str, Done]) -> None:
    vectors = Path(runs["a good run"].stdout.splitlines()[-1].removeprefix("vectors").strip())
    relative = vectors.relative_to(folder).as_posix()
    assert re.fullmatch(r"outputs/\d{4}-\d\d-\d\d/\d\d-\d\d-\d\d/vectors", relative)
    assert len(memvec.load(vectors.parent)) == 12
    assert not [path for path in vectors.parent.rglob("*") if path.name in (".hydra", "predict.log")]


def test_the_result_is_what_the_program_gives(
    folder: Path, runs: dict[str, Done], tiny_config: Callable[..., object], tmp_path: Path
) -> None:
    vectors = Path(runs["a good run"].stdout.splitlines()[-1].removeprefix("vectors").strip())
    memvec.predict(tiny_config(folder / "memories.jsonl"))  # type: ignore[arg-type]
    expected = memvec.load(tmp_path / "run")
    dataset = memvec.load(vectors.parent)
    assert dataset["id"][:].tolist() == expected["id"][:].tolist()
    assert (dataset["vector"][:] - expected["vector"][:]).abs().max() < 1e-5
