"""Both stages, one behind the other: conversations -> memory texts -> vectors."""

from __future__ import annotations

import importlib
import logging
import re
import signal
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from omegaconf import DictConfig
from safetensors.torch import load_file, save_file

import memvec
from memvec.errors import ConfigError, InputError, RunFolderError
from memvec.extract import ExtractSummary, _check_second_stage
from memvec.files import read_json
from tests.helpers.adapters import save_adapter
from tests.helpers.configs import compose
from tests.helpers.conversations import generation_overrides, marked, read_lines, write_lines
from tests.helpers.processes import assert_same, finish, flow, journal_bytes, start, start_disturbed, wait_until
from tests.helpers.refusals import refused
from tests.helpers.scripted import FAILS, NOTHING, save_scripted_model
from tests.test_generate import DRAWN, MARKS, texts

Configure = Callable[..., DictConfig]
Write = Callable[..., Path]
RESULT = ["history.json", "manifest.json", "memories", "metrics.json", "rejected.jsonl", "vectors"]
ROWS = 20
TWO_RANKS = ("trainer.devices=2", "trainer.strategy=ddp")
SLOW = ("data.batch_size=1", "outputs.flush_every=2")
# Where a run is killed: the file that is about to take its name, in `memories/` in the first stage.
KILLED = {
    "generating": "memories/journal/metrics-rank-00000.json",
    "finalising the memories": "memories/memories.parquet",
    "between the stages": "run/journal/fingerprint.json",
    "computing vectors": "run/journal/metrics-rank-00000.json",
    "finalising the vectors": "run/manifest.json",
}


def overrides(root: Path, output: Path, model: Path, *other: str) -> list[str]:
    return generation_overrides(root / "conversations.jsonl", output, model, *DRAWN, *other)


def extracted(*arguments: Any) -> ExtractSummary:
    return memvec.extract(compose(overrides(*arguments), config_name="extract"))


