"""The parts a page is made of, as the plain JSON that page.js draws.

page    {"title", "subtitle", "facts", "map" or null, "charts", "tables"}
facts   [[name, value], …]
chart   {"title", "note", "kind": "bars", "rows" or "lines", "labels", "series": [{"name", "values"}], "axis", "unit"}
table   {"title", "note", "columns", "rows": [{"cells", "points"}]}: points are entries of the map, or none
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Json = dict[str, Any]


def chart(
    title: str,
    *,
    kind: Literal["bars", "rows", "lines"],
    labels: Sequence[str],
    series: dict[str, Sequence[float | None]],
    axis: str = "",
    unit: str = "",
    note: str = "",
) -> Json:
    """Returns a chart.

    Args:
        title: Above it.
        kind: Stacked columns, a row with a bar for each label, or a line for each series.
        labels: One for each value.
        series: Values by name, all as many as labels.
        axis: What the labels are.
        unit: What the values are.
        note: A sentence below the title.
    """
    return {
        "title": title,
        "note": note,
        "kind": kind,
        "labels": list(labels),
        "series": [{"name": name, "values": list(values)} for name, values in series.items()],
        "axis": axis,
        "unit": unit,
    }


def table(
    title: str, columns: Sequence[str], rows: Sequence[tuple[Sequence[str], Sequence[int]]], *, note: str = ""
) -> Json:
    """Returns a table.

    Args:
        title: Above it.
        columns: Their names.
        rows: For each its cells, and the map's entries that a click on it shows.
        note: A sentence below the title.
    """
    shown = [{"cells": list(cells), "points": list(points)} for cells, points in rows]
    return {"title": title, "note": note, "columns": list(columns), "rows": shown}


def packed(values: NDArray[Any], dtype: type[np.generic]) -> str:
    """Returns numbers as the base64 of their little-endian bytes, a fifth of what JSON takes."""
    return base64.b64encode(np.ascontiguousarray(values, dtype=np.dtype(dtype).newbyteorder("<")).tobytes()).decode()
