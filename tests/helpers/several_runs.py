"""Runs memvec several times in the same processes: `torchrun … -m tests.helpers.several_runs RUNS.json`.

In: a JSON list of lists of overrides. Out: the finished runs, and what the others ended with. For tests: to start
processes costs more than what runs in them.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import memvec

if __name__ == "__main__":
    for overrides in json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")):
        try:
            memvec.predict(memvec.compose(overrides))
        except memvec.MemvecError as error:
            sys.stdout.write(f"{error}\n")
