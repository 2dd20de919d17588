"""The READMEs are true: options with their defaults, files, links, commands, and the lines that replace a loop."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from transformers import AutoModelForCausalLM, AutoTokenizer

from memvec.config.compose import register_resolvers
from memvec.config.options import read_options
from tests.fixtures import TEXTS
from tests.helpers.configs import compose
from tests.helpers.option_tables import TABLE, with_tables
from tests.test_rooms import FLOOR

ROOT = Path(__file__).parent.parent
FOLDERS = ("conf", "memvec", "tests")
READMES = [
    "README.md",
    *sorted(str(path.relative_to(ROOT)) for name in FOLDERS for path in (ROOT / name).rglob("README.md")),
]
FILE = re.compile(r"^([\w/]+\.py) +\S", re.MULTILINE)
COMMAND = re.compile(r"-m memvec\.(predict|generate|extract|search|evaluate)\b(.*)")
# What a command's help shows, a file of conf/ each.
HELP = {
    "predict": ("predict", "data/default", "prompt/one_token_zh", "model/hub", "trainer/default", "writer/default"),
    "generate": ("generate", "data/conversations", "generation/facts_en", "generation/server", "writer/completions"),
    "extract": ("extract",),
    "search": ("search",),
    "evaluate": ("evaluate",),
}
# What these set is said in words beside their group's table.
SAID_IN_WORDS = {"ddp", "fsdp", "tensor_parallel", "smollm2", "one_word_en", "raw", "chat", "facts_zh", "server_zh"}


def documented() -> list[str]:
    """Returns the files whose options have a table in conf/README.md."""
    text = (ROOT / "conf/README.md").read_text(encoding="utf-8")
    return [path for _, path, _ in TABLE.findall(text)]


def test_tables_of_options_are_those_of_conf() -> None:
    text = (ROOT / "conf/README.md").read_text(encoding="utf-8")
    assert with_tables(text) == text, "python -m tests.helpers.option_tables writes them"


@pytest.mark.parametrize("path", documented())
def test_every_option_has_help_above_it(path: str) -> None:
    options = read_options(ROOT / path)
    assert [option.name for option in options if not option.help] == []


@pytest.mark.parametrize("command", HELP)
def test_help_names_every_option(command: str) -> None:
    register_resolvers()
    top = OmegaConf.load(ROOT / f"conf/{command}.yaml")
    text = f"{top.hydra.help.template}\n"
    for path in HELP[command]:
        for option in read_options(ROOT / f"conf/{path}.yaml"):
            assert re.search(rf"^  {re.escape(option.name)}\s", text, re.MULTILINE), option.name


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
    for target in re.findall(r"\]\((?!https?:)([^)]*)\)", path.read_text(encoding="utf-8")):
        name, _, anchor = target.partition("#")
        linked = (path.parent / name) if name else path
        assert linked.is_file(), target
        if anchor:
            headings = re.findall(r"^#+ (.*)$", linked.read_text(encoding="utf-8"), re.MULTILINE)
            anchors = {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}
            assert anchor in anchors, target


@pytest.mark.parametrize("readme", READMES)
def test_every_command_composes(readme: str) -> None:
    blocks = re.findall(r"^```bash\n(.*?)^```", (ROOT / readme).read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    for command, typed in COMMAND.findall("".join(blocks).replace("\\\n", "")):
        arguments = shlex.split(typed, comments=True)
        if "--config-dir" in arguments:  # its options are the user's
            continue
        overrides = [argument for argument in arguments if "=" in argument]
        if "-m" in arguments:  # of a sweep, its first job
            overrides = [override.split(",")[0] for override in overrides]
        compose(overrides, config_name=command)


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
