"""Every way to run several processes gives what one process gives: real processes, over gloo on the CPU."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import PreTrainedTokenizerFast

import memvec
from memvec.files import read_json
from tests.helpers.configs import compose
from tests.helpers.models import save_bidirectional
from tests.helpers.processes import Process, arguments, assert_same, finish, slurm_tasks, start, torchrun, write_texts

pytestmark = pytest.mark.processes

RESULT = ["history.json", "manifest.json", "metrics.json", "rejected.jsonl", "vectors"]
# Neither two nor three ranks divide the rows of the first; the second has fewer rows than ranks.
ROWS = {"two": 23, "three": 2}
RANKS = {"two": 2, "three": 3}


def ddp(folder: Path, command: list[str], ranks: int) -> list[Process]:
    return [start([*command, "trainer.strategy=ddp"])]


def ddp_spawn(folder: Path, command: list[str], ranks: int) -> list[Process]:
    return [start([*command, "trainer.strategy=ddp_spawn"])]


def by_torchrun(folder: Path, command: list[str], ranks: int) -> list[Process]:
    return [start(torchrun([*command, "trainer.strategy=ddp"], ranks))]


def by_slurm(folder: Path, command: list[str], ranks: int) -> list[Process]:
    """Every task as a node of one device."""
    several = ["trainer.strategy=ddp", "trainer.devices=1", f"trainer.num_nodes={ranks}"]
    return slurm_tasks([*command, *several], tasks=ranks, nodes=ranks)


LAUNCHERS: dict[str, Callable[..., list[Process]]] = {
    "ddp": ddp,
    "ddp_spawn": ddp_spawn,
    "torchrun": by_torchrun,
    "SLURM": by_slurm,
}
# Two ranks that Lightning starts run in test_interrupt.py.
JOBS = [*((launcher, "three") for launcher in LAUNCHERS), ("torchrun", "two"), ("SLURM", "two"), ("ddp_spawn", "two")]


@pytest.fixture(scope="module")
def root(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the texts, and with what one process makes of them."""
    root = tmp_path_factory.mktemp("ranks")
    for size, rows in ROWS.items():
        path = write_texts(root / f"{size}.jsonl", rows)
        memvec.predict(compose(arguments(path, root / f"expected-{size}", llama, "trainer.devices=1")[3:]))
    return root


@pytest.fixture(scope="module")
def said(root: Path, llama: Path) -> dict[tuple[str, str], list[tuple[int, str]]]:
    """What the processes of every job ended with; two jobs at a time."""

    def run(job: tuple[str, str]) -> list[tuple[int, str]]:
        launcher, size = job
        devices = f"trainer.devices={RANKS[size]}"
        command = arguments(root / f"{size}.jsonl", root / f"{launcher}-{size}", llama, "data.batch_size=2", devices)
        return [finish(process) for process in LAUNCHERS[launcher](root, command, RANKS[size])]

    with ThreadPoolExecutor(2) as pool:
        return dict(zip(JOBS, pool.map(run, JOBS), strict=True))


@pytest.mark.parametrize(("launcher", "size"), JOBS)
def test_several_ranks_give_what_one_process_gives(
    launcher: str, size: str, root: Path, said: dict[tuple[str, str], list[tuple[int, str]]]
) -> None:
    folder, everything = root / f"{launcher}-{size}", said[launcher, size]
    assert [code for code, _ in everything] == [0] * len(everything), everything
    assert sorted(path.name for path in folder.iterdir() if path.name != "logs") == RESULT
    assert_same(memvec.load(folder), memvec.load(root / f"expected-{size}"))
    # Every row was computed once, and what was found out while computing has come back.
    metrics, manifest = read_json(folder / "metrics.json"), read_json(folder / "manifest.json")
    assert metrics["computed_entries"] == ROWS[size]
    assert manifest["notes"]["prefix_tokens"] > 0
    # The first rank alone speaks on the terminal; each has a log of its own.
    text = "".join(text for _, text in everything)
    assert text.count("vectors    ") == text.count("the prompts share their first") == 1
    assert "Warning" not in text
    assert [path.name for path in sorted((folder / "logs").iterdir())] == [
        f"rank-{rank:05d}.log" for rank in range(RANKS[size])
    ]
    assert "the prompts share their first" in (folder / "logs" / "rank-00001.log").read_text()


# --- weights sharded over two processes ------------------------------------------------------------------------

