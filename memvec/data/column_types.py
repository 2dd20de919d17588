"""The one type of a column: of values as a row holds them, and of batches of them.

In: values of JSON, CSV or Arrow as Python has them, or their Arrow types. Out: the type that all have in common.

How: Arrow infers and promotes (null and anything, integers and floats, objects with other fields, at any depth). What
it refuses has no type in common, and is refused here with the value at which it comes to that: any guess, such as
strings for all, would change some of the values.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pyarrow as pa

from memvec.data.validation import lone_surrogate

DEEPEST = 16  # objects and lists within each other
# Those that a column of inferred type can hold, and those that one of declared type can.
SIGNED, ANY_SIGN = range(-(2**63), 2**63), range(-(2**63), 2**64)
BYTES_OF_A_NUMBER = 8


def size_of(value: Any, *, integers: range, fields: set[str], depth: int = 0) -> int:
    """Returns about how many bytes a value takes.

    Args:
        value: As a row holds it.
        integers: Those that the column can hold.
        fields: The names of all fields within it are added here.
        depth: How deep it lies within another.

    Raises:
        ValueError: No column can hold it; the message says why, with the value as its subject.
    """
    if isinstance(value, str):
        if not value.isascii() and (at := lone_surrogate(value)) is not None:
            raise ValueError(f"has a lone surrogate at character {at}, which is not a Unicode text")
        return len(value)
    if isinstance(value, bytes):
        return len(value)
    if isinstance(value, int) and value not in integers:
        raise ValueError("is an integer of more than 64 bits")
    if depth == DEEPEST:
        raise ValueError(f"is nested more than {DEEPEST} deep")
    if isinstance(value, dict):
        fields.update(value)
        value = [*value.keys(), *value.values()]
    if isinstance(value, list | tuple):
        return sum(size_of(inner, integers=integers, fields=fields, depth=depth + 1) for inner in value)
    return BYTES_OF_A_NUMBER


def common_type(one: pa.DataType, other: pa.DataType) -> pa.DataType:
    """Returns the type that the values of two others have in common.

    Raises:
        pa.ArrowException: There is none.
    """
    schemas = [pa.schema({"column": kind}) for kind in (one, other)]
    return pa.unify_schemas(schemas, promote_options="permissive").field(0).type


def first_misfit(values: Iterable[Any], kind: pa.DataType) -> tuple[int, pa.DataType | None, pa.DataType] | None:
    """Finds the first of some values that has no type in common with those before it.

    Args:
        values: Which as a whole have none.
        kind: What came before them.

    Returns:
        Its position, its type, and that of those before it. Its type is None where it has none, such as a list of
        numbers and texts. None where it is not a matter of types.
    """
    for position, value in enumerate(values):
        try:
            found = pa.array([value]).type
        except pa.ArrowException:
            return position, None, kind
        try:
            kind = common_type(kind, found)
        except pa.ArrowException:
            return position, found, kind
    return None


def settled(kind: pa.DataType) -> pa.DataType:
    """Returns a type with strings in the place of values of which every one was null."""
    if pa.types.is_null(kind):
        return pa.string()
    if pa.types.is_struct(kind):
        return pa.struct([field.with_type(settled(field.type)) for field in kind])
    if pa.types.is_list(kind):
        return pa.list_(settled(kind.value_type))
    return kind
