"""A sweep as a user types it: real processes, with and without ranks of their own, through Hydra's launchers."""

from __future__ import annotations

import csv
import json
from importlib.metadata import distributions
from pathlib import Path

import pytest

import memvec
from tests.helpers.processes import arguments, assert_same, finish, start

pytestmark = pytest.mark.processes

# The first job of each fails.
ONE_AND_TWO_RANKS = ("data.batch_size=8", "trainer.strategy=ddp", "trainer.devices=abc,1,2")
JOBLIB = ("hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "trainer.devices=1", "data.batch_size=0,8")
WRONG_DEVICES = "memvec: error: trainer.accelerator=cpu, trainer.devices=abc: cannot be used: "
WRONG_SIZE = "memvec: error: data.batch_size=0: allowed: an integer of at least 1"
SUBMITIT = ("hydra/launcher=submitit_local", "trainer.devices=1", "data.batch_size=0,8")


def needs(package: str) -> pytest.MarkDecorator:
    """Skips a test where a launcher of Hydra's is not installed."""
    there = package in {distribution.name for distribution in distributions()}
    return pytest.mark.skipif(not there, reason=f"{package} is not installed")


@pytest.mark.parametrize(
    ("how", "wrong"),
    [
        pytest.param(ONE_AND_TWO_RANKS, WRONG_DEVICES, id="one and two ranks"),
        pytest.param(JOBLIB, WRONG_SIZE, id="two jobs at a time", marks=needs("hydra-joblib-launcher")),
        pytest.param(SUBMITIT, WRONG_SIZE, id="submitit", marks=needs("hydra-submitit-launcher")),
    ],
)
def test_a_job_that_fails_does_not_end_the_others(
    how: tuple[str, ...], wrong: str, llama: Path, tmp_path: Path
) -> None:
    path, folder = tmp_path / "texts.jsonl", tmp_path / "a sweep"
    path.write_text("".join(json.dumps({"id": n, "text": f"she likes {n}"}) + "\n" for n in range(30)))
    command = arguments(path, folder, llama, *how)
    command.insert(3, "-m")  # Hydra's flags come before the overrides

    code, said = finish(start(command), seconds=300)

    assert code == 2, said  # what the job that failed ended with
    assert "Traceback" not in said
    logs = "".join(path.read_text() for path in folder.glob(".submitit/*/*.err"))  # where submitit's jobs say it
    assert wrong in said + logs
    assert "job 0 failed with exit code 2" in said
    assert "entries/s" in said
    finished = {path.name: memvec.load(path) for path in folder.glob("[0-9]")}
    assert all(dataset["id"][:].tolist() == list(range(30)) for dataset in finished.values())
    for dataset in finished.values():
        assert_same(dataset, finished["1"])
    setting, _, values = how[-1].partition("=")
    with (folder / "sweep.csv").open(encoding="utf-8", newline="") as stream:
        written = {row["job"]: row[setting.rpartition(".")[2]] for row in csv.DictReader(stream)}
    assert list(written.values()) == values.split(",")[1:]
    assert set(written) == set(finished)


def test_odd_paths_reach_every_job_and_every_rank(llama: Path, tmp_path: Path) -> None:
    names = ["part=0/a, b #1.jsonl", "年度记忆.jsonl"]
    for number, name in enumerate(names):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("".join(json.dumps({"id": n, "text": f"{number} {n}"}) + "\n" for n in range(9)))
    folder = tmp_path / 'a "sweep", 年=1'
    how = [f"data.path='{tmp_path / names[0]}',{tmp_path / names[1]}", f"output_dir='{folder}'"]
    shared = arguments(tmp_path, folder, llama, "trainer.strategy=ddp", "trainer.devices=2", "data.batch_size=2")
    kept = [argument for argument in shared if not argument.startswith(("data.path=", "output_dir="))]
    command = [*kept[:3], "-m", *kept[3:], *how]

    code, said = finish(start(command), seconds=300)

    assert code == 0, said
    found = [memvec.load(folder / job)["text"][:] for job in "01"]
    assert found == [[f"{number} {n}" for n in range(9)] for number in (0, 1)]
    ranks = [json.loads((folder / job / "metrics.json").read_text())["ranks"] for job in "01"]
    assert ranks == [2, 2]
    assert {path.name for path in tmp_path.iterdir()} == {"part=0", names[1], folder.name}
