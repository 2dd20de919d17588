"""Input at an address: from a real S3 server, and from a web server, both on this machine."""

from __future__ import annotations

import gzip
import json
import logging
import os
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from omegaconf import DictConfig

import memvec
from memvec.cache import SECONDS_UNUSED, cache_folder
from memvec.data.source import find_sources
from memvec.errors import ConfigError, ExtraError, InputError, MemvecError
from tests.fixtures import TEXTS
from tests.helpers.configs import compose
from tests.helpers.processes import arguments, journal_bytes, kill_group, start, wait_until, write_texts
from tests.helpers.refusals import refused
from tests.helpers.s3_server import S3Server, s3_server
from tests.helpers.serving import serving


def lines(*texts: str) -> bytes:
    return "".join(json.dumps({"id": text, "text": text}) + "\n" for text in texts).encode()


@pytest.fixture
def bucket(s3: S3Server, request: pytest.FixtureRequest) -> str:
    """The name of a bucket that only this test has."""
    name = f"bucket-{abs(hash(request.node.nodeid))}"
    s3.fill(name, {})
    return name


def read(path: str | Sequence[str], **options: Any) -> list[tuple[str, str]]:
    """Returns the name of the source and the text of each row."""
    sources = find_sources(path, **options)
    return [
        (source.name, record[2]) for source in sources for record in source.records(text_column="text", id_column="id")
    ]


@pytest.mark.slow
def test_files_a_folder_and_a_glob_are_read_as_here(s3: S3Server, bucket: str) -> None:
    s3.fill(
        bucket,
        {
            "set/b.jsonl": lines("b1", "b2"),
            "set/a.jsonl.gz": gzip.compress(lines("a")),
            "set/year=2024/c.csv": b"id,text\n1,c\n",
            "set/_temporary/d.jsonl": lines("d"),
            "set/.e.jsonl": lines("e"),
            "set/notes.md": b"no data",
        },
    )
    root = f"s3://{bucket}/set"
    a, b, c = (f"{root}/a.jsonl.gz", "a"), [(f"{root}/b.jsonl", "b1"), (f"{root}/b.jsonl", "b2")], "year=2024/c.csv"
    assert read(f"{root}/a.jsonl.gz") == [a]
    assert read(root) == read(f"{root}/") == [a, *b, (f"{root}/{c}", "c")]
    assert read(f"{root}/*.jsonl*") == [a, *b]
    assert read(f"{root}/**/*.csv") == [(f"{root}/{c}", "c")]
    assert read([f"{root}/b.jsonl", f"{root}/a.jsonl.gz"]) == [*b, a]


@pytest.mark.slow
def test_splits_and_runs_are_told_apart_as_here(s3: S3Server, bucket: str) -> None:
    manifest = json.dumps({"fingerprint": {}}).encode()
    s3.fill(
        bucket,
        {
            "train/a.jsonl": lines("train"),
            "test/a.jsonl": lines("test"),
            "run/manifest.json": manifest,
            "run/memories.jsonl": lines("of a run"),
        },
    )
    assert [text for _, text in read(f"s3://{bucket}")] == ["test", "train"]
    assert read(f"s3://{bucket}", split="test") == [(f"s3://{bucket}/test/a.jsonl", "test")]
    assert read(f"s3://{bucket}/run/memories.jsonl") == [(f"s3://{bucket}/run/memories.jsonl", "of a run")]
    with refused(InputError, "memories.jsonl", found="holds only what runs have written"):
        read(f"s3://{bucket}/*/memories.jsonl")
    s3.fill(bucket, {"table/_delta_log/0.json": b"{}", "table/a.parquet": b""})
    with refused(InputError, f"s3://{bucket}/table", found="a table of Delta Lake"):
        read(f"s3://{bucket}/table")


def test_a_file_is_fetched_once_until_it_changes(s3: S3Server, bucket: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="memvec")
    url = f"s3://{bucket}/a.jsonl"
    s3.fill(bucket, {"a.jsonl": lines("first")})
    assert read(url) == read(url) == [(url, "first")]
    assert [record.message for record in caplog.records] == [f"fetching {url}: 1 of 1 files, 0.0 MiB"]
    s3.fill(bucket, {"a.jsonl": lines("other")})  # as long
    assert read(url) == [(url, "other")]
    assert cache_folder().joinpath("inputs").stat().st_mode & 0o777 == 0o700


@pytest.mark.slow
def test_what_is_wrong_is_one_line_that_names_the_address(s3: S3Server, bucket: str) -> None:
    s3.fill(bucket, {"a.jsonl": lines("a"), "a.md": b"", "empty.jsonl": b"", "broken.jsonl": b'{"text": "a"}\n{'})
    for name, place, found in (
        (f"{bucket}/b.jsonl", "", "cannot be read: there is no such file or folder"),
        (f"{bucket}-2/a.jsonl", "", "cannot be read: there is no such "),
        (f"{bucket}/*.csv", "", "the glob matches no file"),
        (f"{bucket}/a.md", "", "unknown format '.md'"),
        (f"{bucket}/empty.jsonl", "", "the file is empty"),
        (f"{bucket}/broken.jsonl", ", line 2", "not JSON"),
    ):
        with refused(InputError, f"s3://{name}{place}", found=found):
            read(f"s3://{name}")
    with s3.asks_who_it_is(), refused(InputError, f"s3://{bucket}/a.jsonl", found="cannot be read: access is denied"):
        read(f"s3://{bucket}/a.jsonl")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        os.environ.pop(name)
    with refused(InputError, f"s3://{bucket}/a.jsonl", found="Unable to locate credentials"):
        read(f"s3://{bucket}/a.jsonl")


