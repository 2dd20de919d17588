"""Generation in memvec against one conversation at a time.

    python -m tests.benchmarks.generation --data conversations.jsonl --limit 10 --repeats 3

In: conversations and a model. Out: a table of both, in seconds of generating alone, and whether the texts are the same.

How: both read the same windows with the same prompt, greedily and in float32, with the same penalty and the same rules
of when to stop. The loop calls the library's `generate` on one prompt after the other, as the code does that memvec
replaces; memvec runs as a user runs it, without the second attempt, and its predict stage counts, choosing kernels and
probing included. The two take turns, so that a busy moment of the machine hits both.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch
from datasets import Dataset
from omegaconf import DictConfig
from transformers import GenerationConfig, StoppingCriteriaList

import memvec
from memvec.files import read_json
from memvec.generation.build import build_conversations, build_generator
from memvec.generation.decoding import CirclesStop, turn_end_ids
from memvec.generation.module import GenerationModule
from memvec.run.build import run_folder


def configure(options: argparse.Namespace, output_dir: Path) -> DictConfig:
    """Returns the configuration of a run; `output_dir` is its folder."""
    overrides = [f"data.path={options.data}", f"data.limit={options.limit}", f"output_dir={output_dir}"]
    quiet = ["trainer.enable_progress_bar=false", "trainer.accelerator=cpu", "trainer.devices=1"]
    return memvec.compose([*overrides, *quiet, "generation.attempts=1", *options.overrides], config_name="generate")


class Loop:
    """One conversation at a time.

    Args:
        module: Says which model and how.
        texts: Of the windows.
    """

    def __init__(self, module: GenerationModule, texts: list[str]) -> None:
        self.module = module
        self.tokenizer = module.checkpoint.load_tokenizer()
        self.model: Any = module.checkpoint.load_language_model(torch.float32)
        self.template = module.prompt.to_prompt().render(self.tokenizer)
        self.texts = texts
        self.tokens = 0

    @torch.inference_mode()
    def run(self) -> tuple[list[str], float]:
        """Returns what is written about each window, and the seconds it took."""
        start = time.perf_counter()
        self.tokens = 0
        return [self._write(text) for text in self.texts], time.perf_counter() - start

    def _write(self, text: str) -> str:
        prompt = self.tokenizer(self.template.replace("{text}", text), add_special_tokens=False, return_tensors="pt")
        ends = sorted(turn_end_ids(self.tokenizer))
        width = prompt["input_ids"].shape[1]
        output = self.model.generate(
            **prompt,
            generation_config=GenerationConfig(
                max_new_tokens=self.module.max_new_tokens, do_sample=False, eos_token_id=ends, pad_token_id=ends[0]
            ),
            logits_processor=self.module.sampling.processors([0], width=width),
            stopping_criteria=StoppingCriteriaList([CirclesStop(width=width, rows=1, device=torch.device("cpu"))]),
        )
        self.tokens += output.shape[1] - width
        return str(self.tokenizer.decode(output[0, width:], skip_special_tokens=True))


def windows(options: argparse.Namespace, folder: Path) -> tuple[GenerationModule, list[str]]:
    """Returns the module, and the texts of the windows as memvec cuts them."""
    cfg = configure(options, folder)
    module = build_generator(cfg)
    datamodule = build_conversations(cfg, module, run_folder(cfg))
    datamodule.prepared.folder.journal.mkdir(parents=True)
    datamodule.prepare_data()
    return module, list(Dataset.from_file(str(datamodule.prepared.folder.entries))["text"])


def run_memvec(options: argparse.Namespace, folder: Path) -> tuple[list[str], float]:
    """Returns what memvec writes about each window, and the seconds of its predict stage."""
    cfg = configure(options, folder)
    memvec.generate(cfg)
    raw = (folder / "raw.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["text"] for line in raw], read_json(folder / "metrics.json")["predict_seconds"]


def main() -> None:
    """Runs both in turn and prints the table."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.generation", description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, default=Path(memvec.compose(config_name="generate").data.path))
    parser.add_argument("--limit", type=int, default=10, help="conversations")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("overrides", nargs="*", help="of conf/generate.yaml, such as model=hub model.name_or_path=…")
    options = parser.parse_args()
    seconds: dict[str, list[float]] = {"one at a time": [], "memvec": []}
    with tempfile.TemporaryDirectory(prefix="memvec-") as scratch:
        module, texts = windows(options, Path(scratch) / "windows")
        loop = Loop(module, texts)
        for repeat in range(options.repeats):
            expected, taken = loop.run()
            seconds["one at a time"].append(taken)
            found, taken = run_memvec(options, Path(scratch) / f"run-{repeat}")
            seconds["memvec"].append(taken)
            same = sum(a == b for a, b in zip(expected, found, strict=True))
            sys.stdout.write(f"{repeat + 1}: {taken:.1f} s against {seconds['one at a time'][-1]:.1f} s, ")
            sys.stdout.write(f"{same} of {len(texts)} texts are the same\n")
    for name, times in seconds.items():
        rate = loop.tokens / median(times)
        sys.stdout.write(f"{name:<14} {median(times):8.1f} s {rate:8.1f} tokens/s written\n")
    ratios = [one / other for one, other in zip(*seconds.values(), strict=True)]
    threads = torch.get_num_threads()
    sys.stdout.write(f"memvec is {median(ratios):.2f} x as fast ({loop.tokens} tokens, {threads} threads)\n")


if __name__ == "__main__":
    main()
