"""Turns a complete journal of outputs into the result: memory texts in order, and every output beside them.

In: the journal, and the windows it was computed for. Out: `memories.parquet` and `memories.jsonl` with the same rows;
`raw.jsonl` with every output; `failed.jsonl` with the windows that came to nothing; `rejected.jsonl` with the
conversations that could not be used. Each has `id` and `text`, so `memvec.predict` reads any of them.

How: one pass over the windows in order, each file written under another name and renamed, so that finalising can be
killed at any instruction and done again. A memory that a conversation has given before, as an overlap makes it, is left
out. The first rank does all of it: reading an output takes a thousandth of the time of writing it.
"""

from __future__ import annotations

import json
from contextlib import ExitStack
from dataclasses import dataclass
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset
from numpy.typing import NDArray

from memvec.data.kept import KeptRows
from memvec.data.prepared import read_signature
from memvec.errors import WriterError
from memvec.features import memory_features
from memvec.files import atomic_file, read_json, writing
from memvec.generation.completions import Completion, read_completions
from memvec.generation.echoes import Instructions, letters
from memvec.generation.parser import Outcome, Parsed, parse
from memvec.generation.rows import prompt_content
from memvec.layout import RunLayout
from memvec.schema import CONVERSATION, CONVERSATION_ID, ID, PROVENANCE, TEXT, TRUNCATED
from memvec.table import as_json

ROWS_PER_GROUP = 10_000


@dataclass(frozen=True)
class GenerationCounts:
    """What became of conversations and windows.

    Args:
        conversations: Conversations that could be used.
        rejected: Conversations that could not.
        windows: Windows they were cut into.
        truncated: Windows whose text lost its end, since the tokens of the whole were more than those of its messages.
        with_memories: Windows whose output gave memories.
        nothing: Windows in which the model found nothing to remember.
        failed: Windows whose output could not be understood, twice, or that had none.
        retried: Windows that were tried a second time.
        cut: Windows whose output was stopped before it came to its end.
        memories: Memory texts.
        duplicates: Memories that were left out, since their conversation had given them before.
    """

    conversations: int
    rejected: int
    windows: int
    truncated: int
    with_memories: int
    nothing: int
    failed: int
    retried: int
    cut: int
    memories: int
    duplicates: int


