"""Entry: how long a search takes in a run of a million vectors, once it is loaded.

    python -m tests.benchmarks.search --rows 1000000 --dimension 576 --index

In: a number of rows. Out: a table on the terminal. The vectors are random, around a thousand topics with a large mean
in common; no query is embedded, since that depends on the model alone.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

import memvec
from memvec.retrieval.approximate import ApproximateIndex
from memvec.retrieval.exact import ExactIndex, mapped_vectors
from tests.helpers.runs import write_run

TOPICS = 1_000
BLOCK = 5_000
REPEATS = 5
NEAREST = 10

Result = TypeVar("Result")


def main(arguments: Sequence[str] | None = None) -> None:
    """Makes a run, searches it and prints how long each step took."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.search")
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--dimension", type=int, default=576)
    parser.add_argument("--index", action="store_true", help="the FAISS index too")
    parser.add_argument("--folder", type=Path, help="where the run is made; by default a folder for temporary files")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="memvec-benchmark-", dir=options.folder) as scratch:
        topics = np.random.default_rng(0).standard_normal((TOPICS, options.dimension), dtype=np.float32) + 3
        folder = write_run(Path(scratch) / "run", blocks(topics, options.rows))
        timed("memvec.load, the first time", lambda: memvec.load(folder.root))
        dataset = timed("memvec.load, again", lambda: memvec.load(folder.root))
        queries = next(blocks(topics, 64, seed=1))
        for center in (False, True):
            name = f"exact, center={str(center).lower()}"
            parts = mapped_vectors(dataset)
            index = timed(f"{name}: lengths", lambda parts=parts, center=center: ExactIndex(parts, center=center))
            timed(f"{name}: 1 query", lambda index=index: index.nearest(queries[:1], NEAREST), repeats=REPEATS)
            truth = timed(f"{name}: {len(queries)} queries", lambda index=index: index.nearest(queries, NEAREST))
        if options.index:
            built = timed("FAISS: building", lambda: ApproximateIndex(folder, dataset, center=True))
            timed("FAISS: 1 query", lambda: built.nearest(queries[:1], NEAREST), repeats=REPEATS)
            found = timed(f"FAISS: {len(queries)} queries", lambda: built.nearest(queries, NEAREST))
            shared = [len(set(a.tolist()) & set(b.tolist())) for (_, a), (_, b) in zip(found, truth, strict=True)]
            sys.stdout.write(
                f"FAISS: found of the exact {NEAREST} nearest: {sum(shared) / NEAREST / len(shared):.3f}\n"
            )
            sys.stdout.write(f"FAISS: bytes on disk: {built.path.stat().st_size:,}\n")


def blocks(topics: NDArray[np.float32], rows: int, *, seed: int = 2) -> Iterator[NDArray[np.float32]]:
    """Yields random vectors, `[at most 5,000, D]` each."""
    choose = np.random.default_rng(seed)
    for start in range(0, rows, BLOCK):
        size = min(BLOCK, rows - start)
        noise = choose.standard_normal((size, topics.shape[1]), dtype=np.float32)
        yield topics[choose.integers(0, len(topics), size)] + np.float32(0.7) * noise


def timed(name: str, work: Callable[[], Result], *, repeats: int = 1) -> Result:
    """Does something and prints the median of the seconds it took."""
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        result = work()
        seconds.append(time.perf_counter() - start)
    sys.stdout.write(f"{name:<36} {median(seconds):8.3f} s\n")
    sys.stdout.flush()
    return result


if __name__ == "__main__":
    main()
