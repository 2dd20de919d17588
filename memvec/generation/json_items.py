"""Finds memories in the JSON, or what was meant to be JSON, of a model's output.

In: a text. Out: the memory texts of every JSON value in it, each with its place, and whether one of them said that
there is nothing.

How: one pass over the tokens of each value that begins at a bracket, with a stack and without recursion, going on
behind where the value ended or stopped being JSON. So a cut value gives what was complete before the cut, a broken one
what was complete before the break, and no output, however hostile, takes more than time in proportion to its length.
Why not `json.loads` at every bracket: it gives nothing of a cut value, takes quadratic time over a row of brackets and
overflows the stack over a deep one.

What counts as a memory: a string in a list; the string under the first of `TEXT_KEYS` that an object has; a string
under a numbered key (`fact1`). Lists under a key of `SIDE_KEYS` are about a memory, not memories.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field

TEXT_KEYS = (
    *("text", "memory", "fact", "content", "statement", "sentence", "description", "summary", "value", "item"),
    *("记忆", "事实", "内容", "文本", "描述"),
)
_SIDE_KEYS = (
    "tags keywords entities topics people persons participants speakers categories category source sources messages "
    "ids dates times context relations 标签 关键词 实体 主题 人物 来源"
)
SIDE_KEYS = frozenset(_SIDE_KEYS.split())
NUMBERED_KEY = re.compile(r"\D{0,20}[ _#-]?\d{1,4}")

# Possessive, so that what has been read is never read again; an unclosed string goes to the end of the text.
BEGINNING = re.compile(r"[\[{](?=\s*+[\[{\"\]}])")
END = re.compile(r"\s*+\Z")
TOKEN = re.compile(
    r"""\s*+(?:
        (?P<string>"(?:[^"\\]++|\\.)*+(?P<closed>")?)
      | (?P<mark>[\[\]{},:])
      | (?P<scalar>-?\d++(?:\.\d++)?(?:[eE][+-]?\d++)?|true|false|null|True|False|None)
    )""",
    re.VERBOSE | re.DOTALL,
)


@dataclass(frozen=True)
class JsonItem:
    """A memory text, and where in the output its string begins."""

    start: int
    text: str


@dataclass
class JsonItems:
    """What the JSON of an output holds.

    Args:
        items: Memory texts, in order.
        is_empty: Whether a value was whole and held an empty list or object and no memory: the model found nothing.
    """

    items: list[JsonItem] = field(default_factory=list)
    is_empty: bool = False


@dataclass
class _Container:
    """A list or object that is open at this point.

    Args:
        is_object: Which of the two.
        holds_memories: Whether strings in it can be memories.
        key: The key whose value comes next, in an object.
        is_filled: Whether anything stands in it.
        candidates: Strings of an object, by key.
    """

    is_object: bool
    holds_memories: bool
    key: str | None = None
    is_filled: bool = False
    candidates: dict[str, JsonItem] = field(default_factory=dict)

    def memories(self) -> list[JsonItem]:
        """Returns the memories of an object: the string under the best key it has, or those under numbered keys."""
        for key in TEXT_KEYS:
            if key in self.candidates:
                return [self.candidates[key]]
        return [item for key, item in self.candidates.items() if NUMBERED_KEY.fullmatch(key)]


def find_json_items(text: str) -> JsonItems:
    """Returns the memories in all JSON values of a text."""
    found = JsonItems()
    at = 0
    while (beginning := BEGINNING.search(text, at)) is not None:
        at = _read_value(text, beginning.start(), found)
    found.items.sort(key=lambda item: item.start)
    return found


def _read_value(text: str, start: int, found: JsonItems) -> int:
    """Reads the value whose bracket stands at `start` and returns where it ends, or stops being JSON."""
    stack: list[_Container] = []
    waiting: JsonItem | None = None  # a string that counts once a mark behind it shows that it was whole
    count, has_empty = len(found.items), False
    at = start
    while True:
        token = TOKEN.match(text, at)
        if token is None:
            _close(stack, waiting if END.match(text, at) else None, found)
            return at
        at = token.end()
        mark = token["mark"]
        if mark is None:
            is_text = token["string"] is not None
            if waiting is not None or (is_text and token["closed"] is None):
                _close(stack, None, found)
                return at
            waiting = JsonItem(token.start("string"), _decode(token["string"]) or "") if is_text else None
            stack[-1].is_filled = True
            continue
        if mark == ":":
            if waiting is None or not stack[-1].is_object:
                _close(stack, None, found)
                return at
            stack[-1].key, waiting = waiting.text.strip().casefold(), None
            continue
        if waiting is not None:
            _take(stack[-1], waiting, found)
            waiting = None
        if mark in "[{":
            if stack:
                stack[-1].is_filled = True
            stack.append(_Container(mark == "{", _holds_memories(stack[-1]) if stack else True))
        elif mark in "]}":
            container = stack.pop()
            has_empty = has_empty or (container.holds_memories and not container.is_filled)
            if container.holds_memories:
                found.items.extend(container.memories())
            if not stack:
                found.is_empty = found.is_empty or (has_empty and len(found.items) == count)
                return at
        elif mark == ",":
            stack[-1].key = None


def _holds_memories(parent: _Container) -> bool:
    return parent.holds_memories and (not parent.is_object or parent.key not in SIDE_KEYS)


def _take(container: _Container, item: JsonItem, found: JsonItems) -> None:
    if not container.holds_memories:
        return
    if not container.is_object:
        found.items.append(item)
    elif container.key is not None:
        container.candidates.setdefault(container.key, item)


def _close(stack: list[_Container], waiting: JsonItem | None, found: JsonItems) -> None:
    """Keeps what is complete of the containers that are still open."""
    if waiting is not None and stack and (not stack[-1].is_object or stack[-1].key is not None):
        _take(stack[-1], waiting, found)
    for container in stack:
        if container.holds_memories:
            found.items.extend(container.memories())


def _decode(string: str) -> str | None:
    """Returns what a JSON string spells, or None where it spells nothing."""
    for spelling in (string, string.replace("\\'", "'")):  # an escape that models write and JSON does not know
        try:
            decoded = json.loads(spelling, strict=False)
        except ValueError:
            continue
        return str(decoded)
    return None
