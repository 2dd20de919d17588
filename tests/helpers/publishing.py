"""Publishes a finished run, and is killed as it opens a file for the second time, to copy it.

    AT=metrics.json python -m tests.helpers.publishing RUN PLACE

The first time a file is opened for its checksum.
"""

from __future__ import annotations

import os
import signal
import sys
from typing import Any

from memvec.layout import RunLayout
from memvec.run.publish import open_place, publish_run

opened: list[str] = []


def look(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "open" and str(arguments[0]).endswith(os.environ["AT"]):
        opened.append(event)
        if len(opened) == 2:
            os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    sys.addaudithook(look)
    run = RunLayout(sys.argv[1])
    publish_run(run, open_place(sys.argv[2], run))
