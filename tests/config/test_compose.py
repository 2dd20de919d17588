"""Every file of conf/ composes, builds what it names and says how it is used; `--help` names every override."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from transformers import PreTrainedTokenizerFast

import memvec
from memvec.config.compose import compose, conf_folder, count_processes, sample_path, to_container
from memvec.config.values import at_least, at_least_or_none, one_of
from memvec.data.memories import MemoryTexts
from memvec.errors import ConfigError
from memvec.generation.build import build_completion_writer, build_generator, build_reader
from memvec.generation.conversations import Conversations
from memvec.generation.module import GenerationModule
from memvec.generation.writer import CompletionWriter
from memvec.model.module import HiddenStateModule
from memvec.prompt.template import Prompt
from memvec.run.build import build_rows
from memvec.run.folder import RunFolder
from memvec.writer.prediction_writer import VectorWriter
from tests.helpers import configs
from tests.helpers.refusals import refused, refused_as

CONF = conf_folder()
FILES = sorted(CONF.rglob("*.yaml"))
TOP_LEVEL = [path.stem for path in FILES if path.parent == CONF]
GROUP_FILES = [path for path in FILES if path.parent != CONF]
BUILT: dict[str, type] = {
    "data": MemoryTexts,
    "prompt": Prompt,
    "model": HiddenStateModule,
    "trainer": pl.Trainer,
    "writer": VectorWriter,
}
# Files of groups that belong to another command than memvec.predict, or are all that it has of a group.
OF_GENERATE = {
    "data/conversations.yaml",
    "writer/completions.yaml",
    "generation/facts_en.yaml",
    "generation/facts_zh.yaml",
    "generation/server.yaml",
    "generation/server_zh.yaml",
}
# Shared by the top-level files, and chosen by none of them.
SHARED = {"launch/default.yaml"}
# What a user has no reason to set: memvec's own choice of class.
NOT_OVERRIDES = {"_target_"}


def name(path: Path) -> str:
    return str(path.relative_to(CONF))


def compose_with(path: Path, *overrides: str) -> DictConfig:
    """Composes predict.yaml, or generate.yaml where the file belongs to that, with one file of a group chosen."""
    config_name = "generate" if name(path) in OF_GENERATE else "predict"
    return configs.compose([f"{path.parent.relative_to(CONF)}={path.stem}", *overrides], config_name=config_name)


def commands(path: Path) -> list[str]:
    """Returns the commands in the comment that a YAML file opens with."""
    comment = re.match(r"(?:#.*\n)+", path.read_text(encoding="utf-8"))
    return re.findall(r"^# (python -m memvec\..*)$", comment.group(), re.MULTILINE) if comment else []


def leaves(cfg: Any, prefix: str = "") -> Iterator[str]:
    if not isinstance(cfg, dict) or not cfg:
        yield prefix.removesuffix(".")
        return
    for key, value in cfg.items():
        yield from leaves(value, f"{prefix}{key}.")


def overrides_in_help() -> set[str]:
    template = OmegaConf.load(CONF / "predict.yaml").hydra.help.template
    return set(re.findall(r"^ +([a-z_]+(?:\.[a-z_]+)+|output_dir|resume)(?: {2,}\S|$)", template, re.MULTILINE))


def test_there_are_files_to_test() -> None:
    assert "predict" in TOP_LEVEL
    assert {path.parent.name for path in GROUP_FILES} >= set(BUILT)


@pytest.mark.parametrize("config_name", TOP_LEVEL)
def test_every_top_level_file_composes_and_resolves(config_name: str) -> None:
    assert to_container(compose(config_name=config_name))


@pytest.mark.parametrize("path", [path for path in GROUP_FILES if name(path) not in SHARED], ids=name)
def test_every_group_file_composes_and_resolves(path: Path) -> None:
    needed = ["model.name_or_path=a"] if path.parent.name == "model" else []
    cfg = compose_with(path, *needed)
    groups = {"data", "generation", "model", "trainer", "writer"} if name(path) in OF_GENERATE else set(BUILT)
    assert set(to_container(cfg)) >= {*groups, "output_dir", "resume"}


@pytest.mark.filterwarnings("ignore:.*GPU available.*:UserWarning")
@pytest.mark.parametrize(
    "path", [path for path in GROUP_FILES if path.parent.name in BUILT and name(path) not in OF_GENERATE], ids=name
)
def test_every_group_file_builds_what_it_names(
    path: Path, llama: Path, tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    group = path.parent.name
    folder = RunFolder(tmp_path)
    known: dict[str, dict[str, Any]] = {
        "data": {"prompt": Prompt("{text}"), "tokenizer": tokenizer, "model_limit": 256},
        "writer": {"journal": folder.journal},
        "trainer": {"accelerator": "cpu", "devices": 1, "num_nodes": 1},
    }
    cfg = compose_with(path, f"model.name_or_path={llama}")
    options = cfg[group]
    if group == "data":
        known[group]["rows"], options = build_rows(options, folder)
    built = instantiate(options, _partial_=True, _convert_="all")(**known.get(group, {}))
    assert isinstance(built, BUILT[group])


@pytest.mark.parametrize("path", FILES, ids=name)
def test_every_file_opens_with_the_command_that_uses_it(path: Path) -> None:
    first = next(line for line in path.read_text(encoding="utf-8").splitlines() if not line.startswith("# @package"))
    assert first.startswith("# python -m memvec.")


@pytest.mark.parametrize(
    ("path", "command"), [(p, c) for p in FILES for c in commands(p)], ids=lambda value: str(value)
)
def test_every_command_in_a_file_composes(path: Path, command: str) -> None:
    _, _, module, *arguments = shlex.split(command, comments=True)
    overrides = []
    for override in OverridesParser.create().parse_overrides([a for a in arguments if not a.startswith("-")]):
        swept = override.is_sweep_override()
        value = next(override.sweep_string_iterator()) if swept else None
        overrides.append(f"{override.get_key_element()}={value}" if swept else str(override.input_line))
    cfg = configs.compose(overrides, config_name=module.removeprefix("memvec."))
    if path.parent.name in BUILT:  # the command does use this file
        chosen = compose_with(path, *(["model.name_or_path=a"] if path.parent.name == "model" else []))
        assert cfg[path.parent.name]._target_ == chosen[path.parent.name]._target_
        assert set(cfg[path.parent.name]) == set(chosen[path.parent.name])


def test_values_tests_set_afterwards_are_as_hydra_sets_them() -> None:
    given = ["data.path=a b,c.jsonl", "output_dir=x", "model=hub", "model.name_or_path=m", "model.layer=[0,-1]"]
    for more in ([], ["trainer=ddp", "reuse=a", "data.keep_columns=[a,b]", "prompt.template=x {text}", "+extra=1"]):
        found, expected = configs.compose([*given, *more]), compose([*given, *more])
        assert found == expected
        assert to_container(found) == to_container(expected)
    for wrong in ("data.pth=a", "model.layer=1,2", "model=none", "data.path"):
        with pytest.raises(ConfigError) as said:
            configs.compose([*given, wrong])
        with pytest.raises(ConfigError) as said_by_hydra:
            compose([*given, wrong])
        assert str(said.value) == str(said_by_hydra.value)


def test_help_names_every_override_there_is() -> None:
    cfg = to_container(compose())
    there = {
        leaf
        for group in BUILT
        for leaf in leaves(cfg[group], f"{group}.")
        if leaf.rpartition(".")[2] not in NOT_OVERRIDES
    }
    assert there | {"output_dir", "resume"} == overrides_in_help()


def test_every_override_that_help_names_is_there() -> None:
    cfg = compose(["model=hub", "model.name_or_path=a"])
    for override in sorted(overrides_in_help()):
        parent, _, leaf = override.rpartition(".")
        assert leaf in (OmegaConf.select(cfg, parent) if parent else cfg), override


@pytest.mark.parametrize("config_name", ["search", "evaluate"])
def test_help_of_the_other_commands_names_their_overrides(config_name: str) -> None:
    there = set(leaves(to_container(compose(config_name=config_name)))) | {"prompt"}
    template = OmegaConf.load(CONF / f"{config_name}.yaml").hydra.help.template
    assert set(re.findall(r"^  ([a-z_.]+) {2,}\S", template, re.MULTILINE)) == there


@pytest.mark.parametrize(
    ("config_name", "override", "meant"),
    [("search", "qeury=a", "query"), ("search", "promt=raw", "prompt"), ("evaluate", "querys=a", "queries")],
)
def test_a_misspelt_override_is_told_what_its_command_has(config_name: str, override: str, meant: str) -> None:
    with refused(ConfigError, override.partition("=")[0], found="no such override", advice=f"did you mean {meant}?"):
        compose([override], config_name=config_name)


@pytest.mark.parametrize(
    ("config_name", "override", "expected"),
    [
        ("predict", "data.window_tokens=3", {"found": "memvec.predict has no such option"}),
        ("generate", "data.max_length=3", {"found": "memvec.generate has no such option"}),
        ("search", "prompt.template=x", {"found": "no prompt was chosen that has it", "advice": "add prompt=raw"}),
    ],
)
def test_an_option_of_another_choice_is_not_meant_again(
    config_name: str, override: str, expected: dict[str, str]
) -> None:
    with refused(ConfigError, override.partition("=")[0], **expected):
        compose([override], config_name=config_name)


def test_overrides_that_are_one_string_are_refused() -> None:
    with refused(ConfigError, "overrides", "data.limit=3", allowed="a list, such as ['data.limit=3']"):
        compose("data.limit=3")


def test_the_default_is_the_sample_through_the_embedded_model() -> None:
    cfg = compose()
    assert cfg.data.path == sample_path()
    assert cfg.prompt.template == '请用一个Token总结以下文本"{text}"：'
    assert (cfg.model.layer, cfg.writer.flush_every, cfg.trainer.precision) == (-1, 50, "32-true")
    assert (cfg.output_dir, cfg.resume) == (None, True)


def test_conf_and_sample_are_absolute_and_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert conf_folder().is_absolute()
    assert (conf_folder() / "predict.yaml").is_file()
    assert Path(sample_path()).is_absolute()
    assert Path(sample_path()).is_file()


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("data.batchsize=3", ConfigError("data.batchsize", found="no such override")),
        ("prompt=one_token_fr", ConfigError("prompt", "one_token_fr", found="no such option")),
        ("promt=raw", ConfigError("promt", found="no such override")),
        ("data.limit=[1,", ConfigError("data.limit=[1,", found="cannot be read")),
        ("output_dir", ConfigError("output_dir", found="no override")),
    ],
)
def test_a_wrong_override_is_one_line_that_names_it(override: str, expected: ConfigError) -> None:
    with refused_as(expected) as caught:
        compose([override])
    assert "\n" not in str(caught.value)
    assert "To append" not in str(caught.value)
    assert "HYDRA_FULL_ERROR" not in str(caught.value)


def test_a_wrong_group_option_names_those_that_are_there() -> None:
    with refused(ConfigError, "prompt", "one_token_fr") as caught:
        compose(["prompt=one_token_fr"])
    assert {"one_token_zh", "one_word_en", "raw"} <= set(caught.value.allowed.split(", "))


def test_a_wrong_group_option_tells_no_search_path() -> None:
    with refused(ConfigError, "prompt", "one_token_fr") as caught:
        compose(["prompt=one_token_fr"])
    assert "provider=" not in str(caught.value)


def test_composing_twice_gives_two_configurations() -> None:
    first, second = memvec.compose(), memvec.compose(["data.batch_size=7"])
    first.data.batch_size = 3
    assert (second.data.batch_size, memvec.compose().data.batch_size) == (7, 1024)


@pytest.mark.parametrize("value", [1, 2, 10**9])
def test_an_integer_of_at_least_the_minimum_is_taken(value: int) -> None:
    assert at_least("data.batch_size", value, 1) == value
    assert at_least_or_none("data.batch_size", value, 1) == value


def test_none_is_taken_where_it_is_allowed_only() -> None:
    assert at_least_or_none("data.max_tokens", None, 1) is None
    with refused(ConfigError, "data.batch_size", None, allowed="an integer of at least 1"):
        at_least("data.batch_size", None, 1)


@pytest.mark.parametrize("value", [0, -1, 1.5, "8", True, [1]])
def test_what_is_no_integer_of_at_least_the_minimum_is_refused(value: Any) -> None:
    for check in (at_least, at_least_or_none):
        with refused(ConfigError, "data.batch_size", value, allowed="an integer of at least 1") as caught:
            check("data.batch_size", value, 1)
        assert str(caught.value) == f"data.batch_size={value}: allowed: an integer of at least 1"


@pytest.mark.parametrize(
    ("accelerator", "devices", "num_nodes", "processes"),
    [("auto", 8, 1, 8), ("gpu", "8", 4, 32), ("gpu", [1, 3], 2, 4), ("cpu", "auto", 3, 3), ("cpu", -1, 1, 1)],
)
def test_processes_are_the_devices_of_all_machines(
    accelerator: str, devices: Any, num_nodes: int, processes: int
) -> None:
    assert count_processes(accelerator, devices, num_nodes) == processes


def test_devices_that_are_no_number_say_what_is_allowed() -> None:
    with refused(ConfigError, "trainer.devices", "all", allowed="a number, auto, or a list"):
        count_processes("gpu", "all", 1)


def test_a_choice_outside_the_list_names_the_list() -> None:
    assert one_of("writer.fsync", "flush", ("flush", "close")) == "flush"
    with refused(ConfigError, "writer.fsync", "never", allowed="flush, close"):
        one_of("writer.fsync", "never", ("flush", "close"))


@pytest.mark.parametrize(
    ("name", "value", "fields"),
    [
        ("data.on_error", "ignore", {"allowed": "reject, fail"}),
        ("data.limit", 0, {"allowed": "an integer of at least 1"}),
        ("data.max_tokens", 0, {"allowed": "an integer of at least 1"}),
        ("data.max_length", 257, {"found": "the model takes at most 256 tokens"}),
        ("data.num_workers", -1, {"allowed": "an integer of at least 0"}),
        ("writer.flush_every", 0, {"allowed": "an integer of at least 1"}),
        ("writer.keep_text", "maybe", {"allowed": "True, False"}),
        ("writer.fsync", "never", {"allowed": "flush, close"}),
        ("model.prefix_cache", True, {"allowed": "auto, off"}),  # `on` is YAML's true
        ("model.layer", "last", {"allowed": "a layer's number"}),
        ("trainer.precision", "transformer-engine", {"allowed": "32-true, bf16-true"}),
        ("trainer.precision", 16, {"allowed": "32-true, bf16-true"}),
    ],
)
def test_an_option_that_makes_no_sense_says_what_is_allowed(
    name: str, value: Any, fields: dict[str, Any], llama: Path, tmp_path: Path
) -> None:
    cfg = compose([f"output_dir={tmp_path / 'run'}", "model=hub", f"model.name_or_path={llama}", f"{name}={value}"])
    cfg.trainer.update(accelerator="cpu", devices=1, enable_progress_bar=False)
    with refused(ConfigError, name, value, **fields):
        memvec.predict(cfg)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("typed", "name", "found"),
    [
        ("+trainer.nosuch=1", "trainer.nosuch", "Trainer has no such option"),
        ("data=conversations", "data.batch_size", "Conversations has no such option"),
    ],
)
def test_an_option_that_nothing_takes_is_named(
    typed: str, name: str, found: str, llama: Path, write_jsonl: Callable[..., Path], tmp_path: Path
) -> None:
    path = write_jsonl(["tea"])
    cfg = compose([f"output_dir={tmp_path / 'run'}", "model=hub", f"model.name_or_path={llama}", typed])
    cfg.data.path = str(path)
    with refused(ConfigError, name, found=found, advice="--help lists them"):
        memvec.predict(cfg)


def test_without_an_output_folder_a_program_is_told_to_name_one() -> None:
    with refused(ConfigError, "output_dir", found="not set", advice="name the folder the results go to"):
        memvec.predict(compose())


@pytest.mark.parametrize("language", ["facts_en", "facts_zh"])
def test_every_file_of_generation_builds_what_it_names(language: str, llama: Path, tmp_path: Path) -> None:
    overrides = [f"generation={language}", "model=hub", f"model.name_or_path={llama}", f"output_dir={tmp_path}"]
    cfg = compose([*overrides, "data.path=conversations.jsonl", "generation.max_new_tokens=8"], config_name="generate")
    module = build_generator(cfg)
    folder = RunFolder(tmp_path)
    assert type(module) is GenerationModule
    assert type(build_reader(cfg, folder)) is Conversations
    assert type(build_completion_writer(cfg, folder)) is CompletionWriter
