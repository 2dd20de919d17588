"""The dataset card of a published run: what the vectors are, and how to load them.

In: what memvec reads of a manifest. Out: the text of `README.md`, with the metadata that the Hub reads at its top.
"""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import DatasetCardData

from memvec.errors import on_one_line
from memvec.run.manifest import Manifest

SIZES = ((10**3, "n<1K"), (10**4, "1K<n<10K"), (10**5, "10K<n<100K"), (10**6, "100K<n<1M"), (10**7, "1M<n<10M"))
MORE = "n>10M"


def dataset_card(manifest: Manifest, *, repo_id: str) -> str:
    """Returns the card of a run of vectors.

    Args:
        manifest: The run's.
        repo_id: The dataset's name on the Hub.
    """
    data = DatasetCardData(
        pretty_name=repo_id.rpartition("/")[2],
        tags=["memvec", "embeddings"],
        task_categories=["feature-extraction"],
        size_categories=[next((size for most, size in SIZES if manifest.rows < most), MORE)],
        configs=[
            {"config_name": "default", "data_files": [{"split": "train", "path": "vectors/*.parquet"}], "default": True}
        ],
    )
    prompt, columns = manifest.prompt, manifest.columns()
    column = list(columns.values())[-1]
    chosen = f", layer={list(columns)[-1]}" if len(columns) > 1 else ""
    facts = [
        ("model", _code(shown_name(manifest.name_or_path))),
        ("adapter", "none" if manifest.adapter is None else _code(shown_name(manifest.adapter))),
        ("weights", f"{_code(str(manifest.fingerprint.get('model')))} (commit on the Hub, or a digest of the files)"),
        ("layer", ", ".join(f"{layer} (after the final norm)" if layer == -1 else str(layer) for layer in columns)),
        ("dimension", f"{manifest.dimension} {manifest.vector_dtype}{', unit length' * manifest.normalize}"),
        ("rows", f"{manifest.rows:,}"),
        ("texts", "in the column `text`" if manifest.keep_text else "not kept"),
        ("computed in", _code(manifest.precision)),
        ("memvec", _code(manifest.versions.get("memvec"))),
    ]
    table = "\n".join(["| | |", "| --- | --- |", *(f"| {name} | {value} |" for name, value in facts)])
    template = "" if prompt is None else "\n".join(f"    {on_one_line(line)}" for line in prompt.template.splitlines())
    by_chat = " as a user's message of the model's chat template" if prompt is not None and prompt.chat else ""
    return f"""---
{data.to_yaml()}
---

# Hidden-state vectors of {manifest.rows:,} texts

For each text, memvec put it into this prompt{by_chat},
ran the model once, and kept the hidden state of the prompt's last token:

{template}

{table}

## Load

```python
import memvec

dataset = memvec.load("hf://datasets/{repo_id}")  # dataset["{column}"][:10] is a tensor [10, {manifest.dimension}]
hits = memvec.search("hf://datasets/{repo_id}", ["what is looked for"], k=10{chosen})[0]
```

or, without memvec:

```python
import datasets

dataset = datasets.load_dataset("{repo_id}", split="train").with_format("torch")
```

`manifest.json` holds the whole configuration, the versions and the checksums.
"""


def shown_name(name_or_path: str) -> str:
    """Returns the name of a model: of a local folder or file its last part, of anything else the whole."""
    path = Path(name_or_path).expanduser()
    return path.name if path.is_absolute() or path.exists() else name_or_path


def _code(text: str | None) -> str:
    return f"`{on_one_line(text or '?').replace('`', ' ').replace('|', ' ')}`"
