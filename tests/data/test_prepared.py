"""Prepared files are what they were when a run resumes, or are made again; nothing is computed on others."""

from __future__ import annotations

import logging
import random
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from omegaconf import DictConfig

from memvec.data.datamodule import PromptDataModule, PromptInput
from memvec.data.prepared import read_signature
from memvec.errors import MemvecError, RunFolderError
from memvec.run.build import build_datamodule, build_model, run_folder
from memvec.run.folder import RunFolder
from memvec.writer.journal import JournalWriter, vector_rows
from memvec.writer.vectors import has_vectors
from tests.helpers.configs import compose
from tests.helpers.damage import DAMAGES, damage
from tests.helpers.refusals import refused

TEXTS = [f"she likes tea number {n % 30}" for n in range(40)]
FILES = ("entries.arrow", "rejected.jsonl", "input.json", "prompts.arrow", "first_rows.npy", "prepared.json")

Prepare = Callable[..., PromptDataModule]


@pytest.fixture(scope="module")
def model(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., DictConfig]:

    root = tmp_path_factory.mktemp("prepared")
    path = root / "texts.jsonl"
    path.write_text("".join(f'{{"id": "m/{n}", "text": "{text}"}}\n' for n, text in enumerate([*TEXTS, ""])))
    other = root / "other.jsonl"
    other.write_text("".join(f'{{"id": "o/{n}", "text": "{text}"}}\n' for n, text in enumerate(reversed(TEXTS))))

    def configure(output_dir: Path, *, another_input: bool = False) -> DictConfig:
        return compose(
            [
                f"data.path={other if another_input else path}",
                f"output_dir={output_dir}",
                "model=hub",
                f"model.name_or_path={llama}",
            ]
        )

    return configure


@pytest.fixture(scope="module")
def prepare(model: Callable[..., DictConfig]) -> Prepare:
    """Claims a run's folder and prepares it, as an attempt does before it computes."""
    known: dict[bool, tuple[PromptInput, dict[str, Any]]] = {}

    def attempt(output_dir: Path, *, another_input: bool = False) -> PromptDataModule:
        if another_input not in known:  # for speed
            cfg = model(output_dir, another_input=another_input)
            built = build_datamodule(cfg, build_model(cfg), run_folder(cfg))
            known[another_input] = built.input, built.fingerprint()
        rows, fingerprint = known[another_input]
        folder = RunFolder(output_dir)
        datamodule = PromptDataModule(rows, folder=folder, is_done=partial(has_vectors, folder))
        folder.claim(fingerprint)
        try:
            datamodule.prepare_data()
        finally:
            folder.release()
        return datamodule

    return attempt


