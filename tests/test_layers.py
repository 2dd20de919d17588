"""A run of several layers is searched, judged and shown layer by layer, as runs of each layer alone are."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import memvec
from memvec.errors import ConfigError
from memvec.evaluate import evaluate
from memvec.files import read_json
from memvec.report import write_report
from memvec.retrieval.measures import MEASURES
from memvec.run.folder import RunFolder
from tests.fixtures import TEXTS
from tests.helpers.configs import compose
from tests.helpers.refusals import refused
from tests.helpers.runs import random_vectors, write_run

LAYERS = (2, -1)
DIFFERENT = list(dict.fromkeys(TEXTS))
SMALL = ("writer.dtype=float16", "writer.normalize=true")


@pytest.fixture(scope="module")
def runs(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, RunFolder]:
    """One run of two layers, float16 at unit length; and a sweep's folder with a run of each layer, float32."""
    root = tmp_path_factory.mktemp("layers")
    path = root / "memories.jsonl"
    path.write_text("".join(json.dumps({"id": f"m/{n}", "text": text}) + "\n" for n, text in enumerate(DIFFERENT)))
    rows = [{"query": f"{text} ", "relevant": [f"m/{row // 2}"]} for row, text in enumerate(DIFFERENT)]
    (root / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    overrides = [
        *(f"data.path={path}", "model=hub", f"model.name_or_path={llama}"),
        *("trainer.accelerator=cpu", "trainer.devices=1", "trainer.enable_progress_bar=false"),
    ]

    def made(name: str, *more: str) -> RunFolder:
        return memvec.predict(compose([*overrides, f"output_dir={root / name}", *more])).folder

    alone = {str(layer): made(f"sweep/{job}", f"model.layer={layer}") for job, layer in enumerate(LAYERS)}
    return {"both": made("both", f"model.layer={list(LAYERS)}".replace(" ", ""), *SMALL), **alone}


def judged(folder: Path, *overrides: str) -> list[str]:
    questions = next(path for outer in folder.parents if (path := outer / "questions.jsonl").exists())
    options = [f"output_dir={folder}", f"queries={questions}", "accelerator=cpu", *overrides]
    return evaluate(compose(options, config_name="evaluate")).lines()


@pytest.mark.parametrize("center", [False, True])
@pytest.mark.parametrize("layer", LAYERS)
def test_a_layer_is_searched_as_a_run_of_it_alone(layer: int, center: bool, runs: dict[str, RunFolder]) -> None:
    with memvec.Searcher(runs["both"].root, layer=layer, center=center, accelerator="cpu") as searcher:
        found = searcher.search(DIFFERENT[:4], k=3)
        expected_vectors = np.asarray(memvec.load(runs["both"].root)[f"vector_{layer}"][:4])
        np.testing.assert_allclose(searcher.encode(DIFFERENT[:4]), expected_vectors, atol=1e-3)
    alone = memvec.search(runs[str(layer)].root, DIFFERENT[:4], k=3, center=center, layer=layer, accelerator="cpu")
    assert [hits[0].id for hits in found] == [f"m/{row}" for row in range(4)]
    if not center:  # the mean of unit vectors is another one
        for hits, expected in zip(found, alone, strict=True):
            assert [hit.score for hit in hits] == pytest.approx([hit.score for hit in expected], abs=2e-3)


def test_a_search_has_to_name_one_of_the_layers(runs: dict[str, RunFolder]) -> None:
    with refused(ConfigError, "layer", found=f"not set, and {runs['both'].root} holds several", allowed="2, -1"):
        memvec.search(runs["both"].root, ["tea"])
    for wrong in (7, 2.0, True):
        with refused(ConfigError, "layer", wrong, found="not one of the run's", allowed="2, -1"):
            memvec.search(runs["both"].root, ["tea"], layer=wrong)  # type: ignore[arg-type]
    with refused(ConfigError, "layer", 2, found="not one of the run's", allowed="-1"):
        memvec.search(runs["-1"].root, ["tea"], layer=2)


@pytest.mark.slow
def test_the_table_of_layers_is_that_of_a_sweep(runs: dict[str, RunFolder]) -> None:
    both, sweep = runs["both"].root, runs["2"].root.parent
    header, *lines = judged(both)
    expected_header, *expected = judged(sweep)
    assert header.split() == expected_header.split() == ["job", "prompt", "layer", *MEASURES]
    assert [line.split()[1:] for line in lines[:2]] == [line.split()[1:] for line in expected[:2]]
    assert lines[2].startswith("best by nDCG@10: job both, prompt one_token_zh, layer ")
    assert (both / "evaluation.csv").read_text().count("\n") == 3
    assert [each["layer"] for each in read_json(both / "evaluation.json")["layers"]] == [2, -1]


def test_one_layer_is_evaluated_as_a_run_of_it_is(runs: dict[str, RunFolder]) -> None:
    found, expected = judged(runs["both"].root, "layer=2"), judged(runs["2"].root)
    assert [line.split()[0] for line in found] == ["queries", *MEASURES, "written"]
    assert found[:-1] == expected[:-1]
    assert read_json(runs["both"].evaluation)["layer"] == 2


def test_each_layer_has_an_index_of_its_own(tmp_path: Path, runs: dict[str, RunFolder]) -> None:
    pytest.importorskip("faiss")
    options: dict[str, Any] = {"k": 2, "center": True, "accelerator": "cpu"}
    for layer in LAYERS:
        exact = memvec.search(runs["both"].root, DIFFERENT[2:5], layer=layer, **options)
        found = memvec.search(runs["both"].root, DIFFERENT[2:5], layer=layer, exact_rows=1, **options)
        assert [[hit.id for hit in hits] for hits in found] == [[hit.id for hit in hits] for hits in exact]
    names = {path.name for path in runs["both"].index.iterdir()}
    assert names == {"centered_2.faiss", "mean_2.npy", "centered_-1.faiss", "mean_-1.npy"}


def test_the_page_shows_the_last_layer_or_the_one_named(tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    from memvec.page.run import run_page

    vectors = np.stack([random_vectors(30, seed=seed) for seed in (1, 2)], axis=1)  # [N, L, D]
    folder = write_run(tmp_path / "run", vectors, overrides=["model.layer=[8,-1]", *SMALL])
    for layer, said in ((None, "-1 (after the final norm), of 8, -1"), (8, "8, of 8, -1")):
        page = run_page(folder, layer=layer)
        assert dict(page["facts"])["layer"] == said
        assert dict(page["facts"])["numbers in a vector"] == "16, float16, unit length"
    alone = write_run(tmp_path / "alone", vectors[:, 0], overrides=["writer.dtype=float16"])
    assert page["map"]["nearest"] == run_page(alone)["map"]["nearest"]
    with refused(ConfigError, "layer", 3, found="not one of the run's", allowed="8, -1"):
        write_report(folder.root, layer=3)


@pytest.mark.slow
def test_both_stages_of_extract_take_several_layers(
    scripted: Path, write_conversations: Callable[..., Path], tiny_generation: Callable[..., object]
) -> None:
    cfg = tiny_generation(write_conversations(), "model.layer=[0,-1]", model=scripted, name="extract")
    memvec.extract(cfg)  # type: ignore[arg-type]
    dataset = memvec.load(cfg.output_dir)  # type: ignore[attr-defined]
    with memvec.Encoder(scripted, layer=[0, -1], device="cpu") as encoder:
        expected = encoder.encode(dataset["text"][:])
    for at, name in enumerate(("vector_0", "vector_-1")):
        torch.testing.assert_close(dataset[name][:], expected[:, at], rtol=1e-4, atol=1e-4)
