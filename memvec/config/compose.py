"""Where conf/ is, how a configuration is composed, and the checks of single values.

In: overrides as a user types them. Out: a composed configuration.

conf/ stands at the top of the checkout and, in an installed package, inside it (pyproject.toml's `force-include`): the
package's copy is looked for first, so that a wheel never reads some other project's conf/.
"""

from __future__ import annotations

import difflib
import re
import threading
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any, cast

from omegaconf import DictConfig, OmegaConf

from memvec.config.options import help_lines, read_options
from memvec.config.overrides import as_override, quoted
from memvec.errors import ConfigError

# What Hydra composes with is one a process: threads take turns.
_COMPOSING = threading.Lock()


def conf_folder() -> Path:
    """Returns the absolute folder of the YAML files."""
    package = Path(str(resources.files("memvec")))
    inside = package / "conf"
    return inside if inside.is_dir() else package.parent / "conf"


def sample_path() -> str:
    """Returns the path of the sample texts that the package ships."""
    return str(resources.files("memvec") / "data" / "sample.jsonl")


def sample_conversations_path() -> str:
    """Returns the path of the sample conversations that the package ships."""
    return str(resources.files("memvec") / "generation" / "sample.jsonl")


def options_help(file: str) -> str:
    """Returns the options of a file of conf/, such as `data/default`, as lines of a `--help`."""
    return help_lines(read_options(conf_folder() / f"{file}.yaml"))


def groups_help(config_name: str) -> str:
    """Returns the groups of a top-level file of conf/ and their choices, as lines of a `--help`."""
    groups = sorted(_groups(OmegaConf.load(conf_folder() / f"{config_name}.yaml")) - {"launch"})  # nothing to choose
    return "\n".join(f"{group}: {', '.join(_choices(group))}" for group in groups)


def command_help(config_name: str) -> str:
    """Returns what `--help` says, without Hydra, which takes most of a second to find the groups of a `--help`."""
    register_resolvers()
    return str(OmegaConf.load(conf_folder() / f"{config_name}.yaml").hydra.help.template)


def _groups(top: Any) -> set[str]:
    """Returns the groups that a top-level file names, such as `data` and `data@vectors`."""
    return {str(key) for choice in top["defaults"] if not isinstance(choice, str) for key in choice if "/" not in key}


def _choices(group: str) -> list[str]:
    return sorted(path.stem for path in (conf_folder() / group.partition("@")[0]).glob("*.yaml"))


def register_resolvers() -> None:
    """Makes memvec's resolvers known to OmegaConf: what the YAML files write as `${memvec.…:}`."""
    OmegaConf.register_new_resolver("memvec.sample", sample_path, replace=True)
    OmegaConf.register_new_resolver("memvec.sample_conversations", sample_conversations_path, replace=True)
    OmegaConf.register_new_resolver(
        "memvec.either", lambda value, other: other if value is None else value, replace=True
    )
    OmegaConf.register_new_resolver("memvec.of_same_model", of_same_model, replace=True)
    OmegaConf.register_new_resolver("memvec.processes", count_processes, replace=True)
    OmegaConf.register_new_resolver("memvec.options", options_help, replace=True)
    OmegaConf.register_new_resolver("memvec.groups", groups_help, replace=True)


def of_same_model(value: Any, *, _parent_: DictConfig, _root_: DictConfig) -> Any:
    """Returns an option of the `model` group for another group that names its model, where it is that one; else None.

    Args:
        value: What belongs to the one model, such as its revision.
        _parent_: The other group; OmegaConf passes it.
        _root_: The whole configuration.
    """
    groups = (_parent_, OmegaConf.select(_root_, "model"))
    # None where it is not set, which is an error of its own
    names = [OmegaConf.select(group, "name_or_path", throw_on_resolution_failure=False) for group in groups]
    own, models = (name and Path(str(name)).expanduser().resolve() for name in names)
    return value if own == models else None


def count_processes(accelerator: str, devices: Any, num_nodes: int) -> int:
    """Returns how many processes a run has.

    Args:
        accelerator: `trainer.accelerator`.
        devices: `trainer.devices`: a number, `auto` (all of this machine; on a CPU one), or a list of device numbers.
        num_nodes: `trainer.num_nodes`.

    Raises:
        ConfigError: `devices` is none of these.
    """
    if isinstance(devices, Sequence) and not isinstance(devices, str):
        return len(devices) * num_nodes
    if str(devices) in ("auto", "-1"):
        import torch  # slow to import, and this is asked for rarely

        return (1 if accelerator == "cpu" else max(1, torch.accelerator.device_count())) * num_nodes
    if not str(devices).isdigit():
        raise ConfigError("trainer.devices", devices, allowed="a number, auto, or a list of device numbers")
    return int(devices) * num_nodes


