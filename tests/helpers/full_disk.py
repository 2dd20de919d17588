"""Runs memvec several times in one process, and fills the disk at a moment of each run.

    python -m tests.helpers.full_disk RUNS.json

In: a JSON list of `{"flow", "overrides", "at"}`. Out: for each a line of JSON: how it ended, in words.

How: from the moment on at which a file of the name `at` is made, no file of this process may grow: to who writes, a
limit on the size of files is what a full disk is, an error of write(). What is heard on stderr is the terminal's.
"""

from __future__ import annotations

import json
import resource
import sys
from pathlib import Path
from typing import Any

import memvec

FLOWS: dict[str, Any] = {"predict": memvec.predict, "generate": memvec.generate}
UNLIMITED = resource.getrlimit(resource.RLIMIT_FSIZE)
waiting: list[str] = []


def look(event: str, arguments: tuple[Any, ...]) -> None:
    if waiting and event == "open" and waiting[0] in str(arguments[0]):
        waiting.clear()
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, UNLIMITED[1]))


def main() -> None:
    sys.addaudithook(look)
    for run in json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")):
        waiting.append(run["at"])
        try:
            FLOWS[run["flow"]](memvec.compose(run["overrides"], config_name=run["flow"]))
            said = "complete"
        except BaseException as error:
            said = f"{type(error).__name__}: {error}"
        was_full = not waiting
        waiting.clear()
        resource.setrlimit(resource.RLIMIT_FSIZE, UNLIMITED)
        sys.stdout.write(json.dumps({"at": run["at"], "said": said, "was_full": was_full}) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
