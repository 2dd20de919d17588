"""The report of a sweep and of a run: numbers, files, and what is said where there is none."""

from __future__ import annotations

import csv
import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from omegaconf import DictConfig

import memvec
from memvec.errors import ConfigError, ExtraError, RunFolderError
from memvec.files import read_json, write_json
from memvec.page.sweep import sweep_page
from memvec.report import main, write_report
from memvec.retrieval.comparison import evaluation_rows, shown_evaluation
from memvec.retrieval.measures import MEASURES
from memvec.run.publish import open_place, publish_run
from memvec.run.remote import local_run
from memvec.sweep.jobs import FAILED, failed_jobs
from memvec.sweep.table import MEASURED, SETTINGS, finished_jobs, job_labels, shown_table, sweep_rows
from tests.helpers.refusals import refused
from tests.helpers.runs import random_vectors, write_run
from tests.helpers.s3_server import S3Server


@pytest.fixture
def sweep(write_jsonl: Callable[..., Path], tiny_config: Callable[..., DictConfig], tmp_path: Path) -> Path:
    """Three finished jobs, one that failed."""
    path = write_jsonl([f"text {n}" for n in range(20)])
    for job, batch_size in ((0, 4), (2, 1), (10, 8)):
        memvec.predict(tiny_config(path, f"data.batch_size={batch_size}", output=f"sweep/{job}"))
    (tmp_path / "sweep" / "1").mkdir()
    return tmp_path / "sweep"


def test_every_finished_job_is_a_row_in_the_order_of_the_jobs(sweep: Path) -> None:
    rows = sweep_rows(sweep)
    assert [row["job"] for row in rows] == ["0", "2", "10"]
    assert [row["batch_size"] for row in rows] == [4, 1, 8]
    assert all(tuple(row) == (*SETTINGS, *MEASURED) for row in rows)
    assert all(row["entries_per_second"] > 0 for row in rows)


@pytest.mark.slow
def test_the_csv_holds_the_same_numbers(sweep: Path) -> None:
    lines = write_report(sweep)
    with (sweep / "sweep.csv").open(encoding="utf-8", newline="") as stream:
        written = list(csv.DictReader(stream))
    assert [row["batch_size"] for row in written] == ["4", "1", "8"]
    assert [float(row["tokens_per_second"]) for row in written] == [
        row["tokens_per_second"] for row in sweep_rows(sweep)
    ]
    assert lines[0].split()[:2] == ["job", "batch"]


@pytest.mark.slow
def test_jobs_that_failed_are_named(sweep: Path) -> None:
    (sweep / FAILED).mkdir()
    (sweep / FAILED / "1").write_text("2")
    assert failed_jobs(sweep) == {"1": 2}
    assert "job 1 failed with exit code 2" in write_report(sweep)


@pytest.mark.slow
def test_a_plot_is_drawn_where_matplotlib_is_installed(sweep: Path) -> None:
    pytest.importorskip("matplotlib")
    write_report(sweep)
    assert (sweep / "sweep.png").read_bytes().startswith(b"\x89PNG")


def test_settings_are_shown_where_they_differ(sweep: Path) -> None:
    rows = sweep_rows(sweep)
    assert not {"layer", "prompt"} & set(shown_table(rows)[0])
    rows[1]["layer"] = 3
    header, *lines = shown_table(rows)
    assert [line[header.index("layer")] for line in lines] == ["-1", "3", "-1"]
    assert job_labels(rows) == ["batch size 4, layer -1", "batch size 1, layer 3", "batch size 8, layer -1"]
    assert job_labels(rows[:1]) == ["job 0"]


def swept(root: Path, *jobs: list[str]) -> Path:
    for number, overrides in enumerate(jobs):
        write_run(root / "sweep" / str(number), random_vectors(5), overrides=overrides)
    return root / "sweep"


