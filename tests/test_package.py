"""The wheel is the same from the checkout and from the sdist, and what it installs runs in any folder."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

import memvec
from memvec.files import read_json
from tests.helpers.models import NEARLY_FREE
from tests.helpers.processes import assert_same

pytestmark = pytest.mark.processes
ROOT = Path(__file__).parent.parent


def run(*command: str | Path, folder: Path, environment: dict[str, str] | None = None) -> str:
    """Runs a command to its good end and returns what it printed."""
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, env=environment, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def build(source: Path, target: Path, *kinds: str) -> None:
    options = [option for kind in kinds for option in ("-t", kind)]
    run(sys.executable, "-m", "hatchling", "build", "-d", target, *options, folder=source)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel and the sdist of this checkout."""
    pytest.importorskip("hatchling")
    folder = tmp_path_factory.mktemp("built")
    build(ROOT, folder, "sdist", "wheel")
    return folder


def test_the_sdist_builds_the_same_wheel(built: Path, tmp_path: Path) -> None:
    [sdist], [wheel] = built.glob("*.tar.gz"), built.glob("*.whl")
    with tarfile.open(sdist) as archive:
        if hasattr(tarfile, "data_filter"):  # Python 3.11.4 and later
            archive.extraction_filter = tarfile.data_filter
        archive.extractall(tmp_path)
    [source] = tmp_path.iterdir()
    build(source, tmp_path / "again", "wheel")
    assert (tmp_path / "again" / wheel.name).read_bytes() == wheel.read_bytes()


def test_the_wheel_holds_conf_and_all_that_the_package_reads(built: Path) -> None:
    [wheel] = built.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    tracked = run("git", "ls-files", "memvec", "conf", folder=ROOT).splitlines()
    assert {f"memvec/{name}" if name.startswith("conf/") else name for name in tracked} <= names
    assert not [name for name in names if name.startswith(("tests/", "outputs/"))]


def test_what_the_wheel_installs_runs_in_any_folder(
    built: Path, model_folders: Callable[[str], Path], tmp_path: Path
) -> None:
    """In an environment that has memvec from the wheel alone, and everything else from where these tests run."""
    pytest.importorskip("pip")
    [wheel] = built.glob("*.whl")
    environment, folder, model = tmp_path / "environment", tmp_path / "elsewhere", model_folders(NEARLY_FREE)
    venv.create(environment, symlinks=True)
    [packages] = environment.glob("lib/python*/site-packages")
    (packages / "others.pth").write_text(sysconfig.get_path("purelib"))
    pip: list[str | Path] = [
        sys.executable,
        "-m",
        "pip",
        "--python",
        environment / "bin/python",
        "--disable-pip-version-check",
    ]
    run(*pip, "install", "--quiet", "--no-deps", "--no-index", wheel, folder=tmp_path)
    folder.mkdir()
    variables = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = environment / "bin/memvec"
    assert run(command, "--version", folder=folder, environment=variables) == f"memvec {memvec.__version__}\n"

    options = ["model=hub", f"model.name_or_path={model}", "trainer.accelerator=cpu", "data.limit=20"]
    two_ranks = ["trainer=ddp", "trainer.devices=2", "trainer.enable_progress_bar=false", "output_dir=run"]
    said = run(command, "predict", *options, *two_ranks, folder=folder, environment=variables)

    assert "\nentries    20 " in said
    assert read_json(folder / "run/metrics.json")["ranks"] == 2
    assert read_json(folder / "run/manifest.json")["config"]["data"]["path"] == str(
        packages / "memvec/data/sample.jsonl"
    )
    memvec.predict(memvec.compose([*options, "trainer.devices=1", f"output_dir={tmp_path / 'here'}"]))
    assert_same(memvec.load(folder / "run"), memvec.load(tmp_path / "here"))
