"""Runs several commands, each in a process of its own: `python tests/several_commands.py COMMANDS.json`.

In: a JSON object of names and commands, `["memvec.predict", …]`. Out: beside it a `.out` and `.err` of each, and
`codes.json`.

For tests: a process takes seconds to import torch and Lightning. So this one imports what the command needs and then
forks for each; what the command runs, prints and ends with is its own, only the importing is not.
"""

from __future__ import annotations

import json
import os
import runpy
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

# All that the commands import.
import memvec.cli
import memvec.dry_run
import memvec.retrieval.encoder
import memvec.stage  # noqa: F401


def run(command: Sequence[str], output: Path) -> NoReturn:
    """Becomes `python -m` with this module and these arguments, its output in files."""
    for descriptor, suffix in ((1, ".out"), (2, ".err")):
        os.dup2(os.open(f"{output}{suffix}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), descriptor)
    sys.argv = list(command)
    code: object = 0
    try:
        runpy.run_module(command[0], run_name="__main__", alter_sys=True)
    except SystemExit as stop:
        code = stop.code or 0
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code if isinstance(code, int) else 1)


def main(path: Path) -> None:
    codes = {}
    for name, command in json.loads(path.read_text(encoding="utf-8")).items():
        child = os.fork()
        if child == 0:
            run(command, path.parent / name)
        codes[name] = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    (path.parent / "codes.json").write_text(json.dumps(codes), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
