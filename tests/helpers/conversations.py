"""Conversations in both spellings, and command lines that run a tiny model over them quietly on the CPU."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.helpers.scripted import FAILS, NOTHING, UNDECIDED

CHAT: list[dict[str, Any]] = [
    {
        "id": "ann/1",
        "date": "4 May",
        "messages": [{"speaker": "Ann", "text": f"I like tea number {n}."} for n in range(9)],
    },
    {
        "id": "bob/1",
        "messages": [{"role": "user", "content": "I moved to Lisbon."}, {"role": "assistant", "content": "When?"}],
    },
    {"id": "zh/1", "date": "五月", "messages": [{"speaker": "小林", "text": "她喜欢喝茶。"}]},
]
# What a conversation ends with, for the model of `tests.helpers.scripted`: half of them have memories.
MARKS = ("", NOTHING, "", FAILS, "", UNDECIDED)


def marked(rows: int, marks: Sequence[str] = MARKS) -> list[dict[str, Any]]:
    """Returns different conversations of two messages, each with one of the marks."""
    return [
        {
            "id": f"c/{row}",
            "date": f"day {row}",
            "messages": [
                {"speaker": "Ann", "text": f"This is number {row}."},
                {"speaker": "Bo", "text": f"So it is{marks[row % len(marks)]}"},
            ],
        }
        for row in range(rows)
    ]


def write_lines(path: Path, rows: Sequence[Any]) -> Path:
    """Writes rows as JSON lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Reads JSON lines; not by `splitlines`, which ends a line at characters that a text may hold."""
    with path.open(encoding="utf-8") as stream:
        return [json.loads(line) for line in stream]


def generation_overrides(data_path: Path, output_dir: Path, model: Path, *overrides: str) -> list[str]:
    """Returns the overrides of a run of `memvec.generate` or `memvec.extract`."""
    return [
        f"data.path={data_path}",
        f"output_dir={output_dir}",
        "model=hub",
        f"model.name_or_path={model}",
        "trainer.accelerator=cpu",
        "trainer.devices=1",
        "trainer.enable_progress_bar=false",
        'generation.prompt.template="Facts of {text}:"',
        "generation.prompt.examples=[]",
        "generation.max_new_tokens=12",
        "data.window_tokens=100",
        *overrides,
    ]
