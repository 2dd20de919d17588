"""Which ways to be fast a user wants; whether they are taken is found out by the warm-up (`memvec.model.warm_up`)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from memvec.config.values import one_of


@dataclass(frozen=True)
class Speedups:
    """Which ways to be fast are wanted.

    Args:
        prefix_cache: `auto` computes the tokens that prompts begin with once and leaves padding out, where the
            model allows; `off` computes every token of every row.
        tune: `auto` measures on a CPU whether packed weights are faster; `off` leaves them as they are.
        compile: Whether layers, or what of them holds no cache, are compiled, which costs 5 to 60 seconds; `auto` does
            where that pays and is faster.
        probe: `auto` compares the fast way with the plain one on a few rows before it is trusted; `off` trusts it.

    Raises:
        ConfigError: One of them is none of these.
    """

    prefix_cache: Literal["auto", "off"] = "auto"
    tune: Literal["auto", "off"] = "auto"
    compile: bool | Literal["auto"] = "auto"
    probe: Literal["auto", "off"] = "auto"

    def __post_init__(self) -> None:
        for name, allowed in (("prefix_cache", ("auto", "off")), ("tune", ("auto", "off")), ("probe", ("auto", "off"))):
            one_of(f"model.{name}", getattr(self, name), allowed)
        one_of("model.compile", self.compile, ("auto", True, False))
