"""What `data.path` names: files, folders, globs, saved datasets, in a fixed order, and nothing passed over."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from pathlib import Path

import datasets
import huggingface_hub
import pytest
from datasets import Dataset, DatasetDict

from memvec.data.source import Source, find_sources
from memvec.errors import InputError
from tests.helpers.refusals import refused


@pytest.fixture(autouse=True)
def _quiet_datasets() -> None:
    datasets.disable_progress_bars()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder as people have them: several formats, subfolders, hidden files and files of other kinds."""
    names = ["b.jsonl", "a.csv", "sub/c.txt", "sub/deep/d.jsonl.gz", "sub.jsonl", "README.md", "image.png", "no_suffix"]
    hidden = [".hidden.jsonl", ".git/e.jsonl", "sub/.cache/f.csv", ".ipynb_checkpoints/b.jsonl"]
    for name in [*names, *hidden]:
        path = tmp_path / "folder" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("{}", encoding="utf-8")
    return tmp_path / "folder"


def names_of(sources: list[Source], folder: Path) -> list[str]:
    return [str(Path(source.name).relative_to(folder)) for source in sources]


def texts_of(source: Source) -> list[str]:
    return [text for _, _, text in source.records(text_column="text", id_column="id")]


# --- files, folders and globs


def test_a_file_is_one_source(folder: Path) -> None:
    (source,) = find_sources(str(folder / "b.jsonl"))
    assert source == Source(str(folder / "b.jsonl"), folder / "b.jsonl")


def test_a_folder_is_its_files_and_those_of_its_subfolders(folder: Path) -> None:
    found = names_of(find_sources(str(folder)), folder)
    assert found == ["a.csv", "b.jsonl", "sub/c.txt", "sub/deep/d.jsonl.gz", "sub.jsonl"]


def test_the_order_does_not_depend_on_the_order_of_writing(folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    for name in ["sub.jsonl", "sub/deep/d.jsonl.gz", "b.jsonl", "a.csv", "sub/c.txt"]:
        (other / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(folder / name, other / name)
    assert names_of(find_sources(str(other)), other) == names_of(find_sources(str(folder)), folder)


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("*.jsonl", ["b.jsonl", "sub.jsonl"]),
        ("*", ["a.csv", "b.jsonl", "sub.jsonl"]),
        ("**/*.jsonl*", ["b.jsonl", "sub/deep/d.jsonl.gz", "sub.jsonl"]),
        ("[ab].*", ["a.csv", "b.jsonl"]),
        ("sub/?.txt", ["sub/c.txt"]),
    ],
)
def test_a_glob_is_the_files_it_matches(pattern: str, expected: list[str], folder: Path) -> None:
    assert names_of(find_sources(str(folder / pattern)), folder) == expected


def test_a_name_that_looks_like_a_glob_and_exists_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "a[1]*.jsonl").write_text('{"text": "a"}\n', encoding="utf-8")
    (tmp_path / "a1.jsonl").write_text('{"text": "b"}\n', encoding="utf-8")
    assert names_of(find_sources(str(tmp_path / "a[1]*.jsonl")), tmp_path) == ["a[1]*.jsonl"]


def test_a_list_of_paths_is_read_in_its_order(folder: Path) -> None:
    paths = [str(folder / "sub"), str(folder / "b.jsonl"), str(folder / "a.*")]
    assert names_of(find_sources(paths), folder) == ["sub/c.txt", "sub/deep/d.jsonl.gz", "b.jsonl", "a.csv"]


