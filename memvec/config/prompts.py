"""Prompts of conf/prompt by their names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from omegaconf import DictConfig, OmegaConf

from memvec.config.compose import conf_folder
from memvec.errors import ConfigError


def named_prompt(prompt: str) -> tuple[str, bool]:
    """Returns the template of a prompt, and whether it is a chat's.

    Args:
        prompt: A name from conf/prompt, or a template, which contains `{text}` and is taken as it stands.

    Raises:
        ConfigError: There is no such prompt.
    """
    if isinstance(prompt, str) and "{text}" in prompt:
        return prompt, False
    path = conf_folder() / "prompt" / f"{prompt}.yaml"
    if not path.is_file():
        allowed = sorted(path.stem for path in path.parent.glob("*.yaml"))
        raise ConfigError("prompt", prompt, found="no such prompt", allowed=[*allowed, "a template with {text}"])
    group = cast(DictConfig, OmegaConf.load(path))
    return str(group.template), bool(group.chat)


def prompt_name(group: Mapping[str, Any]) -> str:
    """Returns the name in conf/prompt of a `prompt` group, or its template, where it is one of one's own."""
    for path in sorted((conf_folder() / "prompt").glob("*.yaml")):
        known = cast(DictConfig, OmegaConf.load(path))
        if (known.get("template"), known.get("chat")) == (group["template"], group["chat"]):
            return path.stem
    return str(group["template"])
