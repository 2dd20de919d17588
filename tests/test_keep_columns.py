"""Columns of the input travel: to the result, through resumes and ranks, to searches, measures and memories."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from omegaconf import DictConfig

import memvec
from memvec.errors import ConfigError, InputError, RunFolderError
from memvec.evaluate import evaluate
from memvec.files import read_json
from memvec.run.folder import RunFolder
from memvec.search import search_for_config
from tests.helpers.configs import compose
from tests.helpers.conversations import CHAT, generation_overrides, read_lines, write_lines
from tests.helpers.processes import arguments, finish, resume, start
from tests.helpers.refusals import refused
from tests.test_resume import leave_unfinished

Configure = Callable[..., DictConfig]
Write = Callable[..., Path]

KEPT = ["user", "created_at", "score", "tags", "meta"]
KEEP = f"data.keep_columns=[{','.join(KEPT)}]"
ROWS: list[dict[str, Any]] = [
    {
        "id": f"m/{n}",
        "text": f"she likes tea number {n // 2}",  # every prompt is there twice
        "user": ("ana", "bo")[n % 2],
        "created_at": f"2024-05-{n + 1:02}T10:00:00",
        "score": n if n % 3 else n + 0.5,
        "tags": [f"t{n}"],
        "meta": {"n": n},
    }
    for n in range(20)
]


def kept(folder: Path | str) -> list[dict[str, Any]]:
    dataset = memvec.load(folder)
    return [{name: row[name] for name in KEPT} for row in dataset]


def expected(rows: list[dict[str, Any]] = ROWS) -> list[dict[str, Any]]:
    return [{name: row.get(name) for name in KEPT} for row in rows]


@pytest.fixture(scope="module")
def run(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    root = tmp_path_factory.mktemp("kept")
    path = write_lines(root / "memories.jsonl", ROWS)
    return resume([*arguments(path, root / "run", llama), KEEP]).folder


def test_the_result_has_the_columns_with_their_types(run: RunFolder) -> None:
    dataset = memvec.load(run.root)
    assert dataset.column_names[:7] == ["id", "text", *KEPT]
    assert kept(run.root) == expected()
    assert dataset["vector"][:].dtype == torch.float32
    assert dataset["vector"][:3].shape == (3, dataset["vector"][0].shape[0])
    assert dataset["score"][:2] == [0.5, 1.0]
    [part] = run.vectors.glob("*.parquet")
    schema = pq.read_schema(part)
    assert [schema.field(name).type for name in KEPT] == [
        *(pa.string(), pa.string(), pa.float64(), pa.list_(pa.string()), pa.struct({"n": pa.int64()})),
    ]


def test_points_in_time_of_a_parquet_file_stay_what_they_are(tmp_path: Path, tiny_config: Configure) -> None:
    moments = pa.array([datetime(2024, 5, 1), None], pa.timestamp("us", tz="UTC"))
    pq.write_table(pa.table({"text": ["tea", "cat"], "at": moments}), tmp_path / "a.parquet")
    cfg = tiny_config(tmp_path / "a.parquet", "data.keep_columns=[at]", "writer.keep_text=false")
    memvec.predict(cfg)
    dataset = memvec.load(cfg.output_dir)
    assert dataset.data.schema.field("at").type == moments.type
    assert dataset["at"][:] == [pd.Timestamp("2024-05-01", tz="UTC"), None]
    hits = memvec.search(cfg.output_dir, ["tea"], where="\"at\" = TIMESTAMP '2024-05-01'", accelerator="cpu")[0]
    assert [(hit.id, hit.text, hit.columns) for hit in hits] == [
        (0, None, {"at": pd.Timestamp("2024-05-01", tz="UTC")})
    ]


@pytest.mark.slow
def test_rows_that_a_program_has_keep_them(tiny_config: Configure, tmp_path: Path) -> None:
    frame = pd.DataFrame([{**row, "created_at": pd.Timestamp(row["created_at"])} for row in ROWS])
    for n, data in enumerate((frame, frame.to_dict("records"), pa.Table.from_pandas(frame))):
        cfg = tiny_config(tmp_path, KEEP, output=f"run-{n}")
        cfg.data.path = None
        memvec.predict(cfg, data=data)
        found = kept(cfg.output_dir)
        assert found == [{**row, "created_at": pd.Timestamp(row["created_at"])} for row in expected()]
    frame.loc[0, "created_at"] += pd.Timedelta(days=1)
    with refused(RunFolderError, "run-2", found="input has other content than it had"):
        memvec.predict(cfg, data=frame.to_dict("records"))
    with refused(InputError, "data", found="no row has the column 'usr'; columns found: id, text, user"):
        memvec.predict(tiny_config(tmp_path, "data.path=null", "data.keep_columns=[usr]", output="x"), data=frame)


def test_a_resume_keeps_them_and_other_ones_are_refused(write_jsonl: Write, tiny_config: Configure) -> None:
    path = write_jsonl(ROWS)
    folder = leave_unfinished(tiny_config(path, KEEP))
    with refused(RunFolderError, "run", found=re.compile(r"keep_columns was .*, is None")):
        memvec.predict(tiny_config(path))
    folder.kept.write_bytes(b"damaged")
    memvec.predict(tiny_config(path, KEEP))
    assert kept(folder.root) == expected()
    with refused(RunFolderError, "run", found=re.compile(r"keep_columns was .*, is \['user'\]")):
        memvec.predict(tiny_config(path, "data.keep_columns=[user]"))


@pytest.mark.parametrize("kind", [pa.string_view(), pa.binary_view()])
def test_a_column_of_views_is_kept_as_what_they_show(
    kind: pa.DataType, tmp_path: Path, tiny_config: Callable[..., DictConfig]
) -> None:
    values = ["a", "b", "a"] if kind == pa.string_view() else [b"a", b"b", b"a"]
    path = tmp_path / "views.parquet"
    pq.write_table(pa.table({"text": ["tea", "coffee", "milk"], "who": pa.array(values, kind)}), path)
    cfg = tiny_config(path, "data.keep_columns=[who]")
    memvec.predict(cfg)
    assert memvec.load(cfg.output_dir)["who"][:] == values


@pytest.mark.processes
def test_several_ranks_keep_them(run: RunFolder, llama: Path, tmp_path: Path) -> None:
    path = write_lines(tmp_path / "memories.jsonl", ROWS)
    command = [*arguments(path, tmp_path / "run", llama), KEEP, "trainer.devices=2", "trainer.strategy=ddp"]
    code, output = finish(start(command))
    assert code == 0, output
    assert kept(tmp_path / "run") == expected()


def test_a_row_without_a_vector_takes_its_columns_along(write_jsonl: Write, tiny_config: Configure) -> None:
    cfg = tiny_config(write_jsonl([ROWS[0], {**ROWS[1], "text": " "}, {**ROWS[0], "user": "eve"}, ROWS[3]]), KEEP)
    memvec.predict(cfg)
    assert kept(cfg.output_dir) == expected([ROWS[0], ROWS[3]])


def test_a_missing_column_is_said_before_anything_is_computed(write_jsonl: Write, tiny_config: Configure) -> None:
    with refused(InputError, "memories.jsonl", found="no row has the column 'usr'; columns found: id, text, user"):
        memvec.predict(tiny_config(write_jsonl(ROWS), "data.keep_columns=[usr]"))


def test_columns_that_a_manifest_does_not_tell_of_are_refused(run: RunFolder, tmp_path: Path) -> None:
    content = json.loads(run.manifest.read_text())
    for names, found in (
        (["usr"], "usr"),
        (["vector"], "keep_columns"),
        ("user", "keep_columns"),
        ([1], "keep_columns"),
    ):
        content["config"]["data"]["keep_columns"] = names
        folder = tmp_path / str(names)
        (folder / "vectors").mkdir(parents=True)
        for part in run.vectors.iterdir():
            (folder / "vectors" / part.name).write_bytes(part.read_bytes())
        (folder / "manifest.json").write_text(json.dumps(content))
        with refused(RunFolderError, found=found) as caught:
            memvec.load(folder)
        assert caught.value.subject.startswith(str(folder))


def test_a_search_finds_only_where_a_condition_holds(run: RunFolder) -> None:
    pytest.importorskip("duckdb")
    text = ROWS[5]["text"]
    with memvec.Searcher(run.root, accelerator="cpu", center=True) as searcher:
        everything = searcher.search([text], k=99)[0]
        found = searcher.search([text], k=99, where="user = 'ana' and score < 9")[0]
        assert searcher.search([text], where="user = 'nobody'") == [[]]
        assert searcher.search([text], k=99)[0] == everything
    assert [hit.id for hit in found] == [
        hit.id for hit in everything if hit.columns["user"] == "ana" and hit.columns["score"] < 9
    ]
    scores = {hit.id: hit.score for hit in everything}
    assert [hit.score for hit in found] == pytest.approx([scores[hit.id] for hit in found], abs=1e-6)
    again = memvec.search(run.root, [text], k=2, center=True, exact_rows=1, where="user = 'bo'", accelerator="cpu")[0]
    assert [hit.id for hit in again] == [hit.id for hit in everything if hit.columns["user"] == "bo"][:2]


def test_a_condition_is_typed_as_it_stands(run: RunFolder) -> None:
    pytest.importorskip("duckdb")
    common = [f"output_dir={run.root}", "accelerator=cpu", "k=1", "query=tea"]
    condition = "where=user = 'bo' and meta.n > 3 and tags[1] in ('t4', 't5')"
    lines = search_for_config(compose([*common, condition], config_name="search")).lines()
    assert lines[0].split() == ["score", "id", *KEPT, "text"]
    assert lines[1].split("  ")[1:3] == ["m/5", "bo"]
    [line] = search_for_config(compose([*common, condition, "format=jsonl"], config_name="search")).lines()
    assert json.loads(line)["columns"] == expected()[5]
    with refused(ConfigError, "where", "usr = 'bo'", found='column "usr" not found'):
        search_for_config(compose([*common, "where=usr = 'bo'"], config_name="search"))


def test_measures_are_taken_where_a_condition_holds(run: RunFolder, tmp_path: Path) -> None:
    pytest.importorskip("duckdb")
    rows = [{"query": ROWS[n]["text"], "relevant": [f"m/{n}"]} for n in (1, 3, 5)]  # each has an equal one of ana's
    queries = write_lines(tmp_path / "queries.jsonl", rows)
    common = [f"output_dir={run.root}", f"queries={queries}", "accelerator=cpu"]
    evaluate(compose([*common, "where=user = 'bo'"], config_name="evaluate"))
    result = read_json(run.evaluation)
    assert (result["where"], result["measures"]["hit@1"]) == ("user = 'bo'", 1.0)
    with refused(
        InputError,
        "queries.jsonl, row 1",
        found="the relevant id 'm/1' is not among the run's 10 ids where user = 'ana'",
    ):
        evaluate(compose([*common, "where=user = 'ana'"], config_name="evaluate"))


def test_the_page_colours_by_them(run: RunFolder) -> None:
    pytest.importorskip("sklearn")
    from memvec.page.run import run_page

    colourings = {one["name"]: one for one in run_page(run)["map"]["colourings"]}
    assert [group["name"] for group in colourings["user"]["groups"]] == ["ana", "bo"]
    assert colourings["score"]["steps"]
    assert not {"created_at", "tags", "meta"} & colourings.keys()  # which tell none apart, or are no values


def test_columns_of_conversations_travel_to_their_vectors(scripted: Path, tmp_path: Path) -> None:
    rows = [{**row, "user": f"u{n}", "at": {"day": n}} for n, row in enumerate(CHAT)]
    path = write_lines(tmp_path / "conversations.jsonl", [{**rows[0], "id": "bad", "messages": []}, *rows])
    keep = ["data.keep_columns=[user,at]", "vectors.keep_columns=[conversation_id,user]"]
    overrides = generation_overrides(path, tmp_path / "run", scripted, *keep)
    memvec.extract(compose(overrides, config_name="extract"))
    dataset = memvec.load(tmp_path / "run")
    assert dataset.column_names[2:5] == ["user", "at", "conversation_id"]
    users = {row["id"]: row["user"] for row in rows}
    assert len(dataset) > 1
    assert all(row["user"] == users[row["conversation_id"]] == f"u{row['at']['day']}" for row in dataset)
    [*lines] = read_lines(tmp_path / "run" / "memories" / "memories.jsonl")
    assert [(line["user"], line["at"]) for line in lines] == [(row["user"], row["at"]) for row in dataset]


def test_columns_that_every_memory_has_are_not_kept_again(tmp_path: Path, scripted: Path) -> None:
    path = write_lines(tmp_path / "conversations.jsonl", CHAT)
    overrides = generation_overrides(path, tmp_path / "run", scripted, "data.keep_columns=[date]")
    with refused(
        ConfigError, "data.keep_columns", found="'date' cannot be kept: every memory has a column of that name"
    ):
        memvec.generate(compose(overrides, config_name="generate"))
