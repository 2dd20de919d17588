"""Reads the memories out of what a model has written.

In: one output. Out: its memory texts, or that the model found nothing to remember, or that it could not be understood,
which is another thing and is counted and tried again as such.

How: reasoning blocks are taken out, tagged sections are looked into, and what is left is read as JSON, as a bulleted or
numbered list, or as one entry a line, in that order; the first way that gives anything is taken. Echoes of the prompt,
duplicates, headings and chatter are left out. A text is taken as it stands (white space is evened out, JSON strings are
unescaped): nothing is ever put together from pieces. Everything is a single pass with patterns that never read anything
twice, so no output takes more time than in proportion to its length, and no output raises.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum

from memvec.data.validation import lone_surrogate
from memvec.generation.echoes import PromptContent, letters, spoken
from memvec.generation.json_items import find_json_items


class Outcome(Enum):
    """What an output came to. The numbers stand in the journal."""

    MEMORIES = 0
    NOTHING = 1
    UNPARSEABLE = 2


@dataclass(frozen=True)
class Parsed:
    """An output, read.

    Args:
        outcome: What it came to.
        memories: Its memory texts, in order; empty unless the outcome is `MEMORIES`.
        reason: Why it could not be understood; None where it could.
    """

    outcome: Outcome
    memories: tuple[str, ...] = ()
    reason: str | None = None


@dataclass(frozen=True)
class _Line:
    """An entry of one or more lines of the output.

    Args:
        text: The lines, one below the other.
        is_last: Whether the output ends with it, in the middle of a line.
    """

    text: str
    is_last: bool


REASONING = re.compile(r"<(/?)(think|thinking|thought|reasoning|reflection)>", re.IGNORECASE)
SECTION = re.compile(r"<(/?)(memories|facts|answer|output|results?|entries|items|list|final)>", re.IGNORECASE)
TAGGED = re.compile(r"<(/?)(memory|fact|item|entry|li)>", re.IGNORECASE)
MARKER = re.compile(
    r"""\s*+(?:
        [-*+–—](?=\s|\*\*) | [•·‣◦●○▪■□➢▶→－＊]          # bullets
      | [(（\[]?\d{1,3}[)）\].．、](?!\d)                  # 1. 1) (1) [1] 1、
      | \d{1,3}[:：](?=\s)
      | [\u2460-\u2473\u2776-\u277f]                       # ① ❶
      | [(（]?[一二三四五六七八九十]{1,3}[)）、]
      | (?:\*\*)?(?:fact|memory|item|entry|事实|记忆|条目)\s?[#＃]?\s?\d{1,3}\s?[:：.)-](?:\*\*)?
    )\s*+(?:\[[\ xX]\]\s)?""",
    re.VERBOSE | re.IGNORECASE,
)
INLINE_NUMBER = re.compile(r"(?:(?<=[.。!！?？;；])|(?<=\s))(\d{1,3})[.)．、]\s?(?=\D)")
FENCE = re.compile(r"(?:```|~~~)\s*+\w*+")
MARKUP = re.compile(r"#{1,6}\s.*|\*\*[^*]*\*\*|</?[\w|]{1,30}>|<\|\w{1,30}\|>|[-*_=~`|\s]*+", re.DOTALL)
CHATTER = re.compile(
    r"sure\b|certainly\b|of course\b|okay\b|ok\b|here(?:'s|’s| is| are)\b|below (?:is|are)\b|the following\b|"
    r"based on\b|let me\b|i hope\b|i(?:'ve| have) (?:read|extracted|listed|identified|noted)\b|"
    r"i (?:can(?:no|')t|am unable to|won't) (?:help|assist|do|provide|fulfil|extract|find|comply)|"
    r"i'm sorry|sorry\b|as an ai\b|note:|please\b|in (?:summary|conclusion)\b|these are\b|"
    r"(?:the|this) (?:conversation|dialogue)\b|"
    r"好的|当然[，,！!。]|以下(?:是|为)|下面(?:是|为)|根据(?:以上|上述|这段|该|对话|您|你)|希望(?:这|以上|对)|"
    r"如有|如需|如果[您你](?:还|有|需)|总结|总之|综上|抱歉|对不起|作为(?:一个|一名)?(?:AI|人工智能|语言模型)|"
    r"(?:这段|该|以上)对话|请(?:注意|告诉|提供|问)",
    re.IGNORECASE,
)
SEPARATORS = " ,，;；、"
WRAPPERS = (('"', '"'), ("“", "”"), ("‘", "’"), ("'", "'"), ("「", "」"), ("`", "`"))
ENDS_SENTENCE = tuple(".!?。！？…\"”’'」)）]】")
ENDS_HEADING = (":", "：")

NEGATIONS = frozenset(["no", "nothing", "none", "null", "nil", "na", "empty"])
_BESIDE_NEGATIONS = (
    "there a is are was were new relevant specific personal significant important useful notable noteworthy particular "
    "clear lasting fact facts memory memories information info detail details thing things item items entry entries "
    "to remember remembering worth worthwhile memorable be remembered recorded recording saved extracted extract found "
    "find about in of from that the this here conversation dialogue text them people users user speakers it"
)
NOTHING_WORDS = NEGATIONS | frozenset(_BESIDE_NEGATIONS.split())
NOTHING_ZH = re.compile(
    r"(?:这段|该|此|本|在)?(?:对话|会话|文本|内容)?(?:中|里)?(?:并?没有|暂?无|無|沒有|未发现|没有发现|空)"
    r"(?:任何|什么|需要|需|值得|可以|可供|可|要|应该|应|被|的|记住|记忆|记录|保存|提取|信息|内容|事实|事项|东西|了|明确|具体|重要|新|个人){0,12}+"
)


def parse(output: str, *, is_cut: bool = False, prompt: PromptContent | None = None) -> Parsed:
    """Reads one output.

    Args:
        output: What the model wrote.
        is_cut: Whether it was stopped before it came to its end; then its last item counts only if it was finished.
        prompt: What the model was given, to tell echoes by.
    """
    parts = [part for part in _without_reasoning(output) if part.strip()]
    if not parts:
        return Parsed(Outcome.UNPARSEABLE, reason="only reasoning" if output.strip() else "the output is empty")
    prompt = prompt or PromptContent()
    memories: dict[str, str] = {}  # by their letters, so that each comes once
    says_nothing = has_echoes = False
    for number, part in enumerate(parts):
        items, is_empty = _read(part, is_cut=is_cut and number == len(parts) - 1, prompt=prompt)
        says_nothing = says_nothing or is_empty
        for item in map(_tidy, items):
            if _says_nothing(item):
                says_nothing = True
            elif not _is_text(item) or item in prompt.speakers:
                continue
            elif prompt.echo(item):
                has_echoes = True
            else:
                memories.setdefault(letters(item), item)
    if memories:
        return Parsed(Outcome.MEMORIES, tuple(memories.values()))
    if says_nothing:
        return Parsed(Outcome.NOTHING)
    reason = "nothing but echoes of the prompt" if has_echoes else "neither JSON nor a list nor lines of memories"
    return Parsed(Outcome.UNPARSEABLE, reason=reason)


def _without_reasoning(output: str) -> Iterator[str]:
    """Yields what stands outside of reasoning blocks; one that is not closed goes to the end.

    A closing tag before any opening one ends a block that the prompt has opened, as some chat templates do.
    """
    tags = list(REASONING.finditer(output))
    at = tags[0].end() if tags and tags[0][1] else 0
    inside: str | None = None
    for tag in tags:
        name = tag[2].lower()
        if inside is None and not tag[1]:
            yield output[at : tag.start()]
            inside = name
        elif inside == name and tag[1]:
            at, inside = tag.end(), None
    if inside is None:
        yield output[at:]


def _read(text: str, *, is_cut: bool, prompt: PromptContent) -> tuple[list[str], bool]:
    """Reads a part of an output: candidates for memories, and whether it holds an empty list or section instead."""
    if tagged := _between(TAGGED, text):
        return tagged, False
    sections = _between(SECTION, text, is_open_to_end=True)
    if sections and not is_cut and not any(map(str.strip, sections)):
        return [], True
    sections = sections or [text]
    items: list[str] = []
    is_empty = False
    for section in sections:
        found, empty = _read_plain(section, is_cut=is_cut and section is sections[-1], prompt=prompt)
        items += found
        is_empty = is_empty or empty
    return items, is_empty


def _read_plain(text: str, *, is_cut: bool, prompt: PromptContent) -> tuple[list[str], bool]:
    """Reads a text without tags in the first way that gives anything."""
    found = find_json_items(text)
    quoted = [item.text for item in found.items]
    lines = [line for line in _lines(text) if not FENCE.fullmatch(line.text.strip())]
    listed = [entry for entry in _finished(_list_entries(lines), is_cut=is_cut) if not entry.startswith(("[", "{"))]
    # A list whose items quote something in brackets is a list, and a list of brackets is JSON.
    if quoted and 2 * sum(map(len, quoted)) >= sum(map(len, listed)):
        return quoted, False
    if listed:
        return listed, False
    plain = [line for line in _finished(lines, is_cut=is_cut) if _is_entry(line, prompt)]
    return plain, found.is_empty


def _is_entry(line: str, prompt: PromptContent) -> bool:
    """Whether a line without any marker can be an entry: not markup, not chatter, not dialogue, not a single word."""
    if MARKUP.fullmatch(line) or CHATTER.match(line) or spoken(line, prompt.speakers) is not None:
        return False
    return not line.isascii() or " " in line or _says_nothing(line)


def _between(tags: re.Pattern[str], text: str, *, is_open_to_end: bool = False) -> list[str]:
    """Returns what stands between tags; the last one need not be closed where `is_open_to_end`."""
    inside: list[str] = []
    start: int | None = None
    for tag in tags.finditer(text):
        if not tag[1]:
            start = tag.end()
        elif start is not None:
            inside.append(text[start : tag.start()])
            start = None
    if start is not None and is_open_to_end:
        inside.append(text[start:])
    return inside


def _lines(text: str) -> list[_Line]:
    """Returns the lines; the last one ends the output in its middle unless a line break stands behind it."""
    lines = text.splitlines()
    is_open = bool(lines) and text.endswith(lines[-1])
    return [_Line(line, is_open and number == len(lines) - 1) for number, line in enumerate(lines)]


def _list_entries(lines: list[_Line]) -> list[_Line]:
    """Returns the entries of bulleted and numbered lists; an indented line right below an entry belongs to it."""
    entries: list[_Line] = []
    goes_on = False
    for line in lines:
        if (marker := MARKER.match(line.text)) is not None:
            rest = line.text[marker.end() :]
            if (inner := MARKER.match(rest)) is not None:  # "- 1. likes tea"
                rest = rest[inner.end() :]
            *firsts, last = _split_numbers(rest)
            entries += [*(_Line(first, is_last=False) for first in firsts), _Line(last, line.is_last)]
            goes_on = True
        elif goes_on and line.text[:2].isspace() and line.text.strip():
            entries[-1] = _Line(f"{entries[-1].text}\n{line.text}", line.is_last)
        else:
            goes_on = False
    return entries


def _split_numbers(line: str) -> list[str]:
    """Splits `likes tea. 2. lives in Lyon. 3. …`, as long as the numbers go up by one."""
    starts, ends = [0], []
    expected: int | None = None
    for number in INLINE_NUMBER.finditer(line):
        if expected is None or int(number[1]) == expected:
            expected = int(number[1]) + 1
            ends.append(number.start())
            starts.append(number.end())
    if len(starts) < 3:  # a single number is more likely a part of the sentence
        return [line]
    return [line[start:end] for start, end in zip(starts, [*ends, len(line)], strict=True)]


def _finished(lines: list[_Line], *, is_cut: bool) -> list[str]:
    """Returns the lines' texts, but for the one that a cut output ends with, unless it ends as a sentence does."""
    texts = [(line, line.text.strip()) for line in lines]
    return [text for line, text in texts if not (is_cut and line.is_last) or text.endswith(ENDS_SENTENCE)]


def _tidy(item: str) -> str:
    """Returns an item with even white space, without the quotes or stars around it and what separated it."""
    item = " ".join(item.split()).rstrip(SEPARATORS)
    for opening, closing in WRAPPERS:
        if len(item) > 2 and item[0] == opening and item[-1] == closing and item.count(opening) <= 2:
            return item[1:-1].strip()
    if item.startswith("**") and item.endswith("**") and item.count("**") == 2:
        return item[2:-2].strip()
    return item


def _is_text(item: str) -> bool:
    """Whether an item can be a memory: a word at least, not a heading, and Unicode."""
    if item.endswith(ENDS_HEADING) or item.startswith(("[", "{")) or MARKUP.fullmatch(item):
        return False
    return len(letters(item)) > (2 if item.isascii() else 1) and lone_surrogate(item) is None


def _says_nothing(item: str) -> bool:
    """Whether an item says that there is nothing to remember."""
    if not item.isascii():
        return NOTHING_ZH.fullmatch(item.strip(" 。.!！“”\"'*()（）[]")) is not None
    words = re.findall(r"[a-z]+", item.casefold().replace("n/a", "na"))
    begins = words[:1] == ["there"] or not NEGATIONS.isdisjoint(words[:1])
    return begins and len(words) <= 16 and NOTHING_WORDS.issuperset(words) and not NEGATIONS.isdisjoint(words)
