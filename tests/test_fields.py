"""Values of a JSON file that may be anybody's: each of the type that is asked for, or one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from memvec.errors import RunFolderError
from memvec.fields import JsonObject
from memvec.files import write_json
from tests.helpers.refusals import refused, refused_as


@pytest.fixture
def content(tmp_path: Path) -> JsonObject:
    write_json(
        tmp_path / "a.json",
        {
            **{"text": "tea", "count": 3, "share": 0.5, "flag": True, "none": None, "list": [1, 2], "mixed": [1, "a"]},
            **{"inner": {"deep": {"text": "x"}}, "objects": [{"a": 1}], "reference": "${oc.env:HOME}"},
            **{"nan": float("nan"), "huge": 10**400, "infinite": 1e999, "numbers": {"a": 1, "b": 2}},
            **{"columns": {"x": [1, 2], "y": [3]}},
        },
    )
    return JsonObject.read(tmp_path / "a.json")


def test_values_are_taken_by_name_and_type(content: JsonObject) -> None:
    assert content.take("text", str) == "tea"
    assert content.take("count", int) == 3
    assert content.take("count", float) == 3.0
    assert content.take("flag", bool) is True
    assert content.take("inner.deep.text", str) == "x"
    assert content.take_or("none", str) is None
    assert content.take_or("missing", str) is None
    assert content.take_list("list", int) == [1, 2]
    assert content.take_text("count") == "3"
    assert content.within("numbers").take_all(int) == {"a": 1, "b": 2}
    assert [one.take("a", int) for one in content.take_objects("objects")] == [1]


@pytest.mark.parametrize(
    ("name", "kind", "found", "allowed"),
    [
        ("text", int, "text is 'tea'", "an integer"),
        ("flag", int, "flag is True", "an integer"),
        ("count", str, "count is 3", "a text"),
        ("count", bool, "count is 3", "true or false"),
        ("share", int, "share is 0.5", "an integer"),
        ("none", str, "none is None", "a text"),
        ("inner", str, "inner is an object", "a text"),
        ("list", str, "list is a list", "a text"),
        ("nan", float, "nan is nan", "a number"),
        ("infinite", float, "infinite is inf", "a number"),
        ("huge", int, "huge is 1000", "an integer"),
        ("huge", float, "huge is 1000", "a number"),
        ("reference", str, "reference is '${oc.env:HOME}'", "a text without"),
        ("missing", str, "it has no missing", ""),
        ("inner.deep.missing", str, "it has no inner.deep.missing", ""),
        ("text.deep", str, "text is 'tea'", "an object"),
    ],
)
def test_a_value_of_another_type_names_file_and_place(
    name: str, kind: Any, found: str, allowed: str, content: JsonObject
) -> None:
    with refused_as(RunFolderError.damaged("a.json", found, allowed=allowed)):
        content.take(name, kind)


def test_lists_and_objects_are_checked_within(content: JsonObject) -> None:
    for use, found, allowed in (
        (lambda: content.take_list("mixed", int), "mixed[1] is 'a'", "an integer"),
        (lambda: content.take_list("text", str), "text is 'tea'", "a list"),
        (lambda: content.take_objects("list"), "list[0] is 1", "an object"),
        (lambda: content.within("inner").take_all(str), "inner.deep is an object", "a text"),
        (lambda: content.take_any("inner"), "inner is an object", "a text, a number"),
        (lambda: content.within("columns").take_columns(("x", "y"), int), "the lists of columns differ in length", ""),
    ):
        with refused_as(RunFolderError.damaged("a.json", found, allowed=allowed)):
            use()


def test_a_file_that_holds_no_object_is_one_line(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", [1])
    with refused(RunFolderError, "a.json", found="the content is a list", allowed="an object"):
        JsonObject.read(tmp_path / "a.json")
