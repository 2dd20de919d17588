"""The writer: what reaches the journal, when, and what never does."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch
from datasets import List, Value
from omegaconf import DictConfig
from safetensors.torch import load_file, save_file

import memvec
from memvec.errors import ConfigError, RunFolderError, WriterError
from memvec.files import read_json
from memvec.model.module import HiddenStateModule
from memvec.writer.frames import HEADER
from memvec.writer.journal import JournalWriter
from tests.fixtures import TEXTS
from tests.helpers.models import save_model
from tests.helpers.refusals import refused

PLAIN = [f"entry number {n}" for n in range(130)]


def frame_sizes(path: Path) -> Iterator[int]:
    content = path.read_bytes()
    at = 0
    while at < len(content):
        _, length, *_ = HEADER.unpack_from(content, at)
        start = at + HEADER.size
        yield pa.ipc.open_stream(content[start : start + length]).read_all().num_rows
        at = start + length + -length % 64


@pytest.fixture
def kept_journal(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Keeps a copy of every journal file that is closed."""
    folder = tmp_path / "kept"
    folder.mkdir()
    close = JournalWriter.close

    def keep(self: JournalWriter) -> None:
        if self.path.exists():
            (folder / self.path.name).write_bytes(self.path.read_bytes())
        close(self)

    monkeypatch.setattr(JournalWriter, "close", keep)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("batch_size", [1, 7, 50, 64, 500])
def test_a_frame_holds_flush_every_entries_at_any_batch_size(
    batch_size: int, kept_journal: Path, write_jsonl: Callable[..., Path], tiny_config: Callable[..., DictConfig]
) -> None:
    memvec.predict(tiny_config(write_jsonl(PLAIN), f"data.batch_size={batch_size}", "data.max_tokens=100000"))
    assert list(frame_sizes(kept_journal / "rank-00000-attempt-001.frames")) == [50, 50, 30]


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("flush_every", 0, "an integer of at least 1"),
        ("fsync", "never", "flush, close"),
        ("keep_text", "maybe", "True, False"),
        ("dtype", "int8", "float32, float16"),
        ("normalize", 1, "True, False"),
    ],
)
def test_an_option_that_makes_no_sense_names_what_does(
    name: str,
    value: Any,
    allowed: str,
    write_jsonl: Callable[..., Path],
    tiny_config: Callable[..., DictConfig],
) -> None:
    with refused(ConfigError, f"writer.{name}", value, allowed=allowed):
        memvec.predict(tiny_config(write_jsonl(PLAIN), f"writer.{name}={value}"))


@pytest.mark.parametrize("fsync", ["flush", "close"])
def test_either_durability_gives_the_same_result(
    fsync: str, write_jsonl: Callable[..., Path], tiny_config: Callable[..., DictConfig]
) -> None:
    cfg = tiny_config(write_jsonl(TEXTS), f"writer.fsync={fsync}")
    memvec.predict(cfg)
    assert len(memvec.load(cfg.output_dir)) == len(TEXTS)


@pytest.fixture
def nan_for(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[HiddenStateModule, torch.Tensor], bool]], None]:
    """Makes the decoder return NaN for rows that a condition on the module and the row's tokens names."""

    def arrange(condition: Callable[[HiddenStateModule, torch.Tensor], bool]) -> None:
        configure = HiddenStateModule.configure_model

        def configure_model(self: HiddenStateModule) -> None:
            configure(self)
            assert self.backbone is not None

            def spoil(module: torch.nn.Module, args: object, kwargs: dict[str, torch.Tensor], output: object) -> None:
                for row, input_ids in enumerate(kwargs["input_ids"]):
                    if condition(self, input_ids):
                        output.last_hidden_state[row] = torch.nan  # type: ignore[attr-defined]

            self.backbone.decoder.register_forward_hook(spoil, with_kwargs=True)

        monkeypatch.setattr(HiddenStateModule, "configure_model", configure_model)

    return arrange


def is_float32(module: HiddenStateModule) -> bool:
    return next(module.parameters()).dtype == torch.float32


