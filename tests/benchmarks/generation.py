"""Generation in memvec against transformers' own `generate`, one conversation at a time and in batches, and a server.

    python -m tests.benchmarks.generation --data conversations.jsonl --limit 10 --repeats 3
    transformers serve MODEL --port 8000 &
    python -m tests.benchmarks.generation --base-url http://127.0.0.1:8000/v1 --served-model MODEL …
    python -m tests.benchmarks.generation --device cuda --shape qwen3-0.6b --limit 300 --batch-sizes 64

In: conversations and a model. Out: a table of tokens written a second, as a ratio to memvec's, and of the share of
outputs that could be understood.

How: all read the same windows with the same prompt, greedily and in float32 (on a GPU in bfloat16), with the same
penalty; all but the server have the same rules of when to stop too. A model of random weights ends where a number drawn
for its row says. transformers' `generate` is called on batches of windows sorted by length,
padded on the left; with one window a batch it is the loop that memvec replaces. memvec runs as a user runs it, without
the second attempt, and its predict stage counts, choosing matmuls and probing included. All take turns, so that a busy
moment of the machine hits each of them.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from datasets import Dataset
from omegaconf import DictConfig
from transformers import AutoTokenizer, GenerationConfig, LogitsProcessor, LogitsProcessorList, StoppingCriteriaList

import memvec
from memvec.files import read_json
from memvec.generation import decoding
from memvec.generation.build import build_conversations, build_generator
from memvec.generation.decoding import RepetitionStop, turn_end_ids
from memvec.generation.module import GenerationModule
from memvec.generation.parser import Outcome, parse
from memvec.generation.rows import prompt_content
from memvec.generation.sampling import Sampling, row_seed
from memvec.run.build import run_folder
from tests.benchmarks.shapes import SHAPES, save_shape
from tests.helpers.conversations import read_lines


@dataclass(frozen=True)
class Written:
    """What one turn of a contestant came to."""

    texts: list[str]
    tokens: int
    seconds: float
    understood: float


def configure(options: argparse.Namespace, output_dir: Path, *overrides: str) -> DictConfig:
    """Returns the configuration of a run; `output_dir` is its folder."""
    given = [f"data.path={options.data}", f"data.limit={options.limit}", f"output_dir={output_dir}"]
    quiet = ["trainer.enable_progress_bar=false", f"trainer.accelerator={options.device}", "trainer.devices=1"]
    if options.device == "cuda":
        quiet.append("trainer.precision=bf16-true")
    if options.shape:
        quiet += ["model=hub", f"model.name_or_path={options.shape}"]
    return memvec.compose([*given, *quiet, "generation.attempts=1", *overrides], config_name="generate")


class DrawnEnd(LogitsProcessor):
    """Ends each row at a length that its seed decides, 100 tokens in the mean, and nowhere else.

    Args:
        seeds: `[B]`.
        end: The token that ends a row.
        width: T, tokens of the prompts with their padding.
    """

    def __init__(self, seeds: Sequence[int], *, end: int, width: int) -> None:
        drawn = [np.random.default_rng(seed).gamma(4, 25) for seed in seeds]
        self.length = torch.tensor(drawn).clamp(20, 250)
        self.end = end
        self.width = width

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        """Returns the scores `[B, V]`, of which the end's is the largest or the smallest."""
        is_over = input_ids.shape[1] - self.width >= self.length.to(scores.device)
        scores[:, self.end] = torch.where(is_over, 1e9, -1e9)
        return scores


@contextmanager
def drawn_ends(end: int) -> Iterator[None]:
    """Has every answer end where `DrawnEnd` says, and no row for repeating itself, as random weights do."""
    processors = Sampling.processors

    def with_end(self: Sampling, seeds: Sequence[int], *, width: int) -> LogitsProcessorList:
        return LogitsProcessorList([*processors(self, seeds, width=width), DrawnEnd(seeds, end=end, width=width)])

    with patch.object(Sampling, "processors", with_end), patch.object(decoding, "REPEATS", 10**6):
        yield


