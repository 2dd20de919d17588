"""Evaluation of a run and of a sweep: its files, its lines, and what it refuses."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from omegaconf import DictConfig

import memvec
from memvec.errors import ConfigError, InputError, RunFolderError
from memvec.evaluate import evaluate
from memvec.files import read_json
from memvec.retrieval.comparison import by_layer
from memvec.retrieval.measures import MEASURES
from tests.fixtures import TEXTS
from tests.helpers.configs import compose
from tests.helpers.processes import finish, start
from tests.helpers.refusals import refused

DIFFERENT = list(dict.fromkeys(TEXTS))


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    """Every text asks for itself, but the last, which asks for the first."""
    rows = [{"query": text, "relevant": [f"m/{row}"], "within": "m/"} for row, text in enumerate(DIFFERENT)]
    rows[-1]["relevant"] = ["m/0"]
    path = tmp_path / "questions.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def configured(folder: Path, questions: Path, *overrides: str) -> DictConfig:
    return compose(
        [f"output_dir={folder}", f"queries={questions}", "accelerator=cpu", *overrides], config_name="evaluate"
    )


def test_a_run_is_measured_and_keeps_the_result(
    questions: Path, write_jsonl: Callable[..., Path], tiny_config: Callable[..., DictConfig]
) -> None:
    run = memvec.predict(tiny_config(write_jsonl(DIFFERENT))).folder
    lines = evaluate(configured(run.root, questions, "center=true")).lines()
    kept = read_json(run.evaluation)
    share = (len(DIFFERENT) - 1) / len(DIFFERENT)
    assert kept["measures"]["hit@1"] == pytest.approx(share)
    assert (kept["queries"], kept["center"], kept["prompt"]) == (len(DIFFERENT), True, None)
    assert [line.split()[0] for line in lines] == ["queries", *MEASURES, "written"]
    assert float(lines[1].split()[1]) == pytest.approx(share, abs=1e-4)


@pytest.mark.processes
def test_a_sweep_is_compared_by_layer_and_prompt(
    questions: Path,
    write_jsonl: Callable[..., Path],
    tiny_config: Callable[..., DictConfig],
    tmp_path: Path,
) -> None:
    path = write_jsonl(DIFFERENT)
    settings = [(layer, prompt) for layer in (1, -1) for prompt in ("raw", "one_word_en")]
    for job, (layer, prompt) in enumerate(settings):
        memvec.predict(tiny_config(path, f"model.layer={layer}", f"prompt={prompt}", output=f"sweep/{job}"))
    (tmp_path / "sweep" / "4").mkdir()  # a job that failed
    command = [sys.executable, "-m", "memvec.evaluate", f"output_dir={tmp_path / 'sweep'}", f"queries={questions}"]
    code, said = finish(start([*command, "accelerator=cpu"]))
    assert code == 0, said
    header, *lines = said.splitlines()
    assert header.split() == ["job", "prompt", "layer", *MEASURES]
    assert [tuple(line.split()[:3]) for line in lines[:4]] == [
        (str(job), prompt, str(layer)) for job, (layer, prompt) in enumerate(settings)
    ]
    assert lines[4].startswith("best by nDCG@10: job ")
    with (tmp_path / "sweep" / "evaluation.csv").open(encoding="utf-8", newline="") as stream:
        written = list(csv.DictReader(stream))
    assert [row["layer"] for row in written] == ["1", "1", "-1", "-1"]
    # Every text finds itself, whatever the layer; the last text's wish is not granted.
    assert float(written[3]["hit@1"]) == pytest.approx((len(DIFFERENT) - 1) / len(DIFFERENT))
    if "no plot" not in said:
        assert (tmp_path / "sweep" / "evaluation.png").read_bytes().startswith(b"\x89PNG")


def test_layers_counted_from_the_end_stand_behind_the_others() -> None:
    rows = [
        {"prompt": prompt, "layer": layer, "MRR": layer / 10}
        for prompt, layer in (("a", -1), ("a", 20), ("b", -2), ("a", 3))
    ]
    layers, series = by_layer(rows, "MRR")
    assert layers == [3, 20, -2, -1]
    assert series == {"a": [0.3, 2.0, None, -0.1], "b": [None, None, -0.2, None]}


def test_what_cannot_be_evaluated_is_said(
    questions: Path, write_jsonl: Callable[..., Path], tiny_config: Callable[..., DictConfig], tmp_path: Path
) -> None:
    with refused(RunFolderError, "nothing", found="no such folder"):
        evaluate(configured(tmp_path / "nothing", questions))
    (tmp_path / "half" / "journal").mkdir(parents=True)
    with refused(RunFolderError, "half", found="an unfinished run", advice="run the same command again"):
        evaluate(configured(tmp_path / "half", questions))
    run = memvec.predict(tiny_config(write_jsonl(DIFFERENT[:3]))).folder
    with refused(InputError, "questions.jsonl, row 4", found="the relevant id 'm/3' is not among the run's 3"):
        evaluate(configured(run.root, questions))
    with refused(ConfigError, "output_dir", ["a", "b"], allowed="one name"):
        evaluate(compose(["output_dir=[a,b]", f"queries={questions}"], config_name="evaluate"))
    with refused(ConfigError, "center", "maybe", allowed="True, False"):
        evaluate(configured(run.root, questions, "center=maybe"))