def test_a_vector_that_is_not_finite_is_tried_in_float32(
    nan_for: Callable[..., None], write_jsonl: Callable[..., Path], tiny_config: Callable[..., DictConfig]
) -> None:
    exact = tiny_config(write_jsonl(TEXTS), output="exact")
    memvec.predict(exact)
    nan_for(lambda module, input_ids: not is_float32(module) and len(input_ids) > 60)
    half = ("trainer.precision=bf16-true", "model.tune=off")  # in bfloat16 on a processor without it too
    cfg = tiny_config(write_jsonl(TEXTS), *half, "data.batch_size=1", "model.probe=off")

    summary = memvec.predict(cfg)

    assert summary.counts.entries == len(TEXTS)
    long = [n for n, count in enumerate(memvec.load(cfg.output_dir)["num_tokens"][:].tolist()) if count > 80]
    assert long
    vectors, expected = memvec.load(cfg.output_dir)["vector"][:][long], memvec.load(exact.output_dir)["vector"][:][long]
    # The weights were rounded to bfloat16 before they came back to float32.
    assert float(((vectors - expected).norm(dim=1) / expected.norm(dim=1)).max()) < 0.05


def test_a_row_without_a_finite_vector_is_rejected(
    nan_for: Callable[..., None],
    tokenizer: object,
    write_jsonl: Callable[..., Path],
    tiny_config: Callable[..., DictConfig],
) -> None:
    nan_for(lambda module, input_ids: len(input_ids) > 150)
    cfg = tiny_config(write_jsonl(["fine", "a b c d e f g h i j k l m " * 10, "fine too"]), "data.batch_size=1")
    summary = memvec.predict(cfg)
    assert summary.counts.entries == 2
    assert summary.counts.rejected == 1
    rejection = json.loads((Path(cfg.output_dir) / "rejected.jsonl").read_text())
    assert rejection["id"] == "m/1"
    assert "NaN or infinity, in float32 too" in rejection["reason"]


def test_a_row_with_one_bad_layer_is_tried_again_whole(
    nan_for: Callable[..., None], write_jsonl: Callable[..., Path], tiny_config: Callable[..., DictConfig]
) -> None:
    exact = tiny_config(write_jsonl(TEXTS), "model.layer=[1,-1]", output="exact")
    memvec.predict(exact)
    nan_for(lambda module, input_ids: not is_float32(module) and len(input_ids) > 60)
    half = ("trainer.precision=bf16-true", "model.tune=off", "data.batch_size=1", "model.probe=off")
    cfg = tiny_config(write_jsonl(TEXTS), "model.layer=[1,-1]", *half)
    assert memvec.predict(cfg).counts.entries == len(TEXTS)
    found, expected = memvec.load(cfg.output_dir), memvec.load(exact.output_dir)
    for name in ("vector_1", "vector_-1"):
        difference = (found[name][:] - expected[name][:]).norm(dim=1) / expected[name][:].norm(dim=1)
        assert float(difference.max()) < 0.1


def scaled(folder: Path, factor: float) -> Path:
    """Saves a tiny model whose last layer's states are so many times as large."""
    save_model(folder)
    weights = load_file(folder / "model.safetensors")
    weights["model.norm.weight"] *= factor
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def test_float16_holds_the_float32_vectors_rounded(
    write_jsonl: Callable[..., Path], tiny_config: Callable[..., DictConfig]
) -> None:
    plain, half = (tiny_config(write_jsonl(TEXTS), f"writer.dtype={d}", output=d) for d in ("float32", "float16"))
    memvec.predict(plain)
    folder = memvec.predict(half).folder
    found, expected = memvec.load(half.output_dir), memvec.load(plain.output_dir)
    assert found.features["vector"] == List(Value("float16"), length=32)
    assert torch.equal(found["vector"][:], expected["vector"][:].half().float())
    assert read_json(folder.manifest)["fingerprint"]["vector_dtype"] == "float16"


def test_normalized_vectors_have_length_one_at_each_layer(
    write_jsonl: Callable[..., Path], tiny_config: Callable[..., DictConfig]
) -> None:
    layers = "model.layer=[0,-1]"
    plain = tiny_config(write_jsonl(TEXTS), layers, output="plain")
    cfg = tiny_config(write_jsonl(TEXTS), layers, "writer.normalize=true")
    for each in (plain, cfg):
        memvec.predict(each)
    for name in ("vector_0", "vector_-1"):
        expected = torch.nn.functional.normalize(memvec.load(plain.output_dir)[name][:])
        torch.testing.assert_close(memvec.load(cfg.output_dir)[name][:], expected, rtol=1e-6, atol=1e-7)