def test_an_address_that_cannot_be_used_says_why() -> None:
    with refused(ExtraError, "gs://", found="needs gcsfs, which is missing", advice="pip install 'memvec[gs]'"):
        read("gs://bucket/a.jsonl")
    for path, fields in (
        ("nonsense://a.jsonl", {"found": "cannot be used: Protocol not known"}),
        ("zip://a.jsonl::s3://bucket/a.zip", {"allowed": "one address, without ::"}),
        ("s3://AKIA:secret@bucket/a.jsonl", {"found": "name and password do not belong in an address of s3://"}),
    ):
        with refused(ConfigError, "data.path", path, **fields) as caught:
            read(path)
        assert "secret" not in str(caught.value)


def test_a_local_address_is_a_path(tmp_path: Path) -> None:
    (tmp_path / "a b.jsonl").write_bytes(lines("a"))
    assert read(f"file://{tmp_path}/a b.jsonl") == [(f"{tmp_path}/a b.jsonl", "a")]
    assert read(f"file://{tmp_path}/*.jsonl") == [(f"{tmp_path}/a b.jsonl", "a")]


def web_server(folder: Path) -> AbstractContextManager[str]:
    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, *arguments: Any) -> None:
            """Says nothing."""

    return serving(ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(folder))))


def test_web_addresses_are_read_and_their_queries_kept_secret(
    tmp_path: Path, tiny_config: Callable[..., DictConfig], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="memvec")
    (tmp_path / "web").mkdir()
    (tmp_path / "web/a.jsonl").write_bytes(lines(*TEXTS[:3], ""))
    with web_server(tmp_path / "web") as host:
        cfg = tiny_config(Path("unused"))
        cfg.data.path = f"{host}/a.jsonl?X-Amz-Signature=abcdef"
        summary = memvec.predict(cfg)
        with refused(InputError, f"{host}/b.jsonl?…", found="cannot be read: there is no such file"):
            read(f"{host}/b.jsonl?X-Amz-Signature=abcdef")
        assert len(read(f"{host}/*.jsonl")) == 4
    with refused(InputError, f"{host}/a.jsonl?…", found="cannot be read: Cannot connect"):
        read(f"{host}/a.jsonl?X-Amz-Signature=abcdef")
    folder = summary.folder
    assert json.loads(folder.rejected.read_text())["file"] == f"{host}/a.jsonl?…"
    kept = [path.read_text() for path in folder.root.rglob("*") if path.suffix in (".json", ".jsonl", ".log", ".txt")]
    notes = [path.read_text() for path in cache_folder().rglob("*.json")]
    assert not any("abcdef" in text for text in [*kept, *notes, caplog.text])


@pytest.mark.processes
def test_a_server_that_is_killed_costs_only_what_was_not_there(
    environment_of: Callable[[S3Server], None], caplog: pytest.LogCaptureFixture
) -> None:
    objects = {f"{number:03}.jsonl": lines(str(number)) * 3_000 for number in range(40)}
    with s3_server() as server:
        environment_of(server)
        server.fill("killed", objects)
        errors: list[MemvecError] = []

        def fetch() -> None:
            try:
                find_sources("s3://killed/*.jsonl")
            except MemvecError as error:
                errors.append(error)

        fetching = threading.Thread(target=fetch)
        fetching.start()
        while not fetched_files() and fetching.is_alive():
            time.sleep(0.001)
        server.kill()
        fetching.join()
    assert len(errors) == 1
    assert str(errors[0]).startswith("s3://killed/")
    done = len(fetched_files())
    assert 0 < done < 40
    caplog.set_level(logging.INFO, logger="memvec")
    with s3_server(server.port) as again:
        again.fill("killed", objects)
        assert len(find_sources("s3://killed/*.jsonl")) == len(fetched_files()) == 40
    assert f"fetching s3://killed/*.jsonl: {40 - done} of 40 files" in caplog.text


def fetched_files() -> list[Path]:
    return list(cache_folder().glob("inputs/*/data.jsonl"))


@pytest.mark.processes
def test_a_run_goes_on_when_its_input_is_gone(
    s3: S3Server, bucket: str, llama: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    url, output_dir = f"s3://{bucket}/many.jsonl", tmp_path / "run"
    s3.fill(bucket, {"many.jsonl": write_texts(tmp_path / "many.jsonl", 400).read_bytes()})
    command = [
        *arguments(Path("unused"), output_dir, llama, "data.batch_size=1", "writer.flush_every=5", f"data.path={url}")
    ]
    command = [argument for argument in command if argument != "data.path=unused"]
    process = start(command)
    wait_until(lambda: journal_bytes(output_dir) > 0, process)
    kill_group(process)
    assert not (output_dir / "manifest.json").exists()
    s3.client.delete_object(Bucket=bucket, Key="many.jsonl")
    overrides = [argument for argument in command[3:] if not argument.startswith(("output_dir=", "data.batch_size="))]
    with refused(InputError, url, found="no such file"):  # another run would have to read it
        memvec.predict(compose([*overrides, f"output_dir={tmp_path / 'other'}"]))
    summary = memvec.predict(compose([*overrides, f"output_dir={output_dir}"]))
    assert summary.counts.entries == 400
    assert "there is no such file or folder; taking what this run has read from there before" in caplog.text


def test_what_was_fetched_and_not_used_goes_in_time(s3: S3Server, bucket: str) -> None:
    s3.fill(bucket, {"a.jsonl": lines("a"), "b.jsonl": lines("b")})
    read(f"s3://{bucket}/a.jsonl")
    long_ago = time.time() - SECONDS_UNUSED - 60
    for path in cache_folder().glob("inputs/*"):
        os.utime(path, (long_ago, long_ago))
    read(f"s3://{bucket}/b.jsonl")
    assert [path.read_bytes() for path in fetched_files()] == [lines("b")]
