"""Texts that a program hands over: columns of every library are read, and what is no list of texts is refused."""

from __future__ import annotations

import array
import collections
import enum
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
from datasets import Dataset, DatasetDict

import memvec
from memvec.data.texts import as_texts
from memvec.errors import InputError
from tests.helpers.refusals import refused_as

TEXTS = ["likes tea", "养了一只猫", " padded "]


class Mood(str, enum.Enum):  # noqa: UP042 - whose str() is not its value
    CALM = "calm"


def from_dataset() -> Any:
    return Dataset.from_dict({"text": TEXTS, "n": [1, 2, 3]})["text"]


def indexed() -> Any:
    return pd.Series(TEXTS, index=[7, 7, -1])


READ: dict[str, Callable[[], Any]] = {
    "list": lambda: list(TEXTS),
    "tuple": lambda: tuple(TEXTS),
    "deque": lambda: collections.deque(TEXTS),
    "numpy strings": lambda: np.array(TEXTS),
    "numpy objects": lambda: np.array(TEXTS, dtype=object),
    "numpy backwards": lambda: np.array(TEXTS[::-1])[::-1],
    "Series": lambda: pd.Series(TEXTS),
    "Series with an odd index": indexed,
    "Series of pandas strings": lambda: pd.Series(TEXTS, dtype="string"),
    "Series of categories": lambda: pd.Series(TEXTS, dtype="category"),
    "Series, filtered": lambda: pd.Series(["x", *TEXTS])[lambda s: s != "x"],
    "Index": lambda: pd.Index(TEXTS),
    "pandas array": lambda: pd.array(TEXTS, dtype="string"),
    "datasets Column": from_dataset,
    "pyarrow Array": lambda: pa.array(TEXTS),
    "pyarrow large strings": lambda: pa.array(TEXTS, pa.large_string()),
    "pyarrow dictionary": lambda: pa.array(TEXTS).dictionary_encode(),
    "pyarrow ChunkedArray": lambda: pa.chunked_array([TEXTS[:1], TEXTS[1:]]),
    "numpy str_": lambda: [np.str_(text) for text in TEXTS],
}

NAME_ONE = "name one of its columns, such as table['text']; columns: "
REFUSED: dict[str, tuple[Callable[[], Any], InputError]] = {
    "one string": (
        lambda: "likes tea",
        InputError("texts", found="one string", allowed="a list of texts, such as ['likes tea']"),
    ),
    "numpy str": (lambda: np.str_("a"), InputError("texts", found="one string")),
    "bytes": (lambda: b"likes tea", InputError("texts", found="bytes", advice="decode")),
    "bytearray": (lambda: bytearray(b"a"), InputError("texts", found="bytearray", advice="decode")),
    "dict": (lambda: {"text": "likes tea"}, InputError("texts", found="dict, of which only the keys", advice="values")),
    "DatasetDict": (
        lambda: DatasetDict(train=Dataset.from_dict({"text": TEXTS})),
        InputError("texts", found="DatasetDict"),
    ),
    "set": (lambda: set(TEXTS), InputError("texts", found="set, which has no order")),
    "frozenset": (lambda: frozenset(TEXTS), InputError("texts", found="frozenset, which has no order")),
    "keys": (lambda: dict.fromkeys(TEXTS).keys(), InputError("texts", found="dict_keys")),
    "values": (lambda: dict.fromkeys(TEXTS).values(), InputError("texts", found="dict_values")),
    "generator": (
        lambda: (text for text in TEXTS),
        InputError("texts", found="generator, which can be read only once"),
    ),
    "map": (lambda: map(str, TEXTS), InputError("texts", found="map, which can be read only once")),
    "file": (lambda: io.StringIO("a\nb\n"), InputError("texts", found="StringIO, which can be read only once")),
    "DataFrame": (
        lambda: pd.DataFrame({"text": TEXTS, "n": 1}),
        InputError("texts", found="(DataFrame)", advice=f"{NAME_ONE}text, n"),
    ),
    "Dataset": (
        lambda: Dataset.from_dict({"text": TEXTS}),
        InputError("texts", found="(Dataset)", advice=f"{NAME_ONE}text"),
    ),
    "Table": (lambda: pa.table({"text": TEXTS}), InputError("texts", found="(Table)", advice=NAME_ONE)),
    "RecordBatch": (
        lambda: pa.record_batch({"text": TEXTS}),
        InputError("texts", found="(RecordBatch)", advice=NAME_ONE),
    ),
    "number": (lambda: 7, InputError("texts", found="int", allowed="a list")),
    "None": (lambda: None, InputError("texts", found="NoneType", allowed="a list")),
    "path": (lambda: Path("a.txt"), InputError("texts", found="PosixPath", allowed="a list")),
    "pyarrow scalar": (lambda: pa.scalar("a"), InputError("texts", found="StringScalar", allowed="a list")),
    "no dimension": (lambda: np.array("a"), InputError("texts", found="0 dimensions")),
    "two dimensions": (lambda: np.array([TEXTS]), InputError("texts", found="2 dimensions")),
    "numbers": (lambda: np.arange(3), InputError("texts[0]", found="is of type int")),
    "array": (lambda: array.array("i", [1]), InputError("texts[0]", found="is of type int")),
    "tensor": (lambda: torch.zeros(2), InputError("texts[0]", found="is of type float")),
    "range": (lambda: range(3), InputError("texts[0]", found="is of type int")),
    "list of lists": (lambda: [TEXTS], InputError("texts[0]", found="is of type list")),
    "None within": (lambda: ["a", None], InputError("texts[1]", found="is null")),
    "NaN in a Series": (
        lambda: pd.Series(["a", float("nan")], dtype=object),
        InputError("texts[1]", found="is of type float"),
    ),
    "NA in a Series": (
        lambda: pd.Series(["a", pd.NA], dtype="string"),
        InputError("texts[1]", found="is of type NAType"),
    ),
    "null in pyarrow": (lambda: pa.array(["a", None]), InputError("texts[1]", found="is null")),
    "blank": (lambda: ["a", " \n"], InputError("texts[1]", found="is blank")),
    "bytes within": (lambda: [b"a"], InputError("texts[0]", found="is of type bytes")),
    "half a surrogate": (lambda: ["a\ud800"], InputError("texts[0]", found="has a lone surrogate")),
    "none": (list, InputError("texts", found="found none")),
    "empty Series": (lambda: pd.Series([], dtype=object), InputError("texts", found="found none")),
    "empty array": (lambda: pa.array([], pa.string()), InputError("texts", found="found none")),
}


@pytest.mark.parametrize("kind", READ)
def test_a_column_of_texts_is_read_in_its_order(kind: str) -> None:
    found = as_texts(READ[kind](), name="texts")
    assert found == TEXTS
    assert {type(text) for text in found} == {str}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_no_list_of_texts_is_refused_in_one_line(kind: str) -> None:
    make, expected = REFUSED[kind]
    with refused_as(expected) as caught:
        as_texts(make(), name="texts")
    assert "\n" not in str(caught.value)


def test_a_string_of_an_enumeration_is_its_value() -> None:
    assert as_texts([Mood.CALM], name="texts") == ["calm"]


def test_what_is_given_is_not_changed() -> None:
    given = list(TEXTS)
    assert as_texts(given, name="texts") is not given
    assert given == TEXTS


@pytest.mark.parametrize("kind", ["DataFrame", "dict", "generator", "bytes", "set", "one string"])
def test_encode_refuses_what_is_no_list_of_texts(kind: str) -> None:
    make, expected = REFUSED[kind]
    with refused_as(expected):
        memvec.encode(make())
