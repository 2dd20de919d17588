"""What a model takes is read from its configuration, by whichever name its family has for it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig, MambaConfig, MptConfig, PreTrainedConfig, T5Config

from memvec.model.checkpoint import Checkpoint
from memvec.model.limits import attention_windows, length_boundaries, prompt_limit
from tests.helpers.models import ARCHITECTURES


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"rope_parameters": {"rope_type": "longrope", "original_max_position_embeddings": 16}}, (16,)),
        ({"rope_parameters": {"rope_type": "longrope"}, "original_max_position_embeddings": 32}, (32,)),
        ({"rope_parameters": {"type": "su"}, "original_max_position_embeddings": 32}, (32,)),
        ({"rope_parameters": {"a": {"rope_type": "longrope", "original_max_position_embeddings": 8}, "b": {}}}, (8,)),
        ({"rope_parameters": {"rope_type": "yarn", "original_max_position_embeddings": 16}}, ()),
        ({"rope_parameters": {"rope_type": "dynamic", "original_max_position_embeddings": 16}}, ()),
        ({"rope_parameters": None}, ()),
        ({}, ()),
    ],
)
def test_lengths_behind_which_a_model_changes(fields: dict[str, Any], expected: tuple[int, ...]) -> None:
    config = PreTrainedConfig()
    for name, value in fields.items():
        setattr(config, name, value)
    assert length_boundaries(config) == expected


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"sliding_window": 4096}, (4096,)),
        ({"sliding_window": 512, "attention_chunk_size": 64}, (64, 512)),
        ({"sliding_window": None, "use_sliding_window": True, "chunk_size": 0}, ()),
        ({}, ()),
    ],
)
def test_lengths_behind_which_layers_see_not_all(fields: dict[str, Any], expected: tuple[int, ...]) -> None:
    config = PreTrainedConfig()
    for name, value in fields.items():
        setattr(config, name, value)
    assert attention_windows(config) == expected


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_prompt_limit_is_what_the_model_was_made_for(
    architecture: str, model_folders: Callable[[str], Path]
) -> None:
    config = AutoConfig.from_pretrained(model_folders(architecture))
    expected = config.get_text_config().max_position_embeddings
    assert prompt_limit(Checkpoint(str(model_folders(architecture))).config) == expected
    if architecture != "qwen2_5_vl":  # which has its family's own limit
        assert expected == 256


@pytest.mark.parametrize("config", [MambaConfig(), PreTrainedConfig(), T5Config()])
def test_a_model_without_a_limit_has_none(config: PreTrainedConfig) -> None:
    assert prompt_limit(config) is None


def test_a_limit_is_known_by_its_other_name() -> None:
    assert prompt_limit(MptConfig(max_seq_len=64)) == 64
