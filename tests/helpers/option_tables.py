"""Entry: the tables of conf/README.md, made from the comments in conf/.

    python -m tests.helpers.option_tables

Each stands below a heading that names its file; what stands around it is kept.
"""

from __future__ import annotations

import re
from pathlib import Path

from memvec.config.options import Option, read_options

ROOT = Path(__file__).parent.parent.parent
TABLE = re.compile(r"(^### `(conf/[\w/]+\.yaml)`(?:(?!^#)[\s\S])*?)(^\| option \|(?:.*\n)+?)(?=\n|\Z)", re.MULTILINE)


def markdown_table(options: list[Option]) -> str:
    """Returns options as a table."""
    rows = (f"| `{one.name}` | {f'`{one.default}`' if one.default else ''} | {one.help} |" for one in options)
    return "\n".join(["| option | default | meaning |", "| --- | --- | --- |", *rows])


def with_tables(text: str) -> str:
    """Returns the text of the README with its tables as they should be."""
    return TABLE.sub(lambda found: f"{found[1]}{markdown_table(read_options(ROOT / found[2]))}\n", text)


if __name__ == "__main__":
    readme = ROOT / "conf/README.md"
    readme.write_text(with_tables(readme.read_text(encoding="utf-8")), encoding="utf-8")
