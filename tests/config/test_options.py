"""Options of a YAML file, with the comments above them."""

from __future__ import annotations

from pathlib import Path

from memvec.config.options import Option, help_lines, read_options
from tests.helpers.option_tables import markdown_table

FILE = """\
# what the file is

_target_: a.b
# most entries,
# in a batch
batch_size: 8
# the `text`, not: # this
path: ${memvec.sample:} # nor this
nameless: null
prompt:
  _target_: c.d
  # the request
  template: |-
    # no comment
    two lines
  # further words
  others: {thinking: false}
"""


def options(folder: Path) -> list[Option]:
    path = folder / "data" / "default.yaml"
    path.parent.mkdir()
    path.write_text(FILE, encoding="utf-8")
    return read_options(path)


def test_help_is_the_comment_above_an_option(tmp_path: Path) -> None:
    assert options(tmp_path) == [
        Option("data.batch_size", "8", "most entries, in a batch"),
        Option("data.path", "", "the `text`, not: # this"),
        Option("data.nameless", "null", ""),
        Option("data.prompt.template", "", "the request"),
        Option("data.prompt.others", "", "further words"),
    ]


def test_help_lines_are_aligned_and_say_defaults(tmp_path: Path) -> None:
    lines = help_lines([*options(tmp_path), Option("data.a_name_of_many_characters", "1", "long " * 30)]).splitlines()
    assert lines[0] == "  data.batch_size          most entries, in a batch (default 8)"
    assert lines[1] == "  data.path                the text, not: # this"
    assert lines[5] == "  data.a_name_of_many_characters"
    assert all(line.startswith(" " * 27) and len(line) <= 120 for line in lines[6:])


def test_a_table_keeps_backquotes_and_hides_references(tmp_path: Path) -> None:
    rows = markdown_table(options(tmp_path)).splitlines()
    assert rows[2] == "| `data.batch_size` | `8` | most entries, in a batch |"
    assert rows[3] == "| `data.path` |  | the `text`, not: # this |"
