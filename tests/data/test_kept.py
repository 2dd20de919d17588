"""Names of columns that a result can have beside its own."""

from __future__ import annotations

from typing import Any

import pytest

from memvec.data.kept import names_to_keep
from memvec.errors import ConfigError


@pytest.mark.parametrize(
    ("names", "said"),
    [
        ("user", r"data\.keep_columns=user: allowed: a list of names"),
        (["user", ""], "allowed: a list of names"),
        ([3], "allowed: a list of names"),
        (["text"], "'text' is the name of a result's own column"),
        (["ID"], "'ID' is the name of a result's own column"),
        (["vector_8"], "'vector_8' is the name of a result's own column"),
        (["prompt_digest"], "'prompt_digest' is the name of a result's own column"),
        (["user", "User"], "'user' and 'User' are the same name but for their case"),
    ],
)
def test_names_that_a_result_cannot_have_are_refused(names: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        names_to_keep(names)


def test_other_names_are_taken_as_they_are() -> None:
    assert names_to_keep(["user", "memory.user", "用户", "vectors"]) == ("user", "memory.user", "用户", "vectors")