class Batches:
    """transformers' `generate` on batches of windows sorted by length.

    Args:
        module: Says which model and how.
        windows: What is written about.
        model: The loaded model.
        rows: Windows in a batch.
    """

    def __init__(self, module: GenerationModule, windows: list[dict[str, Any]], model: Any, *, rows: int) -> None:
        self.module = module
        self.windows = windows
        self.model = model
        self.rows = rows
        self.tokenizer = module.checkpoint.load_tokenizer()
        self.ends = sorted(turn_end_ids(self.tokenizer))
        template = module.prompt.to_prompt().render(self.tokenizer)
        prompts = [template.replace("{text}", window["text"]) for window in windows]
        self.prompts: list[list[int]] = self.tokenizer(prompts, add_special_tokens=False)["input_ids"]

    @torch.inference_mode()
    def run(self) -> Written:
        """Writes about every window."""
        start = time.perf_counter()
        answers: dict[int, list[int]] = {}
        order = sorted(range(len(self.prompts)), key=lambda row: -len(self.prompts[row]))
        for first in range(0, len(order), self.rows):
            rows = order[first : first + self.rows]
            answers |= dict(zip(rows, self._write(rows), strict=True))
        seconds = time.perf_counter() - start
        texts = [str(self.tokenizer.decode(answers[row], skip_special_tokens=True)) for row in range(len(answers))]
        outcomes = [
            parse(
                text,
                is_cut=answers[row][-1] not in self.ends,
                prompt=prompt_content(self.windows[row], self.module.prompt.instructions),
            ).outcome
            for row, text in enumerate(texts)
        ]
        understood = sum(outcome is not Outcome.UNPARSEABLE for outcome in outcomes) / len(outcomes)
        return Written(texts, sum(map(len, answers.values())), seconds, understood)

    def _write(self, rows: list[int]) -> list[list[int]]:
        width = max(len(self.prompts[row]) for row in rows)
        device = self.model.device
        input_ids = torch.full((len(rows), width), self.ends[0], device=device)
        mask = torch.zeros_like(input_ids)
        for place, row in enumerate(rows):
            input_ids[place, width - len(self.prompts[row]) :] = torch.tensor(self.prompts[row], device=device)
            mask[place, width - len(self.prompts[row]) :] = 1
        repetition = RepetitionStop(width=width, has_ended=torch.zeros(len(rows), dtype=torch.bool, device=device))
        output = self.model.generate(
            input_ids=input_ids,
            attention_mask=mask,
            generation_config=GenerationConfig(
                max_new_tokens=self.module.max_new_tokens,
                do_sample=False,
                eos_token_id=self.ends,
                pad_token_id=self.ends[0],
            ),
            logits_processor=self.module.sampling.processors(
                [row_seed(self.module.seed, attempt=0, row=row) for row in rows], width=width
            ),
            stopping_criteria=StoppingCriteriaList([repetition]),
        )
        return [self._answer(tokens.tolist()) for tokens in output[:, width:]]

    def _answer(self, tokens: list[int]) -> list[int]:
        """Returns an answer up to its end, which belongs to it."""
        end = next((place for place, token in enumerate(tokens) if token in self.ends), len(tokens))
        return tokens[: end + 1]


def read_windows(options: argparse.Namespace, folder: Path) -> tuple[GenerationModule, list[dict[str, Any]]]:
    """Returns the module, and the windows as memvec cuts them."""
    cfg = configure(options, folder, *options.overrides)
    module = build_generator(cfg)
    if not isinstance(module, GenerationModule):
        raise SystemExit("a model of this machine is measured; name the server with --base-url")
    datamodule = build_conversations(cfg, module, run_folder(cfg))
    datamodule.prepared.folder.journal.mkdir(parents=True)
    datamodule.prepare_data()
    return module, list(Dataset.from_file(str(datamodule.prepared.folder.entries)))


