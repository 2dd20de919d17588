"""Search in a finished run: from Python, from a configuration, and as a user types it."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from omegaconf import DictConfig

import memvec
from memvec.errors import ConfigError, InputError, RunFolderError
from memvec.run.folder import RunFolder
from memvec.search import search_for_config
from tests.fixtures import TEXTS
from tests.helpers.configs import compose
from tests.helpers.processes import finish, start
from tests.helpers.refusals import refused


@pytest.fixture(scope="module")
def run(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """The texts of the tests, embedded by a tiny model."""
    root = tmp_path_factory.mktemp("search")
    rows = [{"id": f"m/{n}", "text": text} for n, text in enumerate(TEXTS)]
    (root / "memories.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    cfg = compose(
        [
            *(f"data.path={root / 'memories.jsonl'}", f"output_dir={root / 'run'}", "model=hub"),
            *(f"model.name_or_path={llama}", "trainer.accelerator=cpu", "trainer.devices=1"),
            "trainer.enable_progress_bar=false",
        ]
    )
    return memvec.predict(cfg).folder


@pytest.mark.parametrize("center", [False, True])
def test_a_memory_is_the_nearest_to_its_own_text(run: RunFolder, center: bool) -> None:
    found = memvec.search(run.root, [TEXTS[2], TEXTS[4]], k=3, center=center, accelerator="cpu")
    assert [hits[0].id for hits in found] == ["m/2", "m/4"]
    assert [hits[0].text for hits in found] == [TEXTS[2], TEXTS[4]]
    for hits in found:
        assert hits[0].score == pytest.approx(1, abs=1e-5)
        assert len(hits) == 3
        assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)


def test_scores_are_cosines_of_the_vectors_that_encode_gives(run: RunFolder, llama: Path) -> None:
    vectors = memvec.load(run.root)["vector"][:].numpy()
    query = memvec.encode(["tea?"], model=llama, prompt="one_word_en", accelerator="cpu").numpy()[0]
    hits = memvec.search(run.root, ["tea?"], k=99, prompt="one_word_en", accelerator="cpu")[0]
    cosines = vectors @ query / np.linalg.norm(vectors, axis=1) / np.linalg.norm(query)
    assert {hit.id: hit.score for hit in hits} == pytest.approx(
        {f"m/{row}": float(value) for row, value in enumerate(cosines)}, abs=1e-5
    )


def test_above_exact_rows_the_search_goes_through_an_index(run: RunFolder) -> None:
    pytest.importorskip("faiss")
    exact = memvec.search(run.root, TEXTS[2:5], k=2, center=True, accelerator="cpu")
    found = memvec.search(run.root, TEXTS[2:5], k=2, center=True, accelerator="cpu", exact_rows=5)
    assert (run.root / "index" / "centered.faiss").is_file()
    assert [[hit.id for hit in hits] for hits in found] == [[hit.id for hit in hits] for hits in exact]
    assert found[0][0].score == pytest.approx(exact[0][0].score, abs=1e-5)


def test_a_run_without_texts_gives_ids(
    write_jsonl: Callable[..., Path], tiny_config: Callable[..., DictConfig]
) -> None:
    path = write_jsonl([{"id": 7, "text": "tea"}, {"id": 8, "text": "cat"}])
    cfg = tiny_config(path, "writer.keep_text=false")
    memvec.predict(cfg)
    hit = memvec.search(cfg.output_dir, ["cat"], k=1, accelerator="cpu")[0][0]
    assert (hit.id, hit.text) == (8, None)


def test_what_cannot_be_searched_is_said(run: RunFolder, tmp_path: Path) -> None:
    with refused(RunFolderError, tmp_path, found="holds no run"):
        memvec.search(tmp_path, ["tea"])
    (tmp_path / "journal").mkdir()
    with refused(RunFolderError, tmp_path, found="an unfinished run", advice="run the same command again"):
        memvec.search(tmp_path, ["tea"])
    with refused(InputError, "queries[1]", found="is blank"):
        memvec.search(run.root, ["tea", " "])
    with refused(InputError, "queries", found="found one string"):
        memvec.search(run.root, "tea")
    with refused(ConfigError, "k", 0, allowed="an integer of at least 1"):
        memvec.search(run.root, ["tea"], k=0)
    with refused(ConfigError, "prompt", "one_token_fr"):
        memvec.search(run.root, ["tea"], prompt="one_token_fr")


def configured(run: RunFolder, *overrides: str) -> list[str]:
    common = [f"output_dir={run.root}", "accelerator=cpu", "k=2"]
    return search_for_config(compose([*common, *overrides], config_name="search")).lines()


def test_json_lines_hold_a_hit_each(run: RunFolder, tmp_path: Path) -> None:
    queries = tmp_path / "queries.jsonl"
    queries.write_text("".join(json.dumps({"query": text}) + "\n" for text in TEXTS[:2]), encoding="utf-8")
    lines = [json.loads(line) for line in configured(run, f"queries={queries}", "format=jsonl")]
    assert [(line["query"], line["rank"]) for line in lines] == [(text, n) for text in TEXTS[:2] for n in (1, 2)]
    assert lines[0] == {"query": TEXTS[0], "rank": 1, "score": lines[0]["score"], "id": "m/0", "text": TEXTS[0]}


def test_json_lines_steer_no_terminal(run: RunFolder, tmp_path: Path) -> None:
    queries = tmp_path / "queries.jsonl"
    hostile = "a\x9b2Jb\u202ec\x1b[2J\u2028memvec: all good\x7f"
    queries.write_text(json.dumps({"query": hostile}), encoding="utf-8")
    lines = configured(run, f"queries={queries}", "format=jsonl")
    assert all(line.isprintable() for line in lines)
    assert json.loads(lines[0])["query"] == hostile
    assert r"\u009b" in lines[0]


def test_a_prompt_of_the_queries_own_can_be_configured(run: RunFolder) -> None:
    own = configured(run, "query=tea", "prompt=raw", 'prompt.template="{text} is"', "format=jsonl")
    plain = configured(run, "query=tea", "format=jsonl")
    assert [json.loads(line)["score"] for line in own] != [json.loads(line)["score"] for line in plain]


@pytest.mark.parametrize(
    ("overrides", "found"),
    [((), "neither is set"), (("query=tea", "queries=tea.txt"), "both are set")],
)
def test_either_one_query_or_a_file_is_wanted(run: RunFolder, overrides: tuple[str, ...], found: str) -> None:
    with refused(ConfigError, "query, queries", found=found, allowed="one text as query="):
        configured(run, *overrides)


@pytest.mark.processes
def test_the_command_line_takes_a_query_as_it_is_typed(run: RunFolder) -> None:
    command = [sys.executable, "-m", "memvec.search", f"output_dir={run.root}", "accelerator=cpu", "k=1"]
    good = start([*command, "query=what's she drinking, tea (or {coffee})?"])
    wrong = start([*command, "qeury=tea"])
    sweep = start([*command, "-m", "query=tea"])
    code, said = finish(good)
    assert code == 0, said
    header, hit = said.splitlines()  # nothing else is printed
    assert header.split() == ["score", "id", "text"]
    assert hit.split()[1].startswith("m/")
    assert finish(wrong) == (2, "memvec: error: qeury: no such override; did you mean query? (--help lists them)\n")
    code, said = finish(sweep)
    assert (code, said.startswith("memvec: error: memvec.search: runs no sweeps")) == (2, True)
