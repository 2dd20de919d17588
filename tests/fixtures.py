"""Fixtures that several test folders use."""

from __future__ import annotations

import json
import shutil
import socket
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from omegaconf import DictConfig
from transformers import PreTrainedTokenizerFast

import memvec
from tests.helpers.configs import compose
from tests.helpers.conversations import CHAT, generation_overrides, write_lines
from tests.helpers.models import ARCHITECTURES, NEARLY_FREE, build_tokenizer, save_model
from tests.helpers.processes import MANY, arguments, resume, stop_fork_server, write_texts
from tests.helpers.s3_server import S3Server, s3_server
from tests.helpers.scripted import save_scripted_model

TEXTS = [
    "爱喝茶",
    "She likes tea.",
    "He moved to Lisbon in 2021 and lives near the river with two cats and a very old parrot.",
    "每周三晚上去上书法课，老师姓林，教室在图书馆旁边。",
    "Allergic to peanuts",
    "No longer works at the bank; started her own bakery in May, and it is open from six in the morning.",
    "a",
    "She likes tea.",
    '"quoted" at the beginning',
    "braces {text} {} and %s stay what they are",
    "养了一只猫，名字叫“团子”。😺",
    "Wants to run a marathon before turning forty, trains on Tuesdays, Thursdays and Sundays.",
]


@pytest.fixture(scope="session", autouse=True)
def _fork_server() -> Iterator[None]:
    yield
    stop_fork_server()


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """What a test draws from torch's own generator is the same every time."""
    torch.manual_seed(0)


@pytest.fixture
def measures_packing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Has packed weights measured whatever processor this is."""
    monkeypatch.setattr("memvec.model.tuning.SLOWER_PACKED", ())


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    return build_tokenizer()


@pytest.fixture(scope="session")
def model_folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Returns the saved folder of an architecture, made once a session."""
    root = tmp_path_factory.mktemp("models")

    def folder_of(architecture: str) -> Path:
        assert architecture in {*ARCHITECTURES, NEARLY_FREE}
        folder = root / architecture
        return folder if folder.is_dir() else save_model(folder, architecture)

    return folder_of


@pytest.fixture(scope="session")
def llama(model_folders: Callable[[str], Path]) -> Path:
    return model_folders("llama")


@pytest.fixture(scope="session")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with so many rows that a run over it in small batches takes many seconds."""
    return write_texts(tmp_path_factory.mktemp("many") / "many.jsonl", MANY)


@pytest.fixture(scope="session")
def undisturbed(many: Path, llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """What a run over `many` gives to which nothing happens."""
    output_dir = tmp_path_factory.mktemp("undisturbed") / "run"
    resume(arguments(many, output_dir, llama))
    return memvec.load(output_dir)


@pytest.fixture
def closed_port() -> Iterator[int]:
    """A port of this machine at which nobody listens, nor can begin to."""
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        yield int(holder.getsockname()[1])


@pytest.fixture
def write_jsonl(tmp_path: Path) -> Callable[..., Path]:
    """Writes rows, or texts with ids of their own, as JSON lines."""

    def write(rows: Sequence[Any], name: str = "memories.jsonl") -> Path:
        path = tmp_path / name
        records = [row if isinstance(row, dict) else {"id": f"m/{n}", "text": row} for n, row in enumerate(rows)]
        path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
        return path

    return write


@pytest.fixture
def tiny_config(llama: Path, tmp_path: Path) -> Callable[..., DictConfig]:
    """Composes a configuration that runs a tiny model quietly on the CPU."""

    def configure(data_path: Path, *overrides: str, model: Path = llama, output: str = "run") -> DictConfig:
        return compose(
            [
                f"data.path={data_path}",
                f"output_dir={tmp_path / output}",
                "model=hub",
                f"model.name_or_path={model}",
                "trainer.accelerator=cpu",
                "trainer.devices=1",
                "trainer.enable_progress_bar=false",
                *overrides,
            ]
        )

    return configure


@pytest.fixture(scope="session")
def finished_once(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `TEXTS` as memories.jsonl, and with a finished run over them; tests work on copies."""
    root = tmp_path_factory.mktemp("finished")
    rows = ({"id": f"m/{n}", "text": text} for n, text in enumerate(TEXTS))
    (root / "memories.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    resume(arguments(root / "memories.jsonl", root / "run", llama))
    return root


@pytest.fixture
def finished(finished_once: Path, tiny_config: Callable[..., DictConfig], tmp_path: Path) -> DictConfig:
    """Composes a configuration whose run over `TEXTS` is finished already."""
    shutil.copytree(finished_once, tmp_path, dirs_exist_ok=True)
    return tiny_config(tmp_path / "memories.jsonl")


@pytest.fixture(scope="session")
def scripted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder whose model writes what `tests.helpers.scripted` says."""
    return save_scripted_model(tmp_path_factory.mktemp("models") / "scripted")


@pytest.fixture
def write_conversations(tmp_path: Path) -> Callable[..., Path]:
    """Writes conversations as JSON lines."""

    def write(rows: Sequence[Any] = CHAT, name: str = "conversations.jsonl") -> Path:
        return write_lines(tmp_path / name, rows)

    return write


@pytest.fixture
def tiny_generation(llama: Path, tmp_path: Path) -> Callable[..., DictConfig]:
    """Composes a configuration that generates with a tiny model, quietly on the CPU."""

    def configure(
        data_path: Path, *overrides: str, model: Path = llama, output: str = "run", name: str = "generate"
    ) -> DictConfig:
        return compose(generation_overrides(data_path, tmp_path / output, model, *overrides), config_name=name)

    return configure


@pytest.fixture(scope="session")
def s3_of_session() -> Iterator[S3Server]:
    with s3_server() as server:
        yield server


@pytest.fixture
def environment_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[S3Server], None]:
    """Sets the environment in which S3's clients find a server, and a cache of this test's own."""

    def set_environment(server: S3Server) -> None:
        monkeypatch.setenv("MEMVEC_CACHE", str(tmp_path / "cache"))
        monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "no-config"))
        monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "no-credentials"))
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)

    return set_environment


@pytest.fixture
def s3(s3_of_session: S3Server, environment_of: Callable[[S3Server], None]) -> S3Server:
    """An S3 server, which this process finds."""
    environment_of(s3_of_session)
    return s3_of_session
