"""What memvec says is one line that steers no terminal, whatever the names in it hold."""

from __future__ import annotations

import io
import json
import logging

import pytest

from memvec.errors import InputError, MemvecError, OneLineFormatter, json_on_one_line, one_line

FORGED = "a\x1b[2J\nmemvec: all good\u2028b\u202ec\x9bd\ud800"
ESCAPED = "a\\x1b[2J\\nmemvec: all good\\u2028b\\u202ec\\x9bd\\ud800"


@pytest.mark.parametrize("kind", [MemvecError, InputError])
def test_a_message_is_one_line(kind: type[MemvecError]) -> None:
    assert str(kind(FORGED)) == ESCAPED
    assert f"{kind(f'{kind(FORGED)}; and more')}" == f"{ESCAPED}; and more"


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
