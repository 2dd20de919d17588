"""Runs on the device: generation, a resume after SIGKILL, threads that share an encoder, two ranks on one device."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from omegaconf import DictConfig

import memvec
from memvec import Encoder
from memvec.files import read_json
from tests.fixtures import TEXTS
from tests.helpers.conversations import generation_overrides, marked, read_lines, write_lines
from tests.helpers.processes import (
    arguments,
    assert_same,
    finish,
    journal_bytes,
    kill_group,
    resume,
    slurm_tasks,
    start,
    wait_until,
    write_texts,
)
from tests.test_generate import texts

pytestmark = pytest.mark.gpu

ROUNDING = 1e-4
ROWS = 4_000
# NCCL refuses two ranks on one device; gloo takes them.
GLOO = "trainer.strategy={_target_: lightning.pytorch.strategies.DDPStrategy, process_group_backend: gloo}"


def test_a_model_writes_what_it_writes_on_the_processor(scripted: Path, on_device: str, tmp_path: Path) -> None:
    path = write_lines(tmp_path / "conversations.jsonl", marked(12))
    for name, where in {"here": "trainer.accelerator=cpu", "there": on_device}.items():
        overrides = generation_overrides(path, tmp_path / name, scripted, where)
        memvec.generate(memvec.compose(overrides, config_name="generate"))
    assert texts(tmp_path / "there") == texts(tmp_path / "here") != []


@pytest.mark.parametrize("architecture", ["llama", "qwen3_moe", "gemma3", "qwen2_5_vl"])
def test_replayed_decode_steps_write_what_launched_ones_do(
    architecture: str, model_folders: Callable[[str], Path], device: torch.device, on_device: str, tmp_path: Path
) -> None:
    path = write_lines(tmp_path / "conversations.jsonl", marked(12))
    written, steps = [], []
    for tune in ("off", "auto"):
        overrides = ["generation.max_new_tokens=60", "generation.temperature=1.0", "generation.attempts=1"]
        folder = tmp_path / tune
        given = generation_overrides(path, folder, model_folders(architecture), on_device, *overrides)
        cfg = memvec.compose([*given, f"model.tune={tune}"], config_name="generate")
        steps.append(memvec.generate(cfg).manifest["notes"]["decode_steps"])
        written.append([line["text"] for line in read_lines(folder / "raw.jsonl")])
    assert written[0] == written[1]
    assert steps[0] == "launched"
    if architecture == "llama" and device.type == "cuda":
        assert steps[1] == "replayed"


def test_a_run_leaves_no_weights_on_the_device(
    llama: Path, device: torch.device, on_device: str, tmp_path: Path
) -> None:
    if device.type != "cuda":
        pytest.skip("it is about the memory of a CUDA device")
    path = write_texts(tmp_path / "texts.jsonl", 20)
    before = torch.cuda.memory_allocated()
    resume(arguments(path, tmp_path / "run", llama, on_device))
    assert torch.cuda.memory_allocated() <= before


def test_both_stages_run_on_the_device(scripted: Path, on_device: str, tmp_path: Path) -> None:
    path = write_lines(tmp_path / "conversations.jsonl", marked(12))
    overrides = generation_overrides(path, tmp_path / "run", scripted, on_device)
    summary = memvec.extract(memvec.compose(overrides, config_name="extract"))
    assert summary.memories.counts.memories == summary.vectors.counts.entries > 0


def test_a_run_that_was_killed_on_the_device_resumes(llama: Path, on_device: str, tmp_path: Path) -> None:
    path = write_texts(tmp_path / "texts.jsonl", ROWS)
    resume(arguments(path, tmp_path / "undisturbed", llama, on_device))
    command = arguments(path, tmp_path / "run", llama, on_device, "trainer.devices=1", "data.batch_size=2")
    process = start(command)
    wait_until(lambda: journal_bytes(tmp_path / "run") > 50_000, process)
    assert process.poll() is None
    kill_group(process)
    computed = resume(command).metrics["computed_entries"]
    assert 0 < computed < ROWS
    assert_same(memvec.load(tmp_path / "run"), memvec.load(tmp_path / "undisturbed"), error=ROUNDING)


def test_two_threads_share_an_encoder(llama: Path, device: torch.device) -> None:
    with Encoder(llama, device=device) as encoder:
        parts = [[f"{text} {number}" for text in TEXTS] for number in range(16)]
        with ThreadPoolExecutor(2) as pool:
            found = list(pool.map(encoder.encode, parts))
        for vectors, part in zip(found, parts, strict=True):
            torch.testing.assert_close(vectors, encoder.encode(part), rtol=1e-4, atol=1e-4)


def test_two_ranks_on_one_device_give_what_one_process_gives(llama: Path, on_device: str, tmp_path: Path) -> None:
    path = write_texts(tmp_path / "texts.jsonl", 203)
    resume(arguments(path, tmp_path / "one", llama, on_device))
    command = arguments(path, tmp_path / "two", llama, on_device, "trainer.devices=1", "trainer.num_nodes=2", GLOO)
    for code, said in [finish(process) for process in slurm_tasks(command, tasks=2, nodes=2)]:
        assert code == 0, said
    assert_same(memvec.load(tmp_path / "two"), memvec.load(tmp_path / "one"), error=ROUNDING)
    metrics = read_json(tmp_path / "two" / "metrics.json")
    assert (metrics["ranks"], metrics["computed_entries"]) == (2, 203)


@pytest.mark.parametrize("precision", ["bf16-true", "16-true", "bf16-mixed"])
def test_a_run_in_half_precision_is_close_to_float32(
    precision: str, write_jsonl: Callable[..., Path], device_config: Callable[..., DictConfig]
) -> None:
    path = write_jsonl(TEXTS)
    exact, half = device_config(path), device_config(path, f"trainer.precision={precision}", output="half")
    for cfg in (exact, half):
        memvec.predict(cfg)
    vectors, expected = (memvec.load(cfg.output_dir)["vector"][:] for cfg in (half, exact))
    assert torch.nn.functional.cosine_similarity(vectors, expected).min() > 0.99
