"""The READMEs are true: every option with its default, every file, every link, and the lines that replace a loop."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.conftest import TEXTS
from tests.test_rooms import FLOOR

ROOT = Path(__file__).parent.parent
READMES = ["README.md", *(f"{folder}/README.md" for folder in ("conf", "memvec", "memvec/trainer", "tests"))]
READMES.append("tests/benchmarks/README.md")
SECTION = re.compile(r"^### `(conf/[\w/]+\.yaml)`.*?\n(.*?)(?=^##|\Z)", re.DOTALL | re.MULTILINE)
OPTION = re.compile(r"^\| `([\w.]+)` \| (.*?) \| .*\|$", re.MULTILINE)
FILE = re.compile(r"^([\w/]+\.py) +\S", re.MULTILINE)
# What memvec needs of the Trainer; nobody should change it.
FIXED = {
    f"trainer.{name}" for name in ("use_distributed_sampler", "logger", "enable_checkpointing", "enable_model_summary")
}
# The files whose options a command's help explains one by one.
HELP = {
    "predict": ("predict", "data/default", "prompt/raw", "model/hub", "trainer/default", "writer/default"),
    "generate": ("generate", "data/conversations", "generation/facts_en", "generation/server", "writer/outputs"),
    "search": ("search",),
    "evaluate": ("evaluate",),
}
# What these set is said in words beside their group's table.
SAID_IN_WORDS = {"ddp", "fsdp", "tensor_parallel", "smollm2", "one_word_en", "raw", "chat", "facts_zh", "server_zh"}


def documented() -> dict[str, dict[str, str]]:
    """Returns the tables of conf/README.md: for each file its options, with what stands in the column of defaults."""
    sections = SECTION.findall((ROOT / "conf/README.md").read_text(encoding="utf-8"))
    return {path: dict(OPTION.findall(text)) for path, text in sections}


def options(path: Path) -> Iterator[tuple[str, Any]]:
    """Yields the options of a file of conf/ by the names of their overrides, with their defaults."""
    group = path.parent.name
    content = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
    assert isinstance(content, dict)
    for name, value in content.items():
        if name in ("defaults", "hydra", "_target_"):
            continue
        override = str(name) if group == "conf" else f"{group}.{name}"
        if isinstance(value, dict):
            yield from ((f"{override}.{inner}", default) for inner, default in value.items() if inner != "_target_")
        else:
            yield override, value


def shown(value: Any) -> str | None:
    """Returns a default as a table shows it; None where that is said in words."""
    if isinstance(value, list | dict) or (isinstance(value, str) and (value.startswith("${") or "\n" in value)):
        return None
    words = {None: "null", True: "true", False: "false"}
    return words[value] if value is None or isinstance(value, bool) else str(value)


@pytest.mark.parametrize("path", sorted(documented()))
def test_options_and_defaults_are_those_of_conf(path: str) -> None:
    found, expected = documented()[path], dict(options(ROOT / path))
    assert sorted(found) == sorted(expected)
    for name, value in expected.items():
        assert shown(value) in (None, found[name].strip("`")), name


@pytest.mark.parametrize("command", HELP)
def test_help_names_every_option(command: str) -> None:
    top: Any = OmegaConf.to_container(OmegaConf.load(ROOT / f"conf/{command}.yaml"), resolve=False)
    text = top["hydra"]["help"]["template"]
    named = {name: value for path in HELP[command] for name, value in options(ROOT / f"conf/{path}.yaml")}
    for name in named.keys() - FIXED:
        is_of_model = str(named[name]).startswith("${model.")
        assert is_of_model or re.search(rf"(?<![\w.]){re.escape(name)}(?![\w.])", text), name


def test_every_file_with_options_has_a_table() -> None:
    files = {str(path.relative_to(ROOT)) for path in (ROOT / "conf").rglob("*.yaml")}
    without = {path for path in files - set(documented()) if Path(path).stem not in SAID_IN_WORDS}
    assert {Path(path).parent.name for path in without} == {"experiment", "launch"}  # settings of several groups


def test_the_map_has_every_file_once_from_the_ground_up() -> None:
    listed = FILE.findall((ROOT / "memvec/README.md").read_text(encoding="utf-8"))
    files = [path.relative_to(ROOT / "memvec") for path in (ROOT / "memvec").rglob("*.py")]
    assert sorted(listed) == sorted(str(path) for path in files if path.name != "__init__.py" or len(path.parts) == 1)
    floors = [FLOOR[Path(name).parts[0].removesuffix(".py")] for name in listed if name != "__init__.py"]
    assert floors == sorted(floors)


@pytest.mark.parametrize("readme", READMES)
def test_links_lead_somewhere(readme: str) -> None:
    path = ROOT / readme
    text = path.read_text(encoding="utf-8")
    for target in re.findall(r"\]\((?!https?:)([^)]*)\)", text):
        name, _, anchor = target.partition("#")
        linked = (path.parent / name) if name else path
        assert linked.is_file(), target
        headings = re.findall(r"^#+ (.*)$", linked.read_text(encoding="utf-8"), re.MULTILINE)
        anchors = {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}
        assert anchor in {"", *anchors}, target


def test_ci_runs_the_second_command_of_the_readme() -> None:
    command = 'pip install -e ".[test]" && pytest'
    assert command in (ROOT / "README.md").read_text(encoding="utf-8")
    assert 'pip install --quiet --editable ".[test]" && pytest' in (ROOT / ".ci/run").read_text(encoding="utf-8")


def test_the_three_lines_give_the_numbers_of_the_loop(llama: Path) -> None:
    section = (ROOT / "README.md").read_text(encoding="utf-8").partition("## In your program")[2]
    loop, lines = re.findall(r"```python\n(.*?)```", section, re.DOTALL)[:2]
    processor = AutoTokenizer.from_pretrained(llama)
    processor.model_input_names = ["input_ids", "attention_mask"]
    names = {"torch": torch, "model": AutoModelForCausalLM.from_pretrained(llama), "processor": processor}
    names["texts"] = TEXTS
    exec(loop, names)
    expected = names.pop("vectors")
    exec(lines, names)
    torch.testing.assert_close(names["vectors"], expected, rtol=1e-5, atol=1e-5)
