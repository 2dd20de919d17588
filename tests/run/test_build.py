"""Building the parts of a run: which processes it has, and configurations whose processes do not fit together."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from lightning.fabric.plugins.environments import SLURMEnvironment, TorchElasticEnvironment
from omegaconf import DictConfig

from memvec.errors import ConfigError
from memvec.run.build import build_writer, run_folder, without_path
from memvec.trainer.build import build_trainer
from tests.helpers.configs import compose
from tests.helpers.refusals import refused

Configure = Callable[..., DictConfig]

TORCHRUN = {"TORCHELASTIC_RUN_ID": "a", "RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
SLURM = {
    "SLURM_NTASKS": "2",
    "SLURM_NTASKS_PER_NODE": "2",
    "SLURM_JOB_NAME": "memvec",
    "SLURM_PROCID": "0",
    "SLURM_LOCALID": "0",
    "SLURM_NODEID": "0",
}


@pytest.fixture
def build(tiny_config: Configure, monkeypatch: pytest.MonkeyPatch) -> Callable[..., object]:
    """Returns the cluster environment of a Trainer built within an environment, with overrides."""

    def build_with(environment: dict[str, str], *overrides: str) -> object:
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        cfg = tiny_config(Path("memories.jsonl"), *overrides)
        folder = run_folder(cfg)
        return build_trainer(cfg, build_writer(cfg, folder), folder)._accelerator_connector.cluster_environment

    return build_with


def test_slurm_is_told_never_to_requeue(build: Callable[..., object]) -> None:
    """Lightning would leave a checkpoint in the run's folder, and load it into whatever model runs there next."""
    environment = build(SLURM, "trainer=ddp", "trainer.devices=2")
    assert isinstance(environment, SLURMEnvironment)
    assert environment.auto_requeue is False


def test_torchrun_counts_inside_slurm(build: Callable[..., object]) -> None:
    environment = build({**SLURM, "SLURM_NTASKS": "1", **TORCHRUN}, "trainer=ddp", "trainer.devices=2")
    assert isinstance(environment, TorchElasticEnvironment)


@pytest.mark.parametrize("environment", [TORCHRUN, SLURM], ids=["torchrun", "SLURM"])
def test_as_many_processes_as_configured_must_be_started(
    environment: dict[str, str], build: Callable[..., object]
) -> None:
    found = "has started 2 processes, but with trainer.num_nodes=1 this means"
    with refused(ConfigError, "trainer.devices", 3, found=f"{found} 3"):
        build(environment, "trainer=ddp", "trainer.devices=3")
    with refused(ConfigError, "trainer.devices", 1, found=f"{found} 1"):
        build(environment, "trainer.devices=1")


def test_what_slurm_was_not_told_is_one_line(build: Callable[..., object]) -> None:
    environment = {name: value for name, value in SLURM.items() if name != "SLURM_NTASKS_PER_NODE"}
    with refused(ConfigError, "the trainer group of the configuration", found="--ntasks-per-node"):
        build(environment, "trainer=ddp", "trainer.devices=2")


@pytest.mark.parametrize("strategy", ["fsdp", "fsdp_cpu_offload", "deepspeed_stage_3"])
def test_strategies_that_cannot_be_used_name_those_that_can(strategy: str, build: Callable[..., object]) -> None:
    with refused(ConfigError, "trainer.strategy", strategy, found="trainer=fsdp or trainer=tensor_parallel"):
        build({}, f"trainer.strategy={strategy}")


def test_sizes_that_do_not_make_up_the_processes_are_one_line(build: Callable[..., object]) -> None:
    found = "data_parallel_size=3 times tensor_parallel_size=1 must be the number of processes, 2"
    with refused(ConfigError, "trainer.strategy", found=found):
        build({}, "trainer=fsdp", "trainer.devices=2", "trainer.strategy.data_parallel_size=3")


def test_rows_that_are_given_take_the_place_of_the_default_path(tmp_path: Path) -> None:
    cfg = compose([f"output_dir={tmp_path}", "data.limit=3"])
    given = without_path(cfg)
    assert (given.data.path, given.data.limit) == (None, 3)
    assert str(cfg.data.path).endswith("sample.jsonl")