def test_relative_and_home_paths(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    assert [source.name for source in find_sources("b.jsonl")] == ["b.jsonl"]
    assert [source.name for source in find_sources("sub")] == ["sub/c.txt", "sub/deep/d.jsonl.gz"]
    monkeypatch.setenv("HOME", str(folder))
    assert names_of(find_sources("~/b.jsonl"), folder) == ["b.jsonl"]
    (folder / "~backup.jsonl").write_text("{}", encoding="utf-8")
    assert [source.name for source in find_sources("~backup.jsonl")] == ["~backup.jsonl"]


# --- links


def test_a_link_to_a_file_is_that_file(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "link.jsonl").symlink_to(folder / "b.jsonl")
    (source,) = find_sources(str(tmp_path / "link.jsonl"))
    assert source.digest(columns=()) == find_sources(str(folder / "b.jsonl"))[0].digest(columns=())
    (folder / "z.jsonl").symlink_to(folder / "b.jsonl")
    assert names_of(find_sources(str(folder)), folder)[-1] == "z.jsonl"


def test_a_linked_folder_is_entered_and_circles_end(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "g.jsonl").write_text("{}", encoding="utf-8")
    before = names_of(find_sources(str(folder)), folder)
    (folder / "sub" / "linked").symlink_to(tmp_path / "elsewhere")
    (folder / "sub" / "circle").symlink_to(folder)
    assert sorted(names_of(find_sources(str(folder)), folder)) == sorted([*before, "sub/linked/g.jsonl"])


@pytest.mark.parametrize("path", ["broken.jsonl", ".", "*.jsonl"])
def test_a_broken_link_is_an_error_however_it_is_met(path: str, folder: Path) -> None:
    (folder / "broken.jsonl").symlink_to(folder / "gone.jsonl")
    with refused(InputError, "broken.jsonl", found="a link to a file that does not exist"):
        find_sources(str(folder / path))


def test_a_broken_link_of_another_kind_is_passed_over(folder: Path) -> None:
    (folder / "broken.png").symlink_to(folder / "gone.png")
    assert len(find_sources(str(folder))) == 5


# --- saved datasets


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    Dataset.from_dict({"id": [1, 2], "text": ["a", "b"]}).save_to_disk(str(tmp_path / "saved"))
    return tmp_path / "saved"


@pytest.fixture
def splits(tmp_path: Path) -> Path:
    parts = {"train": Dataset.from_dict({"text": ["a", "b"]}), "test": Dataset.from_dict({"text": ["c"]})}
    DatasetDict(parts).save_to_disk(str(tmp_path / "splits"))
    return tmp_path / "splits"


def test_a_folder_of_save_to_disk_is_one_dataset(saved: Path) -> None:
    (source,) = find_sources(str(saved))
    assert source.name == str(saved)
    assert list(source.records(text_column="text", id_column="id")) == [(0, 1, "a"), (1, 2, "b")]


def test_the_split_of_a_saved_dataset_dict_is_chosen(splits: Path) -> None:
    assert texts_of(find_sources(str(splits))[0]) == ["a", "b"]
    assert texts_of(find_sources(str(splits), split="test")[0]) == ["c"]
    found = "no split 'dev'; splits found: train, test"
    with refused(InputError, "splits", found=found, advice="set data.split"):
        find_sources(str(splits), split="dev")


def test_a_damaged_saved_dataset_is_an_input_error_of_one_line(saved: Path) -> None:
    for arrow in saved.glob("*.arrow"):
        arrow.write_bytes(b"nothing of the kind")
    with refused(InputError, "saved", found="cannot be read as a folder of save_to_disk: ") as caught:
        find_sources(str(saved))
    assert "\n" not in str(caught.value)


def test_a_state_file_alone_makes_no_saved_dataset(folder: Path) -> None:
    (folder / "state.json").write_text("{}", encoding="utf-8")
    assert "b.jsonl" in names_of(find_sources(str(folder)), folder)


# --- digests


def test_the_digest_of_a_file_is_that_of_its_bytes(folder: Path) -> None:
    (source,) = find_sources(str(folder / "b.jsonl"))
    assert source.digest(columns=("text", "id")) == hashlib.sha256((folder / "b.jsonl").read_bytes()).hexdigest()
    (folder / "b.jsonl").unlink()
    with refused(InputError, "b.jsonl", found="cannot be read: "):
        source.digest(columns=("text", "id"))


def test_a_datasets_digest_is_that_of_the_columns_read() -> None:
    def digest(columns: dict[str, list[str]]) -> str:
        return Source("here", Dataset.from_dict(columns)).digest(columns=("text", "id", None))

    base = {"id": ["1", "2"], "text": ["a", "b"]}
    assert digest({**base, "extra": ["x", "y"]}) == digest(base)
    changed = [
        {**base, "text": ["a", "c"]},
        {**base, "text": ["ab", ""]},
        {**base, "id": ["1", "3"]},
        {"text": ["a", "b"]},
    ]
    assert len({digest(columns) for columns in [base, *changed]}) == 5


def test_the_digest_of_a_dataset_follows_its_order() -> None:
    dataset = Dataset.from_dict({"text": [str(number) for number in range(25_000)]})
    digests = [Source("here", rows).digest(columns=("text",)) for rows in (dataset, dataset.select(range(25_000)))]
    assert digests[0] == digests[1]
    backwards = dataset.select(range(24_999, -1, -1))
    assert Source("here", backwards).digest(columns=("text",)) != digests[0]


# --- errors


@pytest.mark.parametrize("path", ["", [], [""], ["a.jsonl", ""]])
def test_an_empty_path_is_an_error_and_not_the_current_folder(path: str | list[str]) -> None:
    with refused(InputError, "data.path", path, allowed="a .jsonl .json .csv"):
        find_sources(path)


@pytest.mark.parametrize("name", ["gone.jsonl", "no/such/folder/a.csv", "/no/such/folder", "a b/c d", "a\x00b", "x\n"])
def test_a_path_that_is_not_there_says_what_is_allowed(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with refused(InputError, name, found="no such file or folder", allowed="a .jsonl .json .csv"):
        find_sources(name)


@pytest.mark.parametrize("name", ["notes.md", "notes", "rows.parquet.gz", "rows.jsonl.zip"])
def test_a_file_of_an_unknown_format_is_an_error(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text("a", encoding="utf-8")
    with refused(InputError, found=re.compile(r"unknown format '.+'"), allowed="a .jsonl"):
        find_sources(str(tmp_path / name))


@pytest.mark.parametrize("path", [".", "*.jsonl", "**/*"])
def test_a_folder_or_glob_without_a_file_of_ours_is_an_error(path: str, tmp_path: Path) -> None:
    (tmp_path / "notes.md").write_text("a", encoding="utf-8")
    (tmp_path / "empty").mkdir()
    with refused(InputError, found="no file with one of .jsonl .json .csv .tsv .txt .parquet .arrow"):
        find_sources(str(tmp_path / path))


def test_a_name_that_no_file_system_takes_is_an_input_error() -> None:
    name = "a" * 5000 + ".jsonl"
    with refused(InputError, "data.path", name, found="File name too long"):
        find_sources(name)


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may enter every folder")
def test_a_folder_that_may_not_be_entered_is_an_input_error(folder: Path) -> None:
    (folder / "sub").chmod(0)
    with refused(InputError, found=re.compile(r"cannot be read: .*Permission denied")):
        find_sources(str(folder))


@pytest.mark.parametrize("name", ["nobody/no-such-dataset", "no-such-dataset"])
def test_a_hub_name_without_a_network_is_one_line(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    # Both libraries read HF_HUB_OFFLINE when they are imported.
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    with refused(
        InputError, name, found="no such file or folder, and as a Hub dataset it cannot be loaded: "
    ) as caught:
        find_sources(name)
    assert "\n" not in str(caught.value)