FSDP, TENSOR_PARALLEL = "trainer=fsdp", "trainer=tensor_parallel"
# Name -> model, texts, overrides. A bad token makes the vectors of its texts NaN, so that they are computed again.
SHARED: dict[str, tuple[str, str, list[str]]] = {
    "llama fsdp": ("llama", "many", [FSDP]),
    "llama tensor parallel": ("llama", "many", [TENSOR_PARALLEL]),
    "mixture of experts fsdp": ("qwen3_moe", "many", [FSDP, "model.prefix_cache=off"]),
    "mixture of experts tensor parallel": ("qwen3_moe", "many", [TENSOR_PARALLEL]),
    "sliding windows tensor parallel": ("gemma3", "many", [TENSOR_PARALLEL, "model.prefix_cache=off"]),
    "a lower layer fsdp": ("llama", "many", [FSDP, "model.layer=2"]),
    "two layers fsdp": ("llama", "many", [FSDP, "model.layer=[2,-1]"]),
    "two layers tensor parallel": ("llama", "many", [TENSOR_PARALLEL, "model.layer=[2,-1]", "writer.normalize=true"]),
    "a rank without rows fsdp": ("llama", "one", [FSDP]),
    "a bad token fsdp": ("bad", "bad", [FSDP, "trainer.precision=bf16-true", "model.tune=off"]),
    "a bad token tensor parallel": ("bad", "bad", [TENSOR_PARALLEL]),
}
BAD = "~"


def with_a_bad_token(model: Path, folder: Path, tokenizer: PreTrainedTokenizerFast) -> Path:
    """Copies a model and puts NaN into the embedding of one token."""
    shutil.copytree(model, folder)
    weights = load_file(folder / "model.safetensors")
    weights["model.embed_tokens.weight"][tokenizer(BAD)["input_ids"]] = torch.nan
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.fixture(scope="module")
def shared(
    model_folders: Callable[[str], Path],
    tokenizer: PreTrainedTokenizerFast,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """Runs everything in one process, then in two that share the weights; returns the folder of both."""
    root = tmp_path_factory.mktemp("shared")
    for name, rows in {"many": 23, "one": 1, "bad": 19}.items():
        write_texts(root / f"{name}.jsonl", rows)
    with (root / "bad.jsonl").open("a", encoding="utf-8") as stream:
        stream.write(json.dumps({"id": "bad", "text": f"{BAD} she likes tea"}) + "\n")
    bad = with_a_bad_token(model_folders("llama"), root / "bad", tokenizer)

    runs: list[list[str]] = []
    for name, (model, texts, overrides) in SHARED.items():
        path = bad if model == "bad" else model_folders(model)
        common = ["data.batch_size=3", *(override for override in overrides if not override.startswith("trainer="))]
        one, two = (arguments(root / f"{texts}.jsonl", root / f"{name} {n}", path)[3:] for n in ("one", "two"))
        memvec.predict(compose([*one, *common, "trainer.devices=1"]))
        runs.append([*two, *common, overrides[0], "trainer.devices=2"])
    both_ways = save_bidirectional(root / "bidirectional")
    runs.append([*arguments(root / "many.jsonl", root / "both ways", both_ways)[3:], FSDP, "trainer.devices=2"])
    (root / "runs.json").write_text(json.dumps(runs), encoding="utf-8")
    command = [sys.executable, "-m", "tests.helpers.several_runs", str(root / "runs.json")]
    code, text = finish(start(torchrun(command, 2)))
    (root / "said.txt").write_text(text, encoding="utf-8")
    assert code == 0, text
    return root


@pytest.mark.parametrize("name", [name for name in SHARED if "bad" not in name])
def test_weights_shared_out_give_the_vectors_of_one_process(name: str, shared: Path) -> None:
    assert_same(memvec.load(shared / f"{name} two"), memvec.load(shared / f"{name} one"))
    metrics = read_json(shared / f"{name} two" / "metrics.json")
    assert (metrics["ranks"], metrics["computed_entries"]) == (2, 1 if "without rows" in name else 23)
    notes = read_json(shared / f"{name} two" / "manifest.json")["notes"]
    assert notes["weights"] == ("data_parallel over 2" if "fsdp" in name else "tensor_parallel over 2")


@pytest.mark.parametrize("name", [name for name in SHARED if "bad" in name])
def test_ranks_that_share_weights_recompute_nan_together(name: str, shared: Path) -> None:
    dtype, error = ("bfloat16", 0.02) if "fsdp" in name else ("float32", 1e-5)
    assert_same(memvec.load(shared / f"{name} two"), memvec.load(shared / f"{name} one"), error=error)
    (rejected,) = (shared / f"{name} two" / "rejected.jsonl").read_text().splitlines()
    assert json.loads(rejected)["id"] == "bad"
    assert f"holds NaN or infinity, in {dtype} too" in rejected


def test_ranks_in_step_end_where_batches_differ_from_one_by_one(shared: Path) -> None:
    """Its processes would compute as many forwards as their own batches have rows, and wait for each other for ever."""
    assert "parity probe: batches differ from one by one" in (shared / "said.txt").read_text()
    assert "data.batch_size=1 model.probe=off" in (shared / "said.txt").read_text()
    assert not (shared / "both ways" / "manifest.json").exists()
