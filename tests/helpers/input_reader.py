"""A process that reads inputs one after the other, so that a test sees which of them would have ended its own."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

READ = """
import json, sys
from itertools import islice
import datasets
from memvec.data.source import find_sources
from memvec.errors import MemvecError
datasets.disable_progress_bars()
for line in sys.stdin:
    name, columns, limit, digest = json.loads(line)
    answer = {}
    try:
        rows = 0
        for source in find_sources(name):
            if digest:
                source.digest(columns=columns)
            records = source.records(text_column=columns[0], id_column=columns[1], more=columns[2:])
            rows += sum(1 for _ in islice(records, limit))
        answer = {"rows": rows}
    except MemvecError as error:
        answer = {"error": str(error)}
    except BaseException as error:
        answer = {"defect": f"{type(error).__name__}: {error}"}
    print(json.dumps(answer), flush=True)
"""


class InputReader:
    """The process.

    Args:
        process: Runs `READ`.
    """

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process

    def read(
        self, path: Path, columns: Sequence[str | None], *, limit: int | None = None, digest: bool = True
    ) -> dict[str, Any]:
        """Returns what came of reading an input: `rows`, an `error`, a `defect`, or the signal that `ended` it all.

        Args:
            path: As `data.path`.
            columns: Of the text, the id and more.
            limit: Rows to read of each source.
            digest: Whether its digest is taken first, as a run does.
        """
        stdin, stdout = self.process.stdin, self.process.stdout
        assert stdin is not None
        assert stdout is not None
        stdin.write(json.dumps([str(path), columns, limit, digest]) + "\n")
        stdin.flush()
        line = stdout.readline()
        return json.loads(line) if line else {"ended": self.process.wait()}

    @property
    def peak(self) -> int:
        """The most memory it has had, in MB; not `ru_maxrss`, which a process inherits."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return next(int(line.split()[1]) // 1024 for line in status.splitlines() if line.startswith("VmHWM"))


@contextmanager
def input_reader() -> Iterator[InputReader]:
    """Starts the process, and ends it."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", READ], **pipes, text=True) as process:
        yield InputReader(process)
        assert process.stdin is not None
        process.stdin.close()
