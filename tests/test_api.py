"""memvec from Python: texts to a tensor, a finished run to a dataset."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch
from datasets import Dataset
from omegaconf import DictConfig
from transformers import AutoModelForCausalLM, AutoTokenizer

import memvec
from memvec.errors import ConfigError, InputError, ModelError, RunFolderError
from tests.fixtures import TEXTS
from tests.helpers.reference import reference_vectors
from tests.helpers.refusals import refused

CPU: dict[str, Any] = {"accelerator": "cpu"}


def reference(folder: Path, texts: list[str], template: str, layer: int = -1) -> torch.Tensor:
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    return reference_vectors(model, AutoTokenizer.from_pretrained(folder), texts, template=template, layer=layer)


def test_encode_gives_the_vectors_of_predict_in_order(
    llama: Path, write_jsonl: Callable[..., Path], tiny_config: Callable[..., DictConfig]
) -> None:
    vectors = memvec.encode(TEXTS, model=llama, **CPU)
    assert vectors.shape == (len(TEXTS), 32)
    assert (vectors.dtype, vectors.device.type) == (torch.float32, "cpu")
    cfg = tiny_config(write_jsonl(TEXTS))
    memvec.predict(cfg)
    assert torch.equal(vectors, memvec.load(cfg.output_dir)["vector"][:])
    backwards = memvec.encode(TEXTS[::-1], model=str(llama), batch_size=2, **CPU)
    torch.testing.assert_close(backwards.flip(0), vectors, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("prompt", "template"),
    [
        ("raw", "{text}"),
        ("one_word_en", 'This sentence: "{text}" means in one word:"'),
        ('{"记忆": "{text}"}，一个词：', '{"记忆": "{text}"}，一个词：'),
        ("it's 50% #1, a=b: {text}=", "it's 50% #1, a=b: {text}="),
    ],
)
def test_a_prompt_is_a_name_or_a_template_of_ones_own(prompt: str, template: str, llama: Path) -> None:
    texts = TEXTS[:4]
    vectors = memvec.encode(texts, model=llama, prompt=prompt, **CPU)
    torch.testing.assert_close(vectors, reference(llama, texts, template), rtol=1e-5, atol=1e-5)


def test_a_template_is_taken_as_it_stands(llama: Path) -> None:
    template = "${data.path} {text}="
    vectors = memvec.encode(TEXTS[:2], model=llama, prompt=template, **CPU)
    torch.testing.assert_close(vectors, reference(llama, TEXTS[:2], template), rtol=1e-5, atol=1e-5)


def test_layer_precision_and_length_are_passed_on(llama: Path) -> None:
    texts = ["likes tea", "word " * 300]
    lower = memvec.encode(texts[:1], model=llama, prompt="raw", layer=1, **CPU)
    torch.testing.assert_close(lower, reference(llama, texts[:1], "{text}", layer=1), rtol=1e-5, atol=1e-5)
    half = memvec.encode(texts[:1], model=llama, prompt="raw", precision="bf16-true", **CPU)
    assert half.dtype == torch.float32
    exact = reference(llama, texts[:1], "{text}")
    assert 1e-4 < float((half - exact).norm() / exact.norm()) < 0.1
    short = memvec.encode(texts[1:], model=llama, prompt="raw", max_length=20, **CPU)
    assert not torch.allclose(short, memvec.encode(texts[1:], model=llama, prompt="raw", **CPU))


@pytest.mark.parametrize("texts", [("likes tea",), ["a\nb\u2028c", "\x00", "😺", '"}\\'], ["tea", "tea"]])
def test_any_sequence_of_any_characters_is_taken(texts: Any, llama: Path) -> None:
    vectors = memvec.encode(texts, model=llama, **CPU)
    assert len(vectors) == len(texts)
    assert len(torch.unique(vectors, dim=0)) == len(set(texts))


@pytest.mark.parametrize(
    ("bad", "reason"),
    [("", "empty"), (" \n", "blank"), (None, "null"), (7, "type int"), ("\ud800", "surrogate"), (["a"], "type list")],
)
def test_a_text_that_cannot_be_used_is_an_error(bad: Any, reason: str, llama: Path) -> None:
    with refused(InputError, found=reason):
        memvec.encode(["fine", bad], model=llama, **CPU)


def test_a_text_that_is_no_json_value_is_an_input_error_too(llama: Path) -> None:
    with refused(InputError, found="bytes"):
        memvec.encode(["fine", b"bytes"], model=llama, **CPU)  # type: ignore[list-item]


def test_one_string_is_not_taken_for_a_sequence_of_texts(llama: Path) -> None:
    with pytest.raises((TypeError, ValueError, InputError)):
        memvec.encode("tea", model=llama, **CPU)


def test_no_texts_are_an_error(llama: Path) -> None:
    with refused(InputError, "texts", found="found none"):
        memvec.encode([], model=llama, **CPU)


def test_what_does_not_exist_is_named(tmp_path: Path, llama: Path) -> None:
    with refused(ModelError, "model.name_or_path", found="no such folder"):
        memvec.encode(["tea"], model=tmp_path / "nothing", **CPU)
    with refused(ConfigError, "prompt", "one_token_fr"):
        memvec.encode(["tea"], model=llama, prompt="one_token_fr", **CPU)
    with refused(ConfigError, "data.batch_size", 0):
        memvec.encode(["tea"], model=llama, batch_size=0, **CPU)


def test_the_vectors_live_on_when_the_scratch_folder_is_gone(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    vectors = memvec.encode(TEXTS[:2], model=llama, **CPU)
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith("memvec-")] == []
    vectors += 1  # it is memory of its own, and may be written to
    assert torch.isfinite(vectors).all()


def test_a_loaded_run_is_a_torch_dataset_in_input_order(
    write_jsonl: Callable[..., Path], tiny_config: Callable[..., DictConfig]
) -> None:
    cfg = tiny_config(write_jsonl(TEXTS))
    memvec.predict(cfg)
    dataset = memvec.load(cfg.output_dir)
    assert dataset.format["type"] == "torch"
    assert dataset["id"][:] == [f"m/{n}" for n in range(len(TEXTS))]
    assert dataset[2]["vector"].shape == (32,)
    assert len(memvec.load(Path(cfg.output_dir))) == len(TEXTS)


def test_loading_again_gives_the_vectors_of_a_replaced_run(
    write_jsonl: Callable[..., Path], tiny_config: Callable[..., DictConfig], tmp_path: Path
) -> None:
    """`datasets` caches by path; a run made anew in the same folder must not come out as the old one."""
    first = tiny_config(write_jsonl(["tea", "coffee"]))
    memvec.predict(first)
    old = memvec.load(first.output_dir)["text"][:]
    (tmp_path / "run").rename(tmp_path / "old")
    second = tiny_config(write_jsonl(["water", "coffee"]))
    memvec.predict(second)
    assert (old, memvec.load(second.output_dir)["text"][:]) == (["tea", "coffee"], ["water", "coffee"])


def test_a_folder_without_a_run_cannot_be_loaded(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "nothing"):
        with refused(RunFolderError, folder, found="holds no run"):
            memvec.load(folder)


def test_an_unfinished_run_says_how_to_resume_it(tmp_path: Path) -> None:
    (tmp_path / "journal").mkdir()
    with refused(RunFolderError, tmp_path, found="an unfinished run", advice="run the same command again to resume it"):
        memvec.load(tmp_path)


@pytest.mark.parametrize("content", ['{"name": "a web app"}', "not JSON"])
def test_a_folder_with_a_manifest_of_something_else_holds_no_run(tmp_path: Path, content: str) -> None:
    (tmp_path / "manifest.json").write_text(content)
    with pytest.raises(RunFolderError):
        memvec.load(tmp_path)


@pytest.mark.processes
def test_predict_is_the_function_however_it_is_imported() -> None:
    script = (
        "import memvec.predict\n"
        "import memvec\n"
        "assert callable(memvec.predict), memvec.predict\n"
        "from memvec import predict\n"
        "assert predict is memvec.predict\n"
        "from memvec.predict import predict as by_module\n"
        "assert by_module is predict\n"
        "import importlib, sys\n"
        "importlib.import_module('memvec.predict')\n"
        "assert memvec.predict is predict\n"
        "assert sys.modules['memvec.predict'].predict is predict\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


@pytest.mark.processes
def test_the_package_is_imported_without_waiting_for_torch() -> None:
    script = "import sys, memvec; assert memvec.__version__; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", script], check=True)


def test_every_public_name_is_there_and_no_other_is() -> None:
    for name in memvec.__all__:
        assert getattr(memvec, name) is not None
    with pytest.raises(AttributeError, match="module 'memvec' has no attribute 'predcit'"):
        memvec.predcit  # noqa: B018


GIVEN: dict[str, Callable[[list[dict[str, Any]]], Any]] = {
    "dictionaries": lambda rows: rows,
    "a dataset": Dataset.from_list,
    "a table": pa.Table.from_pylist,
    "a frame": lambda rows: pytest.importorskip("pandas").DataFrame(rows),
}


@pytest.mark.parametrize("kind", GIVEN)
def test_rows_of_a_program_give_what_a_file_of_them_gives(
    kind: str, write_jsonl: Callable[..., Path], tiny_config: Callable[..., DictConfig]
) -> None:
    rows = [{"id": f"m/{n}", "text": text} for n, text in enumerate([*TEXTS, " "])]
    memvec.predict(expected := tiny_config(write_jsonl(rows), output="expected"))
    cfg = tiny_config("null")
    summary = memvec.predict(cfg, data=GIVEN[kind](rows))
    found = memvec.load(cfg.output_dir)
    for column in ("id", "text", "vector"):
        assert list(map(str, found[column][:])) == list(map(str, memvec.load(expected.output_dir)[column][:]))
    assert summary.manifest["config"]["data"]["path"] is None
    line = json.loads(summary.folder.rejected.read_text())
    assert line == {"file": "data", "row": len(TEXTS), "id": f"m/{len(TEXTS)}", "reason": "'text' is blank"}
    assert cfg == tiny_config("null")  # the program's own is left alone


def test_the_same_rows_resume_a_run_and_others_are_refused(
    tiny_config: Callable[..., DictConfig], caplog: pytest.LogCaptureFixture
) -> None:
    cfg = tiny_config("null")
    memvec.predict(cfg, data=list(TEXTS))
    caplog.set_level("INFO", "memvec")
    memvec.predict(cfg, data=tuple(TEXTS))
    assert "is complete already; nothing to do" in caplog.text
    with refused(RunFolderError, "run", found="a run of something else: input has other content than it had"):
        memvec.predict(cfg, data=TEXTS[:-1])


def test_rows_and_a_path_are_one_too_many(tiny_config: Callable[..., DictConfig]) -> None:
    with refused(
        ConfigError, "data.path", "memories.jsonl", found="the rows are given as data", allowed="one of the two"
    ):
        memvec.predict(tiny_config("memories.jsonl"), data=TEXTS)
    with refused(InputError, "data", found="found one string"):
        memvec.predict(tiny_config("null"), data="tea")