def run_memvec(cfg: DictConfig) -> Written:
    """Runs memvec as a user does, on a model here or a server."""
    summary = memvec.generate(cfg)
    folder = Path(cfg.output_dir)
    raw = read_lines(folder / "raw.jsonl")
    counts, metrics = summary.counts, read_json(folder / "metrics.json")
    texts = [line["text"] for line in raw]
    return Written(texts, metrics["output_tokens"], metrics["predict_seconds"], 1 - counts.failed / counts.windows)


def asked(options: argparse.Namespace, folder: Path) -> DictConfig:
    """Returns the configuration of a run that asks a server what the model is asked here."""
    here = configure(options, folder, *options.overrides).generation
    server = [
        "generation=server",
        f"generation.base_url={options.base_url}",
        f"generation.model={options.served_model}",
    ]
    penalty = (
        f"generation.extra_body={{frequency_penalty: {here.repetition_penalty - 1}}}"  # as `transformers serve` has it
    )
    same = [f"generation.max_new_tokens={here.max_new_tokens}", f"generation.tokenizer={here.name_or_path}", penalty]
    cfg = configure(options, folder, *server, *same)
    cfg.generation.prompt = here.prompt
    return cfg


def main() -> None:
    """Runs all in turn and prints the table."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.generation", description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, default=Path(memvec.compose(config_name="generate").data.path))
    parser.add_argument("--limit", type=int, default=10, help="conversations")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 16], help="of transformers' generate")
    parser.add_argument("--base-url", help="of a server that serves the same model")
    parser.add_argument("--served-model", help="the name under which it does")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument(
        "--shape", choices=list(SHAPES), help="of a model of random weights, in the place of the default"
    )
    parser.add_argument("overrides", nargs="*", help="of conf/generate.yaml, such as model=hub model.name_or_path=…")
    options = parser.parse_intermixed_args()
    with tempfile.TemporaryDirectory(prefix="memvec-") as scratch, ExitStack() as stack:
        if options.shape:
            options.shape = save_shape(options.shape, Path(scratch) / "model", options.device)
            end = AutoTokenizer.from_pretrained(options.shape).eos_token_id
            stack.enter_context(drawn_ends(end))
        folders = (Path(scratch) / f"run-{number}" for number in range(10**6))
        module, windows = read_windows(options, next(folders))
        dtype = torch.bfloat16 if options.device == "cuda" else torch.float32
        model = module.checkpoint.load_language_model(dtype).to(options.device)
        contestants: dict[str, Callable[[], Written]] = {
            "memvec": lambda: run_memvec(configure(options, next(folders), *options.overrides)),
            "memvec, model.tune=off": lambda: run_memvec(
                configure(options, next(folders), *options.overrides, "model.tune=off")
            ),
            **{
                f"transformers, {rows} a batch": Batches(module, windows, model, rows=rows).run
                for rows in options.batch_sizes
            },
        }
        if options.base_url:
            contestants["server"] = lambda: run_memvec(asked(options, next(folders)))
        turns: dict[str, list[Written]] = {name: [] for name in contestants}
        for repeat in range(options.repeats):
            for name, run in contestants.items():
                turns[name].append(written := run())
                same = sum(a == b for a, b in zip(turns["memvec"][0].texts, written.texts, strict=True))
                said = f"{repeat + 1}: {name}: {written.tokens} tokens in {written.seconds:.1f} s"
                sys.stdout.write(f"{said}, {same} texts as memvec's\n")
                sys.stdout.flush()
    sys.stdout.write(f"\n{len(windows)} windows, {torch.get_num_threads()} threads; tokens/s as a ratio to memvec's\n")
    rates = {name: [turn.tokens / turn.seconds for turn in found] for name, found in turns.items()}
    for name, found in turns.items():
        ratio = median(rate / own for rate, own in zip(rates[name], rates["memvec"], strict=True))
        sys.stdout.write(f"{name:<28}{ratio:8.2f}{found[0].understood:12.0%} understood\n")


if __name__ == "__main__":
    main()
