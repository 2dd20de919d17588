"""A sweep as a user types it: real processes, with and without ranks of their own."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

import memvec
from tests.processes import arguments, assert_same, finish, start


@pytest.mark.parametrize("ranks", [("trainer.devices=1",), ("trainer.devices=2", "trainer.strategy=ddp")])
def test_every_job_is_complete_in_its_own_folder_and_one_that_fails_does_not_end_the_others(
    ranks: tuple[str, ...], llama: Path, tmp_path: Path
) -> None:
    path, folder = tmp_path / "texts.jsonl", tmp_path / "a sweep"
    path.write_text("".join(json.dumps({"id": n, "text": f"she likes {n}"}) + "\n" for n in range(30)))
    command = arguments(path, folder, llama, *ranks, "data.batch_size=0,1,8")
    command.insert(3, "-m")  # Hydra's flags come before the overrides

    code, said = finish(start(command), seconds=300)

    assert code == 2, said  # what the job that failed ended with
    assert "Traceback" not in said
    assert "memvec: error: data.batch_size=0: allowed: an integer of at least 1" in said
    one, eight = memvec.load(folder / "1"), memvec.load(folder / "2")
    assert one["id"][:].tolist() == list(range(30))
    assert_same(one.with_format("torch"), eight)
    with (folder / "sweep.csv").open(encoding="utf-8", newline="") as stream:
        assert [row["batch_size"] for row in csv.DictReader(stream)] == ["1", "8"]
    assert "entries/s" in said
