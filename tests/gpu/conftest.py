"""The lane of a CUDA device: `pytest -m gpu`.

Without one its tests are skipped. `MEMVEC_TEST_DEVICE=cpu pytest -m gpu` rehearses them on the processor, but for those
that are about the device's own memory.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from omegaconf import DictConfig

DEVICE = os.environ.get("MEMVEC_TEST_DEVICE", "cuda")


@pytest.fixture(scope="session", autouse=True)
def device() -> torch.device:
    """The device that everything here runs on, in which float32 means float32: TF32 is off."""
    if DEVICE == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device (MEMVEC_TEST_DEVICE=cpu rehearses these tests on the processor)")
    assert torch.get_float32_matmul_precision() == "highest"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # torch has another name for it since 2.9
        torch.backends.cudnn.allow_tf32 = False
    return torch.device(DEVICE)


@pytest.fixture
def on_device(device: torch.device) -> str:
    """The override that has a run compute on the device."""
    return f"trainer.accelerator={'gpu' if device.type == 'cuda' else 'cpu'}"


@pytest.fixture
def device_config(tiny_config: Callable[..., DictConfig], on_device: str) -> Callable[..., DictConfig]:
    """Composes a configuration that runs a tiny model quietly on the device."""

    def configure(data_path: Path, *overrides: str, **options: object) -> DictConfig:
        return tiny_config(data_path, on_device, *overrides, **options)

    return configure
