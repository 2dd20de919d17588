"""The whole flow, from a file of memory texts to a finished run's folder."""

from __future__ import annotations

import json
import logging
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from omegaconf import DictConfig
from transformers import AutoTokenizer

import memvec
from memvec.config.compose import sample_path
from memvec.errors import InputError, RunFolderError
from memvec.files import read_json
from tests.fixtures import TEXTS
from tests.helpers.refusals import refused

Configure = Callable[..., DictConfig]
Write = Callable[..., Path]

TEMPLATE = '请用一个Token总结以下文本"{text}"：'
RESULT = ["history.json", "manifest.json", "metrics.json", "rejected.jsonl", "vectors"]


def visible(folder: Path | str) -> list[str]:
    """Returns what a run left, less its logs, which tell of the attempts and not of the result."""
    return sorted(path.name for path in Path(folder).iterdir() if path.name != "logs")


def rejected(folder: Path | str) -> list[dict[str, Any]]:
    lines = (Path(folder) / "rejected.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def state_of(folder: Path | str) -> dict[str, tuple[int, int]]:
    """Returns each file's time and size, to see whether something was written."""
    files = [path for path in Path(folder).rglob("*") if path.is_file() and "logs" not in path.parts]
    return {str(path): (path.stat().st_mtime_ns, path.stat().st_size) for path in files}


def prompt_lengths(model: Path, texts: list[str]) -> list[int]:
    tokenizer = AutoTokenizer.from_pretrained(model)
    return [len(tokenizer(TEMPLATE.replace("{text}", text))["input_ids"]) for text in texts]


def test_a_finished_folder_holds_the_result_and_nothing_else(finished: DictConfig) -> None:
    summary = memvec.predict(finished)
    assert visible(finished.output_dir) == RESULT
    assert [path.suffix for path in (Path(finished.output_dir) / "vectors").iterdir()] == [".parquet"]
    assert rejected(finished.output_dir) == []
    assert summary.counts.entries == len(TEXTS)
    assert summary.counts.rejected == summary.counts.truncated == 0


def test_rows_come_in_input_order_with_text_and_token_count(finished: DictConfig, llama: Path) -> None:
    dataset = memvec.load(finished.output_dir)
    assert dataset.column_names == ["id", "text", "vector", "num_tokens", "prompt_digest"]
    assert dataset["id"][:] == [f"m/{n}" for n in range(len(TEXTS))]
    assert dataset["text"][:] == TEXTS
    assert dataset["num_tokens"][:].tolist() == prompt_lengths(llama, TEXTS)
    assert dataset["vector"][:].dtype == torch.float32
    assert dataset["vector"][:].shape == (len(TEXTS), 32)


def test_the_result_is_a_list_of_float32_that_other_tools_read(finished: DictConfig) -> None:
    files = sorted(str(path) for path in (Path(finished.output_dir) / "vectors").glob("*.parquet"))
    vectors = memvec.load(finished.output_dir)["vector"][:].numpy()

    schema = pq.read_schema(files[0])
    assert schema.field("vector").type == pa.list_(pa.float32(), 32)
    assert schema.field("num_tokens").type == pa.int32()

    loaded = datasets.load_dataset("parquet", data_files=files, split="train")
    assert loaded.features["vector"] == datasets.List(datasets.Value("float32"), length=32)
    np.testing.assert_array_equal(np.asarray(loaded["vector"][:], dtype=np.float32), vectors)

    frame = pd.read_parquet(Path(finished.output_dir) / "vectors")
    assert frame["text"].tolist() == TEXTS
    np.testing.assert_array_equal(np.stack(frame["vector"]), vectors)


def test_equal_texts_are_computed_once_and_each_id_has_its_row(write_jsonl: Write, tiny_config: Configure) -> None:
    texts = ["tea", "coffee", "tea", "tea", "water", "coffee"]
    cfg = tiny_config(write_jsonl(texts))
    summary = memvec.predict(cfg)
    dataset = memvec.load(cfg.output_dir)
    vectors = dataset["vector"][:]
    assert dataset["id"][:] == [f"m/{n}" for n in range(6)]
    assert dataset["text"][:] == texts
    assert torch.equal(vectors[0], vectors[2])
    assert torch.equal(vectors[0], vectors[3])
    assert torch.equal(vectors[1], vectors[5])
    assert len(torch.unique(vectors, dim=0)) == 3
    assert (summary.counts.entries, summary.counts.unique) == (6, 3)
    assert summary.metrics["computed_entries"] == 3


def test_rows_that_cannot_be_used_are_named_and_the_others_run(
    tmp_path: Path, tiny_config: Configure, write_jsonl: Write
) -> None:
    rows = [
        {"id": "a", "text": "likes tea"},
        {"id": "b", "text": "   "},
        {"id": "c", "text": None},
        {"id": "d", "text": 7},
        {"id": "a", "text": "another with the first one's id"},
        {"id": "e"},
        {"id": "f", "text": "moved to Lisbon"},
    ]
    path = write_jsonl(rows)
    cfg = tiny_config(path)
    summary = memvec.predict(cfg)
    assert memvec.load(cfg.output_dir)["id"][:] == ["a", "f"]
    found = rejected(cfg.output_dir)
    assert sorted((line["row"], line["id"]) for line in found) == [(2, "b"), (3, "c"), (4, "d"), (5, "a"), (6, "e")]
    assert {line["file"] for line in found} == {str(path)}
    reasons = {line["row"]: line["reason"] for line in found}
    for row, word in {2: "blank", 3: "null", 4: "int", 5: "duplicate", 6: "no 'text' field"}.items():
        assert word in reasons[row]
    assert (summary.counts.entries, summary.counts.rejected) == (2, 5)


def test_on_error_fail_ends_the_run_at_the_first_bad_row(tiny_config: Configure, write_jsonl: Write) -> None:
    cfg = tiny_config(write_jsonl(["fine", "  "]), "data.on_error=fail")
    with refused(InputError, "memories.jsonl, row 2", found="'text' is blank"):
        memvec.predict(cfg)


@pytest.mark.parametrize(
    ("ids", "type_", "expected"),
    [
        ([5, 3, -(2**62)], "int64", [5, 3, -(2**62)]),
        ([5, "x", 3], "string", ["5", "x", "3"]),
        ([5, 2**70], "string", ["5", str(2**70)]),
        (["007", "7"], "string", ["007", "7"]),
    ],
)
def test_ids_that_are_all_integers_stay_integers(
    ids: list[Any], type_: str, expected: list[Any], tiny_config: Configure, write_jsonl: Write
) -> None:
    cfg = tiny_config(write_jsonl([{"id": i, "text": f"text {n}"} for n, i in enumerate(ids)]))
    memvec.predict(cfg)
    dataset = memvec.load(cfg.output_dir)
    assert dataset.features["id"].dtype == type_
    assert list(dataset.with_format(None)["id"][:]) == expected


def test_without_an_id_column_the_row_number_is_the_id(tiny_config: Configure, write_jsonl: Write) -> None:
    cfg = tiny_config(write_jsonl([{"text": "a"}, {"text": " "}, {"text": "c"}]))
    memvec.predict(cfg)
    dataset = memvec.load(cfg.output_dir).with_format(None)
    assert dataset.features["id"].dtype == "int64"
    assert list(dataset["id"]) == [0, 2]  # the row that was rejected keeps its number


def test_other_columns_can_be_named(tiny_config: Configure, write_jsonl: Write) -> None:
    rows = [{"memory": 9, "content": "likes tea", "text": "not this"}]
    cfg = tiny_config(write_jsonl(rows), "data.text_column=content", "data.id_column=memory")
    memvec.predict(cfg)
    dataset = memvec.load(cfg.output_dir).with_format(None)
    assert (dataset[0]["id"], dataset[0]["text"]) == (9, "likes tea")


def test_the_text_column_can_be_left_out(tiny_config: Configure, write_jsonl: Write) -> None:
    cfg = tiny_config(write_jsonl(TEXTS), "writer.keep_text=false")
    memvec.predict(cfg)
    assert memvec.load(cfg.output_dir).column_names == ["id", "vector", "num_tokens", "prompt_digest"]
    kept = [path for path in Path(cfg.output_dir).rglob("*") if path.is_file() and b"parrot" in path.read_bytes()]
    assert kept == []


def test_a_limit_reads_the_first_rows_only(tiny_config: Configure, write_jsonl: Write) -> None:
    cfg = tiny_config(write_jsonl(TEXTS), "data.limit=3")
    memvec.predict(cfg)
    assert memvec.load(cfg.output_dir)["text"][:] == TEXTS[:3]


def test_a_text_that_is_too_long_loses_its_end_and_is_counted(
    tiny_config: Configure, write_jsonl: Write, llama: Path
) -> None:
    texts = ["short", "word " * 200, "two " * 200, "tea"]
    limit = max(prompt_lengths(llama, ["short", "tea"])) + 10
    cfg = tiny_config(write_jsonl(texts), f"data.max_length={limit}")
    summary = memvec.predict(cfg)
    dataset = memvec.load(cfg.output_dir)
    assert summary.counts.truncated == 2
    assert "truncated  2" in summary.lines()
    short, tea = prompt_lengths(llama, ["short", "tea"])
    assert dataset["num_tokens"][:].tolist() == [short, limit, limit, tea]
    assert dataset["text"][:] == texts  # the text that is kept is whole
    assert len(torch.unique(dataset["vector"][:], dim=0)) == 4


def test_without_max_length_the_models_own_limit_holds(tiny_config: Configure, write_jsonl: Write) -> None:
    cfg = tiny_config(write_jsonl(["tea", "word " * 2000]))
    assert memvec.predict(cfg).counts.truncated == 1
    assert memvec.load(cfg.output_dir)["num_tokens"][:].tolist()[1] == 256


def test_metrics_say_how_fast_and_how_padded_the_run_was(
    tiny_config: Configure, write_jsonl: Write, llama: Path
) -> None:
    cfg = tiny_config(write_jsonl(TEXTS), "data.batch_size=4", "model.prefix_cache=off")
    memvec.predict(cfg)
    metrics = read_json(Path(cfg.output_dir) / "metrics.json")
    assert metrics["entries_per_second"] > 0
    assert metrics["peak_memory_bytes"] > 10**6
    assert all(value >= 0 for value in metrics["seconds"].values())
    # Batches of at most four of the different prompts, longest first, none of less than 3/4 of the first, by hand.
    lengths = sorted(prompt_lengths(llama, list(dict.fromkeys(TEXTS))), reverse=True)
    batches: list[list[int]] = []
    for length in lengths:
        if not batches or len(batches[-1]) == 4 or length < 0.75 * batches[-1][0]:
            batches.append([])
        batches[-1].append(length)
    padded = sum(batch[0] * len(batch) for batch in batches)
    assert metrics["padding_share"] == pytest.approx(1 - sum(lengths) / padded)
    rate = metrics["tokens_per_second"] / metrics["entries_per_second"]
    assert rate == pytest.approx(sum(lengths) / len(lengths))


def test_the_manifest_says_what_made_the_vectors(tiny_config: Configure, write_jsonl: Write) -> None:
    cfg = tiny_config(write_jsonl(TEXTS))
    memvec.predict(cfg)
    manifest = read_json(Path(cfg.output_dir) / "manifest.json")
    fingerprint = manifest["fingerprint"]
    assert {"input", "template", "model", "layer", "dtype", "max_length"} <= set(fingerprint)
    assert (fingerprint["template"], fingerprint["layer"], fingerprint["dtype"]) == (TEMPLATE, -1, "float32")
    assert manifest["counts"]["entries"] == len(TEXTS)
    assert manifest["counts"]["dimension"] == 32
    assert manifest["versions"]["memvec"] == memvec.__version__
    assert manifest["config"]["data"]["path"] == cfg.data.path


def test_the_same_command_again_does_nothing_and_says_so(
    tiny_config: Configure, write_jsonl: Write, caplog: pytest.LogCaptureFixture
) -> None:
    cfg = tiny_config(write_jsonl(TEXTS))
    first = memvec.predict(cfg)
    before = state_of(cfg.output_dir)
    with caplog.at_level(logging.INFO, logger="memvec"):
        again = memvec.predict(tiny_config(Path(cfg.data.path), "data.batch_size=2"))
    assert "complete already; nothing to do" in caplog.text
    assert state_of(cfg.output_dir) == before
    assert again.lines() == first.lines()


@pytest.mark.parametrize(
    ("override", "change"),
    [
        ("model.layer=1", "layer was -1, is 1"),
        ("prompt=raw", f"template was '{TEMPLATE}', is '{{text}}'"),
        ("data.max_length=100", "max_length was 256, is 100"),
        ("data.limit=3", "limit was None, is 3"),
        ("trainer.precision=bf16-true", "dtype was 'float32', is 'bfloat16'"),
    ],
)
def test_a_run_of_something_else_is_refused_naming_the_field(
    override: str, change: str, finished: DictConfig, tiny_config: Configure
) -> None:
    before = state_of(finished.output_dir)
    with refused(RunFolderError, "run", found=change):
        memvec.predict(tiny_config(finished.data.path, override))
    assert state_of(finished.output_dir) == before


def test_a_run_on_changed_input_or_with_another_model_is_refused(
    finished: DictConfig, tiny_config: Configure, write_jsonl: Write, model_folders: Callable[[str], Path]
) -> None:
    with refused(RunFolderError, "run", found="model has other content than it had"):
        memvec.predict(tiny_config(finished.data.path, model=model_folders("qwen2")))
    with refused(RunFolderError, "run", found="input has other content than it had"):
        memvec.predict(tiny_config(write_jsonl([*TEXTS, "one more"])))


def test_resume_false_refuses_a_folder_that_holds_a_run(finished: DictConfig, tiny_config: Configure) -> None:
    with refused(RunFolderError, "run", found="resume=false"):
        memvec.predict(tiny_config(finished.data.path, "resume=false"))


def test_after_an_error_the_same_program_can_try_again(tiny_config: Configure, write_jsonl: Write) -> None:
    """In a notebook the error, and all that its traceback holds, lives on."""
    path = write_jsonl(["fine", "  "])
    with refused(InputError, f"{path}, row 2", found="blank"):
        memvec.predict(tiny_config(path, "data.on_error=fail"))
    summary = memvec.predict(tiny_config(path))
    assert (summary.counts.entries, summary.counts.rejected) == (1, 1)


def test_a_run_that_stopped_before_its_last_step_is_completed(
    tiny_config: Configure, write_jsonl: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    cfg = tiny_config(write_jsonl(TEXTS))
    expected = tiny_config(Path(cfg.data.path), output="expected")
    memvec.predict(expected)

    def stop(self: object, **options: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("memvec.writer.finalize.Finalizer.write_results", stop)
        with pytest.raises(KeyboardInterrupt):
            memvec.predict(cfg)
    assert not (Path(cfg.output_dir) / "manifest.json").exists()
    summary = memvec.predict(cfg)
    assert visible(cfg.output_dir) == RESULT
    assert summary.counts.entries == len(TEXTS)
    assert torch.equal(memvec.load(cfg.output_dir)["vector"][:], memvec.load(expected.output_dir)["vector"][:])


# --- the sample that comes with the package ----------------------------------------------------------------------


def test_the_sample_is_a_varied_set_of_memories() -> None:
    lines = Path(sample_path()).read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    texts = [row["text"] for row in rows]
    assert len(rows) >= 120
    assert len({row["id"] for row in rows}) == len(rows)
    assert all(set(row) == {"id", "text"} and text == text.strip() for row, text in zip(rows, texts, strict=True))
    assert min(map(len, texts)) == 3
    assert max(map(len, texts)) > 2000
    assert max(Counter(texts).values()) > 1
    chinese = [text for text in texts if re.search("[\u4e00-\u9fff]", text)]
    english = [text for text in texts if re.fullmatch("[\\x00-\\x7f’“”—–éñ]+", text)]
    assert min(len(chinese), len(english)) >= 50


def test_the_whole_sample_gets_its_vectors(tiny_config: Configure) -> None:
    cfg = tiny_config(Path(sample_path()))
    summary = memvec.predict(cfg)
    rows = [json.loads(line) for line in Path(sample_path()).read_text(encoding="utf-8").splitlines()]
    dataset = memvec.load(cfg.output_dir)
    assert summary.counts.rejected == 0
    assert dataset["id"][:] == [row["id"] for row in rows]
    assert torch.isfinite(dataset["vector"][:]).all()
