"""The options of conf/ with their help, which are the comments above them.

In: a file of conf/. Out: its options by the names of their overrides; and as the lines of a `--help`, which the YAML
files write as `${memvec.options:data/default}`. The tables of conf/README.md are made of them too.

Why: an option is described once, where its default stands.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import yaml

NO_OPTIONS = frozenset({"defaults", "hydra", "_target_"})
NAME_COLUMNS = 24  # a longer name has a line of its own
LINE_COLUMNS = 120


@dataclass(frozen=True)
class Option:
    """An option.

    Args:
        name: Of its override, such as `data.batch_size`.
        default: As the YAML file writes it; empty where that is a reference, a mapping, a list, or of several lines.
        help: One paragraph, with names and values between backquotes.
    """

    name: str
    default: str
    help: str


def read_options(path: Path) -> list[Option]:
    """Reads the options of a file of conf/, in its order.

    Args:
        path: The file; the folder it lies in is its group, `conf` itself is none.
    """
    text = path.read_text(encoding="utf-8")
    group = "" if path.parent.name == "conf" else f"{path.parent.name}."
    return list(_options(yaml.compose(text, Loader=yaml.SafeLoader), group, text.splitlines(), depth=0))


def help_lines(options: list[Option]) -> str:
    """Returns options as lines of a terminal."""
    return "\n".join(_help_line(option) for option in options)


def _help_line(option: Option) -> str:
    default = f" (default {option.default})" if option.default not in ("", "null", "???") else ""
    indent = " " * (NAME_COLUMNS + 3)
    name = f"  {option.name}"
    is_short = len(name) < len(indent)
    text = textwrap.fill(
        f"{option.help.replace('`', '')}{default}",
        width=LINE_COLUMNS,
        initial_indent=f"{name:<{len(indent)}}" if is_short else indent,
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
    )
    return text if is_short else f"{name}\n{text}"


def _options(mapping: yaml.MappingNode, outer: str, lines: list[str], *, depth: int) -> Iterator[Option]:
    for key, value in mapping.value:
        name = f"{outer}{key.value}"
        if key.value in NO_OPTIONS:
            continue
        if isinstance(value, yaml.MappingNode) and depth == 0:
            yield from _options(value, f"{name}.", lines, depth=1)
        else:
            yield Option(name, _default(value), _comment_above(lines, key.start_mark.line))


def _default(value: yaml.Node) -> str:
    is_shown = isinstance(value, yaml.ScalarNode) and "${" not in value.value and "\n" not in value.value
    return str(value.value) if is_shown else ""


def _comment_above(lines: list[str], line: int) -> str:
    start = line
    while start > 0 and lines[start - 1].lstrip().startswith("#"):
        start -= 1
    return " ".join(each.lstrip().removeprefix("#").strip() for each in lines[start:line])
