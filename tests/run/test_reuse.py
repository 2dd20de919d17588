"""Vectors that finished runs have already: taken where the prompt is the same, and nowhere else."""

from __future__ import annotations

import json
import re
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from datasets import Dataset
from omegaconf import DictConfig
from transformers import AutoTokenizer

import memvec
from memvec.digest import digest
from memvec.errors import ConfigError, MemvecError, ModelError, RunFolderError
from memvec.files import read_json, write_json
from memvec.model.checkpoint import Checkpoint
from memvec.run.dry_run import plan_run
from memvec.run.folder import RunFolder
from memvec.run.summary import RunSummary
from memvec.writer import finalize
from tests.helpers.configs import compose
from tests.helpers.conversations import generation_overrides, marked, write_lines
from tests.helpers.processes import (
    arguments,
    assert_same,
    finish,
    kill_group,
    random_texts,
    resume,
    rows_written,
    start,
    start_disturbed,
    wait_until,
)
from tests.helpers.reference import full_model, reference_vectors
from tests.helpers.refusals import refused, refused_as
from tests.test_generate import DRAWN, MARKS
from tests.test_resume import leave_unfinished

Configure = Callable[..., DictConfig]
Write = Callable[..., Path]

KNOWN = 30
TEXTS = random_texts(KNOWN + 10)
OLD = [{"id": f"m/{n}", "text": text} for n, text in enumerate(TEXTS[:KNOWN])]
NEW = [{"id": f"n/{n}", "text": text} for n, text in enumerate(TEXTS[KNOWN:])]
# What becomes of a memory store, and how many of its prompts no run has seen.
CHANGED: dict[str, tuple[list[dict[str, Any]], int]] = {
    "as it was": (OLD, 0),
    "rows added": ([*OLD, *NEW], 10),
    "rows added in front and between": ([NEW[0], *OLD[:7], *NEW[1:4], *OLD[7:]], 4),
    "rows edited": ([{**row, "text": f"{row['text']}!"} if n in (0, 11, 29) else row for n, row in enumerate(OLD)], 3),
    "texts exchanged": ([{**row, "text": other["text"]} for row, other in zip(OLD, OLD[::-1], strict=True)], 0),
    "rows deleted": (OLD[3:20], 0),
    "rows in another order": (OLD[::-1], 0),
    "other ids": ([{**row, "id": 7 * n} for n, row in enumerate(OLD)], 0),
    "equal rows": ([*OLD[:5], *({**row, "id": f"again/{row['id']}"} for row in OLD[:5]), *NEW[:2], *NEW[:1]], 2),
    "all of it": ([*NEW[:3], {**OLD[4], "id": "x"}, {"id": "y", "text": "edited"}, *OLD[25:3:-1]], 4),
}
CHANGED["equal rows"][0][-1] = {**NEW[0], "id": "again/n/0"}


def quiet(data_path: Path, output_dir: Path, model: Path, *overrides: str) -> DictConfig:
    return compose([*arguments(data_path, output_dir, model, "trainer.devices=1", *overrides)[3:]])


