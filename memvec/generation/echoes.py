"""Tells a memory from what a model repeats of its prompt.

In: what the prompt held (instructions, example, conversation) and an item of the output. Out: whether the item is only
an echo, or carries the conversation on instead of saying something about it.

How: texts are compared by their letters and digits alone, so that quotes, dashes and case do not hide an echo. A line
of the instructions or a whole message is an echo at any length; a piece of them only where it is too long to be the
same by accident. What a weak model makes of the example's people in the middle of another conversation is told by the
example's own words (`example_words` in conf/generation): an item with one of them that its conversation lacks.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

# Letters and digits from which on a piece of the prompt is its own, not a phrase that anybody would use. Chinese says
# in one character what takes three letters.
LONGEST_COMMON_PHRASE = 40
LONGEST_COMMON_PHRASE_ZH = 14
SPEAKER_MARKS = (":", "：")
# What people say to each other, and nobody writes about a third person. `Jon: owns a shop` may well be a memory.
SPEECH = re.compile(r"[!?！？我你您咱]|\b(?:i|me|my|we|our|you|your|let['’]s)\b", re.IGNORECASE)


def letters(text: str) -> str:
    """Returns a text's letters and digits in lower case, nothing else."""
    return "".join(filter(str.isalnum, text.casefold()))


def spoken(item: str, speakers: Iterable[str]) -> str | None:
    """Returns what stands behind the speaker's name in a line such as `Jon: Hi!`, or None where none begins it."""
    starts = (f"{speaker}{mark}" for speaker in speakers for mark in SPEAKER_MARKS)
    return next((item[len(start) :] for start in starts if item.startswith(start)), None)


def carries_on(item: str, speakers: Iterable[str]) -> bool:
    """Whether an item is something that a speaker says, such as `Jon: Thanks! See you on Monday.`."""
    return SPEECH.search(spoken(item, speakers) or "") is not None


@dataclass(frozen=True)
class Instructions:
    """The part of the prompt that is the same for all conversations.

    Args:
        text: Instructions and examples, as the model reads them.
        example_words: Words of the examples, names above all, that no other conversation holds by accident.
    """

    text: str = ""
    example_words: Sequence[str] = ()

    @cached_property
    def all_letters(self) -> str:
        """The letters of the whole."""
        return letters(self.text)

    @cached_property
    def line_letters(self) -> frozenset[str]:
        """The letters of each line."""
        return frozenset(map(letters, self.text.splitlines()))


@dataclass(frozen=True)
class PromptContent:
    """What the model was given to read.

    Args:
        instructions: The part that is the same for all conversations.
        transcript: The conversation, a line a message.
        speakers: Who speaks in it; none in a document, whose sentences may well be memories as they stand.
    """

    instructions: Instructions = Instructions()
    transcript: str = ""
    speakers: Sequence[str] = ()

    def echo(self, item: str) -> bool:
        """Whether an item of the output is an echo of the prompt."""
        found = letters(item)
        if found in self.instructions.line_letters or self._is_piece(found, item, self.instructions.all_letters):
            return True
        if any(word in item and word not in self.transcript for word in self.instructions.example_words):
            return True
        if not self.speakers:
            return False
        if carries_on(item, self.speakers):
            return True
        return found in self._message_letters or self._is_piece(found, item, self._transcript_letters)

    def _is_piece(self, found: str, item: str, whole: str) -> bool:
        shortest = LONGEST_COMMON_PHRASE if item.isascii() else LONGEST_COMMON_PHRASE_ZH
        return len(found) > shortest and found in whole

    @cached_property
    def _transcript_letters(self) -> str:
        return letters(self.transcript)

    @cached_property
    def _message_letters(self) -> frozenset[str]:
        """The letters of each line, with its speaker and without."""
        lines = self.transcript.splitlines()
        unspoken = (line.removeprefix(speaker).lstrip(":： ") for line in lines for speaker in self.speakers)
        return frozenset(map(letters, lines)) | frozenset(map(letters, unspoken))
