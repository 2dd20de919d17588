"""Conversations, and configurations that run a tiny model over them."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from omegaconf import DictConfig

import memvec

Configure = Callable[..., DictConfig]
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


@pytest.fixture
def write_conversations(tmp_path: Path) -> Callable[..., Path]:
    """Writes conversations as JSON lines."""

    def write(rows: Sequence[Any] = CHAT, name: str = "conversations.jsonl") -> Path:
        path = tmp_path / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return path

    return write


@pytest.fixture
def tiny_generation(llama: Path, tmp_path: Path) -> Configure:
    """Composes a configuration that generates with a tiny model, quietly on the CPU."""

    def configure(
        data_path: Path, *overrides: str, model: Path = llama, output: str = "run", name: str = "generate"
    ) -> DictConfig:
        return memvec.compose(
            [
                f"data.path={data_path}",
                f"output_dir={tmp_path / output}",
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
            ],
            config_name=name,
        )

    return configure
