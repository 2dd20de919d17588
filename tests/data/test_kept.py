"""Names of columns that a result can have beside its own."""

from __future__ import annotations

from typing import Any

import pytest

from memvec.data.kept import names_to_keep
from memvec.errors import ConfigError
from tests.helpers.refusals import refused


@pytest.mark.parametrize(
    ("names", "found"),
    [
        (["text"], "'text' is the name of a result's own column"),
        (["ID"], "'ID' is the name of a result's own column"),
        (["vector_8"], "'vector_8' is the name of a result's own column"),
        (["prompt_digest"], "'prompt_digest' is the name of a result's own column"),
        (["user", "User"], "'user' and 'User' are the same name but for their case"),
    ],
)
def test_names_that_a_result_cannot_have_are_refused(names: list[str], found: str) -> None:
    with refused(ConfigError, "data.keep_columns", found=found):
        names_to_keep(names)


@pytest.mark.parametrize("names", ["user", ["user", ""], [3]])
def test_what_is_no_list_of_names_is_refused(names: Any) -> None:
    with refused(ConfigError, "data.keep_columns", names, allowed="a list of names"):
        names_to_keep(names)


def test_other_names_are_taken_as_they_are() -> None:
    assert names_to_keep(["user", "memory.user", "用户", "vectors"]) == ("user", "memory.user", "用户", "vectors")
