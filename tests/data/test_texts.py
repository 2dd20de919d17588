"""Texts that a program hands over: columns of every library are read, and what is no list of texts is refused."""

from __future__ import annotations

import array
import collections
import enum
import io
import re
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

REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "one string": (lambda: "likes tea", "one string.*list.*likes tea"),
    "numpy str": (lambda: np.str_("a"), "one string"),
    "bytes": (lambda: b"likes tea", "bytes; decode"),
    "bytearray": (lambda: bytearray(b"a"), "bytearray; decode"),
    "dict": (lambda: {"text": "likes tea"}, "dict.*keys.*values"),
    "DatasetDict": (lambda: DatasetDict(train=Dataset.from_dict({"text": TEXTS})), "DatasetDict"),
    "set": (lambda: set(TEXTS), "set.*no order"),
    "frozenset": (lambda: frozenset(TEXTS), "frozenset.*no order"),
    "keys": (lambda: dict.fromkeys(TEXTS).keys(), "dict_keys"),
    "values": (lambda: dict.fromkeys(TEXTS).values(), "dict_values"),
    "generator": (lambda: (text for text in TEXTS), "generator.*once"),
    "map": (lambda: map(str, TEXTS), "map.*once"),
    "file": (lambda: io.StringIO("a\nb\n"), "StringIO.*once"),
    "DataFrame": (lambda: pd.DataFrame({"text": TEXTS, "n": 1}), r"DataFrame\); name one of its columns.*text, n"),
    "Dataset": (lambda: Dataset.from_dict({"text": TEXTS}), r"Dataset\); name one of its columns.*columns: text"),
    "Table": (lambda: pa.table({"text": TEXTS}), r"Table\); name one of its columns"),
    "RecordBatch": (lambda: pa.record_batch({"text": TEXTS}), r"RecordBatch\); name one of its columns"),
    "number": (lambda: 7, "int; allowed"),
    "None": (lambda: None, "NoneType; allowed"),
    "path": (lambda: Path("a.txt"), "PosixPath; allowed"),
    "pyarrow scalar": (lambda: pa.scalar("a"), "StringScalar; allowed"),
    "no dimension": (lambda: np.array("a"), "0 dimensions"),
    "two dimensions": (lambda: np.array([TEXTS]), "2 dimensions"),
    "numbers": (lambda: np.arange(3), r"texts\[0\]: is of type int"),
    "array": (lambda: array.array("i", [1]), r"texts\[0\]: is of type int"),
    "tensor": (lambda: torch.zeros(2), r"texts\[0\]: is of type float"),
    "range": (lambda: range(3), r"texts\[0\]: is of type int"),
    "list of lists": (lambda: [TEXTS], r"texts\[0\]: is of type list"),
    "None within": (lambda: ["a", None], r"texts\[1\]: is null"),
    "NaN in a Series": (lambda: pd.Series(["a", float("nan")], dtype=object), r"texts\[1\]: is of type float"),
    "NA in a Series": (lambda: pd.Series(["a", pd.NA], dtype="string"), r"texts\[1\]: is of type NAType"),
    "null in pyarrow": (lambda: pa.array(["a", None]), r"texts\[1\]: is null"),
    "blank": (lambda: ["a", " \n"], r"texts\[1\]: is blank"),
    "bytes within": (lambda: [b"a"], r"texts\[0\]: is of type bytes"),
    "half a surrogate": (lambda: ["a\ud800"], r"texts\[0\]: has a lone surrogate"),
    "none": (list, "found none"),
    "empty Series": (lambda: pd.Series([], dtype=object), "found none"),
    "empty array": (lambda: pa.array([], pa.string()), "found none"),
}


@pytest.mark.parametrize("kind", READ)
def test_a_column_of_texts_is_read_in_its_order(kind: str) -> None:
    found = as_texts(READ[kind](), name="texts")
    assert found == TEXTS
    assert {type(text) for text in found} == {str}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_no_list_of_texts_is_refused_in_one_line(kind: str) -> None:
    make, message = REFUSED[kind]
    with pytest.raises(InputError) as caught:
        as_texts(make(), name="texts")
    assert re.search(message, str(caught.value)), str(caught.value)
    assert str(caught.value).startswith("texts")
    assert "\n" not in str(caught.value)


def test_a_string_of_an_enumeration_is_its_value() -> None:
    assert as_texts([Mood.CALM], name="texts") == ["calm"]


def test_what_is_given_is_not_changed() -> None:
    given = list(TEXTS)
    assert as_texts(given, name="texts") is not given
    assert given == TEXTS


@pytest.mark.parametrize("kind", ["DataFrame", "dict", "generator", "bytes", "set", "one string"])
def test_encode_refuses_what_is_no_list_of_texts(kind: str) -> None:
    make, message = REFUSED[kind]
    with pytest.raises(InputError, match=message):
        memvec.encode(make())
