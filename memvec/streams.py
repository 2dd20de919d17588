"""Arrow stream files, which `datasets.Dataset.from_file` maps.

In: record batches. Out: the file.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pyarrow as pa


def write_stream(path: Path, batches: Iterable[pa.RecordBatch], *, schema: pa.Schema) -> None:
    """Writes record batches one after the other, whatever they are made from.

    Args:
        path: The file.
        batches: Each of that schema.
        schema: Of the file.

    Raises:
        OSError: The file cannot be written.
    """
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, schema) as writer:
        for batch in batches:
            writer.write_batch(batch)
