"""What the model has written so far, in the journal: texts in the place of vectors.

In: frames of `(index, attempt, text, num_tokens, is_cut, outcome, reason)`. Out: for every window and attempt, where
its output lies in the mapped files.

How: the index holds a few bytes a window; a text is read from its file when it is asked for. An output without a text
has a reason: its prompt did not fit into memory.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from memvec.data.prepared import Signature, read_signature
from memvec.generation.parser import Outcome
from memvec.layout import RunLayout
from memvec.schema import INDEX, NUM_TOKENS, REASON, TEXT
from memvec.writer.frames import Frame, journal_files, read_frames, report_damage

ATTEMPTS = 2  # a window whose output could not be understood is tried once more
ATTEMPT = "attempt"
IS_CUT = "is_cut"
OUTCOME = "outcome"

COMPLETION_SCHEMA = pa.schema(
    [
        (INDEX, pa.int64()),
        (ATTEMPT, pa.int8()),  # 0, or 1 where it was tried again
        (TEXT, pa.string()),
        (NUM_TOKENS, pa.int32()),
        (IS_CUT, pa.bool_()),  # whether the model was stopped before it came to its end
        (OUTCOME, pa.int8()),  # `Outcome`
        (REASON, pa.string()),
    ]
)


@dataclass(frozen=True)
class Completion:
    """One output.

    Args:
        text: What the model wrote.
        attempt: From 0.
        num_tokens: Tokens it wrote, its end included.
        is_cut: Whether it was stopped before it came to its end.
    """

    text: str
    attempt: int
    num_tokens: int
    is_cut: bool


@dataclass
class CompletionIndex:
    """Where every output lies.

    Args:
        files: The journal's files.
        file: `[attempts, N]` int32, position in `files`, or -1 where there is no output.
        start: `[attempts, N]` int64, the byte in that file at which the text starts.
        length: `[attempts, N]` int32, its bytes.
        num_tokens: `[attempts, N]` int32.
        is_cut: `[attempts, N]` bool.
        outcome: `[attempts, N]` int8, `Outcome`.
        reasons: Windows that will have no output, and why.
        damaged: One sentence for every piece of a file that had to be passed over.
    """

    files: list[Path]
    file: NDArray[np.int32]
    start: NDArray[np.int64]
    length: NDArray[np.int32]
    num_tokens: NDArray[np.int32]
    is_cut: NDArray[np.bool_]
    outcome: NDArray[np.int8]
    reasons: dict[int, str] = field(default_factory=dict)
    damaged: list[str] = field(default_factory=list)

    def is_done(self, attempt: int) -> NDArray[np.bool_]:
        """Whether nothing is left to do for a window in this attempt, `[N]` bool.

        Nothing is left in the second attempt where the first was understood or is still to be made.
        """
        there: NDArray[np.bool_] = self.file[attempt] >= 0
        if attempt > 0:
            there |= (self.file[0] < 0) | (self.outcome[0] != Outcome.UNPARSEABLE.value)
        there[list(self.reasons)] = True
        return there

    def outputs(self, row: int) -> list[Completion]:
        """Returns a window's outputs, the first attempt first."""
        there = [attempt for attempt in range(ATTEMPTS) if self.file[attempt, row] >= 0]
        return [
            Completion(
                self._text(attempt, row),
                attempt,
                num_tokens=int(self.num_tokens[attempt, row]),
                is_cut=bool(self.is_cut[attempt, row]),
            )
            for attempt in there
        ]

    def _text(self, attempt: int, row: int) -> str:
        with self.files[self.file[attempt, row]].open("rb") as stream:
            stream.seek(int(self.start[attempt, row]))
            return str(stream.read(int(self.length[attempt, row])), "utf-8")


def has_completions(folder: RunLayout, rows: int, attempt: int) -> NDArray[np.bool_]:
    """Returns for which rows of a run nothing is left to compute in an attempt, `[N]` bool."""
    return read_completions(folder.journal, rows=rows, signature=read_signature(folder)).is_done(attempt)


def read_completions(folder: Path, *, rows: int, signature: Signature) -> CompletionIndex:
    """Reads every frame of every journal file in `folder`.

    Args:
        folder: The journal's folder; without files the index is empty.
        rows: N, how many windows the run has.
        signature: Of these windows; what is signed otherwise does not count.

    Raises:
        RunFolderError: Outputs were written in this run for other windows than it has now.
    """
    shape = (ATTEMPTS, rows)
    index = CompletionIndex(
        files=journal_files(folder),
        file=np.full(shape, -1, dtype=np.int32),
        start=np.zeros(shape, dtype=np.int64),
        length=np.zeros(shape, dtype=np.int32),
        num_tokens=np.zeros(shape, dtype=np.int32),
        is_cut=np.zeros(shape, dtype=bool),
        outcome=np.zeros(shape, dtype=np.int8),
    )
    for frame in read_frames(
        index.files, rows=rows, signature=signature, is_expected=_has_outputs, damaged=index.damaged
    ):
        _enter(index, frame)
    report_damage(index.damaged)
    return index


def _has_outputs(batch: pa.RecordBatch) -> bool:
    """Whether a record batch has the columns of outputs, and each row a text or a reason why there is none."""
    if batch.schema != COMPLETION_SCHEMA:
        return False
    text, reason = (batch.column(name).is_valid().to_numpy(zero_copy_only=False) for name in (TEXT, REASON))
    numbers = (batch.column(name) for name in (ATTEMPT, NUM_TOKENS, IS_CUT, OUTCOME))
    if not (text ^ reason).all() or any(column.null_count for column in numbers):
        return False
    allowed = ((ATTEMPT, range(ATTEMPTS)), (OUTCOME, [outcome.value for outcome in Outcome]))
    return all(np.isin(batch.column(name).to_numpy(), list(values)).all() for name, values in allowed)


def _enter(index: CompletionIndex, frame: Frame) -> None:
    batch = frame.batch
    rows = batch.column(INDEX).to_numpy()
    texts, reasons = batch.column(TEXT), batch.column(REASON).to_pylist()
    _, offsets, values = texts.buffers()
    places = np.frombuffer(offsets, dtype=np.int32, count=len(rows) + 1)
    has_characters = values is not None and values.size > 0  # where all texts are empty, the buffer lies nowhere
    first = values.address - frame.address if has_characters else 0
    has_text = np.asarray([reason is None for reason in reasons])
    index.reasons.update({int(row): reason for row, reason in zip(rows, reasons, strict=True) if reason is not None})
    at = (batch.column(ATTEMPT).to_numpy()[has_text], rows[has_text])
    index.file[at] = frame.file
    index.start[at] = (first + places[:-1].astype(np.int64))[has_text]
    index.length[at] = np.diff(places)[has_text]
    index.num_tokens[at] = batch.column(NUM_TOKENS).to_numpy()[has_text]
    index.is_cut[at] = batch.column(IS_CUT).to_numpy(zero_copy_only=False)[has_text]
    index.outcome[at] = batch.column(OUTCOME).to_numpy()[has_text]