@pytest.fixture(scope="module")
def root(scripted: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with conversations, and with an undisturbed run over them."""
    root = tmp_path_factory.mktemp("extract")
    write_lines(root / "conversations.jsonl", marked(ROWS, MARKS))
    extracted(root, root / "expected", scripted)
    return root


def swap_weights(root: Path) -> Path:
    """Returns a copy of the model, beside which lies a file of other weights."""
    model = save_scripted_model(root)
    other = {name: torch.randn_like(weight) for name, weight in load_file(model / "model.safetensors").items()}
    save_file(other, root / "other.safetensors", metadata={"format": "pt"})
    return model


@pytest.fixture(scope="module")
def jobs(root: Path, scripted: Path) -> dict[str, tuple[int, str]]:
    """Runs every process of this file, two at a time, and returns what they ended with."""
    model = swap_weights(root / "model")
    swap = f"move:{model / 'other.safetensors'}:{model / 'model.safetensors'}"
    two = overrides(root, root / "two", model, *TWO_RANKS)
    silent = write_lines(root / "silent.jsonl", marked(4, (FAILS, NOTHING)))

    def killed(name: str) -> tuple[int, str]:
        output = root / name / "run"
        return finish(start_disturbed("extract", overrides(root, output, scripted), at=KILLED[name]))

    starts: dict[str, Callable[[], tuple[int, str]]] = {
        "two": lambda: finish(start_disturbed("extract", two, at="memories/manifest.json", do=swap)),
        **{name: lambda name=name: killed(name) for name in KILLED},  # type: ignore[misc]
        "stopped": lambda: stopped(root, scripted),
        "no memories": lambda: finish(
            start(flow("extract", generation_overrides(silent, root / "no memories", scripted, *TWO_RANKS)))
        ),
    }
    with ThreadPoolExecutor(2) as pool:
        return dict(zip(starts, pool.map(lambda run: run(), starts.values()), strict=True))


def stopped(root: Path, model: Path) -> tuple[int, str]:
    """Interrupts the first stage, which would last for a while."""
    write_lines(root / "many.jsonl", marked(150, MARKS))
    process = start(flow("extract", generation_overrides(root / "many.jsonl", root / "stopped", model, *SLOW)))
    wait_until(lambda: journal_bytes(root / "stopped" / "memories") > 2_000, process)
    process.send_signal(signal.SIGINT)
    return finish(process)


def assert_as_expected(folder: Path, root: Path) -> None:
    assert sorted(path.name for path in folder.iterdir() if path.name not in ("logs", ".datasets")) == RESULT
    assert not list(folder.rglob("*.partial"))
    assert texts(folder / "memories") == texts(root / "expected" / "memories")
    assert_same(memvec.load(folder), memvec.load(root / "expected"))


def test_the_vectors_are_those_of_the_memories(root: Path, scripted: Path, tiny_config: Configure) -> None:
    folder = root / "expected"
    memories = datasets.load_dataset("parquet", data_files=str(folder / "memories" / "memories.parquet"), split="train")
    dataset = memvec.load(folder)
    assert len(memories) > 5
    assert dataset["id"][:] == memories["id"][:]
    assert dataset["text"][:] == memories["text"][:]
    cfg = tiny_config(folder / "memories" / "memories.jsonl", model=scripted)
    memvec.predict(cfg)
    assert_same(dataset, memvec.load(cfg.output_dir))
    assert len(torch.unique(dataset["vector"][:], dim=0)) > 5


@pytest.mark.slow
@pytest.mark.parametrize("option", ["trainer.precision=bf16-true", "model.layer=1", "prompt=one_word_en"])
def test_an_option_of_both_stages_or_the_second_holds_there(
    option: str, root: Path, scripted: Path, tiny_config: Configure, tmp_path: Path
) -> None:
    same_matmuls = "model.tune=off"  # whatever is measured, so that half precision differs in nothing
    extracted(root, tmp_path / "both", scripted, option, same_matmuls)
    cfg = tiny_config(tmp_path / "both" / "memories" / "memories.parquet", option, same_matmuls, model=scripted)
    memvec.predict(cfg)
    assert_same(memvec.load(tmp_path / "both"), memvec.load(cfg.output_dir))


@pytest.mark.slow
def test_the_texts_can_be_another_models(root: Path, scripted: Path, llama: Path, tmp_path: Path) -> None:
    other = f"generation.name_or_path={scripted}"
    extracted(root, tmp_path / "run", llama, other)
    assert texts(tmp_path / "run" / "memories") == texts(root / "expected" / "memories")
    assert memvec.load(tmp_path / "run")["vector"][:].shape[1] == 32
    adapter = f"model.adapter={save_adapter(tmp_path / 'adapter', llama)}"  # made for the model of the vectors alone
    extracted(root, tmp_path / "adapted", llama, other, adapter)
    assert texts(tmp_path / "adapted" / "memories") == texts(root / "expected" / "memories")
    fingerprints = [
        read_json(tmp_path / "adapted" / name)["fingerprint"] for name in ("memories/manifest.json", "manifest.json")
    ]
    assert ["adapter" in one for one in fingerprints] == [False, True]


def test_the_summary_tells_of_both_stages(root: Path, scripted: Path) -> None:
    lines = extracted(root, root / "expected", scripted).lines()
    names = ["memories", "windows", "ids", "rejected", "written", "file"]
    second = ["entries", "ids", "rejected", "truncated", "tokens/s", "vectors"]
    assert [line.split()[0] for line in lines] == [*names, *second]


def test_a_finished_run_says_so_and_does_nothing(root: Path, scripted: Path, caplog: pytest.LogCaptureFixture) -> None:
    before = {path: path.stat().st_mtime_ns for path in (root / "expected").rglob("*")}
    with caplog.at_level(logging.INFO, logger="memvec"):
        extracted(root, root / "expected", scripted)
    complete = [record.getMessage() for record in caplog.records if "complete already" in record.getMessage()]
    assert len(complete) == 2
    assert {path: path.stat().st_mtime_ns for path in (root / "expected").rglob("*")} == before


@pytest.mark.parametrize(
    ("override", "change"), [("generation.seed=1", "seed was 0, is 1"), ("prompt=raw", "template was ")]
)
def test_other_settings_of_either_stage_are_refused(override: str, change: str, root: Path, scripted: Path) -> None:
    with refused(RunFolderError, found=change):
        extracted(root, root / "expected", scripted, override)


def test_a_folder_with_other_files_is_refused_at_once(root: Path, scripted: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with refused(RunFolderError, tmp_path, found="holds other files (thesis.tex)"):
        extracted(root, tmp_path, scripted)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_folder_of_other_texts_vectors_is_refused_at_once(
    root: Path, scripted: Path, write_jsonl: Write, tiny_config: Configure
) -> None:
    cfg = tiny_config(write_jsonl(["likes tea"]), model=scripted)
    memvec.predict(cfg)
    with refused(RunFolderError, "run", found="holds a run of something else, without memories/"):
        extracted(root, Path(cfg.output_dir), scripted)
    assert not (Path(cfg.output_dir) / "memories").exists()


@pytest.mark.slow
def test_the_weights_are_loaded_once(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other weights take their file's place between the stages: nobody may see them."""
    model = swap_weights(tmp_path / "model")
    module = importlib.import_module("memvec.extract")
    build = module.vector_stage

    def swap(cfg: DictConfig) -> Any:
        (model / "other.safetensors").replace(model / "model.safetensors")
        return build(cfg)

    monkeypatch.setattr(module, "vector_stage", swap)
    extracted(root, tmp_path / "run", model)
    assert_as_expected(tmp_path / "run", root)


@pytest.mark.processes
def test_two_processes_load_the_weights_once_each(root: Path, jobs: dict[str, tuple[int, str]]) -> None:
    code, said = jobs["two"]
    assert code == 0, said
    assert "Warning" not in said
    assert not (root / "model" / "other.safetensors").exists()
    assert_as_expected(root / "two", root)
    memories = root / "two" / "memories"
    retried = read_json(memories / "manifest.json")["counts"]["retried"]
    assert read_json(memories / "metrics.json")["computed_entries"] == ROWS + retried
    for folder in (memories, root / "two"):
        assert read_json(folder / "metrics.json")["ranks"] == 2
        assert [path.name for path in sorted((folder / "logs").iterdir())] == ["rank-00000.log", "rank-00001.log"]
    # The first rank alone speaks on the terminal.
    assert said.count("vectors    ") == said.count("windows    ") == said.count("trying again: ") == 1


@pytest.mark.parametrize("name", KILLED)
@pytest.mark.processes
def test_killed_anywhere_the_same_command_goes_on_where_it_was(
    name: str, root: Path, scripted: Path, jobs: dict[str, tuple[int, str]]
) -> None:
    assert jobs[name][0] == -signal.SIGKILL, jobs[name][1]
    folder = root / name / "run"
    finished = folder / "memories" / "manifest.json"
    is_second_stage = name in ("between the stages", "computing vectors", "finalising the vectors")
    assert finished.exists() == is_second_stage
    before = finished.stat().st_mtime_ns if is_second_stage else 0
    if name == "finalising the memories":
        assert (folder / "memories" / "memories.jsonl").exists()
    summary = extracted(root, folder, scripted)
    assert_as_expected(folder, root)
    if is_second_stage:
        assert finished.stat().st_mtime_ns == before
    else:  # the first attempt's outputs are all in the journal, and so are the second's once they are finalised
        left = summary.memories.counts.retried if name == "generating" else 0
        assert summary.memories.metrics["computed_entries"] == left
    written = re.search(r"over the (\d+) that this command wrote", "\n".join(summary.lines()))
    assert (written is None) == is_second_stage
    assert written is None or int(written[1]) == summary.memories.metrics["computed_entries"]
    computed_again = 0 if name in ("computing vectors", "finalising the vectors") else summary.vectors.counts.unique
    assert summary.vectors.metrics["computed_entries"] == computed_again


@pytest.mark.processes
def test_after_an_interruption_the_named_folder_resumes(
    root: Path, scripted: Path, jobs: dict[str, tuple[int, str]]
) -> None:
    code, said = jobs["stopped"]
    assert code == 130, said
    assert f"the same command with output_dir={root / 'stopped'} resumes the run\n" in said
    again = generation_overrides(root / "many.jsonl", root / "stopped", scripted)
    summary = memvec.extract(compose(again, config_name="extract"))
    counts = summary.memories.counts
    assert counts.windows == 150
    assert 0 < summary.memories.metrics["computed_entries"] < counts.windows + counts.retried


@pytest.mark.parametrize(
    ("name", "value", "shown"),
    [("batch_size", 0, 0), ("max_length", 0, 0), ("keep_columns", ["nope"], "nope"), ("keep_columns", "date", "date")],
)
def test_the_second_stages_options_are_checked_first(
    name: str, value: Any, shown: Any, root: Path, scripted: Path, tmp_path: Path
) -> None:
    cfg = compose(generation_overrides(root / "many.jsonl", tmp_path / "run", scripted), config_name="extract")
    cfg.vectors[name] = value
    with refused(ConfigError, f"vectors.{name}", shown):
        memvec.extract(cfg)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["date", "user", "user.name", "meta.tags.first"])
def test_what_a_memory_brings_along_may_be_kept(name: str) -> None:
    vectors = {"batch_size": 8, "max_tokens": None, "max_length": None, "keep_columns": [name]}
    _check_second_stage(vectors, ["user", "meta.tags"])


@pytest.mark.processes
def test_without_any_memory_one_line_says_so(root: Path, scripted: Path, jobs: dict[str, tuple[int, str]]) -> None:
    code, said = jobs["no memories"]
    folder = root / "no memories"
    line = f"{folder / 'memories'}: no memory was found in 4 windows"
    assert code == 1
    assert said.splitlines()[-1] == f"memvec: error: {line}"
    assert said.count("no memory was found") == 1
    assert "Traceback" not in said
    assert len(read_lines(folder / "memories" / "failed.jsonl")) == 2
    again = compose(generation_overrides(root / "silent.jsonl", folder, scripted), config_name="extract")
    with refused(InputError, folder / "memories", found="no memory was found in 4 windows"):
        memvec.extract(again)
