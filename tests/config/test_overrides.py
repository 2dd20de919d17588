"""Overrides as they are typed: what a value says arrives, whatever Hydra's grammar makes of its characters."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import example, given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from memvec.config.compose import compose
from memvec.config.overrides import as_override, as_overrides, quoted
from memvec.errors import ConfigError
from tests.helpers.refusals import refused

PATHS = [
    "part=0/a.jsonl",
    "年度记忆.jsonl",
    "a,b.jsonl",
    "c++/x+y.jsonl",
    "notes#1.txt",
    "my memories (2).jsonl",
    "it's.jsonl",
    'say "hi".jsonl',
    "'a' or 'b'.txt",
    '"a" or "b".txt',
    "back\\slash.txt",
    "back\\",
    "two\\\\",
    "\\'.txt",
    "[ab]*.txt",
    "{a}.txt",
    "a: b.txt",
    "~x.txt",
    "!x;y<z>&|^.txt",
    "%41@x?.txt",
    " padded ",
    "tab\there",
    "7",
    "1e5",
    "true",
    "choice(a,b)",
    "année/ß.jsonl",
    "😺.jsonl",
    "a=",
    "=",
]
OPTIONS = {
    "data.path": "predict",
    "output_dir": "predict",
    "reuse": "predict",
    "data.text_column": "predict",
    "data.id_column": "predict",
    "data.split": "predict",
    "model.name_or_path": "predict",
    "model.revision": "predict",
    "prompt.template": "predict",
    "generation.prompt.template": "generate",
    "data.messages_column": "generate",
    "data.date_column": "generate",
    "query": "search",
    "queries": "evaluate",
    "vectors.delimiter": "extract",
}


def composed(*overrides: str, option: str) -> Any:
    return OmegaConf.select(compose([*overrides], config_name=OPTIONS[option]), option)


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("value", PATHS)
def test_paths_and_texts_arrive_as_they_are_typed(option: str, value: str) -> None:
    typed = as_override(f"{option}={value}")
    (parsed,) = OverridesParser.create().parse_overrides([typed])
    assert (parsed.key_or_group, parsed.value()) == (option, value)


@pytest.mark.parametrize("option", OPTIONS)
def test_a_value_arrives_in_the_configuration(option: str) -> None:
    assert composed(f"{option}=a=b, 年 #1's \\x", option=option) == "a=b, 年 #1's \\x"


@given(value=st.text(min_size=1))
@example(value="\\'")
@example(value="\\\\\\'\\")
def test_any_text_survives_being_quoted(value: str) -> None:
    (parsed,) = OverridesParser.create().parse_overrides([f"query={quoted(value)}"])
    assert parsed.value() == value
    again = as_override(f"query={quoted(value)}")
    assert again == f"query={quoted(value)}"  # a rank is started with what its first process has made of it


@pytest.mark.parametrize("value", ["'a=b'", '"a,b"', "'it\\'s'", "'年'"])
def test_a_value_in_quotes_keeps_them(value: str) -> None:
    assert as_override(f"data.path={value}") == f"data.path={value}"
    assert composed(f"data.path={value}", option="data.path") == value[1:-1].replace("\\'", "'")


@pytest.mark.parametrize(
    ("value", "found"),
    [
        ("[a.jsonl,b.jsonl]", ["a.jsonl", "b.jsonl"]),
        ("[part=0/a.jsonl, 年度.jsonl]", ["part=0/a.jsonl", "年度.jsonl"]),
        ("['a,b','c']", ["a,b", "c"]),
        ("['a,b', it's, \"d\"]", ["a,b", "it's", "d"]),
        ("[]", []),
        ("[7]", ["7"]),
    ],
)
def test_a_list_stays_a_list(value: str, found: list[str]) -> None:
    assert composed(f"data.path={value}", option="data.path") == found


def test_a_question_in_brackets_is_no_list() -> None:
    assert composed("query=[who, what]", option="query") == "[who, what]"


@pytest.mark.parametrize(("typed", "found"), [("null", None), ("", ""), ("auto", "auto")])
def test_null_and_nothing_stay_what_they_are(typed: str, found: Any) -> None:
    assert composed(f"data.id_column={typed}", option="data.id_column") == found


def test_references_still_resolve(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEMORIES", "here/a=1")
    assert composed("data.path=${oc.env:MEMORIES}/年.jsonl", option="data.path") == "here/a=1/年.jsonl"


@pytest.mark.parametrize("sign", ["", "+", "++"])
def test_the_sign_in_front_of_an_override_stays(sign: str) -> None:
    assert as_override(f"{sign}data.path=a=b") == f"{sign}data.path='a=b'"


@pytest.mark.parametrize(
    "argument", ["model.layer=1,2", "trainer.devices=[0,1]", "--config-dir=年", "-m", "data.limit=5"]
)
def test_other_arguments_are_left_alone(argument: str) -> None:
    assert as_override(argument) == argument
    assert as_override(argument, is_sweep=True) == argument


@pytest.mark.parametrize(
    ("value", "choices"),
    [
        ("a.jsonl,b.jsonl", ["a.jsonl", "b.jsonl"]),
        ("part=0/a.jsonl, 年度.jsonl", ["part=0/a.jsonl", "年度.jsonl"]),
        ("'a,b.jsonl',c.jsonl", ["a,b.jsonl", "c.jsonl"]),
        ("'a,b.jsonl'", ["a,b.jsonl"]),
        ("[a=1,b],[c]", [["a=1", "b"], ["c"]]),
        ("choice(a,b)", ["a", "b"]),
        ("one.jsonl", ["one.jsonl"]),
    ],
)
def test_commas_of_a_sweep_separate_its_choices(value: str, choices: list[Any]) -> None:
    typed, _ = as_overrides(["-m", f"data.path={value}"])
    (parsed,) = OverridesParser.create().parse_overrides([typed])
    if not parsed.is_sweep_override():
        assert [parsed.value()] == choices
        return
    found = [
        OverridesParser.create().parse_overrides([f"data.path={one}"])[0] for one in parsed.sweep_string_iterator()
    ]
    assert [one.value() for one in found] == choices


@pytest.mark.parametrize(
    ("typed", "swept"),
    [("Say {text}, please", False), ("Say {text},Sing {text}", True), ("'a, {text}','b {text}'", True)],
)
def test_a_template_of_a_sweep_may_have_commas(typed: str, swept: bool) -> None:
    (parsed,) = OverridesParser.create().parse_overrides([as_override(f"prompt.template={typed}", is_sweep=True)])
    assert parsed.is_sweep_override() is swept


@pytest.mark.parametrize("folder", ["a b", 'say "hi"', "年", "back\\slash"])
def test_the_folder_that_lightning_wraps_is_read(folder: str) -> None:
    (parsed,) = OverridesParser.create().parse_overrides([as_override(f'hydra.run.dir="{folder}"')])
    assert parsed.value() == folder


@pytest.mark.parametrize("override", ["trainer.precision=年", "data.batch_size=a=b", "model.layer=(1", "word", "年=1"])
def test_what_hydra_cannot_read_is_named_with_the_fix(override: str) -> None:
    fix = {"advice": "quotes"} if "=" in override else {"allowed": "NAME=VALUE"}
    with refused(ConfigError, override, **fix) as caught:
        compose([override])
    assert "\n" not in str(caught.value)
    assert "hydra.cc" not in str(caught.value)


@pytest.mark.parametrize(
    ("typed", "read"),
    [
        ("a=1 --config-dir d b=2", "a=1 b=2 --config-dir d"),
        ("-cd d=1 a=1 --cfg job b=2 --resolve", "a=1 b=2 -cd d=1 --cfg job --resolve"),
        ("-m a=1 ~b +c=2", "a=1 ~b +c=2 -m"),
        ("--info a=1", "a=1 --info"),
        ("--info defaults a=1", "a=1 --info defaults"),
        ("--config-dir=d a=1", "a=1 --config-dir=d"),
    ],
)
def test_flags_may_stand_anywhere_between_overrides(typed: str, read: str) -> None:
    assert as_overrides(typed.split()) == read.split()


@pytest.mark.slow
def test_threads_compose_side_by_side() -> None:
    def one(number: int) -> int:
        return int(compose([f"data.batch_size={number}", f"data.path=a={number}"]).data.batch_size)

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(one, range(1, 25))) == list(range(1, 25))
    assert GlobalHydra.instance().hydra is None


def test_a_program_that_runs_under_hydra_keeps_it(tmp_path: Path) -> None:
    from hydra import initialize_config_dir

    with initialize_config_dir(str(tmp_path), version_base="1.3"):
        before = GlobalHydra.instance().hydra
        compose(["data.batch_size=3"])
        assert GlobalHydra.instance().hydra is before
