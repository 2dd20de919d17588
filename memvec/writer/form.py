"""The form in which a run keeps its vectors: as they are or at unit length, in float32 or float16.

In: vectors as they were computed, `[B, D]` or of several layers `[B, L, D]`, finite float32. Out: rows of the journal;
a vector that the dtype cannot hold has a reason in its place.

Why no bfloat16: neither Arrow nor Parquet has such a type, so that nothing could read the numbers back as numbers.
float16 has three bits more behind the point, and so holds exactly what a model computes in bfloat16, from 6e-5 to
65504.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from memvec.config.values import one_of
from memvec.errors import ConfigError
from memvec.schema import VECTOR_DTYPES
from memvec.units import as_units
from memvec.writer.journal import vector_rows


@dataclass(frozen=True)
class VectorForm:
    """Makes vectors rows of the journal.

    Args:
        dtype: Of the numbers.
        normalize: Whether each vector, of each layer, is divided by its length first; zeros stay zeros.

    Raises:
        ConfigError: One of them is not allowed.
    """

    dtype: str = "float32"
    normalize: bool = False

    def __post_init__(self) -> None:
        if self.dtype == "bfloat16":
            allowed = "float32, float16 (which holds what a bf16-true model computes exactly, from 6e-5 to 65504)"
            raise ConfigError("writer.dtype", self.dtype, found="Arrow and Parquet have no such type", allowed=allowed)
        one_of("writer.dtype", self.dtype, VECTOR_DTYPES)
        one_of("writer.normalize", self.normalize, (True, False))

    def fingerprint(self) -> dict[str, Any]:
        """Returns what decides the numbers kept, apart from what is as it was before there was a choice.

        So a run that was made then is the same run as one with these options left alone.
        """
        return {
            **({} if self.dtype == "float32" else {"vector_dtype": self.dtype}),
            **({"normalize": True} if self.normalize else {}),
        }

    def rows(self, index: NDArray[np.int64], vectors: NDArray[np.float32]) -> pa.RecordBatch:
        """Returns rows of the journal.

        Args:
            index: Row numbers, `[B]`.
            vectors: `[B, D]` or `[B, L, D]` float32, finite.
        """
        wanted = as_units(vectors.astype(np.float64)) if self.normalize else vectors
        flat = wanted.reshape(len(index), math.prod(vectors.shape[1:]))
        with np.errstate(over="ignore"):  # said for each row below
            kept = flat.astype(self.dtype)
        fits = np.isfinite(kept).all(axis=1)  # [B]
        reasons = [None if fits[row] else self._reason(flat[row]) for row in range(len(index))]
        return vector_rows(index, kept, reasons)

    def _reason(self, numbers: NDArray[Any]) -> str:
        return (
            f"its vector holds {numbers[np.abs(numbers).argmax()]:.6g}, and {self.dtype} ends at "
            f"{np.finfo(self.dtype).max:.6g}; writer.dtype=float32 or writer.normalize=true can keep it"
        )
