"""A sweep as a user types it: real processes, with and without ranks of their own, through Hydra's launchers."""

from __future__ import annotations

import csv
import json
from importlib.metadata import distributions
from pathlib import Path

import pytest

import memvec
from tests.processes import arguments, assert_same, finish, start

ONE_RANK = ("trainer.devices=1", "data.batch_size=0,1,8")
TWO_RANKS = ("trainer.devices=2", "trainer.strategy=ddp", "data.batch_size=0,8")
JOBLIB = ("hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "trainer.devices=1", "data.batch_size=0,8")
SUBMITIT = ("hydra/launcher=submitit_local", "trainer.devices=1", "data.batch_size=0,8")


def needs(package: str) -> pytest.MarkDecorator:
    """Skips a test where a launcher of Hydra's is not installed."""
    there = package in {distribution.name for distribution in distributions()}
    return pytest.mark.skipif(not there, reason=f"{package} is not installed")


@pytest.mark.parametrize(
    "how",
    [
        pytest.param(ONE_RANK, id="one rank"),
        pytest.param(TWO_RANKS, id="two ranks"),
        pytest.param(JOBLIB, id="two jobs at a time", marks=needs("hydra-joblib-launcher")),
        pytest.param(SUBMITIT, id="submitit", marks=needs("hydra-submitit-launcher")),
    ],
)
def test_every_job_is_complete_in_its_own_folder_and_one_that_fails_does_not_end_the_others(
    how: tuple[str, ...], llama: Path, tmp_path: Path
) -> None:
    path, folder = tmp_path / "texts.jsonl", tmp_path / "a sweep"
    path.write_text("".join(json.dumps({"id": n, "text": f"she likes {n}"}) + "\n" for n in range(30)))
    command = arguments(path, folder, llama, *how)
    command.insert(3, "-m")  # Hydra's flags come before the overrides

    code, said = finish(start(command), seconds=300)

    assert code == 2, said  # what the job that failed ended with
    assert "Traceback" not in said
    logs = "".join(path.read_text() for path in folder.glob(".submitit/*/*.err"))  # where submitit's jobs say it
    assert "memvec: error: data.batch_size=0: allowed: an integer of at least 1" in said + logs
    assert "job 0 failed with exit code 2" in said
    assert "entries/s" in said
    finished = {path.name: memvec.load(path) for path in folder.glob("[0-9]")}
    assert all(dataset["id"][:].tolist() == list(range(30)) for dataset in finished.values())
    for dataset in finished.values():
        assert_same(dataset, finished["1"])
    with (folder / "sweep.csv").open(encoding="utf-8", newline="") as stream:
        written = {row["job"]: row["batch_size"] for row in csv.DictReader(stream)}
    assert list(written.values()) == how[-1].removeprefix("data.batch_size=").split(",")[1:]
    assert set(written) == set(finished)