def test_every_override_that_was_swept_has_a_column(tmp_path: Path) -> None:
    folder = swept(
        tmp_path,
        ["data.max_length=20", "model.tune=off", "data.path=[a.jsonl,b.jsonl]", "prompt=raw"],
        ["data.max_length=40", "model.tune=auto", "data.path=a.jsonl", "prompt=one_word_en"],
    )
    header, *lines = shown_table(sweep_rows(folder))
    columns = {name: [line[place] for line in lines] for place, name in enumerate(header)}
    assert columns["data.max_length"] == ["20", "40"]
    assert columns["model.tune"] == ["off", "auto"]
    assert columns["data.path"] == ["['a.jsonl', 'b.jsonl']", "a.jsonl"]
    assert columns["prompt"] == ["raw", "one_word_en"]
    assert not {"prompt.template", "prompt._target_", "output_dir", "data.limit"} & set(columns)
    write_report(folder)
    with (folder / "sweep.csv").open(encoding="utf-8", newline="") as stream:
        assert [row["data.max_length"] for row in csv.DictReader(stream)] == ["20", "40"]
    assert job_labels(sweep_rows(folder))[0].startswith("prompt raw, ")


def test_jobs_that_differ_in_much_are_labelled_by_number(tmp_path: Path) -> None:
    """As the runs of a folder are that is no sweep's."""
    others = ["data.max_length=20", "model.tune=off", "data.path=b.jsonl", "data.limit=3", "data.encoding=utf-8"]
    folder = swept(tmp_path, [*others, "prompt=raw", "data.num_workers=1"], [])
    write_report(folder)
    assert job_labels(sweep_rows(folder)) == ["job 0", "job 1"]


def test_an_option_that_only_some_jobs_have_is_a_column(tmp_path: Path) -> None:
    folder = swept(tmp_path, ["+trainer.inference_mode=true"], [])
    assert [row["trainer.inference_mode"] for row in sweep_rows(folder)] == [True, None]


def test_an_evaluation_has_a_column_for_what_was_swept(tmp_path: Path) -> None:
    folder = swept(tmp_path, ["data.max_length=20"], ["data.max_length=40"])
    for job in finished_jobs(folder):
        write_json(job.evaluation, {"measures": dict.fromkeys(MEASURES, 0.5)})
    header, *lines = shown_evaluation(evaluation_rows(finished_jobs(folder)))
    assert header == ["job", "prompt", "layer", "data.max_length", *MEASURES]
    assert [line[3] for line in lines] == ["20", "40"]


def test_no_name_from_a_jobs_files_steers_terminal_or_csv(tmp_path: Path) -> None:
    folder = swept(tmp_path, [], [])
    manifest = read_json(folder / "1" / "manifest.json")
    manifest["config"]["data"]["a\x1b[2J"] = "=cmd()\nmemvec: all good\u202e"
    manifest["config"]["model"]["name_or_path"] = "=1+1"
    write_json(folder / "1" / "manifest.json", manifest)
    lines = write_report(folder)
    assert all(line.isprintable() for line in lines)
    assert any("=cmd()\\nmemvec: all good\\u202e" in line for line in lines)
    with (folder / "sweep.csv").open(encoding="utf-8", newline="") as stream:
        row = list(csv.DictReader(stream))[1]
    assert row["model.name_or_path"] == "'=1+1"
    assert row["data.a\\x1b[2J"].startswith("'=cmd()\\n")
    assert "\x1b" not in (folder / "report.html").read_text(encoding="utf-8")


def test_a_damaged_job_is_named(tmp_path: Path) -> None:
    folder = swept(tmp_path, [], [])
    (folder / "1" / "manifest.json").write_text("{")
    with refused(RunFolderError, "1/manifest.json", found="damaged"):
        write_report(folder)


def test_a_sweeps_page_shows_its_table_and_its_evaluation(sweep: Path) -> None:
    page = sweep_page(sweep)
    assert [table["title"] for table in page["tables"]] == ["Jobs"]
    assert [row["cells"] for row in page["tables"][0]["rows"]] == shown_table(sweep_rows(sweep))[1:]
    assert page["charts"][0]["labels"] == ["batch size 4", "batch size 1", "batch size 8"]
    measures = dict.fromkeys(MEASURES, 0.25)
    write_json(sweep / "2" / "evaluation.json", {"measures": measures})
    page = sweep_page(sweep)
    assert page["tables"][1]["rows"][0]["cells"] == ["2", "one_token_zh", "-1", *["0.2500"] * 5]
    assert page["charts"][1]["series"] == [{"name": "one_token_zh", "values": [0.25]}]


