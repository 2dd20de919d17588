"""Several finished runs are searched as one, or it is said why they cannot be."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from omegaconf import DictConfig

import memvec
from memvec.errors import ConfigError, RunFolderError
from memvec.retrieval.runs import SearchedRuns
from memvec.search import search_for_config
from tests.fixtures import TEXTS
from tests.helpers.configs import compose
from tests.helpers.refusals import refused

CPU: dict[str, Any] = {"accelerator": "cpu"}
HALF = len(TEXTS) // 2


def compute(root: Path, name: str, rows: list[dict[str, Any]], model: Path, *overrides: str) -> Path:
    cfg = compose(
        [
            *("model=hub", f"model.name_or_path={model}", f"output_dir={root / name}", "trainer.accelerator=cpu"),
            *("trainer.devices=1", "trainer.enable_progress_bar=false", *overrides),
        ]
    )
    return memvec.predict(cfg, data=rows).folder.root


@pytest.fixture(scope="module")
def runs(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """All texts in one run; and in two, the second of which has integers as ids and keeps a column."""
    root = tmp_path_factory.mktemp("runs")
    rows = [{"id": n, "text": text, "who": "ana" if n % 2 else "bo"} for n, text in enumerate(TEXTS)]
    return {
        "whole": compute(root, "whole", rows, llama),
        "first": compute(root, "first", [{**row, "id": f"m/{row['id']}"} for row in rows[:HALF]], llama),
        "second": compute(root, "second", rows[HALF:], llama, "data.keep_columns=[who]"),
        "layers": compute(root, "layers", rows[HALF:], llama, "model.layer=[2,-1]"),
        "english": compute(root, "english", rows[HALF:], llama, "prompt=one_word_en"),
        "units": compute(root, "units", rows[HALF:], llama, "writer.normalize=true"),
    }


def found(folders: Any, *, k: int = 5, **options: Any) -> list[list[tuple[float, str | None]]]:
    hits = memvec.search(folders, [TEXTS[1], TEXTS[-1]], k=k, **CPU, **options)
    return [[(pytest.approx(hit.score, abs=1e-5), hit.text) for hit in each] for each in hits]


@pytest.mark.parametrize("center", [False, True])
@pytest.mark.parametrize("exact_rows", [1000, 2])
def test_two_runs_are_found_as_one_is(runs: dict[str, Path], center: bool, exact_rows: int) -> None:
    if exact_rows == 2:
        pytest.importorskip("faiss")
    together = found([runs["first"], runs["second"]], center=center, exact_rows=exact_rows)
    assert together == found(runs["whole"], center=center)


def test_a_hit_says_which_run_it_is_from(runs: dict[str, Path]) -> None:
    hits = memvec.search([runs["first"], str(runs["second"])], [TEXTS[2]], k=len(TEXTS), **CPU)[0]
    assert len(hits) == len(TEXTS)
    for hit in hits:
        is_first = hit.text in TEXTS[:HALF] and hit.run == str(runs["first"])
        assert is_first or hit.run == str(runs["second"])
        assert isinstance(hit.id, str) == (hit.run == str(runs["first"]))
        assert set(hit.columns) == (set() if hit.run == str(runs["first"]) else {"who"})
    assert {hit.run for hit in memvec.search([runs["first"]], ["tea"], **CPU)[0]} == {None}


def test_a_layer_of_several_is_searched_with_a_run_of_one(runs: dict[str, Path]) -> None:
    together = found([runs["first"], runs["layers"]], layer=-1)
    assert together == found(runs["whole"])
    with refused(ConfigError, "layer", found=f"not set, and {runs['layers']} holds several"):
        found([runs["first"], runs["layers"]])
    with refused(ConfigError, "layer", 2, found="not one of the run's", allowed="-1"):
        found([runs["first"], runs["layers"]], layer=2)


def test_conditions_hold_for_rows_of_every_run(runs: dict[str, Path], tmp_path: Path) -> None:
    pytest.importorskip("duckdb")
    copy = shutil.copytree(runs["second"], tmp_path / "copy")
    hits = memvec.search([runs["second"], copy], ["tea"], k=99, where="who = 'ana'", **CPU)[0]
    assert len(hits) == sum(n % 2 for n in range(HALF, len(TEXTS))) * 2
    assert {hit.columns["who"] for hit in hits} == {"ana"}
    with refused(ConfigError, "where", "who = 'ana'"):
        memvec.search([runs["second"], runs["first"]], ["tea"], where="who = 'ana'", **CPU)


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ("english", r"template is 'This sentence: .*', there '请用一个Token"),
        ("units", "normalize is True, there False"),
    ],
)
def test_runs_of_other_vectors_are_refused(other: str, said: str, runs: dict[str, Path]) -> None:
    found = re.compile(rf"cannot be searched as one with .*first: .*{said}")
    with refused(RunFolderError, runs[other], found=found):
        memvec.Searcher([runs["first"], runs[other]])


def test_runs_of_another_model_are_refused(
    runs: dict[str, Path], model_folders: Callable[[str], Path], tmp_path: Path
) -> None:
    other = compute(tmp_path, "other", [{"text": "tea"}], model_folders("qwen2"))
    with refused(RunFolderError, other, found=re.compile(r"model is '\w{64}', there '\w{64}'")):
        memvec.Searcher([runs["first"], other])


def test_what_are_no_runs_is_said(runs: dict[str, Path], tmp_path: Path) -> None:
    with refused(ConfigError, "output_dir", [], allowed="the folder of a run"):
        SearchedRuns([])
    with refused(ConfigError, "output_dir", found=f"names {runs['first']} twice"):
        SearchedRuns([runs["first"], runs["second"], f"{runs['second']}/../first"])
    with refused(RunFolderError, tmp_path, found="holds no run"):
        memvec.search([runs["first"], tmp_path], ["tea"], **CPU)


def test_a_run_that_was_replaced_is_seen(runs: dict[str, Path], tmp_path: Path) -> None:
    folder = shutil.copytree(runs["second"], tmp_path / "run")
    assert len(memvec.search([runs["first"], folder], ["tea"], k=99, **CPU)[0]) == len(TEXTS)
    shutil.rmtree(folder)
    with refused(RunFolderError, folder, found="holds no run"):
        memvec.search([runs["first"], folder], ["tea"], **CPU)


def test_the_command_takes_a_list_of_runs(runs: dict[str, Path]) -> None:
    overrides = [f"output_dir=[{runs['first']},{runs['second']}]", "accelerator=cpu", "k=99", f"query={TEXTS[1]}"]

    def lines(*more: str) -> list[str]:
        cfg: DictConfig = compose([*overrides, *more], config_name="search")
        return search_for_config(cfg).lines()

    header, first, *_ = lines()
    assert header.split() == ["score", "run", "id", "who", "text"]
    assert first.split()[1:3] == [str(runs["first"]), "m/1"]
    hits = [json.loads(line) for line in lines("format=jsonl")]
    assert {hit["run"] for hit in hits} == {str(runs["first"]), str(runs["second"])}
    assert "run" not in json.loads(
        search_for_config(
            compose([f"output_dir={runs['first']}", *overrides[1:], "format=jsonl"], config_name="search")
        ).lines()[0]
    )
