"""The LightningDataModule: from input files to the padded batches of this rank.

In: `data.*` of the configuration, a prompt and a tokenizer. Out: `prepare_data` leaves prepared files in the run's
journal folder (`memvec.data.prepared`), `predict_dataloader` serves from them.

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

from memvec.config.values import at_least, at_least_or_none, one_of, one_text, one_text_or_none
from memvec.data.batches import PromptBatches
from memvec.data.budget import (
    BUDGETS_ON_ACCELERATOR,
    BUDGETS_ON_CPU,
    TOKENS_ON_ACCELERATOR,
    TOKENS_ON_CPU,
    choose_budget,
)
from memvec.data.collator import Batch, PaddingCollator
from memvec.data.dataset import AUTO, EntriesSummary, RecordSource, asked_column, write_entries
from memvec.data.formats.files import TextFormat
from memvec.data.prepared import PreparedRows
from memvec.data.sampler import (
    SHORTEST_IN_BATCH,
    LengthGroupedBatchSampler,
    RankPlan,
    Rows,
    best_prefix_length,
    plan_ranks,
    rows_with_prefix,
)
from memvec.data.source import find_sources
from memvec.errors import ConfigError
from memvec.layout import RunLayout
from memvec.model import lockstep
from memvec.model.module import HiddenStateModule
from memvec.prompt.encoder import PromptEncoder
from memvec.prompt.template import Prompt
from memvec.schema import ID, LENGTH, SHARED
from memvec.writer.journal import read_journal

# With fewer tokens to compute than this, measuring which kernels are fastest takes longer than the fastest save.
TOKENS_TO_PAY = 16_384
# Enough to tell kernels apart, few enough to try several within a second or two.
TOKENS_TO_MEASURE = 256

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
        id_column: Name of the field with the id; `auto` is `id`, where the rows have one; None makes the row number
            the id.
        split: Split to read; None is `train` of a dataset with splits, and every file of a folder.
        revision: Revision of a Hub dataset.
        encoding: Of text files; None is UTF-8, or what a byte order mark says.
        delimiter: Of CSV files; None is found from each file's first records.
        on_error: Whether a row that cannot be used is named in `rejected.jsonl` (`reject`) or ends the run (`fail`).
        limit: Read at most this many rows.
        batch_size: Most entries in a batch.
        max_tokens: Most tokens in a batch, padding included, shared prefix not; None chooses by the device, `auto`
            tries several on real rows.
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
        folder: RunLayout,
        text_column: str = "text",
        id_column: str | None = AUTO,
        split: str | None = None,
        revision: str | None = None,
        encoding: str | None = None,
        delimiter: str | None = None,
        on_error: Literal["reject", "fail"] = "reject",
        limit: int | None = None,
        batch_size: int = 1024,
        max_tokens: int | Literal["auto"] | None = None,
        max_length: int | None = None,
        num_workers: int = 0,
    ) -> None:
        super().__init__()
        self.path = path
        self.folder = folder
        self.text_column = one_text("data.text_column", text_column)
        self.id_column = one_text_or_none("data.id_column", id_column)
        self.split = one_text_or_none("data.split", split)
        self.revision = revision
        self.text_format = TextFormat(encoding, delimiter)
        self.on_error: Literal["reject", "fail"] = one_of("data.on_error", on_error, ("reject", "fail"))
        self.limit = at_least_or_none("data.limit", limit, 1)
        self.batch_size = at_least("data.batch_size", batch_size, 1)
        if isinstance(max_tokens, str) and max_tokens != "auto":
            raise ConfigError(f"data.max_tokens={max_tokens}: allowed: auto, null, an integer of at least 1")
        self.max_tokens = max_tokens if max_tokens == "auto" else at_least_or_none("data.max_tokens", max_tokens, 1)
        self.num_workers = at_least("data.num_workers", num_workers, 0)
        max_length = at_least_or_none("data.max_length", max_length, 1)
        if max_length is not None and model_limit is not None and max_length > model_limit:
            raise ConfigError(f"data.max_length={max_length}: the model takes at most {model_limit} tokens")
        self.encoder = PromptEncoder(tokenizer, prompt, max_length=max_length or model_limit)
        self.pad_token_id: int = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0
        # A rank may have no row at all where there are more ranks than rows.
        self.allow_zero_length_dataloader_with_multiple_devices = True
        self.sampler: LengthGroupedBatchSampler | None = None
        self.prefix_length = 0
        self.budget: int | None = None
        self.padding_side: Literal["right", "left"] = "right"
        self.shortest_in_batch = SHORTEST_IN_BATCH
        self.attempt = 0  # where rows that failed are tried again, which time it is
        self.prepared = PreparedRows(folder, encoder=self.encoder, write_entries=self._write_entries)
        self._is_prepared = False

    @cached_property
    def sources(self) -> Sequence[RecordSource]:
        """What `data.path` names."""
        return find_sources(self.path, split=self.split, revision=self.revision, text_format=self.text_format)

    def fingerprint(self) -> dict[str, Any]:
        """Returns what decides the prompts of a run: the input's content and how it is read and tokenised."""
        columns = (self.text_column, asked_column(self.id_column, ID))
        return {
            "input": [source.digest(columns=columns) for source in self.sources],
            "text_column": self.text_column,
            "id_column": self.id_column,
            **asdict(self.text_format),
            "limit": self.limit,
            **self.encoder.fingerprint(),
        }

    def prepare_data(self) -> None:
        """Reads, validates and tokenises the input, as far as an earlier attempt has not; finds what is left to do."""
        if self._is_prepared:
            return
        self.prepared.prepare()
        self.find_remaining()
        self._is_prepared = True

    def find_remaining(self) -> None:
        """Finds the rows that are left to compute: the first of equal prompts, less what the journal holds."""
        self.prepared.find_remaining(self._done)

    def setup(self, stage: str) -> None:
        """Maps the prepared files into this process."""
        self.prompts = Dataset.from_file(str(self.folder.prompts))
        self.rows: NDArray[np.int64] = np.load(self.folder.remaining_rows)
        self.lengths: NDArray[np.int32] = self.prompts.data.column(LENGTH).to_numpy()
        self.shared: NDArray[np.int32] = self.prompts.data.column(SHARED).to_numpy()

    def predict_dataloader(self) -> DataLoader[Batch]:
        """Plans this rank's batches and returns their loader."""
        module = cast(HiddenStateModule, self._trainer().lightning_module)
        module.prepare_weights()
        self.prefix_length = module.share_prefix(self.common_tokens())
        groups = self._groups(self.prefix_length)
        collate = PaddingCollator(
            pad_token_id=self.pad_token_id,
            prefix_rows=rows_with_prefix(self.lengths, self.shared, self.prefix_length),
            prefix_length=self.prefix_length,
            padding_side=self.padding_side,
        )
        self.batches = PromptBatches(self.prompts, groups, lengths=self.lengths, collate=collate)
        self.budget = self._budget(self._on_accelerator()) or self._find_budget(module)
        rank, world_size = self._share()
        in_step = 0
        if lockstep.has_own_batches_in_step(self._trainer()):
            plans = self.plan_ranks(world_size, prefix_length=self.prefix_length, on_accelerator=self._on_accelerator())
            in_step = max(plan.batches for plan in plans)
        self.sampler = LengthGroupedBatchSampler(
            groups,
            batch_size=self.batch_size,
            max_tokens=self.budget,
            rank=rank,
            world_size=world_size,
            shortest_in_batch=self.shortest_in_batch,
            batches_in_step=in_step,
        )
        # torch types these for single rows and lists; it takes `__getitems__` and any iterable of batches all the same.
        dataset, batch_sampler = cast(tuple[Any, Any], (self.batches.dataset, self.sampler))
        return DataLoader(
            dataset,
            batch_sampler=batch_sampler,
            collate_fn=cast(Any, collate),
            num_workers=self.num_workers,
            pin_memory=self._on_accelerator(),
        )

    def common_tokens(self) -> torch.Tensor:
        """Returns the leading tokens that are worth computing once for all rows left, `[P]` int64; P may be 0."""
        candidate = best_prefix_length(self.shared[self.rows])
        return torch.from_numpy(self.encoder.head_ids[:candidate].astype(np.int64))

    def plan_ranks(self, world_size: int, *, prefix_length: int, on_accelerator: bool) -> list[RankPlan]:
        """Returns what each of `world_size` ranks would compute.

        Args:
            world_size: How many ranks share the rows.
            prefix_length: Leading tokens that are computed once.
            on_accelerator: Whether the ranks compute on something larger than a CPU.
        """
        return plan_ranks(
            [costs for _, costs in self._groups(prefix_length)],
            batch_size=self.batch_size,
            max_tokens=self.budget or self._budget(on_accelerator) or self.default_budget(on_accelerator),
            world_size=world_size,
            shortest_in_batch=self.shortest_in_batch,
        )

    def row_tokens(self, lengths: NDArray[np.int32], prefix_length: int) -> NDArray[np.int32]:
        """Returns the tokens that rows count in a batch, `[N]`: what `max_tokens` limits and the progress bar counts.

        Args:
            lengths: Tokens of their prompts, `[N]`.
            prefix_length: Leading tokens that are computed once.
        """
        return lengths - prefix_length

    @property
    def pays_measuring(self) -> bool:
        """Whether this rank has enough to compute for a measurement of a second or two to pay."""
        return self.sampler is not None and self.sampler.padded_tokens >= TOKENS_TO_PAY

    def typical_batch(self, *, tokens: int = TOKENS_TO_MEASURE) -> Batch | None:
        """Returns rows of typical length to measure on, about `tokens` tokens of them; None where there are no rows."""
        return self.batches.typical(tokens=tokens)

    def count_remaining(self) -> int:
        """Returns how many rows are left to compute; `prepare_data` has run."""
        return self.prepared.count_remaining()

    def count_tokens(self, sampler: LengthGroupedBatchSampler) -> int:
        """Returns the tokens of the prompts in a plan, shared prefix included, padding not."""
        return sum(int(self.lengths[rows].sum()) for rows in sampler.batches)

    def _write_entries(self) -> EntriesSummary:
        return write_entries(
            self.sources,
            entries_path=self.folder.entries,
            rejected_path=self.folder.input_rejected,
            text_column=self.text_column,
            id_column=self.id_column,
            on_error=self.on_error,
            limit=self.limit,
        )

    def _done(self, rows: int) -> NDArray[np.bool_]:
        """Returns for which rows the journal has all there will be, `[N]`."""
        return read_journal(self.folder.journal, rows=rows).is_done

    def _share(self) -> tuple[int, int]:
        """Returns (rank, world_size) among the processes that share the rows.

        Not the global rank: the ranks of one tensor-parallel group must see the same batches.
        """
        kwargs = self._trainer().distributed_sampler_kwargs or {}
        return kwargs.get("rank", 0), kwargs.get("num_replicas", 1)

    def _on_accelerator(self) -> bool:
        return self._trainer().strategy.root_device.type == "cuda"

    def default_budget(self, on_accelerator: bool) -> int:
        """Returns the most tokens in a batch where nothing is known but the kind of device."""
        return TOKENS_ON_ACCELERATOR if on_accelerator else TOKENS_ON_CPU

    def _budget(self, on_accelerator: bool) -> int | None:
        """Returns the most tokens in a batch as configured, or the device's default; None where it is to be found."""
        if self.max_tokens == "auto":
            return None
        return self.max_tokens or self.default_budget(on_accelerator)

    def _find_budget(self, module: HiddenStateModule) -> int:
        """Returns the most tokens in a batch that is fastest, or the device's default where that cannot be tried."""
        default = self.default_budget(self._on_accelerator())
        if len(self.rows) == 0:
            return default
        if module.has_shared_weights:  # processes that stop trying at different budgets would wait for each other
            log.info("data.max_tokens=auto: %d, not tried where weights are shared out", default)
            return default

        def seconds(tokens: int) -> float | None:
            batch = self.typical_batch(tokens=tokens)
            return module.seconds_per_token(batch) if batch is not None else None

        budgets = BUDGETS_ON_ACCELERATOR if self._on_accelerator() else BUDGETS_ON_CPU
        found, rates = choose_budget(seconds, budgets)
        # Every rank tries, since all have to be busy for the trial to be real; the first one's answer counts for all.
        budget: int = self._trainer().strategy.broadcast(found)
        tried = ", ".join(f"{tokens} {rate:,.0f}" if rate else f"{tokens} too large" for tokens, rate in rates.items())
        log.info("data.max_tokens=auto: %d (tokens/s by budget: %s)", budget, tried)
        return budget

    def _groups(self, prefix_length: int) -> list[tuple[Rows, NDArray[np.int32]]]:
        """Returns the rows left and the tokens each costs: those that begin with the shared prefix, then the others."""
        shares = rows_with_prefix(self.lengths, self.shared, prefix_length)[self.rows]
        with_prefix, without = self.rows[shares], self.rows[~shares]
        return [
            (with_prefix, self.row_tokens(self.lengths[with_prefix], prefix_length)),
            (without, self.row_tokens(self.lengths[without], 0)),
        ]

    def _trainer(self) -> pl.Trainer:
        if self.trainer is None:
            raise RuntimeError("this data module serves batches within a Lightning Trainer only")
        return self.trainer
