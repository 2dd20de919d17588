"""Objects made of groups of the configuration, with one line for whatever a group cannot be made of.

In: a group of a composed configuration, which names a class (`_target_`) and its options. Out: an object of it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from hydra.errors import InstantiationException
from hydra.utils import instantiate
from lightning.fabric.utilities.exceptions import MisconfigurationException
from omegaconf import DictConfig, OmegaConf

from memvec.errors import ConfigError, MemvecError, one_line

# Options whose values the errors of Lightning's Trainer do not name.
NOT_IN_ERRORS = ("accelerator", "devices")
# What Python says of an option that a class does not take.
UNKNOWN_OPTION = re.compile(r"(?P<owner>\w+)\.__init__\(\) got an unexpected keyword argument '(?P<option>\w+)'")


def build_group(group: str, cfg: DictConfig, **known: Any) -> Any:
    """Returns what a group of conf/ names (`_target_`), made of its options and of what only a program knows.

    Args:
        group: Its name.
        cfg: Its options.
        **known: What is added: the tokenizer, the run's folder.

    Raises:
        ConfigError: It cannot be built from them.
    """
    if missing := sorted(OmegaConf.missing_keys(cfg)):
        name = f"{group}.{missing[0].removeprefix(f'{group}.')}"  # of a part of a configuration it is the full one
        raise ConfigError(name, found="not set", advice="--help says what it is")
    asked = ", ".join(f"{group}.{name}={cfg[name]}" for name in NOT_IN_ERRORS if name in cfg)
    with one_line_errors(group, asked):
        return instantiate(cfg, _partial_=True, _convert_="all")(**known)


@contextmanager
def one_line_errors(group: str, asked: str = "") -> Iterator[None]:
    """Turns whatever a group cannot be built from into one line.

    Args:
        group: Its name.
        asked: What was asked for that its errors do not name.
    """
    try:
        yield
    except MemvecError:
        raise
    except (
        InstantiationException,
        MisconfigurationException,
        ImportError,
        TypeError,
        ValueError,
        RuntimeError,
    ) as error:
        cause = error.__cause__ or error
        if isinstance(cause, MemvecError):
            raise cause from error
        if match := UNKNOWN_OPTION.search(str(cause)):
            found = f"{match['owner']} has no such option"
            raise ConfigError(f"{group}.{match['option']}", found=found, advice="--help lists them") from error
        named = asked or f"the {group} group of the configuration"
        raise ConfigError(named, found=f"cannot be used: {one_line(cause)}") from error
