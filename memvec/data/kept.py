"""Columns of the input that travel to the result: which may, and their values, mapped from disk.

In: names, or what `memvec.data.keeping` wrote. Out: the same names where a result can have them; the values of rows.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from datasets import Dataset
from numpy.typing import NDArray

from memvec.errors import ConfigError
from memvec.schema import is_own_column


def names_to_keep(names: Any) -> tuple[str, ...]:
    """Returns the value of `data.keep_columns`, be it a user's or a finished run's.

    Raises:
        ConfigError: It is no list of names, or a name is taken.
    """
    if not isinstance(names, list | tuple) or not all(isinstance(name, str) and name for name in names):
        raise ConfigError("data.keep_columns", names, allowed="a list of names, such as [user,created_at]")
    taken: dict[str, str] = {}
    for name in names:
        key = name.casefold()  # `where` takes names that differ in case for the same
        if is_own_column(key):
            found = f"{name!r} is the name of a result's own column"
            raise ConfigError("data.keep_columns", found=found, advice="rename it in the input")
        if key in taken:
            found = f"{taken[key]!r} and {name!r} are the same name but for their case"
            raise ConfigError("data.keep_columns", found=found)
        taken[key] = name
    return tuple(names)


class KeptRows:
    """The values of the kept columns, row by row those of the entries.

    Args:
        path: Their file; there is none where no column is kept.
    """

    def __init__(self, path: Path) -> None:
        self._rows = Dataset.from_file(str(path)).with_format("arrow") if path.exists() else None

    @property
    def types(self) -> dict[str, pa.DataType]:
        """The columns' types by their names."""
        return {} if self._rows is None else {field.name: field.type for field in self._rows.data.schema}

    def columns(self, rows: NDArray[np.int64]) -> dict[str, pa.ChunkedArray]:
        """Returns the values of some rows by the columns' names."""
        if self._rows is None:
            return {}
        found = self._rows[rows]
        return {name: found.column(name) for name in found.column_names}

    def row(self, row: int) -> dict[str, Any]:
        """Returns the values of one row by the columns' names."""
        return {} if self._rows is None else dict(self._rows[row].to_pylist()[0])
