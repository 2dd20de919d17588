"""A finished run as a dataset."""

from __future__ import annotations

from pathlib import Path

from datasets import Dataset

from memvec.errors import RunFolderError
from memvec.run.folder import RunFolder
from memvec.run.manifest import read_manifest
from memvec.run.result import mapped_result


def load(output_dir: str | Path) -> Dataset:
    """Returns the vectors of a finished run.

    Args:
        output_dir: The run's folder.

    Returns:
        A memory-mapped dataset with columns `id`, `text` (where kept), `vector` and `num_tokens`, in input order; its
        format is torch: `dataset["vector"][:]` is a `[N, D]` float32 tensor.

    Raises:
        RunFolderError: There is no finished run, or a file of it is missing or damaged.
    """
    folder = RunFolder(output_dir)
    manifest = read_manifest(folder)
    if manifest.dimension is None:
        raise RunFolderError(
            f"{folder.root}: holds memory texts; memvec.predict data.path={folder.memories} computes their vectors"
        )
    return mapped_result(folder, manifest).with_format("torch")
