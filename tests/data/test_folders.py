"""Folders and globs as Spark, Hive, table formats and the Hub lay them out; one split of local files."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
from datasets import Dataset

from memvec.data.source import find_sources
from memvec.errors import InputError
from tests.helpers.refusals import refused


def make(root: Path, *names: str) -> Path:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text('{"text": "a"}\n', encoding="utf-8")
    return root


def found(path: Path, root: Path, split: str | None = None) -> list[str]:
    return [str(Path(source.name).relative_to(root)) for source in find_sources(str(path), split=split)]


@pytest.fixture
def spark(tmp_path: Path) -> Path:
    """What a Spark job that was killed once leaves, in partitions."""
    return make(
        tmp_path / "events",
        "year=2023/part-0.jsonl",
        "year=2024/month=1/part-0.jsonl",
        "year=2024/month=1/_temporary/0/part-1.jsonl",
        "year=2024/_part-2.jsonl",
        "year=2024/.part-0.jsonl.crc",
        "_temporary/0/part-3.jsonl",
        "_SUCCESS.txt",
        "_committed_1.json",
        ".staging/part-4.jsonl",
    )


PARTS = ["year=2023/part-0.jsonl", "year=2024/month=1/part-0.jsonl"]


@pytest.mark.parametrize("pattern", ["", "**", "**/*.jsonl", "**/*", "year=*/**/part-*.jsonl"])
def test_what_a_spark_job_left_half_done_is_no_data(pattern: str, spark: Path) -> None:
    assert found(spark / pattern if pattern else spark, spark) == PARTS


def test_a_glob_does_not_enter_hidden_folders(spark: Path) -> None:
    assert found(spark / "*/*.jsonl", spark) == PARTS[:1]
    for pattern in ("*/0/*.jsonl", "?temporary/0/*", "year=2024/*.jsonl", "**/_temporary"):
        with refused(InputError, found="the glob matches no file"):
            find_sources(str(spark / pattern))


def test_a_linked_folder_hides_the_same_names(spark: Path, tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    (root / "linked").symlink_to(spark)
    expected = [f"linked/{name}" for name in PARTS]
    assert found(root, root) == expected
    assert found(root / "*/**/*.jsonl", root) == expected


def test_a_partition_is_read_by_its_folder(spark: Path) -> None:
    assert found(spark / "year=2024", spark) == PARTS[1:]
    assert found(spark / "year=202[34]" / "part-*", spark) == PARTS[:1]


def test_what_is_typed_as_it_is_called_is_read(tmp_path: Path) -> None:
    make(tmp_path, "_in/a.jsonl", "_in/_b.jsonl")
    assert found(tmp_path / "_in", tmp_path) == ["_in/a.jsonl"]
    assert found(tmp_path / "_in" / "_b.jsonl", tmp_path) == ["_in/_b.jsonl"]
    assert found(tmp_path / "_in" / "_*.jsonl", tmp_path) == ["_in/_b.jsonl"]


def test_a_folder_that_is_called_like_a_file_is_read(tmp_path: Path) -> None:
    make(tmp_path, "a.parquet/part-0.jsonl", "a.parquet/_SUCCESS.txt", "b.parquet/part-0.jsonl")
    assert found(tmp_path / "a.parquet", tmp_path) == ["a.parquet/part-0.jsonl"]
    assert found(tmp_path / "*.parquet", tmp_path) == ["a.parquet/part-0.jsonl", "b.parquet/part-0.jsonl"]


TABLES = {
    "Delta Lake": ["part-0.jsonl", "_delta_log/00000.json"],
    "Iceberg": ["data/part-0.jsonl", "metadata/v1.metadata.json"],
    "Hudi": ["part-0.jsonl", ".hoodie/hoodie.properties"],
}


@pytest.mark.parametrize("kind", TABLES)
@pytest.mark.parametrize("where", ["table", ".", "table/**/*.jsonl", "*/**/*.jsonl"])
def test_a_table_with_a_log_is_refused_in_one_line(kind: str, where: str, tmp_path: Path) -> None:
    make(tmp_path / "table", *TABLES[kind])
    found = re.compile(f"^a table of {kind}, .*deleted or replaced")
    with refused(InputError, "table", found=found, advice="export") as caught:
        find_sources(str(tmp_path / where))
    assert "\n" not in str(caught.value)


def test_folders_called_data_and_metadata_are_no_table(tmp_path: Path) -> None:
    make(tmp_path, "data/a.jsonl", "metadata/b.jsonl")
    assert found(tmp_path, tmp_path) == ["data/a.jsonl", "metadata/b.jsonl"]


# --- as the Hub lays it out

HUB = ["data/train-00000-of-00002.jsonl", "data/train-00001-of-00002.jsonl", "data/test-00000-of-00001.jsonl"]


@pytest.fixture(params=["dataset_infos.json", "README.md"])
def hub(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    root = make(tmp_path / "hub", *HUB, "LICENSE.txt", "scripts/convert.json", ".gitattributes")
    (root / request.param).write_text("---\nlicense: mit\n---\n# A dataset\n", encoding="utf-8")
    return root


def test_of_a_hub_layout_only_the_data_is_read(hub: Path) -> None:
    assert found(hub, hub) == sorted(HUB)


def test_a_split_of_a_hub_layout_is_chosen(hub: Path) -> None:
    assert found(hub, hub, "train") == HUB[:2]
    assert found(hub, hub, "test") == HUB[2:]
    with refused(
        InputError, hub, found="no split 'dev'; splits found: test, train", advice="data.split=null reads all"
    ):
        find_sources(str(hub), split="dev")


def test_a_plain_folder_with_a_readme_is_read_whole(tmp_path: Path) -> None:
    make(tmp_path, "data/a.jsonl", "b.jsonl")
    (tmp_path / "README.md").write_text("# My memories\n", encoding="utf-8")
    assert found(tmp_path, tmp_path) == ["b.jsonl", "data/a.jsonl"]


def test_what_datasets_writes_beside_its_files_is_no_data(tmp_path: Path) -> None:
    make(tmp_path, "dataset_infos.json", "a.jsonl")
    Dataset.from_dict({"text": ["b"]}).save_to_disk(str(tmp_path / "saved"))
    assert found(tmp_path, tmp_path) == ["a.jsonl", "saved/data-00000-of-00001.arrow"]


# --- splits of local files


@pytest.mark.parametrize(
    ("split", "expected"),
    [
        (None, ["dev/a.jsonl", "eval.jsonl", "my_train_file.jsonl", "train/test_names.jsonl", "train/x.jsonl"]),
        ("train", ["my_train_file.jsonl", "train/x.jsonl"]),
        ("training", ["my_train_file.jsonl", "train/x.jsonl"]),
        ("validation", ["dev/a.jsonl"]),
        ("dev", ["dev/a.jsonl"]),
        ("test", ["eval.jsonl", "train/test_names.jsonl"]),
    ],
)
def test_names_of_files_and_folders_say_the_split(split: str | None, expected: list[str], tmp_path: Path) -> None:
    root = make(tmp_path, "train/x.jsonl", "train/test_names.jsonl", "my_train_file.jsonl", "dev/a.jsonl", "eval.jsonl")
    assert found(root, root, split) == expected
    assert found(root / "**/*.jsonl", root, split) == expected


def test_a_split_of_ones_own_is_found_by_its_name(tmp_path: Path) -> None:
    root = make(tmp_path, "locomo/a.jsonl", "other-00000-of-00001.jsonl", "contest.jsonl")
    assert found(root, root, "locomo") == ["locomo/a.jsonl"]
    assert found(root, root, "other") == ["other-00000-of-00001.jsonl"]
    with refused(InputError, root, found="no split 'test'"):
        find_sources(str(root), split="test")


def test_a_file_is_of_the_split_that_it_is_called_after(tmp_path: Path) -> None:
    make(tmp_path, "train.jsonl", "test/a.jsonl", "memories.jsonl")
    assert found(tmp_path / "train.jsonl", tmp_path, "train") == ["train.jsonl"]
    assert found(tmp_path / "test" / "a.jsonl", tmp_path, "test") == ["test/a.jsonl"]
    for name in ("train.jsonl", "memories.jsonl"):
        with refused(InputError, name, found="no split 'test'"):
            find_sources(str(tmp_path / name), split="test")


def test_a_split_that_a_plain_folder_has_not_is_refused(tmp_path: Path) -> None:
    make(tmp_path, "a.jsonl", "sub/b.jsonl")
    with refused(InputError, tmp_path, found="no split 'train'; its files are not laid out in splits"):
        find_sources(str(tmp_path), split="train")


def test_a_saved_dataset_without_splits_refuses_one(tmp_path: Path) -> None:
    Dataset.from_dict({"text": ["a"]}).save_to_disk(str(tmp_path))
    assert len(find_sources(str(tmp_path))) == 1
    with refused(InputError, tmp_path, found="no split 'test'; it has no splits"):
        find_sources(str(tmp_path), split="test")


# --- what is no regular file


@pytest.mark.parametrize("kind", ["pipe", "device", "device without a suffix"])
@pytest.mark.parametrize("how", ["file", "folder", "glob"])
@pytest.mark.timeout(20)
def test_what_may_never_end_is_refused_at_once(kind: str, how: str, tmp_path: Path) -> None:
    path = tmp_path / ("a" if "without" in kind else "a.jsonl")
    if kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to("/dev/zero")
    if how != "file" and "without" in kind:
        return
    place = {"file": path, "folder": tmp_path, "glob": tmp_path / "*.jsonl"}[how]
    with refused(InputError, path.name, found=f"not a regular file but a {kind.split()[0]}"):
        find_sources(str(place))
