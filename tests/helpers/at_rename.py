"""Runs a flow of memvec and does something to it at the moment before a file takes its name, or is opened.

    RUN=extract AT=memories/manifest.json DO=kill python -m tests.helpers.at_rename OVERRIDES…

What a run has finished, it renames; so this meets it at any step, and at the same one each time. With `EVENT=open` it
does so before a file is opened, for one that grows under its name. In the environment, since processes that Lightning
starts get the same one, and the same overrides. `DO` is `kill`: the process ends as a power cut would end it; or
`move:FROM:TO`: a file takes another's place.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

from memvec.cli import main
from memvec.extract import extract
from memvec.generate import generate
from memvec.predict import predict

FLOWS = {"extract": extract, "generate": generate, "predict": predict}
done: list[str] = []


def look(event: str, arguments: tuple[Any, ...]) -> None:
    if event != os.environ.get("EVENT", "os.rename") or done:
        return
    path = arguments[0] if event == "open" else arguments[1]
    if not str(path).endswith(os.environ["AT"]):
        return
    what, *paths = os.environ["DO"].split(":")
    done.append(what)
    if what == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    Path(paths[0]).replace(paths[1])


if __name__ == "__main__":
    sys.addaudithook(look)
    main(FLOWS[os.environ["RUN"]], config_name=os.environ["RUN"], parts="memvec.generation.build")
