"""Forks a process for every command of memvec that it is asked to run; tests/helpers/processes.py starts it.

In: a line of JSON for each, on stdin. Out: a line with its process number; and when it has ended, a file with its exit
code.

Why: a process takes seconds to import torch and Lightning, and tests start many. So this one imports what the commands
import, once. A command is then a process and a session of its own as it would be otherwise: what it runs, prints,
starts and ends with is its own, and so is what signals do to it.
"""

from __future__ import annotations

import json
import os
import runpy
import select
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

import memvec.cli
import memvec.retrieval.encoder

# All that the commands import.
import memvec.run.build
import memvec.run.dry_run
import memvec.run.stage  # noqa: F401


def become(request: dict[str, Any]) -> NoReturn:
    """Becomes `python -m` with a module and its arguments."""
    os.setsid()
    os.chdir(request["folder"])
    sys.path[0] = request["folder"]  # as `-m` has it
    os.environ.clear()
    os.environ.update(request["environment"])
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for descriptor, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(f"{request['output']}/{name}", os.O_WRONLY | os.O_CREAT | os.O_APPEND), descriptor)
    sys.argv = request["command"]
    runpy.run_module(request["command"][0], run_name="__main__", alter_sys=True)
    sys.exit()  # past the loop below; an exception goes past it as well


def main() -> None:
    running: dict[int, str] = {}
    while True:
        if select.select([0], [], [], 0.02 if running else None)[0]:
            line = sys.stdin.buffer.raw.readline()
            if not line:
                return
            request = json.loads(line)
            process = os.fork()
            if process == 0:
                become(request)
            running[process] = request["output"]
            os.write(1, f"{process}\n".encode())
        with suppress(ChildProcessError):
            while (ended := os.waitpid(-1, os.WNOHANG))[0]:
                output = Path(running.pop(ended[0]))
                (output / "code.partial").write_text(str(os.waitstatus_to_exitcode(ended[1])))
                (output / "code.partial").rename(output / "code")


if __name__ == "__main__":
    main()
