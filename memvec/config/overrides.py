"""Overrides as a user types them, in the grammar that Hydra reads.

In: `data.path=part=0/a.jsonl`. Out: `data.path='part=0/a.jsonl'`.

Hydra reads `=`, `,`, `+`, `#`, brackets, quotes and everything beyond ASCII in a value as grammar, or not at all. The
values of options that are paths, names or texts are therefore quoted here, as far as they are not quoted already: in a
list each item, in a sweep each choice. Everything else is Hydra's.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

# The last part of an override's name, such as `path` of `data.path`.
TEXTS = frozenset({"query", "template", "where"})
NAMES = frozenset(
    {
        *("path", "output_dir", "publish", "reuse", "name_or_path", "adapter", "queries", "revision", "split"),
        *("encoding", "delimiter"),
        *("text_column", "id_column", "messages_column", "date_column", "keep_columns"),
    }
)
FOLDERS_OF_HYDRA = ("hydra.run.dir", "hydra.sweep.dir", "hydra.sweep.subdir")
SWEEP = {"-m", "--multirun", "hydra.mode=MULTIRUN"}
# Hydra's flags that take the next argument (hydra/_internal/utils.py, get_args_parser).
WITH_VALUE = {"--config-dir", "-cd", "--config-name", "-cn", "--config-path", "-cp", "--cfg", "-c"}
WITH_VALUE |= {"--package", "-p", "--experimental-rerun"}
MAYBE_WITH_VALUE = {"--info", "-i"}
TEMPLATE_FIELD = "{text}"  # each template of a sweep over templates has it

QUOTED = re.compile(r"""\s*(?P<quote>['"])(?:\\.|(?!(?P=quote))[^\\])*(?P=quote)\s*""", re.DOTALL)
SWEEP_FUNCTION = re.compile(r"(choice|range|interval|shuffle|sort|tag)\(.*\)", re.DOTALL)


def as_overrides(arguments: Sequence[str]) -> list[str]:
    """Returns the arguments of a command line as Hydra reads them: overrides first, since it takes no flag in between.

    Args:
        arguments: As typed, in any order.
    """
    is_sweep = not SWEEP.isdisjoint(arguments)
    overrides, flags = [], []
    before = ""
    for argument in arguments:
        is_value = before in WITH_VALUE or (before in MAYBE_WITH_VALUE and "=" not in argument)
        if is_value or argument.startswith("-"):
            flags.append(argument)
        else:
            overrides.append(as_override(argument, is_sweep=is_sweep))
        before = argument
    return [*overrides, *flags]


def as_override(argument: str, *, is_sweep: bool = False) -> str:
    """Returns one argument as Hydra reads it.

    Args:
        argument: As typed.
        is_sweep: Whether commas at the top level separate the choices of a sweep.
    """
    name, equals, value = argument.partition("=")
    key = name.lstrip("+")
    leaf = key.rpartition(".")[2]
    if not equals or not (leaf in TEXTS | NAMES or key in FOLDERS_OF_HYDRA):
        return argument
    if is_sweep and SWEEP_FUNCTION.fullmatch(value):
        return argument
    if key in FOLDERS_OF_HYDRA and value[:1] == value[-1:] == '"' and not QUOTED.fullmatch(value):
        value = value[1:-1]  # Lightning wraps the folder of a rank that it starts, whatever is in it
    choices = _choices(value, leaf) if is_sweep else [value]
    return f"{name}={','.join(_quoted_value(choice, is_text=leaf in TEXTS) for choice in choices)}"


def _choices(value: str, leaf: str) -> list[str]:
    """Returns the choices of a sweep; one where the commas belong to the value."""
    choices = [choice.strip() for choice in _split(value)]
    if not all(choices) or (leaf == "template" and not all(TEMPLATE_FIELD in choice for choice in choices)):
        return [value]
    return choices


def _quoted_value(value: str, *, is_text: bool) -> str:
    if value in ("", "null") or QUOTED.fullmatch(value):
        return value
    if not is_text and value.startswith("[") and value.endswith("]"):
        items = [item.strip() for item in _split(value[1:-1])]
        return f"[{','.join(_quoted_value(item, is_text=False) for item in items)}]"
    return quoted(value)


def _split(value: str) -> Iterator[str]:
    """Yields what commas separate, but for those in quotes that open at an item's beginning, and in brackets."""
    start, at, depth = 0, 0, 0
    while at < len(value):
        if at == start and (match := QUOTED.match(value, at)) and value[match.end() : match.end() + 1] in ("", ","):
            at = match.end()
            continue
        depth += {"[": 1, "]": -1}.get(value[at], 0)
        if value[at] == "," and depth <= 0:
            yield value[start:at]
            start = at + 1
        at += 1
    yield value[start:]


def quoted(value: object) -> str:
    """Returns a value in the quotes of Hydra's grammar, in which a backslash counts only in front of a quote."""
    escaped = re.sub(r"(\\*)('|\Z)", lambda match: match[1] * 2 + match[2].replace("'", "\\'"), str(value))
    return f"'{escaped}'"
