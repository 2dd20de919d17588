"""What memvec says is one line that steers no terminal, whatever the names in it hold; its errors keep it as fields."""

from __future__ import annotations

import copy
import io
import json
import logging
import pickle
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from memvec.errors import (
    UNSET,
    ConfigError,
    ExtraError,
    InputError,
    Interrupted,
    MemvecError,
    ModelError,
    OneLineFormatter,
    RankError,
    RunFolderError,
    ServerError,
    WriterError,
    json_on_one_line,
    one_line,
)

FORGED = "a\x1b[2J\nmemvec: all good\u2028b\u202ec\x9bd\ud800"
ESCAPED = "a\\x1b[2J\\nmemvec: all good\\u2028b\\u202ec\\x9bd\\ud800"


KINDS = [ConfigError, ExtraError, InputError, ModelError, RankError, RunFolderError, ServerError, WriterError]
ADDRESS = "https://me:word@host/a?key=secret"


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ConfigError("data.batch_size", 0, allowed="1 or more"), "data.batch_size=0: allowed: 1 or more"),
        (ConfigError("writer.fsync", None, allowed=("flush", "close")), "writer.fsync=None: allowed: flush, close"),
        (ConfigError("prompt.template", "a b", found="no text"), "prompt.template='a b': no text"),
        (ConfigError("data.path", "", allowed="a file"), "data.path='': allowed: a file"),
        (ConfigError("data.delimiter", "\t\t", found="two"), r"data.delimiter='\t\t': two"),
        (InputError(Path("a.jsonl"), found="no text", advice="set it"), "a.jsonl: no text; set it"),
        (ModelError("a", found="b", allowed="c", advice="d"), "a: b; allowed: c; d"),
        (RunFolderError.damaged("a", "b is 1", allowed="2"), "a: damaged, or not of memvec: b is 1; allowed: 2"),
        (WriterError(found="the first 8 vectors hold NaN"), "the first 8 vectors hold NaN"),
        (MemvecError("it is all said"), "it is all said"),
        (Interrupted(signal.SIGTERM), "stopped by SIGTERM"),
    ],
)
def test_a_message_is_made_of_its_fields(error: MemvecError, line: str) -> None:
    assert str(error) == line
    assert repr(error) == f"{type(error).__name__}({line!r})"


@pytest.mark.parametrize("field", ["subject", "value", "found", "allowed", "advice"])
def test_a_message_is_one_line_without_secrets(field: str) -> None:
    assert ESCAPED in str(MemvecError(**{"subject": "a", field: FORGED}))
    error = InputError(**{"subject": "a", field: f"{ADDRESS}"})
    assert "https://…@host/a?…" in str(error)
    assert "word" not in f"{error} {error!r}"
    assert "secret" not in f"{error} {error!r}"
    assert getattr(error, field) == ADDRESS


def test_a_message_within_a_message_stays_as_it_is() -> None:
    assert str(InputError(FORGED)) == ESCAPED
    assert str(InputError(str(InputError(FORGED)), found="and more")) == f"{ESCAPED}: and more"


def test_advice_can_be_added() -> None:
    error = Interrupted(signal.SIGINT)
    error.advise("start again")
    error.advise("or wait")
    assert str(error) == "stopped by SIGINT; start again; or wait"


def pickled(error: MemvecError) -> Any:
    return pickle.loads(pickle.dumps(error))


@pytest.mark.parametrize("again", [pickled, copy.copy, copy.deepcopy])
@pytest.mark.parametrize("kind", [MemvecError, *KINDS])
@pytest.mark.parametrize("value", [UNSET, None, [1, "a"]])
def test_errors_travel_with_their_fields(
    kind: type[MemvecError], value: Any, again: Callable[[MemvecError], MemvecError]
) -> None:
    error = kind(Path("a"), value, found="b", allowed=["c", 1], advice="d")
    error.add_note("e")
    other = again(error)
    assert type(other) is kind
    assert vars(other) == vars(error)
    assert (str(other), repr(other), other.exit_code) == (str(error), repr(error), error.exit_code)
    assert (other.value is UNSET) is (value is UNSET)


@pytest.mark.parametrize("again", [pickled, copy.copy, copy.deepcopy])
def test_an_interruption_travels_with_its_exit_code(again: Callable[[MemvecError], MemvecError]) -> None:
    other = again(Interrupted(signal.SIGTERM))
    assert (str(other), other.exit_code) == ("stopped by SIGTERM", 143)


def test_of_another_error_the_first_line_is_shown() -> None:
    assert one_line(OSError("a\x1b[2J\nb")) == "a\\x1b[2J"
    assert one_line(OSError()) == "OSError"


def test_a_log_record_is_one_line_and_its_traceback_has_its_own() -> None:
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(OneLineFormatter("%(name)s: %(message)s"))
    logger = logging.getLogger("memvec.of_this_test")
    logger.addHandler(handler)
    logger.propagate = False
    try:
        logger.warning("%s: cannot be read", FORGED)
        try:
            raise ValueError("x")
        except ValueError:
            logger.exception("failed")
    finally:
        logger.removeHandler(handler)
    first, second, *traceback = stream.getvalue().splitlines()
    assert first == f"memvec.of_this_test: {ESCAPED}: cannot be read"
    assert second == "memvec.of_this_test: failed"
    assert traceback[-1] == "ValueError: x"


def test_json_on_one_line_reads_back_the_same() -> None:
    content = {FORGED: [FORGED, "\U000e0001", "爱喝茶 😺", "\x7f", 1.5, None]}
    line = json_on_one_line(content)
    assert line.isprintable()
    assert json.loads(line) == content
    assert "爱喝茶 😺" in line
    assert r"\u009b" in line
    with pytest.raises(ValueError, match="JSON"):
        json_on_one_line(float("nan"))