def compose(overrides: Sequence[str] = (), *, config_name: str = "predict") -> DictConfig:
    """Composes a configuration in Python as the command line does.

    Args:
        overrides: As typed, such as `["data.path=memories.jsonl", "prompt=one_word_en", "output_dir=runs/a"]`.
        config_name: Which top-level file of conf/.

    Raises:
        ConfigError: An override names nothing that exists.
    """
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    if isinstance(overrides, str):
        raise ConfigError("overrides", overrides, allowed=f"a list, such as [{overrides!r}]")
    with _COMPOSING:
        register_resolvers()
        running = GlobalHydra.instance().hydra  # a program that runs under Hydra itself
        GlobalHydra.instance().clear()
        try:
            with initialize_config_dir(str(conf_folder()), version_base="1.3"):
                return hydra_compose(config_name, overrides=[as_override(override) for override in overrides])
        except (HydraException, OmegaConfBaseException) as error:
            raise config_error(error, config_name=config_name) from error
        finally:
            GlobalHydra.instance().hydra = running


def to_container(cfg: DictConfig) -> dict[str, Any]:
    """Returns a configuration as plain dictionaries, interpolations resolved."""
    container = OmegaConf.to_container(cfg, resolve=True)
    return {str(key): value for key, value in container.items()} if isinstance(container, dict) else {}


def config_error(error: BaseException, *, config_name: str = "predict") -> ConfigError:
    """Returns the error of Hydra's several lines about a wrong override, in memvec's words where it knows the mistake.

    Args:
        error: What Hydra raised.
        config_name: Which top-level file of conf/ was composed.
    """
    from hydra.errors import OverrideParseException

    lines: list[str] = []
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OverrideParseException):
            return _parse_error(cause.override)
        lines += [line.strip() for line in str(cause).splitlines()]
        cause = cause.__cause__
    said = " ".join(lines)
    if match := re.search(r"Could not override '([^']+)'", said):
        known = known_overrides(config_name)
        if match[1] in known and match[1].startswith("prompt."):
            return ConfigError(match[1], found="no prompt was chosen that has it", advice="add prompt=raw")
        if match[1] in known:  # of another command's choice of its group, such as data=conversations
            return ConfigError(match[1], found=f"memvec.{config_name} has no such option", advice="--help lists them")
        near = difflib.get_close_matches(match[1], known, n=1)
        advice = f"did you mean {near[0]}? (--help lists them)" if near else "--help lists them"
        return ConfigError(match[1], found="no such override", advice=advice)
    if match := re.search(r"Missing mandatory value: (\S+)", said):
        return ConfigError(match[1], found="not set", advice="--help says what it is")
    if match := re.search(r"Could not find '(\w+)/([^']+)'", said):
        return ConfigError(match[1], match[2], found="no such option", allowed=_choices(match[1]))
    return ConfigError(found="; ".join(line for line in dict.fromkeys(lines) if line) or type(error).__name__)


def _parse_error(override: str) -> ConfigError:
    """Says how to type an override that Hydra cannot read."""
    name, equals, value = override.partition("=")
    if not equals:
        return ConfigError(override, found="no override", allowed="NAME=VALUE (with spaces in the shell's quotes)")
    advice = f'put the value in quotes, and both in the shell\'s: "{name}={quoted(value)}"'
    return ConfigError(override, found="cannot be read", advice=advice)


def known_overrides(config_name: str = "predict") -> list[str]:
    """Returns the names of all overrides that a top-level file of conf/ declares, such as `data.batch_size`."""
    folder = conf_folder()
    top = cast(dict[str, Any], OmegaConf.to_container(OmegaConf.load(folder / f"{config_name}.yaml")))
    names: set[str] = set()
    for key, value in top.items():
        if key not in ("defaults", "hydra"):
            names |= {f"{key}.{inner}" for inner in value} if isinstance(value, dict) else {key}
    for choice in _groups(top) - {"experiment"}:
        group, _, place = choice.partition("@")  # `data@vectors`: an option of data, whose place is `vectors`
        names.add(place or group)
        for path in (folder / group).glob("*.yaml"):
            keys = {str(key) for key in OmegaConf.load(path)} - {"defaults", "_target_"}
            names |= {f"{place or group}.{key}" for key in keys}
    return sorted(names)
