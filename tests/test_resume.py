"""What a run that resumes takes, what it refuses, and that it never reads what runs have written."""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from random import Random

import numpy as np
import pytest
from omegaconf import DictConfig

import memvec
from memvec.data.prepared import read_signature
from memvec.errors import InputError, RunFolderError
from memvec.generation.finalize import MemoryFinalizer
from memvec.run.folder import RunFolder
from memvec.writer.finalize import Finalizer
from memvec.writer.journal import JournalWriter, vector_rows
from memvec.writer.vectors import read_journal
from tests.helpers.configs import compose
from tests.helpers.conversations import CHAT, generation_overrides, write_lines
from tests.helpers.damage import damage
from tests.helpers.processes import arguments, finish, start, start_disturbed, write_texts
from tests.helpers.refusals import refused

TEXTS = [f"she likes tea number {n}" for n in range(30)]

Configure = Callable[..., DictConfig]
Write = Callable[..., Path]


def leave_unfinished(cfg: DictConfig, run: Callable[[DictConfig], object] = memvec.predict) -> RunFolder:
    """Runs until everything is computed, and stops before any result is written."""

    def stop(self: object, **options: object) -> None:
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Finalizer, "write_results", stop)
        patch.setattr(MemoryFinalizer, "write_results", stop)
        with pytest.raises(KeyboardInterrupt):
            run(cfg)
    return RunFolder(cfg.output_dir)


@pytest.mark.parametrize("state", ["unfinished", "finished"])
@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("writer.keep_text=false", "keep_text was True, is False"),
        ("data.on_error=fail", "on_error was 'reject', is 'fail'"),
    ],
)
def test_other_settings_of_what_is_written_are_refused(
    override: str, named: str, state: str, write_jsonl: Write, tiny_config: Configure
) -> None:
    path = write_jsonl(TEXTS)
    if state == "finished":
        memvec.predict(tiny_config(path))
    else:
        leave_unfinished(tiny_config(path))
    with refused(RunFolderError, "run", found=f"holds a run of something else: {named}"):
        memvec.predict(tiny_config(path, override))
    assert memvec.predict(tiny_config(path)).counts.entries == len(TEXTS)
    assert memvec.load(tiny_config(path).output_dir)["text"][:] == TEXTS


@pytest.mark.slow
@pytest.mark.parametrize("state", ["unfinished", "finished"])
def test_other_settings_of_a_generation_are_refused(
    state: str, write_conversations: Write, tiny_generation: Configure
) -> None:
    path = write_conversations()
    if state == "finished":
        memvec.generate(tiny_generation(path))
    else:
        leave_unfinished(tiny_generation(path), memvec.generate)
    with refused(RunFolderError, "run", found="on_error was 'reject', is 'fail'"):
        memvec.generate(tiny_generation(path, "data.on_error=fail"))
    assert memvec.generate(tiny_generation(path)).counts.conversations > 0


@pytest.mark.parametrize("override", ["writer.flush_every=7", "data.batch_size=3", "writer.fsync=flush"])
def test_settings_of_how_it_is_computed_may_change(override: str, write_jsonl: Write, tiny_config: Configure) -> None:
    path = write_jsonl(TEXTS)
    leave_unfinished(tiny_config(path))
    assert memvec.predict(tiny_config(path, override)).counts.entries == len(TEXTS)


def test_vectors_of_another_run_are_computed_again(
    write_jsonl: Write, tiny_config: Configure, caplog: pytest.LogCaptureFixture
) -> None:
    path, other = write_jsonl(TEXTS), write_jsonl(TEXTS[::-1], name="other.jsonl")
    expected = tiny_config(path, output="expected")
    memvec.predict(expected)
    mine, others = leave_unfinished(tiny_config(path)), leave_unfinished(tiny_config(other, output="others"))
    for file in mine.journal.glob("*.frames"):
        file.unlink()
    for file in others.journal.glob("*.frames"):
        shutil.copy(file, mine.journal / f"copied-{file.name}")
    with caplog.at_level("WARNING", logger="memvec"):
        memvec.predict(tiny_config(path))
    vectors, right = (memvec.load(folder)["vector"][:] for folder in (mine.root, expected.output_dir))
    assert float((vectors - right).abs().max()) < 1e-5
    assert "frames of another run; the rows in them are computed again" in caplog.text


