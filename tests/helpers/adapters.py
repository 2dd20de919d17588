"""LoRA adapters of tiny models, made and saved by peft, and the model that peft itself makes of them."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

PROJECTIONS = ["q_proj", "v_proj", "down_proj"]


def save_adapter(folder: Path, model: Path, *, auto: Any = AutoModelForCausalLM, **options: Any) -> Path:
    """Saves an adapter with random weights, the same at every call.

    Args:
        folder: Where.
        model: The folder of the model it adapts.
        auto: As what that model is loaded, which names its modules.
        **options: Of `peft.LoraConfig`.
    """
    peft: Any = pytest.importorskip("peft")
    config = peft.LoraConfig(**{"r": 4, "target_modules": PROJECTIONS, "init_lora_weights": False, **options})
    base = auto.from_pretrained(model)
    torch.manual_seed(7)
    with without_peft_warnings():
        adapted = peft.get_peft_model(base, config)
        for name, weight in adapted.named_parameters():
            if "lora_" in name or "modules_to_save" in name:
                weight.data = torch.randn_like(weight) * 0.2
        adapted.save_pretrained(folder)
    return folder


def adapted_model(model: Path, adapter: Path, *, auto: Any = AutoModelForCausalLM) -> Any:
    """Returns a model with an adapter beside its weights, as peft computes with it."""
    peft: Any = pytest.importorskip("peft")
    with without_peft_warnings():
        return peft.PeftModel.from_pretrained(auto.from_pretrained(model), adapter).eval()


@contextmanager
def without_peft_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
