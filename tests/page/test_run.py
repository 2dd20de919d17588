"""What a run's page shows: its numbers, the sample it says it is, and texts cut to what a page can hold."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from omegaconf import DictConfig

import memvec
from memvec.errors import RunFolderError
from memvec.run.folder import RunFolder
from tests.fixtures import TEXTS
from tests.helpers.runs import random_vectors, write_run

pytest.importorskip("sklearn")

from memvec.page.render import render_page
from memvec.page.run import run_page
from tests.helpers.refusals import refused


def test_the_page_of_a_run_tells_what_came_of_it(
    write_jsonl: Callable[..., Path], tiny_config: Callable[..., DictConfig]
) -> None:
    path = write_jsonl([*TEXTS, " ", {"id": "m/0", "text": "again"}])
    summary = memvec.predict(tiny_config(path, "data.max_length=60"))
    page = run_page(summary.folder)
    facts = dict(page["facts"])
    assert facts["entries"] == f"{len(TEXTS)} ({len(set(TEXTS))} different)"
    assert facts["rejected"] == "2"
    assert int(facts["truncated"]) == summary.counts.truncated > 0
    assert facts["prompt"].startswith("one_token_zh: 请用")
    lengths = memvec.load(summary.folder.root)["num_tokens"][:].tolist()
    assert page["map"]["ids"] == [f"m/{row}" for row in range(len(TEXTS))]
    assert page["map"]["texts"] == TEXTS
    assert page["map"]["lengths"] == lengths
    assert page["map"]["note"] == ""
    charts = {chart["title"]: chart for chart in page["charts"]}
    assert sum(charts["Lengths of the prompts"]["series"][0]["values"]) == len(TEXTS)
    assert len(charts["Throughput over the run, tokens a second"]["labels"]) == 60
    tables = {table["title"]: table for table in page["tables"]}
    assert [row["cells"] for row in tables["Equal texts"]["rows"]] == [["2", "She likes tea."]]
    rejected = [row["cells"] for row in tables["Rejected rows"]["rows"]]
    assert [cells[2] for cells in rejected] == ["m/12", "m/0"]
    assert rejected[0][3] == "'text' is blank"
    assert [one["name"] for one in page["map"]["colourings"]] == ["cluster", "length"]
    assert render_page(page)


def test_more_entries_than_fit_are_sampled_and_the_page_says_so(tmp_path: Path) -> None:
    vectors = random_vectors(300)
    page = run_page(write_run(tmp_path / "run", vectors), most_points=50)
    ids = page["map"]["ids"]
    rows = [int(name.partition("/")[2]) for name in ids]
    assert len(set(rows)) == 50
    assert rows == sorted(rows)
    assert rows != list(range(50))
    assert page["map"]["texts"] == [f"text {row}" for row in rows]
    assert page["map"]["note"] == "A random sample of 50 of the 300 entries."
    assert all("A random sample of 50" in table["note"] for table in page["tables"])
    nearest = np.frombuffer(base64.b64decode(page["map"]["nearest"]), dtype="<u4").reshape(50, 10)
    sampled = vectors[rows] - vectors[rows].mean(axis=0)
    cosines = sampled @ sampled.T / np.linalg.norm(sampled, axis=1) / np.linalg.norm(sampled, axis=1)[:, None]
    assert nearest[:, 0].tolist() == (cosines - 9 * np.eye(50)).argmax(axis=1).tolist()


def test_long_texts_are_cut_so_that_the_page_stays_small(tmp_path: Path) -> None:
    texts = ["long " * 100_000, *(f"text {row}" for row in range(39))]
    page = run_page(write_run(tmp_path / "run", random_vectors(40), texts=texts))
    assert page["map"]["texts"][0] == f"{('long ' * 400)}…"
    assert len(render_page(page)) < 200_000


def test_a_run_without_texts_or_of_one_entry_has_a_page(tmp_path: Path) -> None:
    page = run_page(write_run(tmp_path / "ids", random_vectors(30), keep_text=False, ids=list(range(30))))
    assert page["map"]["texts"] == [None] * 30
    assert page["map"]["ids"][:2] == ["0", "1"]
    page = run_page(write_run(tmp_path / "one", random_vectors(1)))
    assert (page["map"]["ids"], page["map"]["nearest"]) == (["group-0/0"], "")
    assert json.dumps(page, allow_nan=False)


def test_a_folder_without_a_finished_run_is_refused(tmp_path: Path) -> None:
    with refused(RunFolderError, tmp_path, found="holds no run"):
        run_page(RunFolder(tmp_path))
