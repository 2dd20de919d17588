"""A searcher holds what a query needs: the second loads nothing, and threads may share it."""

from __future__ import annotations

import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import memvec
from memvec.errors import ConfigError, InputError, MemvecError, RunFolderError
from memvec.run.folder import RunFolder
from tests.fixtures import TEXTS
from tests.helpers.configs import compose
from tests.helpers.refusals import refused, refused_as


@pytest.fixture(scope="module")
def run(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    root = tmp_path_factory.mktemp("searcher")
    path = root / "memories.jsonl"
    path.write_text("".join(json.dumps({"id": f"m/{n}", "text": text}) + "\n" for n, text in enumerate(TEXTS)))
    overrides = [
        *(f"data.path={path}", f"output_dir={root / 'run'}", "model=hub", f"model.name_or_path={llama}"),
        *("trainer.accelerator=cpu", "trainer.devices=1", "trainer.enable_progress_bar=false"),
    ]
    return memvec.predict(compose(overrides)).folder


def test_a_second_query_loads_nothing(run: RunFolder, llama: Path, tmp_path: Path) -> None:
    model = Path(shutil.copytree(llama, tmp_path / "model"))
    copy = RunFolder(shutil.copytree(run.root, tmp_path / "run"))
    manifest = json.loads(copy.manifest.read_text())
    manifest["config"]["model"]["name_or_path"] = str(model)
    copy.manifest.write_text(json.dumps(manifest))
    searcher = memvec.Searcher(copy.root, accelerator="cpu")
    first = searcher.search([TEXTS[2]], k=3)
    shutil.rmtree(model)
    shutil.rmtree(copy.root)
    assert searcher.search([TEXTS[2]], k=3) == first
    assert first[0][0].id == "m/2"


def test_it_finds_what_search_finds(run: RunFolder) -> None:
    with memvec.Searcher(run.root, accelerator="cpu", center=True) as searcher:
        found = searcher.search(TEXTS[2:5], k=4)
    assert found == memvec.search(run.root, TEXTS[2:5], k=4, center=True, accelerator="cpu")


def test_threads_share_it(run: RunFolder) -> None:
    searcher = memvec.Searcher(run.root, accelerator="cpu")
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda text: searcher.search([text], k=1)[0][0].text, TEXTS * 3))
    assert found == TEXTS * 3


def test_search_sees_another_run_in_the_same_folder(run: RunFolder, tmp_path: Path) -> None:
    folder = shutil.copytree(run.root, tmp_path / "run")
    assert memvec.search(folder, ["tea"], k=99, accelerator="cpu")[0][0].text in TEXTS
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(manifest)[:-20])
    with refused(RunFolderError, "manifest.json", found="damaged"):
        memvec.search(folder, ["tea"], accelerator="cpu")


@pytest.mark.parametrize(
    ("queries", "expected"),
    [
        ([], InputError("queries", found="found none")),
        ("tea", InputError("queries", found="found one string")),
        ({"text": "tea"}, InputError("queries", found="found a dict")),
        (["tea", None], InputError("queries[1]", found="is null")),
    ],
)
def test_what_is_no_list_of_queries_is_said(queries: Any, expected: MemvecError, run: RunFolder) -> None:
    with refused_as(expected):
        memvec.Searcher(run.root).search(queries)


def test_options_that_make_no_sense_are_said_at_once(run: RunFolder) -> None:
    for name, value in (("center", 2), ("exact_rows", -1)):
        with refused(ConfigError, name, value):
            memvec.Searcher(run.root, **{name: value})
    with refused(ConfigError, "k", 0, allowed="an integer of at least 1"):
        memvec.Searcher(run.root).search(["tea"], k=0)


def test_arrays_of_queries_are_taken(run: RunFolder) -> None:
    found = memvec.Searcher(run.root, accelerator="cpu").search(np.asarray(TEXTS[2:4]), k=1)
    assert [hits[0].id for hits in found] == ["m/2", "m/3"]
