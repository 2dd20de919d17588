"""Checks of single option values.

In: an option's name and the value a user gave. Out: the value, or a `ConfigError` that names both and what is allowed.
"""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral
from typing import Any, TypeVar

from memvec.errors import ConfigError
from memvec.urls import is_url

Value = TypeVar("Value")

# Lightning's words for dtypes: those of the weights, and of autocast.
PRECISIONS: dict[str, tuple[str, str | None]] = {
    "32-true": ("float32", None),
    "bf16-true": ("bfloat16", None),
    "16-true": ("float16", None),
    "64-true": ("float64", None),
    "bf16-mixed": ("float32", "bfloat16"),
    "16-mixed": ("float32", "float16"),
}


def at_least(name: str, value: Any, minimum: int) -> int:
    """Returns `value` where it is an integer of at least `minimum`.

    Raises:
        ConfigError: It is not.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < minimum:
        raise ConfigError(name, value, allowed=f"an integer of at least {minimum}")
    return value


def at_least_or_none(name: str, value: Any, minimum: int) -> int | None:
    """Returns `value` where it is None or an integer of at least `minimum`.

    Raises:
        ConfigError: It is neither.
    """
    return None if value is None else at_least(name, value, minimum)


def one_or_more_layers(name: str, value: Any) -> int | list[int]:
    """Returns `value` where it is a layer's number, or a list of at least one.

    Raises:
        ConfigError: It is neither.
    """
    is_list = isinstance(value, Sequence) and not isinstance(value, str)
    layers = list(value) if is_list else [value]
    if not layers or not all(isinstance(layer, Integral) and not isinstance(layer, bool) for layer in layers):
        raise ConfigError(name, value, allowed="a layer's number, or a list of at least one")
    numbers = [int(layer) for layer in layers]
    return numbers if is_list else numbers[0]


def number(name: str, value: Any, *, least: float, most: float | None = None) -> float:
    """Returns a number within limits.

    Raises:
        ConfigError: It is none, or outside of them.
    """
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not value >= least or (most is not None and value > most):
        allowed = f"a number of at least {least}" if most is None else f"a number from {least} to {most}"
        raise ConfigError(name, value, allowed=allowed)
    return float(value)


def one_of(name: str, value: Value, allowed: Sequence[Value]) -> Value:
    """Returns `value` where it is one of `allowed`; 1 is not true.

    Raises:
        ConfigError: It is not.
    """
    if not any(type(value) is type(each) and value == each for each in allowed):
        raise ConfigError(name, value, allowed=allowed)
    return value


def one_text(name: str, value: Any) -> str:
    """Returns `value` where it is a text with something in it.

    Raises:
        ConfigError: It is a list, a number or anything else.
    """
    if not isinstance(value, str) or not value:
        raise ConfigError(name, value, allowed="one name")
    return value


def one_or_more_texts(name: str, value: Any) -> list[str]:
    """Returns as a list what is a text with something in it, or a list of at least one.

    Raises:
        ConfigError: It is neither.
    """
    texts = [value] if isinstance(value, str) or not isinstance(value, Sequence) else list(value)
    if not texts or not all(isinstance(text, str) and text for text in texts):
        raise ConfigError(name, value, allowed="a name, or a list of at least one")
    return texts


def one_text_or_none(name: str, value: Any) -> str | None:
    """Returns `value` where it is None or a text with something in it.

    Raises:
        ConfigError: It is neither.
    """
    return None if value is None else one_text(name, value)


def folder_here(name: str, value: Any) -> Any:
    """Returns `value` where it is not the address of something remote.

    Raises:
        ConfigError: It is.
    """
    if is_url(value):
        raise ConfigError(name, value, allowed="a folder of this machine (publish= copies a run elsewhere)")
    return value