@pytest.fixture(scope="module")
def sound(prepare: Prepare, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's folder that is prepared; tests work on copies of it."""
    root = tmp_path_factory.mktemp("sound") / "run"
    prepare(root)
    return root


@pytest.fixture(scope="module")
def another(prepare: Prepare, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another run's folder, of as many rows."""
    root = tmp_path_factory.mktemp("another") / "run"
    prepare(root, another_input=True)
    return root


def contents(root: Path) -> dict[str, bytes]:
    return {name: (root / "journal" / name).read_bytes() for name in FILES}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("kind", [*DAMAGES, "removed", "another run's"])
def test_what_is_damaged_or_missing_is_made_again(
    name: str, kind: str, prepare: Prepare, sound: Path, another: Path, tmp_path: Path
) -> None:
    root = Path(shutil.copytree(sound, tmp_path / "run"))
    path = root / "journal" / name
    if kind == "removed":
        path.unlink()
    elif kind == "another run's":
        shutil.copy(another / "journal" / name, path)
    else:
        path.write_bytes(damage(path.read_bytes(), kind, random.Random(0)))
    remaining = prepare(root).count_remaining()
    assert contents(root) == contents(sound)
    assert remaining == 30


def test_a_whole_journal_folder_of_another_run_is_refused(
    prepare: Prepare, sound: Path, another: Path, tmp_path: Path
) -> None:
    root = Path(shutil.copytree(another, tmp_path / "run"))
    with refused(RunFolderError, root, found="input has other content than it had"):
        prepare(root)
    assert contents(root) == contents(another)


def test_prepared_files_of_another_run_are_all_made_again(
    prepare: Prepare, sound: Path, another: Path, tmp_path: Path
) -> None:
    root = Path(shutil.copytree(sound, tmp_path / "run"))
    for name in FILES:
        shutil.copy(another / "journal" / name, root / "journal" / name)
    prepare(root)
    assert contents(root) == contents(sound)


def test_sound_files_are_kept_and_nothing_is_said(
    prepare: Prepare, sound: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = Path(shutil.copytree(sound, tmp_path / "run"))
    before = {name: (root / "journal" / name).stat().st_mtime_ns for name in FILES}
    with caplog.at_level(logging.WARNING, logger="memvec"):
        prepare(root)
    assert {name: (root / "journal" / name).stat().st_mtime_ns for name in FILES} == before
    assert caplog.text == ""


def test_a_file_that_is_made_again_is_named(
    prepare: Prepare, sound: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = Path(shutil.copytree(sound, tmp_path / "run"))
    (root / "journal" / "prompts.arrow").write_bytes(b"")
    with caplog.at_level(logging.WARNING, logger="memvec"):
        prepare(root)
    assert f"{root / 'journal' / 'prompts.arrow'}: is missing or damaged; it is made again" in caplog.text


@pytest.mark.parametrize("kind", [*DAMAGES, "removed"])
def test_a_damaged_fingerprint_is_written_again(kind: str, prepare: Prepare, sound: Path, tmp_path: Path) -> None:
    """The checksums say whose run it is; so nothing that was computed is lost."""
    root = Path(shutil.copytree(sound, tmp_path / "run"))
    path = root / "journal" / "fingerprint.json"
    whole = path.read_bytes()
    path.write_bytes(damage(whole, kind, random.Random(0))) if kind != "removed" else path.unlink()
    prepare(root)
    assert path.read_bytes() == whole


def test_vectors_of_rows_that_come_out_otherwise_now_are_refused(
    prepare: Prepare, sound: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where another version of a library reads the input in another way."""
    root = Path(shutil.copytree(sound, tmp_path / "run"))
    folder = RunFolder(root)
    with JournalWriter(folder.journal, rank=0, signature=read_signature(folder)) as journal:
        journal.append_rows(vector_rows(np.arange(5), np.ones((5, 4), dtype=np.float32)))
    folder.entries.unlink()
    monkeypatch.setattr("memvec.data.dataset.ROWS_PER_BATCH", 7)  # the same rows in other bytes
    with refused(RunFolderError, journal.path, found="computed for other entries than the input has now") as caught:
        prepare(root)
    assert "\n" not in str(caught.value)
    assert journal.path.exists()


def test_an_interrupted_preparation_goes_on_where_it_was(prepare: Prepare, sound: Path, tmp_path: Path) -> None:
    """Each file counts from the moment on at which its checksum is on disk."""
    for made in range(len(FILES)):
        root = Path(shutil.copytree(sound, tmp_path / f"run-{made}"))
        for name in FILES[made:]:
            (root / "journal" / name).unlink()
        prepare(root)
        assert contents(root) == contents(sound)


@pytest.mark.slow
def test_three_hundred_damaged_files_are_made_again_or_one_line(
    prepare: Prepare, sound: Path, another: Path, tmp_path: Path
) -> None:
    choose = random.Random(13)
    root = tmp_path / "run"
    for number in range(300):
        shutil.copytree(sound, root)
        for name in choose.sample((*FILES, "fingerprint.json"), choose.choice((1, 1, 2))):
            path = root / "journal" / name
            others = (another / "journal" / name).read_bytes()
            path.write_bytes(damage(path.read_bytes(), choose.choice(DAMAGES), choose, splice=others))
        refusal = None
        try:
            prepare(root)
        except MemvecError as error:
            refusal = str(error)
        assert contents(root) == contents(sound) if refusal is None else "\n" not in refusal, (number, refusal)
        shutil.rmtree(root)
