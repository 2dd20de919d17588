"""The lines a finished generation closes with."""

from __future__ import annotations

from memvec.generation.finalize import GenerationCounts
from memvec.run.summary import FinishedRun


class GenerationSummary(FinishedRun[GenerationCounts]):
    """A finished run of generation."""

    kind = GenerationCounts

    def lines(self) -> list[str]:
        """Returns the closing summary."""
        counts, numbers = self.counts, self.numbers
        found = f"{counts.with_memories:,} with memories, {counts.nothing:,} with nothing to remember"
        failed = f"{counts.failed:,} not understood" + (f" (why: {self.folder.failed})" if counts.failed else "")
        why = f" (why: {self.folder.rejected})" if counts.rejected else ""
        # Nothing was counted where an earlier attempt had written everything.
        tokens = numbers.take_or("output_tokens_per_second", float) or 0.0
        windows = numbers.take("entries_per_second", float)
        speed = f"{tokens:,.0f} tokens/s ({windows:,.2f} windows/s; {self.computed})"
        # What an earlier command wrote does not count, nor windows that are alike, of which one is written.
        if (computed := numbers.take("computed_entries", int)) < counts.windows + counts.retried:
            speed += f", over the {computed:,} that this command wrote"
        return [
            f"memories   {counts.memories:,} of {counts.conversations:,} conversations",
            f"windows    {counts.windows:,}: {found}, {failed}",
            *self.id_lines(),
            f"rejected   {counts.rejected:,} conversations{why}",
            *([f"truncated  {counts.truncated:,} windows"] if counts.truncated else []),
            f"written    {speed}",
            f"file       {self.folder.memories}",
        ]