class MemoryFinalizer:
    """Everything the last stage needs to know, read once.

    Args:
        folder: The run's folder; every window is in the journal.
        instructions: The part of the prompt that is the same for all windows.

    Raises:
        WriterError: Windows are missing from the journal.
    """

    def __init__(self, folder: RunLayout, instructions: Instructions) -> None:
        self.folder = folder
        self.instructions = instructions
        self.summary = read_json(folder.input_summary)
        self.windows = Dataset.from_file(str(folder.entries))
        self.kept = KeptRows(folder.kept)
        self.first: NDArray[np.int64] = np.load(folder.first_rows)
        self.outputs = read_completions(folder.journal, rows=len(self.first), signature=read_signature(folder))
        missing = int((~self.outputs.is_done(0)[self.first]).sum())
        if missing:
            found = f"{missing} of {len(self.first)} windows have no output yet"
            raise WriterError(folder.root, found=found, advice="run the same command again to resume")
        self._counts: dict[str, int] = {}

    @property
    def counts(self) -> GenerationCounts:
        """What became of conversations and windows; `write_results` has run."""
        truncated = 0
        if self.folder.prompts.exists():  # a server tokenises itself, and refuses what is too long
            truncated = Dataset.from_file(str(self.folder.prompts)).data.column(TRUNCATED).to_numpy().sum()
        return GenerationCounts(
            conversations=self.summary["rows"] - self.summary["rejected"],
            rejected=self.summary["rejected"],
            windows=len(self.first),
            truncated=int(truncated),
            **self._counts,
        )

    def notes(self) -> dict[str, Any]:
        """Returns nothing: every window's output was written by this run."""
        return {}

    def write_results(self, *, rank: int = 0, world_size: int = 1) -> None:
        """Writes memories, outputs and failures; the first rank does.

        Raises:
            WriterError: A file cannot be written.
        """
        if rank > 0:
            return
        with ExitStack() as files:
            schema = memory_features(integer_ids=self.summary["integer_ids"], kept=self.kept.types).arrow_schema
            parquet = files.enter_context(atomic_file(self.folder.memories))
            table = files.enter_context(pq.ParquetWriter(parquet, schema, compression="zstd"))
            lines, raw, failed = (
                files.enter_context(files.enter_context(atomic_file(path)).open("w", encoding="utf-8"))
                for path in (self.folder.memory_lines, self.folder.raw, self.folder.failed)
            )
            with writing(self.folder.root):  # whichever of them
                self._write(table, lines, raw, failed)

    def write_rejected(self) -> None:
        """Writes `rejected.jsonl`: the conversations that could not be used."""
        with atomic_file(self.folder.rejected) as partial:
            partial.write_bytes(self.folder.input_rejected.read_bytes())

    def _write(self, table: pq.ParquetWriter, lines: IO[str], raw: IO[str], failed: IO[str]) -> None:
        counts = dict.fromkeys(("with_memories", "nothing", "failed", "retried", "cut", "memories", "duplicates"), 0)
        memories: list[dict[str, Any]] = []
        conversation, known, kept = None, set[str](), dict[str, Any]()
        for row, window in enumerate(self.windows):
            first = int(self.first[row])  # windows with an equal prompt share their outputs
            outputs = self.outputs.outputs(first)
            prompt = prompt_content(window, self.instructions)
            readings = [parse(output.text, is_cut=output.is_cut, prompt=prompt) for output in outputs]
            # The last attempt counts. Without any there is a reason: the prompt did not fit into memory.
            nothing = Parsed(Outcome.UNPARSEABLE, reason=self.outputs.reasons.get(first))
            result = readings[-1] if readings else nothing
            provenance = {name: window[name] for name in PROVENANCE}
            if self.summary["integer_ids"]:
                provenance[CONVERSATION_ID] = int(provenance[CONVERSATION_ID])
            if window[CONVERSATION_ID] != conversation:
                conversation, known = window[CONVERSATION_ID], set()
                kept = self.kept.row(window[CONVERSATION]) if self.kept.types else {}
            counts[_COUNTED[result.outcome]] += 1
            counts["retried"] += len(outputs) > 1
            counts["cut"] += bool(outputs) and outputs[-1].is_cut
            for output, reading in zip(outputs, readings, strict=True):
                _write_line(raw, {**_described(output, reading, window[ID]), **provenance})
            if result.outcome is Outcome.UNPARSEABLE:
                text = outputs[-1].text if outputs else ""
                _write_line(failed, {ID: window[ID], TEXT: text, "reason": result.reason, **provenance})
            for number, text in enumerate(result.memories):
                if letters(text) in known:
                    counts["duplicates"] += 1
                    continue
                known.add(letters(text))
                memory = {ID: f"{window[ID]}-{number}", TEXT: text, **provenance, **kept}
                _write_line(lines, memory)
                memories.append(memory)
                counts["memories"] += 1
            if len(memories) >= ROWS_PER_GROUP:
                table.write_table(pa.Table.from_pylist(memories, schema=table.schema))
                memories = []
        table.write_table(pa.Table.from_pylist(memories, schema=table.schema))
        self._counts = counts


_COUNTED = {Outcome.MEMORIES: "with_memories", Outcome.NOTHING: "nothing", Outcome.UNPARSEABLE: "failed"}


def _described(output: Completion, reading: Parsed, window: str) -> dict[str, Any]:
    """Returns an output's line of `raw.jsonl`; the second attempt's id says so, since ids are different."""
    return {
        ID: window if output.attempt == 0 else f"{window}#{output.attempt + 1}",
        TEXT: output.text,
        "outcome": reading.outcome.name.lower(),
        "attempt": output.attempt + 1,
        "num_tokens": output.num_tokens,
        "is_cut": output.is_cut,
    }


def _write_line(stream: IO[str], content: dict[str, Any]) -> None:
    stream.write(json.dumps(as_json(content), ensure_ascii=False) + "\n")