def test_a_run_of_the_version_before_is_refused_in_one_line(write_jsonl: Write, tiny_config: Configure) -> None:
    """It has no checksums and no signatures, so nothing there can be trusted."""
    cfg = tiny_config(write_jsonl(TEXTS))
    folder = leave_unfinished(cfg)
    fingerprint = json.loads(folder.fingerprint.read_text())
    for name in ("journal_format", "on_error", "keep_text"):
        del fingerprint[name]
    folder.fingerprint.write_text(json.dumps(fingerprint))
    folder.prepared.unlink()
    with refused(RunFolderError, "run", found="an unfinished run of another version of memvec") as caught:
        memvec.predict(cfg)
    assert "\n" not in str(caught.value)
    assert list(folder.journal.glob("*.frames"))


def test_a_result_of_the_version_before_is_complete(
    write_jsonl: Write, tiny_config: Configure, caplog: pytest.LogCaptureFixture
) -> None:
    cfg = tiny_config(write_jsonl(TEXTS))
    memvec.predict(cfg)
    folder = RunFolder(cfg.output_dir)
    manifest = json.loads(folder.manifest.read_text())
    for name in ("journal_format", "on_error", "keep_text"):
        del manifest["fingerprint"][name]
    folder.manifest.write_text(json.dumps(manifest))
    with caplog.at_level("INFO", logger="memvec"):
        memvec.predict(cfg)
    assert "is complete already" in caplog.text
    with refused(RunFolderError, "run", found="layer was -1, is 1"):
        memvec.predict(tiny_config(Path(cfg.data.path), "model.layer=1"))


