"""Padded batches against rows put together one by one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset, List, Value
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from memvec.data.collator import PaddingCollator, PromptArrays, PromptRows
from memvec.data.sampler import LengthGroupedBatchSampler
from memvec.schema import INPUT_IDS, LENGTH

PAD = 0


def tokenised(rows: list[list[int]]) -> Dataset:
    dataset = Dataset.from_dict({INPUT_IDS: rows, LENGTH: [len(row) for row in rows]})
    return dataset.cast_column(INPUT_IDS, List(Value("int32"))).cast_column(LENGTH, Value("int32"))


@pytest.fixture(scope="module")
def rows() -> list[list[int]]:
    generator = np.random.default_rng(0)
    return [generator.integers(0, 50_000, size=size).tolist() for size in generator.integers(1, 12, size=60)]


@pytest.fixture(scope="module")
def mapped(rows: list[list[int]], tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Several record batches in a file, as a run maps them: the offsets of a batch's rows do not begin at 0."""
    path = str(tmp_path_factory.mktemp("collator") / "prompts.arrow")
    tokenised(rows).map(lambda batch: batch, batched=True, writer_batch_size=7, cache_file_name=path)
    return Dataset.from_file(path)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(indices=st.lists(st.integers(0, 59), min_size=1, max_size=30))
def test_a_batch_equals_rows_padded_one_by_one(rows: list[list[int]], mapped: Dataset, indices: list[int]) -> None:
    found = PaddingCollator()(PromptRows(mapped).__getitems__(np.array(indices)))
    width = max(len(rows[index]) for index in indices)
    assert found["input_ids"].tolist() == [rows[index] + [PAD] * (width - len(rows[index])) for index in indices]
    assert found["length"].tolist() == [len(rows[index]) for index in indices]
    assert found["index"].tolist() == indices
    assert {found[name].dtype for name in ("input_ids", "length", "index")} == {torch.int64}
    assert found["prefix_length"] == 0


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(indices=st.lists(st.integers(0, 59), min_size=1, max_size=10))
def test_a_batch_has_the_prefix_only_where_all_its_rows_have_it(mapped: Dataset, indices: list[int]) -> None:
    shares = np.arange(60) % 3 > 0
    collator = PaddingCollator(prefix_rows=shares, prefix_length=5)
    found = collator(PromptRows(mapped).__getitems__(np.array(indices)))
    assert found["prefix_length"] == (5 if all(index % 3 for index in indices) else 0)


def test_the_loader_serves_every_batch_of_the_plan(rows: list[list[int]], mapped: Dataset) -> None:
    costs = np.array([len(row) for row in rows])
    sampler = LengthGroupedBatchSampler([(np.arange(len(rows)), costs)], batch_size=9, max_tokens=50)
    loader = DataLoader(
        PromptRows(mapped),
        batch_sampler=sampler,  # type: ignore[arg-type]
        collate_fn=PaddingCollator(),
    )
    batches = list(loader)
    assert [batch["index"].tolist() for batch in batches] == [planned.tolist() for planned in sampler]
    for batch in batches:
        for index, input_ids, length in zip(batch["index"], batch["input_ids"], batch["length"], strict=True):
            assert input_ids[:length].tolist() == rows[int(index)]
            assert set(input_ids[length:].tolist()) <= {PAD}


def test_the_loader_works_with_worker_processes(rows: list[list[int]], mapped: Dataset) -> None:
    sampler = LengthGroupedBatchSampler([(np.arange(60), np.array(list(map(len, rows))))], batch_size=16, max_tokens=99)
    loader = DataLoader(
        PromptRows(mapped),
        batch_sampler=sampler,  # type: ignore[arg-type]
        collate_fn=PaddingCollator(),
        num_workers=1,
    )
    found: dict[int, list[int]] = {}
    for batch in loader:
        for index, input_ids, length in zip(batch["index"], batch["input_ids"], batch["length"], strict=True):
            found[int(index)] = input_ids[:length].tolist()
    assert found == dict(enumerate(rows))


def test_prompts_in_memory_give_the_batches_of_those_on_disk(rows: list[list[int]], mapped: Dataset) -> None:
    offsets = np.concatenate([[0], np.cumsum(list(map(len, rows)))])
    in_memory = PromptArrays(np.concatenate([np.asarray(row, dtype=np.int32) for row in rows]), offsets)
    collate = PaddingCollator()
    for indices in ([5, 6, 7], [59, 0, 30, 30], [17]):
        found = collate(in_memory.__getitems__(np.asarray(indices)))
        expected = collate(PromptRows(mapped).__getitems__(np.asarray(indices)))
        assert all(torch.equal(found[name], expected[name]) for name in ("index", "input_ids", "length"))  # type: ignore[literal-required]


def test_the_batch_does_not_share_memory_with_the_plan(mapped: Dataset) -> None:
    """A view of the sampler's rows would be changed by whoever changes the batch."""
    indices = np.array([3, 1])
    batch = PaddingCollator()(PromptRows(mapped).__getitems__(indices))
    batch["index"][0] = 99
    assert indices.tolist() == [3, 1]


def test_rows_of_a_dataset_with_more_columns_and_a_selection(tmp_path: Path, rows: list[list[int]]) -> None:
    dataset = tokenised(rows).add_column("extra", list(range(60))).select(range(59, -1, -1))
    assert len(PromptRows(dataset)) == 60
    found = PaddingCollator()(PromptRows(dataset).__getitems__(np.array([0, 59])))
    assert found["input_ids"][0, : len(rows[59])].tolist() == rows[59]
    assert found["input_ids"][1, : len(rows[0])].tolist() == rows[0]
