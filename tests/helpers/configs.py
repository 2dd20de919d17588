"""Configurations as `memvec.compose` returns them, of which Hydra composes each choice of groups once.

Hydra takes a quarter of a second for one, and most tests need one of their own: that was a third of the suite's time.
What they override differs mostly in values, which are set afterwards, as Hydra itself does.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Sequence
from functools import cache

from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf

import memvec
from memvec.config.compose import conf_folder
from memvec.config.overrides import as_override

VALUE = re.compile(r"(?!hydra\b)([\w.]+)=", re.ASCII)  # neither `+name=` nor `~name` nor `group@place=`


def compose(overrides: Sequence[str] = (), *, config_name: str = "predict") -> DictConfig:
    """Returns what `memvec.compose` returns, or raises what it raises."""
    values = [override for override in overrides if _sets_a_value(override)]
    others = tuple(override for override in overrides if override not in values)
    try:
        cfg = copy.deepcopy(_composed(config_name, others))
        for value in values:
            parsed = OverridesParser.create().parse_override(as_override(value))
            OmegaConf.update(cfg, parsed.key_or_group, parsed.value(), merge=True)
    except Exception:  # which is not this module's to word
        return memvec.compose(overrides, config_name=config_name)
    return cfg


@cache
def _composed(config_name: str, overrides: tuple[str, ...]) -> DictConfig:
    return memvec.compose(overrides, config_name=config_name)


def _sets_a_value(override: str) -> bool:
    """Whether an override sets an option; else it chooses a group's file, adds or takes away."""
    name = VALUE.match(override)
    return name is not None and not (conf_folder() / name[1]).is_dir()