@pytest.mark.slow
def test_the_report_of_a_sweep_writes_its_page(sweep: Path) -> None:
    lines = write_report(sweep)
    assert lines[-1] == f"report     {sweep / 'report.html'}"
    assert "batch size 8" in (sweep / "report.html").read_text(encoding="utf-8")


def test_the_folder_may_be_typed_as_to_other_commands(
    sweep: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["memvec.report", f"output_dir={sweep}"])
    main()
    assert f"report     {sweep / 'report.html'}" in capsys.readouterr().out


def test_a_folder_without_a_finished_run_is_named(tmp_path: Path) -> None:
    with refused(RunFolderError, tmp_path, found="holds no finished run of a sweep"):
        write_report(tmp_path)
    (tmp_path / "journal").mkdir()
    with refused(RunFolderError, tmp_path, found="an unfinished run", advice="run the same command again"):
        write_report(tmp_path)


def test_without_scikit_learn_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_run(tmp_path / "run", random_vectors(20))
    for module in ("sklearn", "sklearn.decomposition"):
        monkeypatch.setitem(sys.modules, module, None)
    install = "pip install 'memvec[report]'"
    with refused(ExtraError, re.compile("map of a run$"), found="needs sklearn, which is missing", advice=install):
        write_report(tmp_path / "run")


def test_the_command_writes_the_page_or_says_in_one_line_why_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("sklearn")
    folder = write_run(tmp_path / "run", random_vectors(20)).root
    monkeypatch.setattr(sys, "argv", ["memvec.report", str(folder)])
    main()
    assert capsys.readouterr().out == f"report     {folder / 'report.html'}\n"
    for wrong, named in (([str(folder), "layer=x"], "found 'layer=x'"), ([], "required: folder")):
        monkeypatch.setattr(sys, "argv", ["memvec.report", *wrong])
        with pytest.raises(SystemExit) as ended:
            main()
        said = capsys.readouterr().err
        assert (ended.value.code, said.count("\n")) == (2, 1)
        assert said.startswith("memvec: error: ")
        assert named in said
    monkeypatch.setattr(sys, "argv", ["memvec.report", str(tmp_path / "nothing")])
    with pytest.raises(SystemExit) as ended:
        main()
    said = capsys.readouterr().err
    assert ended.value.code == 1
    allowed = "a run, or the folder of a sweep's runs"
    assert said == f"memvec: error: {tmp_path / 'nothing'}: no such folder; allowed: {allowed}\n"


@pytest.mark.slow
def test_a_published_runs_page_is_a_result_here(
    s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("sklearn")
    monkeypatch.chdir(tmp_path)
    s3.fill("pages", {})
    rejected = ['{"file": "a.jsonl", "row": 3, "id": null, "reason": "blank"}']  # which are not published
    run = write_run(tmp_path / "run", random_vectors(20), rejected=rejected)
    publish_run(run, open_place("s3://pages/runs/a", run))
    monkeypatch.setattr(sys, "argv", ["memvec.report", "s3://pages/runs/a/"])
    main()
    page = Path(capsys.readouterr().out.removeprefix("report     ").strip())
    assert [part.name for part in page.parents[2].iterdir()] == [page.parent.parent.name]
    assert (page.parents[2], page.name) == (tmp_path / "outputs", "report.html")
    assert page.parent.stat().st_mode & 0o777 == 0o700
    assert '"title": "a", "subtitle"' in page.read_text(encoding="utf-8")
    assert not (local_run("s3://pages/runs/a") / "report.html").exists()
    assert write_report(f"file://{run.root}") == [f"report     {run.page}"]
    for wrong, found in {
        "s3://pages/runs": "holds no finished run",
        "s3://pages/none": "cannot be read: there is no such file or folder",
    }.items():
        with refused(RunFolderError, wrong, found=found):
            write_report(wrong)
    with refused(ConfigError, "output_dir", "s5://pages/none", found="cannot be used: "):
        write_report("s5://pages/none")
    with refused(ConfigError, "layer", 3):
        write_report("s3://pages/runs/a", layer=3)