def test_a_row_that_float16_cannot_hold_is_rejected(
    write_jsonl: Callable[..., Path], tiny_config: Callable[..., DictConfig], tmp_path: Path
) -> None:
    model, path = scaled(tmp_path / "large", 1), write_jsonl(TEXTS)
    cfg = tiny_config(path, model=model, output="plain")
    memvec.predict(cfg)
    largest = memvec.load(cfg.output_dir)["vector"][:].abs().amax(dim=1)
    model = scaled(tmp_path / "larger", 65504 / float(largest.median()))
    cfg = tiny_config(path, "writer.dtype=float16", model=model)
    summary = memvec.predict(cfg)
    lines = (Path(cfg.output_dir) / "rejected.jsonl").read_text().splitlines()
    assert (summary.counts.rejected, summary.counts.entries) == (len(lines), len(TEXTS) - len(lines))
    assert 0 < len(lines) < len(TEXTS)
    said = r"its vector holds -?\S+, and float16 ends at 65504; writer\.dtype=float32 or writer\.normalize=true"
    assert all(re.match(said, json.loads(line)["reason"]) for line in lines)
    plain = tiny_config(path, model=model, output="float32")
    memvec.predict(plain)
    expected = dict(zip(*(memvec.load(plain.output_dir)[name][:] for name in ("id", "vector")), strict=True))
    found = memvec.load(cfg.output_dir)
    for name, vector in zip(found["id"][:], found["vector"][:], strict=True):
        assert torch.equal(vector, expected[name].half().float())
    cfg = tiny_config(path, "writer.dtype=float16", "writer.normalize=true", model=model, output="normalized")
    assert memvec.predict(cfg).counts.entries == len(TEXTS)


def test_a_run_of_which_float16_can_hold_nothing_stops(
    write_jsonl: Callable[..., Path], tiny_config: Callable[..., DictConfig], tmp_path: Path
) -> None:
    cfg = tiny_config(write_jsonl(PLAIN), "writer.dtype=float16", model=scaled(tmp_path / "large", 1e8))
    with refused(
        WriterError, found=re.compile(r"the first .* vectors cannot be kept: its vector holds .*float16 ends at")
    ):
        memvec.predict(cfg)


def test_bfloat16_is_refused_since_no_file_can_hold_it(
    write_jsonl: Callable[..., Path], tiny_config: Callable[..., DictConfig]
) -> None:
    with refused(ConfigError, "writer.dtype", "bfloat16", found="Arrow and Parquet have no such type"):
        memvec.predict(tiny_config(write_jsonl(PLAIN), "writer.dtype=bfloat16"))


def test_defaults_leave_the_fingerprint_as_it_was_before_them(
    write_jsonl: Callable[..., Path], tiny_config: Callable[..., DictConfig]
) -> None:
    cfg = tiny_config(write_jsonl(TEXTS[:3]))
    fingerprint = memvec.predict(cfg).manifest["fingerprint"]
    assert not {"vector_dtype", "normalize"} & set(fingerprint)
    for option in ("writer.dtype=float16", "writer.normalize=true", "model.layer=[-1]"):
        with refused(RunFolderError, "run", found="holds a run of something else: "):
            memvec.predict(tiny_config(write_jsonl(TEXTS[:3]), option))


@pytest.fixture
def broken_model(tmp_path: Path) -> Path:
    """A model file with a NaN among its weights: every vector is NaN."""
    folder = save_model(tmp_path / "broken")
    weights = load_file(folder / "model.safetensors")
    weights["model.norm.weight"][0] = torch.nan
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def test_a_run_whose_first_hundred_vectors_are_all_bad_stops(
    write_jsonl: Callable[..., Path], tiny_config: Callable[..., DictConfig], broken_model: Path
) -> None:
    with refused(WriterError, found=re.compile(r"the first .* vectors all hold NaN or infinity")):
        memvec.predict(tiny_config(write_jsonl(PLAIN), model=broken_model))


@pytest.mark.slow
def test_fewer_rows_that_are_all_bad_leave_no_result(
    write_jsonl: Callable[..., Path], tiny_config: Callable[..., DictConfig], broken_model: Path
) -> None:
    with refused(WriterError, "run", found="no entry has a vector"):
        memvec.predict(tiny_config(write_jsonl(TEXTS), model=broken_model))
