"""What lies where in a run's folder.

output_dir/
vectors/         the result, Parquet in input order; or, where memories are generated,
memories.*       the result, as Parquet and as JSON lines; raw.jsonl, failed.jsonl: what the model wrote
rejected.jsonl   rows that could not be used
metrics.json     throughput, padding, seconds, memory
history.json     throughput over the run, padding by length
manifest.json    what was run on what; written last: where it is, the run is complete
memories/        of `memvec.extract`: the folder of the stage before, which wrote the texts
logs/            a file a rank
profile/         with profile=true: where the time went
evaluation.json  how well its vectors find memories, where `memvec.evaluate` has measured it; .csv, .png: of layers
report.html      the page that `memvec.report` made
index/           what `memvec.search` found its way by, above a million rows
.datasets/       the vectors as `memvec.load` maps them
journal/         all that an unfinished run needs to resume; removed when the run is complete
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from memvec.errors import RunFolderError
from memvec.files import read_json

# The folder of the stage before, which may lie in a run's folder once it is complete.
MEMORIES = "memories"
# Where it is, the run is complete.
MANIFEST = "manifest.json"


def is_manifest(content: Any) -> bool:
    """Whether the content of a JSON file is a manifest of memvec's; other programs leave a `manifest.json` too."""
    return isinstance(content, dict) and isinstance(content.get("fingerprint"), dict)


class RunLayout:
    """Paths of a run.

    Args:
        root: The run's folder; it need not exist.
    """

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root).expanduser().resolve()
        self.vectors = self.root / "vectors"
        self.memories = self.root / "memories.parquet"
        self.memory_lines = self.root / "memories.jsonl"
        self.raw = self.root / "raw.jsonl"
        self.failed = self.root / "failed.jsonl"
        self.rejected = self.root / "rejected.jsonl"
        self.metrics = self.root / "metrics.json"
        self.manifest = self.root / MANIFEST
        self.logs = self.root / "logs"
        self.profile = self.root / "profile"
        self.history = self.root / "history.json"
        self.evaluation = self.root / "evaluation.json"
        self.page = self.root / "report.html"
        self.index = self.root / "index"
        self.mapped = self.root / ".datasets"
        self.journal = self.root / "journal"
        self.fingerprint = self.journal / "fingerprint.json"
        self.prepared = self.journal / "prepared.json"
        self.conversations = self.journal / "conversations.arrow"
        self.entries = self.journal / "entries.arrow"
        self.kept = self.journal / "kept.arrow"
        self.input_rejected = self.journal / "rejected.jsonl"
        self.input_summary = self.journal / "input.json"
        self.prompts = self.journal / "prompts.arrow"
        self.first_rows = self.journal / "first_rows.npy"
        self.remaining_rows = self.journal / "remaining_rows.npy"

    @property
    def holds_run(self) -> bool:
        """Whether a run of memvec lies there, finished or not."""
        return self.fingerprint.is_file() or self.read_manifest() is not None

    def read_manifest(self) -> dict[str, Any] | None:
        """Returns the manifest, or None where there is none of memvec's."""
        try:
            content = read_json(self.manifest)
        except RunFolderError:
            return None
        return content if is_manifest(content) else None

    def __repr__(self) -> str:
        """Returns the folder's path in words."""
        return f"{type(self).__name__}({str(self.root)!r})"
