"""The prediction writer of generation: what the model has written becomes text, is read, and goes to the journal.

In: after each batch, its tokens. Out: rows of `memvec.generation.completions.COMPLETION_SCHEMA`.

How: in the writer's thread (`memvec.writer.prediction_writer`), so decoding and parsing cost the model no time. Whether
an output was understood stands in the journal, so a resumed run knows what to try again.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, cast

import lightning.pytorch as pl
import numpy as np
import pyarrow as pa
from datasets import Dataset
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerFast

from memvec.data.datamodule import datamodule_of
from memvec.generation.completions import COMPLETION_SCHEMA
from memvec.generation.module import GenerationModule
from memvec.generation.rows import OutputRows
from memvec.writer.prediction_writer import JournalCallback


class CompletionWriter(JournalCallback):
    """Appends outputs to this process's journal file.

    Args:
        journal: The journal's folder; it exists when predicting starts.
        flush_every: Windows in a frame: at most so many, plus what was in flight, are lost when the process dies.
        fsync: When frames reach the disk itself; see `memvec.writer.journal.JournalWriter`.
    """

    def __init__(self, journal: Path, *, flush_every: int = 8, fsync: Literal["flush", "close"] = "close") -> None:
        super().__init__(journal, flush_every=flush_every, fsync=fsync)
        self._module: GenerationModule | None = None
        self._tokenizer: PreTrainedTokenizerFast | None = None
        self._output_tokens = 0

    def on_predict_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Opens this process's journal file."""
        datamodule = datamodule_of(trainer)
        self._module = cast(GenerationModule, pl_module)
        self._tokenizer = self._module.checkpoint.load_tokenizer()
        windows = Dataset.from_file(str(datamodule.prepared.folder.entries))
        self._rows = OutputRows(windows, self._module.prompt.instructions, attempt=datamodule.attempt)
        self._output_tokens = 0
        super().on_predict_start(trainer, pl_module)

    def to_rows(self, index: NDArray[np.int64], predictions: NDArray[np.int64]) -> pa.RecordBatch:
        """Returns what was written as rows of the journal; `predictions` is `[B, G]` with -1 behind a row's end."""
        outputs = zip(index.tolist(), predictions, strict=True)
        rows = [self._to_row(row, tokens[tokens >= 0].tolist()) for row, tokens in outputs]
        return pa.RecordBatch.from_pylist(rows, schema=COMPLETION_SCHEMA)

    def counters(self) -> dict[str, int]:
        """Returns how many tokens were written since predicting started."""
        return {"output_tokens": self._output_tokens}

    def _to_row(self, row: int, tokens: list[int]) -> dict[str, Any]:
        if self._module is None or self._tokenizer is None:
            raise RuntimeError("predicting has not started")
        if not tokens:  # even a model that has nothing to say writes its end
            return self._rows.without_output(row, self._module.engine.rejections.get(row, "the model wrote nothing"))
        self._output_tokens += len(tokens)
        is_cut = tokens[-1] not in self._module.end_token_ids
        text = str(self._tokenizer.decode(tokens if is_cut else tokens[:-1], skip_special_tokens=True))
        return self._rows.of(row, text, num_tokens=len(tokens), is_cut=is_cut)
