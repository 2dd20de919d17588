"""Compiling by region: the same vectors, and a run that continues where there is no compiler."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from omegaconf import DictConfig

import memvec
from memvec.fields import JsonObject
from memvec.layout import RunLayout
from tests.helpers.processes import arguments, finish, start

TEXTS = [f"she moved to town number {n} and likes it {'very ' * (n % 9)}much" for n in range(100)]

# What inductor and the libraries it imports say while they compile is not memvec's to mend.
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


@pytest.mark.processes
@pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler")
def test_a_compiled_model_gives_the_same_vectors(
    write_jsonl: Callable[..., Path], tiny_config: Callable[..., DictConfig], llama: Path, tmp_path: Path
) -> None:
    path = write_jsonl(TEXTS)
    plain = tiny_config(path, "data.batch_size=2", output="plain")
    memvec.predict(plain)
    compiled = tmp_path / "compiled"  # in a process of its own: what others have compiled or set stays out of it
    code, said = finish(start(arguments(path, compiled, llama, "data.batch_size=2", "model.compile=true")))
    assert code == 0, said
    assert JsonObject.read(RunLayout(compiled).manifest).take("notes.compile_seconds", float) > 0, said
    torch.testing.assert_close(
        memvec.load(compiled)["vector"][:], memvec.load(plain.output_dir)["vector"][:], rtol=1e-4, atol=1e-5
    )


def test_without_a_compiler_the_run_says_so_and_goes_on(
    write_jsonl: Callable[..., Path],
    tiny_config: Callable[..., DictConfig],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    tmp_path: Path,
) -> None:
    import torch._inductor.config as inductor

    torch._dynamo.reset()
    monkeypatch.setattr(inductor.cpp, "cxx", (str(tmp_path / "no-such-compiler"),))
    monkeypatch.setattr(inductor, "force_disable_caches", True)
    cfg = tiny_config(write_jsonl(TEXTS), "data.batch_size=2", "model.compile=true")
    with caplog.at_level("WARNING", logger="memvec"):
        summary = memvec.predict(cfg)
    assert "the compiler cannot be used" in caplog.text
    assert summary.manifest["notes"]["compile_seconds"] is None
    assert len(memvec.load(cfg.output_dir)) == len(TEXTS)
