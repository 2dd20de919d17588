"""Which rows of a run a condition holds for: `user == "ana" and created_at >= "2024-05-01"`.

In: a loaded run and an SQL expression over its columns. Out: for every row whether it is true; null is not true.

How: DuckDB, a database within the process, parses the expression and evaluates it on the mapped columns, none of which
is copied. SQL has texts in single quotes, which a shell makes hard to type: in a condition without any, what stands in
double quotes and is no column is a text. Only one expression is taken, no statement; and with access to files,
extensions and the program's variables switched off, there is nothing for it to reach but the run's rows, whoever wrote
it.
"""

from __future__ import annotations

import json
import re
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
# What SQL takes for the database's own user or place where no column is called so, and would compare with silently.
OF_DATABASE = frozenset({"user", "current_user", "session_user", "current_role", "current_catalog", "current_schema"})
QUOTED = re.compile(r'"([^"]*)"')
SETTINGS = ("python_enable_replacements = false", "TimeZone = 'UTC'", "lock_configuration = true")


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
    typed, where = where, _with_texts(where, names)
    with duckdb.connect(":memory:", config=SANDBOX) as connection:
        for setting in SETTINGS:
            connection.execute(f"SET {setting}")
        rows = connection.from_arrow(dataset.data.table.select(names))
        try:
            rows.filter(where)  # refuses what is no condition of a single row, such as an average
            condition = rows.project(where)
            if (found := [str(kind) for kind in condition.types]) != ["BOOLEAN"]:
                allowed = "BOOLEAN, such as user = 'ana'"
                raise ConfigError("where", typed, found=f"of type {', '.join(found)}", allowed=allowed)
            named = _columns_named(where, connection)
            if not_there := named & OF_DATABASE - {name.casefold() for name in names}:
                raise duckdb.BinderException(f"there is no column {min(not_there)}")
            if where != typed and not named:
                raise duckdb.BinderException("it names no column")
            holds = condition.to_arrow_table().column(0)
        except duckdb.Error as error:
            columns = ", ".join(str(duckdb.ColumnExpression(name)) for name in names)  # as SQL has them, in quotes
            advice = ""
            if (in_single_quotes := typed.replace('"', "'")) != typed and _is_condition(rows, in_single_quotes, duckdb):
                advice = f"texts stand in single quotes: where={in_single_quotes}"
            raise ConfigError("where", typed, found=f"{one_line(error)}; columns: {columns}", advice=advice) from error
    return np.asarray(holds.fill_null(False).to_numpy(), dtype=bool)


def _with_texts(where: str, names: list[str]) -> str:
    """Returns a condition without single quotes with them around texts that stand in double ones."""
    if "'" in where:
        return where
    columns = {name.casefold() for name in names}
    return QUOTED.sub(lambda found: found[0] if found[1].casefold() in columns else f"'{found[1]}'", where)


def _columns_named(where: str, connection: Any) -> set[str]:
    """Returns what an expression names as columns, in small letters, as DuckDB's own parser has it."""
    [(tree,)] = connection.execute("SELECT json_serialize_sql(?)", [f"SELECT {where}"]).fetchall()
    found: set[str] = set()
    json.loads(tree, object_hook=lambda node: found.update(map(str.casefold, node.get("column_names", [])[:1])))
    return found


def _is_condition(rows: Any, where: str, duckdb: Any) -> bool:
    try:
        rows.filter(where)
    except duckdb.Error:
        return False
    return True
