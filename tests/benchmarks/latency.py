"""Entry: what an encoder that is held costs a call, beside the bare forward pass it is made of.

    python -m tests.benchmarks.latency --data memories.jsonl

In: texts, a model. Out: three comparisons, each interleaved in one run, medians:

    call      five short texts on a loaded encoder, and one forward pass of the same padded batch on the same model
    bulk      all texts by `Encoder.encode`, and by `memvec.predict`, whose predict stage alone counts
    process   one text in a new process: with memvec, and with transformers alone (`from_pretrained` and one pass)
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

import memvec
from memvec.config.compose import sample_path
from memvec.encoder import EMBEDDED
from memvec.model.checkpoint import locate_model

SHORT = ["likes tea", "moved to Lisbon in 2021", "爱喝茶", "works at the bank", "allergic to peanuts"]
WITH_MEMVEC = "import sys, memvec; memvec.Encoder(sys.argv[1], device='cpu').encode(['likes tea'])"
WITH_TRANSFORMERS = """
import sys, torch
from transformers import AutoModelForCausalLM, AutoTokenizer
model, tokenizer = (auto.from_pretrained(sys.argv[1]) for auto in (AutoModelForCausalLM, AutoTokenizer))
with torch.no_grad():
    inputs = tokenizer('请用一个Token总结以下文本"likes tea"：', return_tensors="pt")
    model(**inputs, output_hidden_states=True).hidden_states[-1][0, -1, :]
"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the three comparisons and prints a line for each."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.latency", description=__doc__)
    parser.add_argument("--model", default=EMBEDDED)
    parser.add_argument("--data", default=sample_path(), help="JSON lines with a field text")
    parser.add_argument("--limit", type=int, default=None, help="so many of them at most")
    parser.add_argument("--calls", type=int, default=40)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args(arguments)
    folder = locate_model(options.model)
    texts = [json.loads(line)["text"] for line in Path(options.data).read_text(encoding="utf-8").splitlines()]
    _call(folder, calls=options.calls)
    _process(folder, repeats=options.repeats)
    _bulk(folder, texts[: options.limit], repeats=options.repeats)


def _call(folder: str, *, calls: int) -> None:
    encoder = memvec.Encoder(folder, device="cpu")
    encoder.encode(SHORT)
    held = encoder._loaded()  # the very model, so that nothing else differs
    encoded = held.prompts.encode(SHORT)
    lengths = encoded.offsets[1:] - encoded.offsets[:-1]
    input_ids = torch.zeros((len(SHORT), int(lengths.max())), dtype=torch.long)
    for row, (start, end) in enumerate(zip(encoded.offsets[:-1], encoded.offsets[1:], strict=True)):
        input_ids[row, : end - start] = torch.from_numpy(encoded.input_ids[start:end].astype("int64"))

    @torch.no_grad()
    def bare() -> None:
        held.extractor.decoder(input_ids=input_ids, use_cache=False)

    call, forward = _interleaved([lambda: encoder.encode(SHORT), bare], repeats=calls)
    over = 1000 * (call - 1.25 * forward)
    sys.stdout.write(
        f"call      {1000 * call:.1f} ms, bare forward pass {1000 * forward:.1f} ms: {call / forward:.2f} x "
        f"({over:+.1f} ms against 1.25 x)\n"
    )


def _process(folder: str, *, repeats: int) -> None:
    def run(code: str) -> Callable[[], object]:
        environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
        command = [sys.executable, "-c", code, folder]
        return lambda: subprocess.run(command, check=True, capture_output=True, env=environment)

    own, alone = _interleaved([run(WITH_MEMVEC), run(WITH_TRANSFORMERS)], repeats=repeats)
    sys.stdout.write(f"process   {own:.1f} s, transformers alone {alone:.1f} s: {own / alone:.2f} x\n")


def _bulk(folder: str, texts: list[str], *, repeats: int) -> None:
    encoder = memvec.Encoder(folder, device="cpu")
    encoder.encode(texts)  # measures matmuls, as a run does before its predict stage
    rates = []
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        encoder.encode(texts)
        seconds.append(time.perf_counter() - start)
        rates.append(_predict_rate(folder, texts))
    own, run = len(texts) / statistics.median(seconds), statistics.median(rates)
    sys.stdout.write(f"bulk      {own:.1f} entries/s, predict stage {run:.1f} entries/s: {own / run:.2f} x\n")


def _predict_rate(folder: str, texts: list[str]) -> float:
    with tempfile.TemporaryDirectory(prefix="memvec-latency-") as scratch:
        path = Path(scratch) / "texts.jsonl"
        path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
        summary = memvec.predict(
            memvec.compose(
                [
                    f"data.path={path}", f"output_dir={scratch}/run", "model=hub", f"model.name_or_path={folder}",
                    "trainer.accelerator=cpu", "trainer.enable_progress_bar=false",
                ]
            )
        )  # fmt: skip
        rate: float = len(texts) / summary.metrics["predict_seconds"]
        return rate


def _interleaved(functions: Sequence[Callable[[], object]], *, repeats: int) -> list[float]:
    """Returns the median seconds of each function, called in turn."""
    seconds: list[list[float]] = [[] for _ in functions]
    for function in functions:
        function()
    for _ in range(repeats):
        for own, function in zip(seconds, functions, strict=True):
            start = time.perf_counter()
            function()
            own.append(time.perf_counter() - start)
    return [statistics.median(own) for own in seconds]


if __name__ == "__main__":
    main()
