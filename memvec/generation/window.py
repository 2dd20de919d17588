"""Cuts conversations into windows that fit into the model's context.

In: the tokens of each message. Out: windows of messages, each within a number of tokens, the next one beginning a few
messages before the last one's end, so that what is said across a cut stands in one of them whole.

A cut never goes through a message, unless a message alone is longer than a window: then it is cut into pieces at the
end of a sentence or word, each a window of its own. Nothing is left out.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from memvec.generation.transcript import Message, Transcript

Span = tuple[int, int]

# Where a long text may be cut, best first: behind a sentence, behind a word.
SENTENCE_END = re.compile(r"[.!?][\"'”’)]?\s|[。！？；]|\n")
WORD_END = re.compile(r"\s|[，,、；;]")
# About a token each: up to six letters with the space before them, up to three digits, any other character.
PIECE = re.compile(r"\s?[^\W\d_\u0250-\U0010ffff]{1,6}|\s?\d{1,3}|\s?\S|\s")
# A text cut in two may have a token more on either side of the cut.
TOKENS_AT_A_CUT = 2
# How much of a piece may be given up for a better cut.
SHARE_TO_SEARCH = 0.5


@dataclass(frozen=True)
class Window:
    """A piece of a conversation.

    Args:
        text: As the model reads it: the date, where there is one, and a line a message.
        message_start: Its first message, from 0.
        message_end: Its last message, which belongs to it.
        speakers: Who speaks in it.
    """

    text: str
    message_start: int
    message_end: int
    speakers: tuple[str, ...]


def cut_transcript(
    transcript: Transcript, *, spans: Callable[[Sequence[str]], list[list[Span]]], limit: int, overlap: int
) -> Iterator[Window]:
    """Yields the windows of a conversation.

    Args:
        transcript: The conversation; messages without words are passed over and keep their numbers.
        spans: Returns where the tokens of each text stand; `PromptEncoder.spans`.
        limit: Most tokens in a window.
        overlap: Messages that neighbouring windows have in common.
    """
    head = f"({transcript.date})\n" if transcript.date is not None else ""
    room = max(1, limit - len(spans([head])[0]))
    pieces = list(_pieces(transcript, spans=spans, limit=room))
    costs = [cost for _, _, cost in pieces]
    for start, end in cut_windows(costs, limit=room, overlap=overlap):
        numbers = [number for number, _, _ in pieces[start:end]]
        messages = [message for _, message, _ in pieces[start:end]]
        speakers = dict.fromkeys(message.speaker for message in messages if message.speaker is not None)
        text = head + "\n".join(message.render() for message in messages)
        yield Window(text, numbers[0], numbers[-1], tuple(speakers))


def _pieces(
    transcript: Transcript, *, spans: Callable[[Sequence[str]], list[list[Span]]], limit: int
) -> Iterator[tuple[int, Message, int]]:
    """Yields number, message and tokens of each message with words; one that is too long comes in several pieces."""
    spoken = [(number, message) for number, message in enumerate(transcript.messages) if message.text]
    lines = spans([f"{message.render()}\n" for _, message in spoken])
    for (number, message), line in zip(spoken, lines, strict=True):
        if len(line) <= limit:
            yield number, message, len(line)
            continue
        name = Message("", message.speaker).render()
        room = max(1, limit - len(spans([f"{name}\n"])[0]) - TOKENS_AT_A_CUT)
        for text in split_text(message.text, spans([message.text])[0], limit=room):
            yield number, Message(text.strip(), message.speaker), limit


def cut_windows(costs: Sequence[int], *, limit: int, overlap: int) -> list[Span]:
    """Cuts a row of messages into windows.

    Args:
        costs: Tokens of each message, each at most `limit`.
        limit: Most tokens in a window.
        overlap: Messages that a window has in common with the one before; fewer where they leave no room for a new one.

    Returns:
        `(start, end)` of each window, end not included: every message is in one, in order.
    """
    windows: list[Span] = []
    start = end = tokens = 0
    while end < len(costs):
        while tokens + costs[end] > limit and start < end:  # only in what overlaps: a new message must come in
            tokens -= costs[start]
            start += 1
        while end < len(costs) and (tokens + costs[end] <= limit or start == end):
            tokens += costs[end]
            end += 1
        windows.append((start, end))
        start = max(start + 1, end - overlap)
        tokens = sum(costs[start:end])
    return windows


def estimated_spans(texts: Sequence[str]) -> list[list[Span]]:
    """Returns where the tokens of texts may stand, in characters, for a model whose tokenizer is not at hand.

    A Chinese character counts as one. Of English dialogue these are a tenth more than the tokens there really are.
    """
    return [[piece.span() for piece in PIECE.finditer(text)] for text in texts]


def split_text(text: str, spans: Sequence[Span], *, limit: int) -> Iterator[str]:
    """Yields a text in pieces of at most `limit` tokens, which put together are the text.

    Args:
        text: The text.
        spans: Where each of its tokens stands, in characters.
        limit: Most tokens in a piece.
    """
    at = token = 0
    while len(spans) - token > limit:
        furthest = max(spans[token + limit - 1][1], at + 1)
        earliest = furthest - int((furthest - at) * SHARE_TO_SEARCH)
        ends = (_last_end(pattern, text, earliest, furthest + 1) for pattern in (SENTENCE_END, WORD_END))
        cut = next((end for end in ends if end is not None), furthest)
        yield text[at:cut]
        while token < len(spans) and spans[token][1] <= cut:  # what is left of a token that is cut counts again
            token += 1
        at = cut
    if at < len(text):
        yield text[at:]


def _last_end(pattern: re.Pattern[str], text: str, start: int, end: int) -> int | None:
    """Returns where the pattern last ends between two places."""
    ends = [match.end() for match in pattern.finditer(text, start, end)]
    return ends[-1] if ends else None
