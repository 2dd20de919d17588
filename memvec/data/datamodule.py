"""The LightningDataModule: from input files to the padded batches of this rank.

In: `data.*` of the configuration, a prompt and a tokenizer. Out: `prepare_data` leaves three files in the run's journal
folder, `predict_dataloader` serves from them:

    entries.arrow        id, text, file, row                of every usable row
    prompts.arrow        input_ids, length, …               row by row the same
    remaining_rows.npy   the rows to compute in this run: the first of equal prompts, less what the journal holds

How: one process prepares (`prepare_data`, rank 0), every process maps the same files (`setup`), and each plans its own
batches from the same lengths. Rows that begin with the prompts' shared prefix and those that do not are planned apart.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import asdict
from functools import cached_property
from typing import Any, Literal, cast

import lightning.pytorch as pl
import numpy as np
import torch
from datasets import Dataset
from numpy.typing import NDArray
from torch.utils.data import DataLoader
from transformers import PreTrainedTokenizerFast

from memvec.config import at_least, at_least_or_none, one_of
from memvec.data.collator import Batch, PaddingCollator, PromptRows
from memvec.data.dataset import RecordSource, write_entries
from memvec.data.digest import first_occurrence
from memvec.data.prompt import Prompt, PromptEncoder
from memvec.data.sampler import LengthGroupedBatchSampler, Rows, best_prefix_length, rows_with_prefix
from memvec.data.source import find_sources
from memvec.data.tokenise import prompt_digests, tokenise
from memvec.errors import ConfigError
from memvec.files import atomic_file, write_json
from memvec.model.module import HiddenStateModule
from memvec.run import RunFolder
from memvec.schema import LENGTH, SHARED
from memvec.writer.journal import read_journal

TOKENS_ON_CPU = 1024
TOKENS_ON_ACCELERATOR = 32_768
# With fewer batches than this, measuring which kernels are fastest takes longer than the fastest save.
BATCHES_TO_MEASURE = 40

log = logging.getLogger(__name__)


class MemoryDataModule(pl.LightningDataModule):
    """Reads, tokenises and batches memory texts.

    Args:
        path: File, folder, glob or Hub dataset name with one row an entry, or a list of them.
        prompt: The prompt each text is put into.
        tokenizer: The model's tokenizer.
        model_limit: Most tokens the model takes; None is no limit.
        folder: The run's folder.
        text_column: Name of the field with the text.
        id_column: Name of the field with the id; None, or a name no row has, makes the row number the id.
        split: Split of a dataset with splits.
        revision: Revision of a Hub dataset.
        on_error: Whether a row that cannot be used is named in `rejected.jsonl` (`reject`) or ends the run (`fail`).
        limit: Read at most this many rows.
        batch_size: Most entries in a batch.
        max_tokens: Most tokens in a batch, padding included, shared prefix not; None chooses by the device.
        max_length: Most tokens in one prompt; None is the model's own limit.
        num_workers: Processes that build batches; 0 builds them in the predicting process, which rarely waits for them.

    Raises:
        ConfigError: An option does not make sense.
    """

    def __init__(
        self,
        path: str | Sequence[str],
        *,
        prompt: Prompt,
        tokenizer: PreTrainedTokenizerFast,
        model_limit: int | None,
        folder: RunFolder,
        text_column: str = "text",
        id_column: str | None = "id",
        split: str = "train",
        revision: str | None = None,
        on_error: Literal["reject", "fail"] = "reject",
        limit: int | None = None,
        batch_size: int = 1024,
        max_tokens: int | None = None,
        max_length: int | None = None,
        num_workers: int = 0,
    ) -> None:
        super().__init__()
        self.path = path
        self.folder = folder
        self.text_column = text_column
        self.id_column = id_column
        self.split = split
        self.revision = revision
        self.on_error: Literal["reject", "fail"] = one_of("data.on_error", on_error, ("reject", "fail"))
        self.limit = at_least_or_none("data.limit", limit, 1)
        self.batch_size = at_least("data.batch_size", batch_size, 1)
        self.max_tokens = at_least_or_none("data.max_tokens", max_tokens, 1)
        self.num_workers = at_least("data.num_workers", num_workers, 0)
        max_length = at_least_or_none("data.max_length", max_length, 1)
        if max_length is not None and model_limit is not None and max_length > model_limit:
            raise ConfigError(f"data.max_length={max_length}: the model takes at most {model_limit} tokens")
        self.encoder = PromptEncoder(tokenizer, prompt, max_length=max_length or model_limit)
        self.pad_token_id: int = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0
        # A rank may have no row at all where there are more ranks than rows.
        self.allow_zero_length_dataloader_with_multiple_devices = True
        self.sampler: LengthGroupedBatchSampler | None = None
        self.padding_side: Literal["right", "left"] = "right"
        self.attempt = 0  # where rows that failed are tried again, which time it is
        self._prepared = False

    @cached_property
    def sources(self) -> Sequence[RecordSource]:
        """What `data.path` names."""
        return find_sources(self.path, split=self.split, revision=self.revision)

    def fingerprint(self) -> dict[str, Any]:
        """Returns what decides the prompts of a run: the input's content and how it is read and tokenised."""
        columns = (self.text_column, self.id_column)
        return {
            "input": [source.digest(columns=columns) for source in self.sources],
            "text_column": self.text_column,
            "id_column": self.id_column,
            "limit": self.limit,
            **self.encoder.fingerprint(),
        }

    def prepare_data(self) -> None:
        """Reads, validates and tokenises the input, as far as an earlier attempt has not; finds what is left to do."""
        if self._prepared:
            return
        if not self.folder.input_summary.exists():
            self._write_entries()
        prompts = tokenise(self.folder.entries, self.folder.prompts, self.encoder)
        if not self.folder.first_rows.exists():
            self._save(self.folder.first_rows, first_occurrence(prompt_digests(prompts)))
        self.find_remaining()
        self._prepared = True

    def find_remaining(self) -> None:
        """Finds the rows that are left to compute: the first of equal prompts, less what the journal holds."""
        first = np.load(self.folder.first_rows, mmap_mode="r")
        is_left = (first == np.arange(len(first))) & ~self._done(len(first))
        self._save(self.folder.remaining_rows, np.flatnonzero(is_left))

    def setup(self, stage: str) -> None:
        """Maps the prepared files into this process."""
        self.prompts = Dataset.from_file(str(self.folder.prompts))
        self.rows: NDArray[np.int64] = np.load(self.folder.remaining_rows)
        self.lengths: NDArray[np.int32] = self.prompts.data.column(LENGTH).to_numpy()
        self.shared: NDArray[np.int32] = self.prompts.data.column(SHARED).to_numpy()

    def predict_dataloader(self) -> DataLoader[Batch]:
        """Plans this rank's batches and returns their loader."""
        lengths, rows = self.lengths, self.rows
        module = cast(HiddenStateModule, self._trainer().lightning_module)
        candidate = best_prefix_length(self.shared[rows])
        prefix_length = module.share_prefix(torch.from_numpy(self.encoder.head_ids[:candidate].astype(np.int64)))
        shares = rows_with_prefix(lengths, self.shared, prefix_length)  # [N]
        with_prefix, without = rows[shares[rows]], rows[~shares[rows]]
        self._probe_rows = _probe_rows(with_prefix, without, lengths)
        self.sampler = LengthGroupedBatchSampler(
            [
                (with_prefix, self.row_tokens(lengths[with_prefix], prefix_length)),
                (without, self.row_tokens(lengths[without], 0)),
            ],
            batch_size=self.batch_size,
            max_tokens=self.max_tokens or self._default_max_tokens(),
            rank=self._share()[0],
            world_size=self._share()[1],
        )
        self._prompt_rows = PromptRows(self.prompts)
        self._collate = PaddingCollator(
            pad_token_id=self.pad_token_id,
            prefix_rows=shares,
            prefix_length=prefix_length,
            padding_side=self.padding_side,
        )
        # torch types these for single rows and lists; it takes `__getitems__` and any iterable of batches all the same.
        dataset, batch_sampler, collate = cast(tuple[Any, Any, Any], (self._prompt_rows, self.sampler, self._collate))
        return DataLoader(
            dataset,
            batch_sampler=batch_sampler,
            collate_fn=collate,
            num_workers=self.num_workers,
            pin_memory=self._on_accelerator(),
        )

    def row_tokens(self, lengths: NDArray[np.int32], prefix_length: int) -> NDArray[np.int32]:
        """Returns the tokens that rows count in a batch, `[N]`: what `max_tokens` limits and the progress bar counts.

        Args:
            lengths: Tokens of their prompts, `[N]`.
            prefix_length: Leading tokens that are computed once.
        """
        return lengths - prefix_length

    def typical_batch(self) -> Batch | None:
        """Returns half of the batch in the middle of this rank's plan, to measure on; None where it would not pay."""
        batches = self.sampler.batches if self.sampler is not None else []
        if len(batches) < BATCHES_TO_MEASURE:
            return None
        rows = batches[len(batches) // 2]
        return self._collate(self._prompt_rows.__getitems__(rows[: (len(rows) + 1) // 2]))

    def probe_batches(self) -> list[Batch]:
        """Returns a few rows to try the model on, the same on every rank."""
        return [self._collate(self._prompt_rows.__getitems__(rows)) for rows in self._probe_rows]

    def input_ids(self, row: int) -> torch.Tensor:
        """Returns the tokens of one row's prompt, `[T]` int64."""
        return self._collate(self._prompt_rows.__getitems__(np.asarray([row])))["input_ids"][0]

    def count_remaining(self) -> int:
        """Returns how many rows are left to compute; `prepare_data` has run."""
        return len(np.load(self.folder.remaining_rows, mmap_mode="r"))

    def count_tokens(self, sampler: LengthGroupedBatchSampler) -> int:
        """Returns the tokens of the prompts in a plan, shared prefix included, padding not."""
        return sum(int(self.lengths[rows].sum()) for rows in sampler)

    def _write_entries(self) -> None:
        summary = write_entries(
            self.sources,
            entries_path=self.folder.entries,
            rejected_path=self.folder.input_rejected,
            text_column=self.text_column,
            id_column=self.id_column,
            on_error=self.on_error,
            limit=self.limit,
        )
        write_json(self.folder.input_summary, asdict(summary))

    def _done(self, rows: int) -> NDArray[np.bool_]:
        """Returns for which rows the journal has all there will be, `[N]`."""
        return read_journal(self.folder.journal, rows=rows).is_done

    def _save(self, path: Any, rows: NDArray[np.int64]) -> None:
        with atomic_file(path) as partial, partial.open("wb") as stream:
            np.save(stream, rows)

    def _share(self) -> tuple[int, int]:
        """Returns (rank, world_size) among the processes that share the rows.

        Not the global rank: the ranks of one tensor-parallel group must see the same batches.
        """
        kwargs = self._trainer().distributed_sampler_kwargs or {}
        return kwargs.get("rank", 0), kwargs.get("num_replicas", 1)

    def _on_accelerator(self) -> bool:
        return self._trainer().strategy.root_device.type == "cuda"

    def _default_max_tokens(self) -> int:
        return TOKENS_ON_ACCELERATOR if self._on_accelerator() else TOKENS_ON_CPU

    def _trainer(self) -> pl.Trainer:
        if self.trainer is None:
            raise RuntimeError("this data module serves batches within a Lightning Trainer only")
        return self.trainer


def _probe_rows(with_prefix: Rows, without: Rows, lengths: NDArray[np.int32]) -> list[Rows]:
    """Returns batches of the shortest, median and longest rows; two lengths share a batch, so that one is padded."""
    short, long = (rows[np.argsort(lengths[rows], kind="stable")] for rows in (with_prefix, without))
    batches = [short[[0, len(short) // 2]]] if len(short) else []
    batches += [long[[0, len(long) // 2]]] if len(long) else []
    batches.append((long if len(long) else short)[-1:])  # alone: padding a short row to it would cost as much again
    return [np.unique(rows) for rows in batches if len(rows)]
