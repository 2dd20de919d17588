"""The vectors of a finished run: all there, in order, as its manifest says, or one line that names what is not."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from omegaconf import DictConfig

import memvec
from memvec.errors import MemvecError, RunFolderError
from memvec.evaluate import evaluate
from memvec.files import read_json, write_json
from memvec.report import write_report
from memvec.retrieval.exact import mapped_vectors
from memvec.run.folder import RunFolder
from memvec.run.manifest import read_manifest
from memvec.run.parts import check_parts, part_rows
from memvec.schema import VECTOR
from memvec.writer import finalize
from tests.helpers.configs import compose
from tests.helpers.refusals import refused
from tests.helpers.runs import random_vectors, write_run

VECTORS = random_vectors(20)


@pytest.fixture(scope="module")
def made(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[DictConfig, RunFolder]:
    """A finished run of several parts."""
    root = tmp_path_factory.mktemp("result")
    path = root / "memories.jsonl"
    path.write_text("".join(json.dumps({"id": f"m/{n}", "text": f"text {n}"}) + "\n" for n in range(30)))
    (root / "questions.jsonl").write_text(json.dumps({"query": "text 3", "relevant": ["m/3"]}) + "\n")
    overrides = [
        *(f"data.path={path}", f"output_dir={root / 'run'}", "model=hub", f"model.name_or_path={llama}"),
        *("trainer.accelerator=cpu", "trainer.devices=1", "trainer.enable_progress_bar=false"),
    ]
    cfg = compose(overrides)
    before, finalize.BYTES_PER_FILE = finalize.BYTES_PER_FILE, 10 * (4 * 32 + 128)
    try:
        folder = memvec.predict(cfg).folder
    finally:
        finalize.BYTES_PER_FILE = before
    return cfg, folder


@pytest.fixture
def run(made: tuple[DictConfig, RunFolder], tmp_path: Path) -> RunFolder:
    return RunFolder(shutil.copytree(made[1].root, tmp_path / "run"))


@pytest.fixture
def uses(made: tuple[DictConfig, RunFolder], run: RunFolder) -> dict[str, Callable[[], Any]]:
    """Everything that reads a finished run."""
    cfg = made[0].copy()
    cfg.output_dir = str(run.root)
    questions = made[1].root.parent / "questions.jsonl"
    options = [f"output_dir={run.root}", f"queries={questions}", "accelerator=cpu"]
    return {
        "load": lambda: memvec.load(run.root),
        "search": lambda: memvec.search(run.root, ["tea"], accelerator="cpu"),
        "evaluate": lambda: evaluate(compose(options, config_name="evaluate")),
        "report": lambda: write_report(run.root),
        "predict": lambda: memvec.predict(cfg),
    }


def refusals(uses: dict[str, Callable[[], Any]]) -> dict[str, str]:
    said = {}
    for name, use in uses.items():
        with pytest.raises(MemvecError) as caught:
            use()
        said[name] = str(caught.value)
    return said


def part(run: RunFolder, number: int) -> Path:
    return run.vectors / f"part-{number:05d}-of-00003.parquet"


def test_the_manifest_says_how_many_rows_each_part_has(run: RunFolder) -> None:
    assert read_json(run.manifest)["parts"] == {f"vectors/{part(run, n).name}": 10 for n in range(3)}
    assert part_rows(run) == read_json(run.manifest)["parts"]
    assert check_parts(run, read_manifest(run)) == [part(run, n) for n in range(3)]
    assert memvec.load(run.root)["id"][:] == [f"m/{n}" for n in range(30)]


def test_a_missing_part_is_noticed_by_everything(run: RunFolder, uses: dict[str, Callable[[], Any]]) -> None:
    memvec.load(run.root)  # a copy that was mapped before does not hide it
    part(run, 1).unlink()
    for name, said in refusals(uses).items():
        assert said == f"{part(run, 1)}: missing, though the run is complete", name


def test_an_extra_part_is_noticed_by_everything(run: RunFolder, uses: dict[str, Callable[[], Any]]) -> None:
    shutil.copy(part(run, 1), run.vectors / "part-00003.parquet")
    for name, said in refusals(uses).items():
        assert said.endswith("part-00003.parquet: not a file of this run, whose manifest names 3"), name


def test_a_part_of_other_rows_is_noticed_by_everything(run: RunFolder, uses: dict[str, Callable[[], Any]]) -> None:
    pq.write_table(pq.read_table(part(run, 1)).slice(0, 9), part(run, 1))
    for name, said in refusals(uses).items():
        assert said == f"{part(run, 1)}: holds 9 rows; the run's manifest says 10", name


@pytest.mark.parametrize("content", [b"", b"PAR1", b"PAR1" + bytes(100) + b"PAR1"])
def test_a_part_that_is_no_parquet_is_one_line(
    content: bytes, run: RunFolder, uses: dict[str, Callable[[], Any]]
) -> None:
    part(run, 2).write_bytes(content)
    for name, said in refusals(uses).items():
        assert said.startswith(f"{part(run, 2)}: damaged, or not of memvec: "), name


@pytest.mark.parametrize(
    "damage", [lambda text: text[:-30], lambda text: text.replace('"dimension": 32', '"dimension": []')]
)
def test_a_damaged_manifest_is_one_line(
    damage: Callable[[str], str], run: RunFolder, uses: dict[str, Callable[[], Any]]
) -> None:
    run.manifest.write_text(damage(run.manifest.read_text()))
    for name, said in refusals(uses).items():
        assert "manifest.json" in said, name


@pytest.mark.parametrize("name", ["metrics", "history"])
def test_damaged_numbers_are_one_line_of_the_report(name: str, run: RunFolder) -> None:
    path: Path = getattr(run, name)
    for content in ("[]", '{"seconds": {}}', path.read_text()[:-9], path.read_text().replace(":", ': null, "x":', 2)):
        path.write_text(content)
        with refused(RunFolderError, path, found="damaged, or not of memvec: "):
            write_report(run.root)


def test_a_run_of_an_earlier_version_is_held_to_its_parts_names(run: RunFolder) -> None:
    manifest = read_json(run.manifest)
    del manifest["parts"]
    write_json(run.manifest, manifest)
    assert len(memvec.load(run.root)) == 30
    part(run, 1).unlink()
    with refused(RunFolderError, "part-00001-of-00003.parquet", found="missing"):
        memvec.load(run.root)
    for number in (0, 2):
        part(run, number).unlink()
    with refused(RunFolderError, "run", found="its Parquet files hold 0 rows; its manifest says 30"):
        memvec.load(run.root)


def replaced(folder: RunFolder, **columns: Any) -> None:
    (path,) = folder.vectors.glob("*.parquet")
    table = pq.read_table(path)
    for name, values in columns.items():
        table = table.set_column(table.schema.get_field_index(name), name, values)
    pq.write_table(table, path)


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({"vector": pa.array([[1.0] * 16] * 20)}, "column 'vector' is not of fixed_size_list"),
        ({"vector": pa.array([[1.0] * 8] * 20, pa.list_(pa.float32(), 8))}, "column 'vector' is not of"),
        ({"vector": pa.array([[float("nan")] * 16] * 20, pa.list_(pa.float32(), 16))}, "no finite length"),
        ({"vector": pa.array([[1e30] * 16] * 20, pa.list_(pa.float32(), 16))}, "no finite length"),
        ({"vector": pa.array([None, *[[1.0] * 16] * 19], pa.list_(pa.float32(), 16))}, "rows without a value"),
        ({"text": pa.array(range(20))}, "column 'text' is not of string"),
        ({"text": pa.array([None] * 20, pa.string())}, "rows without a value"),
        ({"id": pa.array([b"\xff"] * 20)}, "column 'id' is not of string"),
        ({"num_tokens": pa.array([-1] * 20, pa.int32())}, "counts less than nothing"),
    ],
)
def test_columns_that_memvec_never_writes_are_refused(columns: dict[str, Any], said: str, tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", VECTORS)
    replaced(folder, **columns)
    found = re.compile(f"^damaged, or not of memvec: .*{said}")
    with refused(RunFolderError, re.compile(r"\.parquet$"), found=found):
        memvec.load(folder.root)


def test_a_column_a_layer_of_float16_is_mapped_as_it_is(tmp_path: Path) -> None:
    vectors = np.stack([VECTORS, -VECTORS], axis=1)  # [N, L, D]
    folder = write_run(tmp_path / "run", vectors, overrides=["model.layer=[8,-1]", "writer.dtype=float16"])
    dataset = memvec.load(folder.root)
    assert dataset.column_names == ["id", "text", "vector_8", "vector_-1", "num_tokens", "prompt_digest"]
    for at, name in enumerate(("vector_8", "vector_-1")):
        [part] = mapped_vectors(dataset, name)
        np.testing.assert_array_equal(part, vectors[:, at].astype(np.float16))
        assert dataset[name][:].dtype == torch.float32  # as `datasets` makes tensors of any floats


def test_what_a_file_says_of_its_types_is_not_believed(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", VECTORS)
    (path,) = folder.vectors.glob("*.parquet")
    table = pq.read_table(path)
    features = {"info": {"features": {"text": {"_type": "Image"}, "id": {"_type": "Audio"}}}}
    pq.write_table(table.replace_schema_metadata({"huggingface": json.dumps(features)}), path)
    dataset = memvec.load(folder.root)
    assert dataset.features["text"].dtype == "string"
    np.testing.assert_array_equal(dataset[VECTOR][:].numpy(), VECTORS)


def test_a_pipe_in_the_place_of_a_part_is_said_at_once(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", VECTORS)
    (path,) = folder.vectors.glob("*.parquet")
    path.unlink()
    os.mkfifo(path)
    with refused(RunFolderError, path, found="not a regular file"):
        memvec.load(folder.root)


def test_the_mapped_copy_is_private_and_follows_no_link(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", VECTORS)
    folder.root.chmod(0o700)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    folder.mapped.symlink_to(elsewhere)
    with refused(RunFolderError, folder.mapped, found=f"a link to {elsewhere}, which memvec does not follow"):
        memvec.load(folder.root)
    assert list(elsewhere.iterdir()) == []
    folder.mapped.unlink()
    memvec.load(folder.root)
    (copy,) = folder.mapped.iterdir()
    assert [path.stat().st_mode & 0o777 for path in (folder.mapped, copy)] == [0o700, 0o600]


def test_a_folder_that_cannot_be_written_to_is_loaded_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_run(tmp_path / "run", VECTORS)
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may write to everything
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    np.testing.assert_array_equal(memvec.load(folder.root)[VECTOR][:].numpy(), VECTORS)
    assert not folder.mapped.exists()
    assert (tmp_path / "cache" / "memvec").stat().st_mode & 0o777 == 0o700


def test_vectors_written_anew_are_the_ones_that_are_loaded(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", VECTORS)
    old = memvec.load(folder.root)
    replaced(folder, vector=pa.array((VECTORS + 1).tolist(), pa.list_(pa.float32(), 16)))
    np.testing.assert_array_equal(memvec.load(folder.root)[VECTOR][:].numpy(), VECTORS + 1)
    np.testing.assert_array_equal(old[VECTOR][:].numpy(), VECTORS)
    assert len(list(folder.mapped.iterdir())) == 1