def test_parts_of_other_rows_do_not_stay_in_the_result(
    write_jsonl: Write, tiny_config: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As an attempt leaves them that was killed while it wrote files of another size."""
    cfg = tiny_config(write_jsonl(TEXTS))
    monkeypatch.setattr("memvec.writer.finalize.BYTES_PER_FILE", 5_000)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Finalizer, "write_rejected", lambda self: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            memvec.predict(cfg)
    folder = RunFolder(cfg.output_dir)
    assert len(list(folder.vectors.iterdir())) > 1
    monkeypatch.setattr("memvec.writer.finalize.BYTES_PER_FILE", 256 * 2**20)
    memvec.predict(cfg)
    assert [path.name for path in folder.vectors.iterdir()] == ["part-00000-of-00001.parquet"]
    assert memvec.load(folder.root)["id"][:] == [f"m/{n}" for n in range(len(TEXTS))]


def inside(folder: Path, llama: Path, *overrides: str) -> list[str]:
    return arguments(folder, folder / "run", llama, "trainer.devices=1", *overrides)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of input in which runs lie, as one that has read the same file."""
    (tmp_path / "data" / "more").mkdir(parents=True)
    write_texts(tmp_path / "data" / "more" / "texts.jsonl", 60)
    return tmp_path / "data"


@pytest.mark.processes
@pytest.mark.parametrize("at", ["entries.arrow", "parquet", "manifest.json"])
def test_a_run_inside_its_input_is_killed_and_resumes(at: str, folder: Path, llama: Path) -> None:
    command = inside(folder, llama)
    code, said = finish(start_disturbed("predict", command[3:], at=at))
    assert code == -signal.SIGKILL, said
    memvec.predict(compose(command[3:]))
    assert memvec.load(folder / "run")["id"][:] == [f"m/{n}" for n in range(60)]


@pytest.mark.parametrize("pattern", ["", "/**", "/**/*.*", "/*/*.jsonl"])
def test_a_finished_run_inside_its_input_is_complete(
    pattern: str, folder: Path, llama: Path, caplog: pytest.LogCaptureFixture
) -> None:
    overrides = inside(folder, llama)[3:]
    overrides[0] = f"data.path={folder}{pattern}"
    memvec.predict(compose(overrides))
    with caplog.at_level("INFO", logger="memvec"):
        memvec.predict(compose(overrides))
    assert "is complete already" in caplog.text
    assert len(memvec.load(folder / "run")) == 60


def test_another_runs_folder_is_not_read(folder: Path, llama: Path, tmp_path: Path) -> None:
    memvec.predict(compose(inside(folder, llama)[3:]))
    unfinished = folder / "deep" / "unfinished"
    leave_unfinished(compose(arguments(folder, unfinished, llama)[3:]))
    memvec.predict(compose(arguments(folder, tmp_path / "new", llama)[3:]))
    assert memvec.load(tmp_path / "new")["id"][:] == [f"m/{n}" for n in range(60)]


@pytest.mark.slow
def test_what_a_run_has_written_is_read_where_it_is_named(folder: Path, llama: Path, tmp_path: Path) -> None:
    memvec.predict(compose(inside(folder, llama)[3:]))
    for number, name in enumerate(("vectors", "vectors/*.parquet", "vectors/part-00000-of-00001.parquet")):
        output_dir = tmp_path / f"again-{number}"
        memvec.predict(compose(arguments(folder / "run" / name, output_dir, llama)[3:]))
        assert len(memvec.load(output_dir)) == 60


def test_a_folder_of_runs_alone_is_refused_in_one_line(folder: Path, llama: Path, tmp_path: Path) -> None:
    memvec.predict(compose(arguments(folder, tmp_path / "runs" / "a", llama)[3:]))
    with refused(InputError, "runs", found="holds only what runs have written"):
        memvec.predict(compose(arguments(tmp_path / "runs", tmp_path / "b", llama)[3:]))
    assert not (tmp_path / "b").exists()


@pytest.mark.processes
def test_a_run_of_many_attempts_resumes_with_few_descriptors(
    write_jsonl: Write, tiny_config: Configure, llama: Path, tmp_path: Path
) -> None:
    """In 500 journal files, as 500 attempts leave them; the process may hold 150 files open."""
    path = write_jsonl([f"she likes tea number {n}" for n in range(520)])
    expected = tiny_config(path, output="expected")
    memvec.predict(expected)
    folder = leave_unfinished(tiny_config(path))
    index = read_journal(folder.journal, rows=520, signature=read_signature(folder))
    for row in range(500):
        with JournalWriter(folder.journal, rank=row, signature=read_signature(folder)) as journal:
            journal.append_rows(vector_rows(np.asarray([row]), index.vectors(np.asarray([row]))))
    for file in index.files:
        file.unlink()
    limited = ["bash", "-c", 'ulimit -n 150; exec "$@"', "bash"]
    code, said = finish(start([*limited, *arguments(path, folder.root, llama, "trainer.devices=1")]))
    assert code == 0, said
    assert f"resuming {folder.root}: 20 vectors are left to compute" in said
    vectors, right = (memvec.load(root)["vector"][:] for root in (folder.root, expected.output_dir))
    assert float((vectors - right).abs().max()) < 1e-5


@pytest.fixture(scope="module")
def generated(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[list[str], RunFolder]:
    """A generation that was stopped before its results; tests work on copies of its folder."""
    root = tmp_path_factory.mktemp("generated")
    overrides = generation_overrides(write_lines(root / "chat.jsonl", CHAT), root / "run", llama)
    return overrides, leave_unfinished(compose(overrides, config_name="generate"), memvec.generate)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["conversations.arrow", "entries.arrow", "rejected.jsonl", "prompts.arrow"])
@pytest.mark.parametrize("kind", ["emptied", "zeroed", "cut", "flipped"])
def test_a_generations_prepared_files_are_made_again(
    name: str,
    kind: str,
    generated: tuple[list[str], RunFolder],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    overrides, stopped = generated
    root = shutil.copytree(stopped.root, tmp_path / "run")
    path = RunFolder(root).journal / name
    whole = path.read_bytes()
    path.write_bytes(damage(whole, kind, Random(0)))
    cfg = compose([*overrides, f"output_dir={root}"], config_name="generate")
    with caplog.at_level("INFO", logger="memvec"):
        assert leave_unfinished(cfg, memvec.generate).root == root
    assert path.read_bytes() == whole
    assert f"resuming {root}: 0 windows are left to compute" in caplog.text
