"""Values of the JSON files that memvec reads back, each of the type that is asked for.

In: a file that may be anybody's. Out: a text, a number or a list of them, by name; never an object that something else
would compose, resolve or build from. Whatever is not asked for is not looked at.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

from memvec.errors import RunFolderError
from memvec.files import read_json

INTEGERS = range(-(2**63), 2**63)

Kind = TypeVar("Kind", str, int, float, bool)
Scalar = str | int | float | bool | None
IN_WORDS: dict[type, str] = {str: "a text", int: "an integer", float: "a number", bool: "true or false"}


@dataclass(frozen=True)
class JsonObject:
    """An object from a JSON file that may be anybody's: a value is taken by its name, and only where it has its type.

    Args:
        path: The file, for messages.
        content: The object.
        place: Its name in the file, for messages; empty for the whole.
    """

    path: Path
    content: dict[str, Any]
    place: str = ""

    @classmethod
    def read(cls, path: Path) -> JsonObject:
        """Reads a file that holds an object.

        Raises:
            RunFolderError: It does not, or cannot be read.
        """
        return cls(path, {}).as_object(read_json(path))

    def has(self, name: str) -> bool:
        """Whether there is a value of a name, which is not null."""
        return self.content.get(name) is not None

    def take(self, name: str, kind: type[Kind]) -> Kind:
        """Returns the value of a name, `a.b` being that of b within a.

        Args:
            name: The value's.
            kind: Its type; an integer is a float too, true is no integer.

        Raises:
            RunFolderError: There is none, or it has another type. A number that is not finite, and a text that a
                configuration would take for a reference (`${…}`), are refused too.
        """
        return self._as(kind, name, self._find(name))

    def take_or(self, name: str, kind: type[Kind]) -> Kind | None:
        """Returns the value of a name as `take` does; None where it is null or missing."""
        return self._as(kind, name, self.content[name]) if self.has(name) else None

    def take_text(self, name: str) -> str:
        """Returns the value of a name in words, be it a text or a number."""
        return str(self.take_any(name))

    def take_any(self, name: str) -> Scalar:
        """Returns the value of a name, be it a text, a number, true, false or null."""
        return self.checked(name, self._find(name))

    def take_objects(self, name: str) -> list[JsonObject]:
        """Returns the list of objects of a name."""
        found = self._find(name)
        if not isinstance(found, list):
            raise self.refusal(name, found, "a list")
        return [self.as_object(value, f"{name}[{position}]") for position, value in enumerate(found)]

    def take_list(self, name: str, kind: type[Kind]) -> list[Kind]:
        """Returns the list of a name, each value as `take` returns it."""
        found = self._find(name)
        if not isinstance(found, list):
            raise self.refusal(name, found, "a list")
        return [self._as(kind, f"{name}[{position}]", value) for position, value in enumerate(found)]

    def take_one_or_list(self, name: str, kind: type[Kind]) -> Kind | list[Kind]:
        """Returns the value of a name, or its list of values, each as `take` returns it."""
        return self.take_list(name, kind) if isinstance(self._find(name), list) else self.take(name, kind)

    def take_columns(self, names: Sequence[str], kind: type[Kind]) -> dict[str, list[Kind]]:
        """Returns the lists of some names, as `take_list` does, all as long as each other."""
        columns = {name: self.take_list(name, kind) for name in names}
        if len({len(column) for column in columns.values()}) > 1:
            raise RunFolderError.damaged(self.path, f"the lists of {self.place} differ in length")
        return columns

    def take_all(self, kind: type[Kind]) -> dict[str, Kind]:
        """Returns all values by their names, each as `take` returns it."""
        return {name: self._as(kind, name, value) for name, value in self.content.items()}

    def within(self, name: str) -> JsonObject:
        """Returns the object of a name."""
        return self.as_object(self._find(name), name)

    def as_object(self, found: Any, name: str = "") -> JsonObject:
        """Returns a value of this file as an object.

        Raises:
            RunFolderError: It is none.
        """
        if not isinstance(found, dict):
            raise self.refusal(name, found, "an object")
        return JsonObject(self.path, found, self._full(name))

    def checked(self, name: str, found: Any) -> Scalar:
        """Returns a value of the file, found by the caller, that is a text, a number, true, false or null.

        Raises:
            RunFolderError: It is none of these, or refused as by `take`.
        """
        if found is None:
            return None
        kind = type(found)
        if kind not in IN_WORDS:
            raise self.refusal(name, found, "a text, a number, true, false or null")
        return cast(Scalar, self._as(kind, name, found))

    def _find(self, name: str) -> Any:
        found = self
        *outer, last = name.split(".")
        for part in outer:
            found = found.within(part)
        if last not in found.content:
            raise RunFolderError.damaged(self.path, f"it has no {found._full(last)}")
        return found.content[last]

    def _as(self, kind: type[Kind], name: str, found: Any) -> Kind:
        value = float(found) if kind is float and type(found) is int and found in INTEGERS else found
        is_right = type(value) is kind
        if isinstance(value, int) and not isinstance(value, bool):
            is_right &= value in INTEGERS
        if isinstance(value, float):
            is_right &= abs(value) < INTEGERS.stop
        if not is_right:
            raise self.refusal(name, found, IN_WORDS[kind])
        if isinstance(value, str) and "${" in value:
            raise self.refusal(name, found, "a text without '${'")
        return cast(Kind, value)

    def refusal(self, name: str, found: Any, allowed: str) -> RunFolderError:
        """Returns the error that says what a value is, and what it should be."""
        kinds: dict[type, str] = {dict: "an object", list: "a list"}
        shown = kinds.get(type(found)) or repr(found)[:80]
        place = self._full(name) or "the content"
        return RunFolderError.damaged(self.path, f"{place} is {shown}", allowed=allowed)

    def _full(self, name: str) -> str:
        return f"{self.place}.{name}".strip(".")
