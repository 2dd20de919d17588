"""Which rows of a run a condition holds for: `user = 'ana' and created_at >= '2024-05-01'`.

In: a loaded run and an SQL expression over its columns. Out: for every row whether it is true; null is not true.

How: DuckDB, a database within the process, parses the expression and evaluates it on the mapped columns, none of which
is copied. Only one expression is taken, no statement; and with access to files, extensions and the program's variables
switched off, there is nothing for it to reach but the run's rows, whoever wrote it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from datasets import Dataset
from numpy.typing import NDArray

from memvec.errors import ConfigError, one_line
from memvec.extras import import_extra
from memvec.schema import is_vector_column

SANDBOX = {
    "enable_external_access": "false",
    "autoinstall_known_extensions": "false",
    "autoload_known_extensions": "false",
}
SETTINGS = ("python_enable_replacements = false", "TimeZone = 'UTC'", "lock_configuration = true")
EXAMPLE = "user = 'ana' (texts in single quotes, names in double ones where they need any)"


def rows_where(dataset: Dataset, where: str) -> NDArray[np.bool_]:
    """Returns for which rows of a loaded run a condition is true, `[N]`.

    Args:
        dataset: The run.
        where: An SQL expression over its columns, but for the vectors.

    Raises:
        ConfigError: It cannot be parsed, names a column that is not there, or is not true or false.
        ExtraError: DuckDB is not installed.
    """
    duckdb: Any = import_extra("duckdb", extra="where", purpose="where=")
    names = [name for name in dataset.column_names if not is_vector_column(name)]
    try:
        with duckdb.connect(":memory:", config=SANDBOX) as connection:
            for setting in SETTINGS:
                connection.execute(f"SET {setting}")
            rows = connection.from_arrow(dataset.data.table.select(names))
            rows.filter(where)  # refuses what is no condition of a single row, such as an average
            condition = rows.project(where)
            if [str(kind) for kind in condition.types] != ["BOOLEAN"]:
                found = ", ".join(str(kind) for kind in condition.types)
                raise ConfigError(f"where={where}: is of type {found}; allowed: true or false, such as {EXAMPLE}")
            holds = condition.to_arrow_table().column(0)
    except duckdb.Error as error:
        raise ConfigError(
            f"where={where}: {one_line(error)}; columns: {', '.join(names)}; such as {EXAMPLE}"
        ) from error
    return np.asarray(holds.fill_null(False).to_numpy(), dtype=bool)