@pytest.fixture(scope="module")
def known(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A finished run of two parts over the old rows, with one row that was there twice."""
    root = tmp_path_factory.mktemp("known")
    path = write_lines(root / "memories.jsonl", [*OLD, {**OLD[0], "id": "twice"}])
    before, finalize.BYTES_PER_FILE = finalize.BYTES_PER_FILE, 16 * (4 * 32 + 128)
    try:
        return memvec.predict(quiet(path, root / "run", llama)).folder
    finally:
        finalize.BYTES_PER_FILE = before


@pytest.fixture
def copy_of_known(known: RunFolder, tmp_path: Path) -> RunFolder:
    return RunFolder(shutil.copytree(known.root, tmp_path / "known"))


def by_text(dataset: Dataset) -> dict[str, torch.Tensor]:
    return dict(zip(dataset["text"][:], dataset["vector"][:], strict=True))


def assert_as_computed(summary: RunSummary, cfg: DictConfig, tmp_path: Path) -> None:
    """Asserts that a result is what a run gives that reuses nothing."""
    anew = cfg.copy()
    anew.output_dir, anew.reuse = str(tmp_path / "anew"), None
    expected = memvec.load(memvec.predict(anew).folder.root)
    found = memvec.load(summary.folder.root)
    assert_same(found, expected)
    for name in set(expected.column_names) - {"vector"}:
        assert list(found[name][:]) == list(expected[name][:]), name


@pytest.mark.parametrize("change", CHANGED)
def test_only_what_is_new_is_computed(
    change: str, known: RunFolder, write_jsonl: Write, tiny_config: Configure, tmp_path: Path
) -> None:
    rows, new = CHANGED[change]
    cfg = tiny_config(write_jsonl(rows), f"reuse={known.root}")
    summary = memvec.predict(cfg)
    assert summary.metrics["computed_entries"] == new
    assert summary.reused == {str(known.root): summary.counts.unique - new}
    assert_as_computed(summary, cfg, tmp_path)
    old, found = by_text(memvec.load(known.root)), by_text(memvec.load(summary.folder.root))
    assert all(torch.equal(found[text], old[text]) for text in old.keys() & found.keys())


@pytest.mark.slow
@pytest.mark.parametrize("kept", [("false", "true"), ("true", "false"), ("false", "false")])
def test_texts_need_not_be_kept(
    kept: tuple[str, str], write_jsonl: Write, tiny_config: Configure, tmp_path: Path
) -> None:
    old = tiny_config(write_jsonl(OLD), f"writer.keep_text={kept[0]}", output="old")
    memvec.predict(old)
    rows = write_jsonl([*NEW[:2], *OLD[::-1]], name="new.jsonl")
    cfg = tiny_config(rows, f"writer.keep_text={kept[1]}", f"reuse={old.output_dir}")
    summary = memvec.predict(cfg)
    assert summary.metrics["computed_entries"] == 2
    assert_as_computed(summary, cfg, tmp_path)


@pytest.mark.parametrize(
    "form",
    [
        ["model.layer=[-1,1]"],
        ["writer.dtype=float16", "writer.normalize=true"],
        ["model.layer=[1,2,-1]", "writer.dtype=float16", "trainer.precision=bf16-true"],
    ],
)
def test_vectors_of_several_layers_and_other_numbers_are_reused(
    form: list[str], write_jsonl: Write, tiny_config: Configure
) -> None:
    old = memvec.predict(tiny_config(write_jsonl(OLD), *form, output="old"))
    path = write_jsonl([*NEW[:4], *OLD[::-1]], name="new.jsonl")
    new = memvec.predict(tiny_config(path, *form, f"reuse={old.folder.root}"))
    assert new.metrics["computed_entries"] == 4
    anew = memvec.load(memvec.predict(tiny_config(path, *form, output="anew")).folder.root)
    known, found = memvec.load(old.folder.root), memvec.load(new.folder.root)
    assert found.features == anew.features
    for column in (name for name in found.column_names if name.startswith("vector")):
        assert torch.equal(found[column][4:], known[column][:].flip(0))
        torch.testing.assert_close(found[column][:], anew[column][:], rtol=0.1, atol=0.1)


def test_the_summary_says_what_was_taken_from_where(
    known: RunFolder, write_jsonl: Write, tiny_config: Configure
) -> None:
    summary = memvec.predict(tiny_config(write_jsonl([*OLD, *NEW[:4]]), f"reuse={known.root}"))
    assert read_json(summary.folder.manifest)["notes"]["reused"] == {str(known.root): KNOWN}
    reused, speed = summary.lines()[4:6]
    assert reused == f"reused     {KNOWN} from {known.root}"
    assert speed.endswith("entries/s; batched, without padding, shared tokens computed once), over the 4 computed")
    tokens = memvec.load(summary.folder.root)["num_tokens"][KNOWN:].sum()
    assert summary.metrics["tokens_per_second"] == pytest.approx(tokens / summary.metrics["predict_seconds"])


def test_where_nothing_is_new_no_weights_are_loaded(
    known: RunFolder, write_jsonl: Write, tiny_config: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(self: Checkpoint, dtype: torch.dtype) -> None:
        raise AssertionError("weights are loaded")

    monkeypatch.setattr(Checkpoint, "load_decoder", load)
    summary = memvec.predict(tiny_config(write_jsonl(OLD[::2]), f"reuse={known.root}"))
    assert summary.lines()[4:6] == [
        f"reused     15 from {known.root}",
        "tokens/s   0 (0.0 entries/s; nothing was left to compute), over the 0 computed",
    ]
    with pytest.raises(AssertionError, match="weights are loaded"):
        memvec.predict(tiny_config(write_jsonl(OLD[::2]), output="anew"))


def test_a_run_with_another_template_reuses_nothing(
    known: RunFolder, write_jsonl: Write, tiny_config: Configure, tmp_path: Path
) -> None:
    cfg = tiny_config(write_jsonl(OLD), "prompt=one_word_en", f"reuse={known.root}")
    summary = memvec.predict(cfg)
    assert summary.reused == {}
    assert summary.metrics["computed_entries"] == KNOWN
    assert not [line for line in summary.lines() if line.startswith("reused")]
    assert_as_computed(summary, cfg, tmp_path)


def test_a_template_of_the_same_tokens_reuses_all(known: RunFolder, write_jsonl: Write, tiny_config: Configure) -> None:
    """The template is typed into the texts, half of it, and longer prompts are allowed."""
    template = '请用一个Token总结以下文本"{text}"：'
    rows = [{**row, "text": f'{row["text"]}"：'} for row in OLD]
    options = ["prompt=raw", f"prompt.template={template.partition('{text}')[0]}{{text}}", "data.max_length=200"]
    summary = memvec.predict(tiny_config(write_jsonl(rows), *options, f"reuse={known.root}"))
    assert summary.reused == {str(known.root): KNOWN}


@pytest.fixture
def two_runs(write_jsonl: Write, tiny_config: Configure, tmp_path: Path) -> list[str]:
    """Two finished runs that have some rows in common."""
    for name, rows in (("a", OLD[:12]), ("b", OLD[8:20])):
        memvec.predict(tiny_config(write_jsonl(rows, name=f"{name}.jsonl"), output=f"runs/{name}"))
    return [str(tmp_path / "runs" / name) for name in "ab"]


@pytest.mark.slow
def test_several_runs_are_reused_by_list_and_by_glob(
    two_runs: list[str], write_jsonl: Write, tiny_config: Configure, tmp_path: Path
) -> None:
    path = write_jsonl([*OLD[:25], *NEW[:1]])
    listed = memvec.predict(tiny_config(path, f"reuse=[{two_runs[0]},{two_runs[1]}]", output="runs/c"))
    assert listed.reused == {two_runs[0]: 12, two_runs[1]: 8}
    assert listed.lines()[4] == f"reused     12 from {two_runs[0]}, 8 from {two_runs[1]}"
    assert listed.metrics["computed_entries"] == 6
    (tmp_path / "runs" / "notes.txt").write_text("no run")
    globbed = memvec.predict(tiny_config(path, f"reuse={tmp_path}/runs/*", output="runs/d"))
    assert sum(globbed.reused.values()) == 26


@pytest.mark.slow
def test_a_glob_does_not_mean_the_runs_own_folder(
    two_runs: list[str], write_jsonl: Write, tiny_config: Configure, tmp_path: Path
) -> None:
    cfg = tiny_config(write_jsonl(OLD), f"reuse={tmp_path}/runs/*", output="runs/c")
    leave_unfinished(cfg)
    summary = memvec.predict(cfg)
    assert summary.reused == {two_runs[0]: 12, two_runs[1]: 8}
    assert plan_run(tiny_config(write_jsonl(OLD), f"reuse={tmp_path}/runs/[ab]", output="runs/a")).reused == {
        two_runs[1]: 12
    }


@pytest.mark.slow
@pytest.mark.parametrize("reuse_again", [True, False])
def test_a_stopped_run_resumes_with_and_without_reuse(
    reuse_again: bool, known: RunFolder, write_jsonl: Write, tiny_config: Configure, tmp_path: Path
) -> None:
    """What reuses nothing is the same run: its rows are the same."""
    path = write_jsonl([*NEW, *OLD])
    folder = leave_unfinished(tiny_config(path, f"reuse={known.root}"))
    for frames in sorted(folder.journal.glob("*.frames"))[1:]:  # the computed ones
        frames.unlink()
    cfg = tiny_config(path, *([f"reuse={known.root}"] if reuse_again else []))
    summary = memvec.predict(cfg)
    assert summary.metrics["computed_entries"] == len(NEW)
    assert summary.reused == {str(known.root): KNOWN}
    assert_as_computed(summary, cfg, tmp_path)


def test_copies_that_were_torn_are_copied_again(
    known: RunFolder, write_jsonl: Write, tiny_config: Configure, tmp_path: Path
) -> None:
    path = write_jsonl([*NEW, *OLD])
    cfg = tiny_config(path, f"reuse={known.root}")
    folder = leave_unfinished(cfg)
    copied, *computed = sorted(folder.journal.glob("*.frames"))
    copied.write_bytes(copied.read_bytes()[:-40])
    computed[0].unlink()
    summary = memvec.predict(cfg)
    assert summary.metrics["computed_entries"] == len(NEW)
    assert summary.reused == {str(known.root): KNOWN}
    assert_as_computed(summary, cfg, tmp_path)


def test_a_finished_run_does_not_look_at_what_it_has_reused(
    copy_of_known: RunFolder, write_jsonl: Write, tiny_config: Configure, caplog: pytest.LogCaptureFixture
) -> None:
    cfg = tiny_config(write_jsonl(OLD), f"reuse={copy_of_known.root}")
    first = memvec.predict(cfg)
    shutil.rmtree(copy_of_known.root)
    with caplog.at_level("INFO", logger="memvec"):
        again = memvec.predict(cfg)
    assert "is complete already" in caplog.text
    assert again.lines() == first.lines()


@pytest.mark.slow
def test_a_run_that_has_reused_is_reused_itself(
    known: RunFolder, write_jsonl: Write, tiny_config: Configure, tmp_path: Path
) -> None:
    second = memvec.predict(tiny_config(write_jsonl([*OLD[5:], *NEW[:5]]), f"reuse={known.root}", output="second"))
    cfg = tiny_config(write_jsonl([*NEW, *OLD]), f"reuse={second.folder.root}")
    third = memvec.predict(cfg)
    assert third.metrics["computed_entries"] == 10
    assert_as_computed(third, cfg, tmp_path)


def test_a_plan_counts_what_would_be_left(
    known: RunFolder, write_jsonl: Write, tiny_config: Configure, tmp_path: Path
) -> None:
    plan = plan_run(tiny_config(write_jsonl([*OLD, *NEW[:4]]), f"reuse={known.root}", "dry_run=true"))
    assert (plan.entries, plan.ranks[0].rows, plan.reused) == (KNOWN + 4, 4, {str(known.root): KNOWN})
    assert plan.lines()[:2] == [
        f"entries    {KNOWN + 4} ({KNOWN + 4} different), 0 rejected",
        f"reused     {KNOWN} from {known.root}",
    ]
    nothing = plan_run(tiny_config(write_jsonl(OLD), f"reuse={known.root}", "dry_run=true"))
    assert nothing.lines()[-1] == "predict    nothing is left to compute"
    assert not (tmp_path / "run").exists()


def test_a_grown_input_is_refused_naming_how_to_reuse(
    write_jsonl: Write, tiny_config: Configure, tmp_path: Path
) -> None:
    memvec.predict(tiny_config(write_jsonl(OLD), output="old"))
    path = write_jsonl([*OLD, *NEW[:3]])
    root = tmp_path / "old"
    found = "holds a run of something else: input has other content than it had"
    advice = f"to compute only what is new: reuse={root} output_dir=<another>"
    with refused(RunFolderError, root, found=found, advice=advice) as caught:
        memvec.predict(tiny_config(path, output="old"))
    override = re.search(r"reuse=\S+", caught.value.advice)
    assert override is not None
    assert memvec.predict(tiny_config(path, override[0])).metrics["computed_entries"] == 3


@pytest.mark.parametrize("override", ["model.layer=1", "trainer.precision=bf16-true"])
def test_what_could_not_be_reused_is_not_named(override: str, write_jsonl: Write, tiny_config: Configure) -> None:
    memvec.predict(tiny_config(write_jsonl(OLD)))
    with refused(RunFolderError, "run", found="holds a run of something else") as caught:
        memvec.predict(tiny_config(write_jsonl([*OLD, *NEW]), override))
    assert "reuse=" not in str(caught.value)


def without_digests(folder: RunFolder) -> None:
    for part in folder.vectors.iterdir():
        pq.write_table(pq.read_table(part).drop_columns(["prompt_digest"]), part)


def with_digests(folder: RunFolder, digest: str) -> None:
    for part in folder.vectors.iterdir():
        table = pq.read_table(part)
        digests = pa.array([digest] * len(table), pa.string())
        pq.write_table(table.set_column(table.schema.get_field_index("prompt_digest"), "prompt_digest", digests), part)


def without_manifest(folder: RunFolder) -> None:
    folder.manifest.unlink()


def with_damaged_manifest(folder: RunFolder) -> None:
    folder.manifest.write_text(folder.manifest.read_text().replace('"dimension": 32', '"dimension": []'))


def without_a_part(folder: RunFolder) -> None:
    next(folder.vectors.iterdir()).unlink()


def with_other_fingerprint(folder: RunFolder) -> None:
    manifest = read_json(folder.manifest)
    manifest["fingerprint"]["normalize"] = {"a": ["\x1b[31m"]}
    write_json(folder.manifest, manifest)


UNUSABLE: dict[str, tuple[Callable[[RunFolder], None], str, str]] = {
    "of an earlier version": (without_digests, "", "an earlier version of memvec, which did not note of which prompts"),
    "no run": (without_manifest, "", "holds no run"),
    "damaged manifest": (with_damaged_manifest, r"/manifest\.json", "damaged, or not of memvec"),
    "a part is missing": (
        without_a_part,
        r"/vectors/part-0000\d-of-00002\.parquet",
        "missing, though the run is complete",
    ),
    "a stranger's fingerprint": (with_other_fingerprint, "", r"normalize was {'a': ['\x1b[31m']}, is False"),
}


@pytest.mark.parametrize("kind", UNUSABLE)
def test_a_run_that_cannot_be_used_is_one_line(
    kind: str, copy_of_known: RunFolder, write_jsonl: Write, tiny_config: Configure, tmp_path: Path
) -> None:
    spoil, file, found = UNUSABLE[kind]
    spoil(copy_of_known)
    for named in (copy_of_known.root, tmp_path / "kn*"):
        with refused(
            RunFolderError, re.compile(f"^{re.escape(str(copy_of_known.root))}{file}$"), found=found
        ) as caught:
            memvec.predict(tiny_config(write_jsonl(OLD), f"reuse={named}"))
        assert "\n" not in str(caught.value)
        assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("model.layer=1", "layer was -1, is 1"),
        ("model.layer=[-1]", "layer was -1, is [-1]"),
        ("writer.dtype=float16", "vector_dtype was 'float32', is 'float16'"),
        ("writer.normalize=true", "normalize was False, is True"),
        ("trainer.precision=bf16-true", "dtype was 'float32', is 'bfloat16'; precision was '32-true', is 'bf16-true'"),
    ],
)
def test_vectors_of_another_kind_are_refused(
    override: str, said: str, known: RunFolder, write_jsonl: Write, tiny_config: Configure, tmp_path: Path
) -> None:
    for plan in ("false", "true"):
        cfg = tiny_config(write_jsonl(OLD), override, f"reuse={known.root}", f"dry_run={plan}")
        with refused(RunFolderError, known.root, found="its vectors cannot be reused") as caught:
            plan_run(cfg) if cfg.dry_run else memvec.predict(cfg)
        assert caught.value.found.endswith(said)
        assert not (tmp_path / "run").exists()


def test_vectors_of_another_model_are_refused(
    known: RunFolder, write_jsonl: Write, tiny_config: Configure, model_folders: Callable[[str], Path]
) -> None:
    with refused(RunFolderError, "run", found="cannot be reused in this run: model has other content than it had"):
        memvec.predict(tiny_config(write_jsonl(OLD), f"reuse={known.root}", model=model_folders("qwen2")))


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("/nowhere/run", RunFolderError("reuse", "/nowhere/run", found="no such folder")),
        ("/nowhere/*", RunFolderError("reuse", "/nowhere/*", found="the glob matches no folder of another run")),
        (f"/{'x' * 300}", RunFolderError("reuse", f"/{'x' * 300}", found="File name too long")),
        ("[]", ConfigError("reuse", [], allowed="a name, or a list of at least one")),
        ("{a: b}", RunFolderError("reuse", "{a: b}", found="no such folder")),
    ],
)
def test_a_name_of_nothing_is_one_line(
    value: str, expected: MemvecError, write_jsonl: Write, tiny_config: Configure, tmp_path: Path
) -> None:
    with refused_as(expected):
        memvec.predict(tiny_config(write_jsonl(OLD), f"reuse={value}"))
    assert not (tmp_path / "run").exists()


def test_an_unfinished_run_is_not_reused(write_jsonl: Write, tiny_config: Configure) -> None:
    unfinished = leave_unfinished(tiny_config(write_jsonl(OLD), output="unfinished"))
    with refused(RunFolderError, unfinished.root, found="holds an unfinished run"):
        memvec.predict(tiny_config(write_jsonl(OLD), f"reuse={unfinished.root}"))


@pytest.mark.parametrize("at", ["vectors", "digests"])
def test_damage_found_while_copying_loses_nothing(
    at: str, copy_of_known: RunFolder, write_jsonl: Write, tiny_config: Configure, tmp_path: Path
) -> None:
    first, second = sorted(copy_of_known.vectors.iterdir())
    if at == "digests":
        with_digests(copy_of_known, "z" * 32)
        second = first
    else:
        group = pq.ParquetFile(second).metadata.row_group(0)
        [vectors] = [
            group.column(at) for at in range(group.num_columns) if group.column(at).path_in_schema[:6] == "vector"
        ]
        content = bytearray(second.read_bytes())
        end = vectors.data_page_offset + vectors.total_compressed_size
        content[end - 64 : end] = bytes(64)
        second.write_bytes(content)
    path = write_jsonl([*OLD, *NEW])
    with refused(RunFolderError, second.name, found="damaged, or not of memvec: ") as caught:
        memvec.predict(tiny_config(path, f"reuse={copy_of_known.root}"))
    assert "\n" not in str(caught.value)
    cfg = tiny_config(path)
    summary = memvec.predict(cfg)
    copied = 16 if at == "vectors" else 0  # the first part's
    assert summary.metrics["computed_entries"] == KNOWN + len(NEW) - copied
    assert_as_computed(summary, cfg, tmp_path)


@pytest.mark.slow
def test_an_extraction_of_more_conversations_reuses_its_vectors(scripted: Path, tmp_path: Path) -> None:
    def run(output: str, rows: int, *other: str) -> Any:
        path = write_lines(tmp_path / "conversations.jsonl", marked(rows, MARKS))
        overrides = generation_overrides(path, tmp_path / output, scripted, *DRAWN, *other)
        return memvec.extract(compose(overrides, config_name="extract"))

    first = run("first", 6)
    second = run("second", 8, f"reuse={tmp_path / 'first'}")
    assert second.vectors.reused == {str(tmp_path / "first"): first.vectors.counts.unique}
    assert second.vectors.counts.unique > first.vectors.counts.unique
    with refused(RunFolderError, "memories", found="holds memory texts, and no vectors to reuse"):
        run("third", 8, f"reuse={tmp_path / 'first' / 'memories'}")
    assert not (tmp_path / "third").exists()


@pytest.mark.processes
def test_killed_between_two_reused_runs_it_copies_the_rest(
    two_runs: list[str], write_jsonl: Write, tiny_config: Configure, llama: Path, tmp_path: Path
) -> None:
    path = write_jsonl([*NEW, *OLD[:25]])
    command = arguments(path, tmp_path / "run", llama, "trainer.devices=1", f"reuse=[{two_runs[0]},{two_runs[1]}]")
    process = start_disturbed("predict", command[3:], at="rank-00000-attempt-002.frames", event="open")
    code, said = finish(process)
    assert code == -signal.SIGKILL, said
    assert rows_written(tmp_path / "run") == 12
    cfg = compose(command[3:])
    summary = memvec.predict(cfg)
    assert summary.reused == {two_runs[0]: 12, two_runs[1]: 8}
    assert summary.metrics["computed_entries"] == len(NEW) + 5
    assert_as_computed(summary, cfg, tmp_path)


@pytest.mark.processes
def test_killed_while_computing_it_resumes_without_reuse(known: RunFolder, llama: Path, tmp_path: Path) -> None:
    more = [{"id": f"more/{n}", "text": text} for n, text in enumerate(random_texts(3000)[40:])]
    path = write_lines(tmp_path / "grown.jsonl", [*more, *OLD])
    command = arguments(path, tmp_path / "run", llama, "trainer.devices=1", "data.batch_size=2")
    process = start([*command, f"reuse={known.root}"])
    wait_until(lambda: rows_written(tmp_path / "run") > KNOWN, process)
    kill_group(process)
    written = rows_written(tmp_path / "run")
    assert KNOWN < written < len(more) + KNOWN
    summary = resume(command)
    assert summary.metrics["computed_entries"] == len(more) + KNOWN - written
    assert summary.reused == {str(known.root): KNOWN}
    assert summary.lines()[5].endswith("computed since the run was resumed")
    assert_as_computed(summary, compose(command[3:]), tmp_path)


@pytest.mark.processes
@pytest.mark.parametrize("new", [len(NEW), 0])
def test_two_ranks_compute_only_what_is_new(new: int, known: RunFolder, llama: Path, tmp_path: Path) -> None:
    path = write_lines(tmp_path / "grown.jsonl", [*NEW[:new], *OLD])
    command = arguments(path, tmp_path / "run", llama, "trainer.devices=2", "trainer.strategy=ddp")
    code, said = finish(start([*command, f"reuse={known.root}"]))
    assert code == 0, said
    assert f"reused     {KNOWN} from {known.root}" in said
    assert read_json(tmp_path / "run" / "metrics.json")["computed_entries"] == new
    one = memvec.predict(quiet(path, tmp_path / "one", llama))
    assert_same(memvec.load(tmp_path / "run"), memvec.load(one.folder.root))


def test_the_digest_is_that_of_the_tokens(known: RunFolder, llama: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(llama)
    dataset = memvec.load(known.root)
    for text, found in zip(dataset["text"][:], dataset["prompt_digest"][:], strict=True):
        tokens = tokenizer(f'请用一个Token总结以下文本"{text}"：')["input_ids"]
        assert found == digest(np.asarray(tokens, dtype=np.int32).tobytes()).hex()


def test_a_result_without_digests_is_read(copy_of_known: RunFolder) -> None:
    """As an earlier version wrote it."""
    expected = memvec.load(copy_of_known.root)
    without_digests(copy_of_known)
    found = memvec.load(copy_of_known.root)
    assert found.column_names == [name for name in expected.column_names if name != "prompt_digest"]
    assert torch.equal(found["vector"][:], expected["vector"][:])
    assert memvec.search(copy_of_known.root, [TEXTS[3]], k=1, accelerator="cpu")[0][0].id == "m/3"


def test_vectors_without_the_tokenizers_token_types_are_refused(
    model_folders: Callable[[str], Path], write_jsonl: Callable[..., Path], tiny_config: Callable[..., DictConfig],
    tmp_path: Path,
) -> None:  # fmt: skip
    """GPT-2 adds an embedding of them: the same weights and tokens give other vectors with them."""
    folder = tmp_path / "model"
    shutil.copytree(model_folders("gpt2"), folder)
    path = write_jsonl(TEXTS)
    before = tiny_config(path, model=folder, output="before")
    memvec.predict(before)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings["model_input_names"] = ["input_ids", "token_type_ids", "attention_mask"]
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    with refused(RunFolderError, before.output_dir, found="token_types was False, is True"):
        memvec.predict(tiny_config(path, f"reuse={before.output_dir}", model=folder, output="after"))
    with refused(ModelError, before.output_dir, found="token_types was None, is True"):
        memvec.Searcher(before.output_dir).search(["tea"])
    after = tiny_config(path, model=folder, output="after")
    memvec.predict(after)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    expected = reference_vectors(full_model(folder), tokenizer, TEXTS, template=after.prompt.template)
    torch.testing.assert_close(memvec.load(after.output_dir)["vector"][:], expected, rtol=1e-4, atol=1e-5)
