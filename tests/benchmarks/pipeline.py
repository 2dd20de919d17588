"""Entry: how many entries a second everything but the model gets through, in one process.

    python -m tests.benchmarks.pipeline --entries 40000 --dimension 1024

In: synthetic texts of LoCoMo's lengths. Out: entries/s of the predict stage (plan, batches, Lightning, a journal with a
flush every 50 entries), and seconds of the other stages. A run on a fast card cannot be faster than that.

How: `memvec.predict` as a user runs it, but the extractor returns zeros in the place of vectors.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from unittest.mock import patch

import torch
from transformers import AutoTokenizer

import memvec
from memvec.data.collator import Batch
from memvec.model.extractor import Extractor
from tests.benchmarks.compare import positive, say
from tests.benchmarks.lengths import synthetic_texts
from tests.benchmarks.shapes import SHAPES, save_shape


def no_vectors(self: Extractor, batch: Batch) -> torch.Tensor:
    """Returns zeros in the place of a batch's vectors, `[B, D]`."""
    return torch.zeros(len(batch["length"]), self.dimension)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the benchmark; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.pipeline", description=__doc__.splitlines()[0])
    parser.add_argument("--entries", type=positive, default=40_000, metavar="N", help="(default: %(default)s)")
    parser.add_argument("--dimension", type=positive, default=1024, metavar="D", help="(default: %(default)s)")
    parser.add_argument("--repeats", type=positive, default=3, metavar="N", help="(default: %(default)s)")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="memvec-pipeline-") as scratch:
        shape = {**SHAPES["tiny"], "hidden_size": options.dimension, "num_hidden_layers": 1}
        with patch.dict(SHAPES, {"tiny": shape}):
            model = save_shape("tiny", Path(scratch) / "model", "cpu")
        data, tokenizer = Path(scratch) / "texts.jsonl", AutoTokenizer.from_pretrained(model)
        texts = synthetic_texts("locomo", options.entries, tokenizer, str(memvec.compose().prompt.template))
        data.write_text("".join(json.dumps({"text": f"{text} {at}"}) + "\n" for at, text in enumerate(texts)))
        rates = [_rate(data, model, Path(scratch) / f"run{at}") for at in range(options.repeats)]
    sys.stdout.write(f"{options.entries:,} entries of {options.dimension:,} numbers: {median(rates):,.0f} entries/s\n")
    return 0


def _rate(data: Path, model: str, folder: Path) -> float:
    """Returns entries a second of the predict stage of one run."""
    settings = {"data.path": data, "output_dir": folder, "model": "hub", "model.name_or_path": model}
    on_accelerator = {"data.max_tokens": 32_768, "trainer.accelerator": "cpu", "data.id_column": "null"}
    overrides = [f"{name}={value}" for name, value in {**settings, **on_accelerator}.items()]
    with patch.object(Extractor, "__call__", no_vectors):
        metrics = memvec.predict(memvec.compose([*overrides, "model.probe=off", "model.tune=off"])).metrics
    stages = ", ".join(f"{name} {seconds:.2f} s" for name, seconds in metrics["seconds"].items())
    say(f"{metrics['entries_per_second']:,.0f} entries/s; {stages}")
    return float(metrics["entries_per_second"])


if __name__ == "__main__":
    sys.exit(main())
