"""The command `memvec`: which commands there are, and running one of them.

    memvec predict data.path=memories.jsonl output_dir=runs/a
    python -m memvec predict data.path=memories.jsonl output_dir=runs/a

In: a command's name and its arguments. Out: whatever `python -m memvec.<command>` with these arguments does.

How: the command's module is run as the main one, name and all, since Lightning starts further ranks by that name.
"""

from __future__ import annotations

import difflib
import os
import runpy
import sys
from collections.abc import Sequence

import memvec
from memvec.errors import ConfigError

COMMANDS = {
    "predict": "memory texts in, LLM hidden-state vectors out",
    "generate": "conversations in, memory texts out",
    "extract": "conversations in, memory texts and their vectors out",
    "search": "the memories nearest to a query, in a finished run",
    "evaluate": "how well a run's vectors find the memories that answer a query",
    "report": "a finished run or sweep as one HTML page",
}
HELP = "\n".join(
    [
        "memvec: memory texts in, LLM hidden-state vectors out",
        "",
        "  memvec predict data.path=memories.jsonl output_dir=runs/a",
        "",
        *(f"  {name:<10}{what}" for name, what in COMMANDS.items()),
        "",
        "memvec COMMAND --help lists a command's options; memvec --version. `python -m memvec.COMMAND` is the same.",
    ]
)


def main(arguments: Sequence[str]) -> None:
    """Runs the command that the arguments begin with, or says which commands there are.

    Args:
        arguments: As typed, without the program's name.
    """
    name, *others = arguments or ["--help"]
    if said := {"--help": HELP, "-h": HELP, "--version": f"memvec {memvec.__version__}"}.get(name):
        sys.stdout.write(f"{said}\n")
        return
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, n=1)
        advice = f"did you mean {near[0]}? (memvec --help lists them)" if near else "memvec --help lists them"
        error = ConfigError(name, found="no such command", allowed=() if near else COMMANDS, advice=advice)
        sys.stderr.write(f"memvec: error: {error}\n")
        sys.exit(error.exit_code)
    sys.argv[1:] = others
    runpy.run_module(f"memvec.{name}", run_name="__main__", alter_sys=True)


def script() -> None:
    """Is what `pip install` makes the command `memvec` of.

    A script does not import from the folder it is started in, as `python -m` does. Neither may the ranks and jobs that
    it starts, by `python -m`: a folder that has a `memvec` of its own would give them another one.
    """
    os.environ.setdefault("PYTHONSAFEPATH", "1")
    main(sys.argv[1:])


if __name__ == "__main__":
    main(sys.argv[1:])
