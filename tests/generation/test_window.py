"""Windows hold every message, within the budget, with the overlap that was asked for."""

from __future__ import annotations

import re
from collections.abc import Sequence

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from memvec.generation.transcript import Message, Transcript
from memvec.generation.window import cut_transcript, cut_windows, split_text


def words(texts: Sequence[str]) -> list[list[tuple[int, int]]]:
    """A tokenizer for which every word is a token, and a line break too."""
    return [[match.span() for match in re.finditer(r"\n|[^\s]+", text)] for text in texts]


def count(text: str) -> int:
    return len(words([text])[0])


@given(costs=st.lists(st.integers(1, 10), max_size=40), limit=st.integers(10, 30), overlap=st.integers(0, 5))
def test_every_message_is_in_a_window_within_the_limit(costs: list[int], limit: int, overlap: int) -> None:
    windows = cut_windows(costs, limit=limit, overlap=overlap)
    assert [start for start, _ in windows] == sorted({start for start, _ in windows})
    covered = 0
    for start, end in windows:
        assert start <= covered < end  # nothing is left out, and each window holds something new
        assert covered - start <= overlap
        assert sum(costs[start:end]) <= limit
        covered = end
    assert covered == len(costs)


@pytest.mark.parametrize(
    ("overlap", "expected"),
    [
        (0, [(0, 3), (3, 6), (6, 7)]),
        (1, [(0, 3), (2, 5), (4, 7)]),
        (2, [(0, 3), (1, 4), (2, 5), (3, 6), (4, 7)]),
        (9, [(0, 3), (1, 4), (2, 5), (3, 6), (4, 7)]),
    ],
)
def test_windows_overlap_by_as_many_messages_as_asked_for(overlap: int, expected: list[tuple[int, int]]) -> None:
    assert cut_windows([1] * 7, limit=3, overlap=overlap) == expected


def test_the_overlap_leaves_room_for_a_new_message() -> None:
    assert cut_windows([2, 2, 9, 2], limit=10, overlap=2) == [(0, 2), (2, 3), (3, 4)]


def test_a_conversation_that_fits_is_one_window() -> None:
    assert cut_windows([3, 3, 3], limit=9, overlap=2) == [(0, 3)]
    assert cut_windows([], limit=9, overlap=2) == []


@given(text=st.text(alphabet="ab .。,\n", max_size=200), limit=st.integers(1, 12))
@example(text="\n,a\n\n", limit=1)  # a word is cut, and the next piece ends behind a line break more
def test_the_pieces_of_a_text_are_the_text(text: str, limit: int) -> None:
    spans = words([text])[0]
    pieces = list(split_text(text, spans, limit=limit))
    assert "".join(pieces) == text
    assert all(pieces)
    assert all(count(piece) <= limit + 1 for piece in pieces)  # a word that is cut counts twice


def test_a_long_text_is_cut_behind_a_sentence_or_a_word() -> None:
    text = "one two three. four five six seven eight nine"
    assert list(split_text(text, words([text])[0], limit=4)) == [
        "one two three. ",
        "four five six seven ",
        "eight nine",
    ]
    solid = "x" * 10
    assert list(split_text(solid, [(n, n + 1) for n in range(10)], limit=4)) == ["xxxx", "xxxx", "xx"]


CHAT = Transcript(
    tuple(
        Message(text, speaker) for speaker, text in [("Ann", "a b c"), ("Bob", ""), ("Bob", "d e"), ("Ann", "f g h")]
    ),
    "4 May",
)


def test_a_window_says_which_messages_it_holds_and_who_speaks() -> None:
    windows = list(cut_transcript(CHAT, spans=words, limit=13, overlap=0))
    assert [window.text for window in windows] == ["(4 May)\nAnn: a b c\nBob: d e", "(4 May)\nAnn: f g h"]
    assert [(window.message_start, window.message_end) for window in windows] == [(0, 2), (3, 3)]
    assert [window.speakers for window in windows] == [("Ann", "Bob"), ("Ann",)]


def test_a_long_message_comes_in_pieces_with_its_speaker() -> None:
    long = Transcript(
        (Message("hi", "Ann"), Message(" ".join(f"w{n}" for n in range(30)), "Bob"), Message("bye", "Ann"))
    )
    windows = list(cut_transcript(long, spans=words, limit=12, overlap=1))
    assert all(count(window.text) <= 12 for window in windows)
    assert [(window.message_start, window.message_end) for window in windows] == [
        (0, 0),
        (1, 1),
        (1, 1),
        (1, 1),
        (1, 1),
        (2, 2),
    ]
    middle = [window.text.removeprefix("Bob: ") for window in windows[1:-1]]
    assert " ".join(middle).split() == [f"w{n}" for n in range(30)]
    assert all(window.text.startswith("Bob: ") for window in windows[1:-1])
