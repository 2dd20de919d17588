"""Vectors on the device: every family, dtype, attention and mode against the loop that memvec replaces, there too.

In float32 the two agree to rounding. In half precision each is compared with float32: memvec may not lose more than the
loop itself does.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import DictConfig
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import AutoTokenizer
from transformers.utils import is_flash_attn_2_available, is_flash_attn_3_available

import memvec
from memvec import Encoder
from memvec.encoder import DTYPES
from memvec.model.backbone import Backbone
from memvec.model.limits import length_boundaries
from memvec.model.parity import ExecutionMode
from memvec.model.unpadded import can_leave_padding_out
from tests.fixtures import TEXTS
from tests.helpers.families import FAMILIES, build_family
from tests.helpers.models import ARCHITECTURES
from tests.helpers.processes import random_texts
from tests.helpers.reference import full_model, reference_vectors, relative_errors
from tests.model.test_families import (
    PADDED,
    STREAMS,
    assert_batches_give_the_states_of_the_full_model,
    batches,
    prompts,
    reference,
    without_padding,
)

pytestmark = pytest.mark.gpu

ZH = '请用一个Token总结以下文本"{text}"：'
ROUNDING = 1e-4  # of float32, as the probe allows
LAYERS = [1, -1]
# The attention implementations that memvec documents, in float32 where they know it.
ATTENTION = {
    "eager": ("float32", True),
    "sdpa": ("float32", True),
    "flash_attention_2": ("bfloat16", is_flash_attn_2_available()),
    "flash_attention_3": ("bfloat16", is_flash_attn_3_available()),
}


@cache
def loop(folder: Path, dtype: str, device: torch.device) -> torch.Tensor:
    """What the loop gives on the device."""
    model, tokenizer = full_model(folder, DTYPES[dtype]).to(device), AutoTokenizer.from_pretrained(folder)
    return reference_vectors(model, tokenizer, TEXTS, template=ZH).cpu()


def assert_as_the_loop(vectors: torch.Tensor, folder: Path, dtype: str, device: torch.device) -> None:
    exact = loop(folder, "float32", device)
    if dtype == "float32":
        assert relative_errors(vectors, exact).max() < ROUNDING
    else:  # of all rows together: one that a router sends elsewhere differs much, in either
        assert relative_errors(vectors, exact).mean() < 2 * relative_errors(loop(folder, dtype, device), exact).mean()


@pytest.mark.parametrize("prefix_cache", ["auto", "off"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_vectors_are_those_of_the_loop(
    architecture: str, dtype: str, prefix_cache: str, model_folders: Callable[[str], Path], device: torch.device
) -> None:
    folder = model_folders(architecture)
    with Encoder(folder, dtype=dtype, device=device, prefix_cache=prefix_cache) as encoder:  # type: ignore[arg-type]
        assert_as_the_loop(encoder.encode(TEXTS), folder, dtype, device)


@pytest.mark.parametrize("family", FAMILIES)
def test_batches_give_the_states_of_the_full_model(family: str, device: torch.device) -> None:
    assert_batches_give_the_states_of_the_full_model(family, device=device, rounding=ROUNDING)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_rows_without_padding_give_the_same(family: str, dtype: torch.dtype, device: torch.device) -> None:
    model: Any = build_family(family).to(device)
    streams = family in STREAMS
    (exact,) = reference(model, (-1,), streams=streams)
    model.to(dtype)
    backbone = Backbone(model.get_decoder())
    if not can_leave_padding_out(backbone.decoder, computed_in=dtype, device=device) or family in PADDED:
        pytest.skip("it computes attention in its own way")
    (plain,) = reference(model, (-1,), streams=streams)
    rows = prompts(device)
    try:
        groups = batches(length_boundaries(model.config))
        parts = [without_padding(backbone, [rows[row] for row in group])[0] for group in groups]
    except RuntimeError as error:
        pytest.skip(f"its attention has no kernel for this: {error}")
    # Of the row in the middle: a router may send one elsewhere in either.
    assert relative_errors(torch.cat(parts), exact).median() < 2 * relative_errors(plain, exact).median()


@pytest.mark.filterwarnings("ignore")  # what inductor and the libraries it imports say while they compile
@pytest.mark.parametrize("is_compiled", [False, True])
def test_a_large_call_is_computed_without_padding(is_compiled: bool, llama: Path, device: torch.device) -> None:
    texts = random_texts(1_000)
    dtype = "bfloat16" if device.type == "cuda" else "float32"
    options = {"dtype": dtype, "device": device, "max_tokens": 256, "compile": is_compiled}
    with Encoder(llama, **options) as encoder:
        assert_as_the_loop(encoder.encode([*texts, *TEXTS])[-len(TEXTS) :], llama, dtype, device)
        extractor = encoder._loaded().extractor
    assert device.type == "cpu" or extractor.mode is ExecutionMode.UNPADDED
    assert (extractor.compile_seconds is not None) == is_compiled


@pytest.mark.parametrize("architecture", ["llama", "gemma3"])
@pytest.mark.parametrize("attention", ATTENTION)
def test_every_attention_implementation_gives_the_same(
    attention: str, architecture: str, model_folders: Callable[[str], Path], device: torch.device
) -> None:
    dtype, is_there = ATTENTION[attention]
    if not is_there:
        pytest.skip(f"{attention} is not installed")
    folder = model_folders(architecture)
    with Encoder(folder, dtype=dtype, device=device, attn_implementation=attention) as encoder:
        assert_as_the_loop(encoder.encode(TEXTS), folder, dtype, device)


@pytest.mark.parametrize("backend", ["MATH", "EFFICIENT_ATTENTION", "FLASH_ATTENTION", "CUDNN_ATTENTION"])
def test_every_kernel_of_sdpa_gives_the_same(backend: str, llama: Path, device: torch.device) -> None:
    options = {"dtype": "bfloat16", "device": device, "prefix_cache": "off", "attn_implementation": "sdpa"}
    with Encoder(llama, **options) as encoder, sdpa_kernel([getattr(SDPBackend, backend)]):
        try:
            vectors = encoder.encode(TEXTS)
        except RuntimeError as error:
            if "No available kernel" not in str(error) and "No viable backend" not in str(error):
                raise
            pytest.skip(f"{device} has no kernel {backend} for this")
    assert_as_the_loop(vectors, llama, "bfloat16", device)


@pytest.mark.filterwarnings("ignore")  # what inductor and the libraries it imports say while they compile
@pytest.mark.skipif(shutil.which("gcc") is None and shutil.which("g++") is None, reason="no C compiler")
@pytest.mark.parametrize(("precision", "dtype"), [("32-true", "float32"), ("bf16-true", "bfloat16")])
def test_a_compiled_model_gives_the_same(
    precision: str,
    dtype: str,
    llama: Path,
    write_jsonl: Callable[..., Path],
    device_config: Callable[..., DictConfig],
    device: torch.device,
) -> None:
    cfg = device_config(write_jsonl(TEXTS), "model.compile=true", "model.tune=off", f"trainer.precision={precision}")
    summary = memvec.predict(cfg)
    assert summary.manifest["notes"]["compile_seconds"] > 0
    assert_as_the_loop(memvec.load(cfg.output_dir)["vector"][:], llama, dtype, device)


@pytest.mark.parametrize("architecture", ["llama", "gemma3"])
def test_several_layers_come_from_one_pass(
    architecture: str, model_folders: Callable[[str], Path], device: torch.device
) -> None:
    folder = model_folders(architecture)
    model, tokenizer = full_model(folder).to(device), AutoTokenizer.from_pretrained(folder)
    with Encoder(folder, device=device, layer=LAYERS) as encoder:
        vectors = encoder.encode(TEXTS)
    for at, layer in enumerate(LAYERS):
        expected = reference_vectors(model, tokenizer, TEXTS, template=ZH, layer=layer).cpu()
        assert relative_errors(vectors[:, at], expected).max() < ROUNDING


def test_a_lent_model_stays_on_its_device_as_it_was(llama: Path, device: torch.device) -> None:
    model, tokenizer = full_model(llama).to(device).train(), AutoTokenizer.from_pretrained(llama)
    before = {name: weight.clone() for name, weight in model.named_parameters()}
    random_state = torch.cuda.get_rng_state(device) if device.type == "cuda" else torch.get_rng_state()
    vectors = Encoder(model, tokenizer=tokenizer).encode(TEXTS, to=device)
    assert vectors.device.type == device.type
    assert_as_the_loop(vectors.cpu(), llama, "float32", device)
    assert model.training
    assert all(torch.equal(weight, before[name]) and weight.is_leaf for name, weight in model.named_parameters())
    now = torch.cuda.get_rng_state(device) if device.type == "cuda" else torch.get_rng_state()
    assert torch.equal(now, random_state)
