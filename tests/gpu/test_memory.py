"""The device's memory: real out-of-memory errors, vectors that overflow, copies to the host, and a peak that stays."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from transformers import AutoTokenizer

from memvec import Encoder
from memvec.data.collator import Batch
from memvec.model.copies import to_host
from memvec.model.extractor import Extractor, Speedups
from memvec.writer.journal import JournalWriter, vector_rows
from memvec.writer.thread import FlushThread
from tests.helpers.models import NEARLY_FREE, build_model, build_tokenizer, load_backbone
from tests.helpers.processes import random_texts
from tests.helpers.reference import full_model, reference_vectors, relative_errors
from tests.helpers.signatures import MINE

pytestmark = pytest.mark.gpu

ZH = '请用一个Token总结以下文本"{text}"：'
MIB = 2**20


def needs_cuda(device: torch.device) -> None:
    if device.type != "cuda":
        pytest.skip("it is about the memory of a CUDA device")


@pytest.fixture
def little_memory(device: torch.device) -> Iterator[None]:
    """Leaves this process 160 MiB more of the device than it holds."""
    needs_cuda(device)
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(device).total_memory
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + 160 * MIB) / total)
    yield
    torch.cuda.set_per_process_memory_fraction(1.0)


@pytest.mark.usefixtures("little_memory")
def test_a_batch_that_does_not_fit_is_halved_until_it_does(
    llama: Path, device: torch.device, caplog: pytest.LogCaptureFixture
) -> None:
    texts = [f"{text} {'and more of the same ' * 8}" for text in random_texts(512)]
    # Eager attention keeps 4 heads x 180 x 180 numbers a row: a whole batch takes more than 250 MiB a layer.
    options = {"device": device, "attn_implementation": "eager", "prefix_cache": "off", "max_tokens": 2**20}
    with caplog.at_level("WARNING", logger="memvec"), Encoder(llama, **options) as encoder:
        vectors = encoder.encode(texts)
    assert re.search(r"out of memory with a batch of \d+ entries: trying two halves", caplog.text)
    some = slice(0, None, 64)
    model, tokenizer = full_model(llama).to(device), AutoTokenizer.from_pretrained(llama)
    expected = reference_vectors(model, tokenizer, texts[some], template=ZH).cpu()
    assert relative_errors(vectors[some], expected).max() < 1e-4


@pytest.mark.usefixtures("little_memory")
def test_a_text_that_does_not_fit_alone_is_named(model_folders: Callable[[str], Path], device: torch.device) -> None:
    model, tokenizer = build_model("llama").to(device), build_tokenizer()  # type: ignore[arg-type]
    model.config.max_position_embeddings = 8192
    model.set_attn_implementation("eager")  # which keeps a GiB for as many tokens
    encoder = Encoder(model, tokenizer=tokenizer, prefix_cache="off")
    vectors = encoder.encode(["tea", "word " * 4000, "coffee"], on_error="nan")
    assert vectors.isfinite().all(dim=1).tolist() == [True, False, True]


def test_a_vector_that_overflows_is_computed_again_in_float32(llama: Path, device: torch.device) -> None:
    model, tokenizer = full_model(llama), AutoTokenizer.from_pretrained(llama)
    with torch.no_grad():  # beyond 65,504 in the residual stream of most rows, and well within float32
        model.model.layers[1].mlp.up_proj.weight *= 300
        model.model.layers[1].mlp.down_proj.weight *= 5e3
    half, texts = model.half().to(device), random_texts(20)
    exact = reference_vectors(copy.deepcopy(half).float(), tokenizer, texts, template=ZH).cpu()
    plain = reference_vectors(half, tokenizer, texts, template=ZH).cpu()
    assert not plain.isfinite().all()
    vectors = Encoder(half, tokenizer=tokenizer).encode(texts)
    again = ~plain.isfinite().all(dim=1)
    assert vectors.isfinite().all()
    assert relative_errors(vectors[again], exact[again]).max() < 1e-4


def test_copies_arrive_whole_and_in_order_under_load(device: torch.device, tmp_path: Path) -> None:
    batches, rows, dimension = 2_000, 64, 256
    arrived: list[tuple[NDArray[np.int64], NDArray[np.float32]]] = []

    def to_rows(index: NDArray[np.int64], vectors: NDArray[np.float32]) -> object:
        arrived.append((index.copy(), vectors.copy()))
        return vector_rows(index, vectors)

    thread = FlushThread(JournalWriter(tmp_path, rank=0, signature=MINE), flush_every=5_000, to_rows=to_rows)
    work = torch.ones(1024, 1024, device=device) if device.type == "cuda" else torch.ones(8, 8)
    for number in range(batches):
        busy = (work @ work)[0, 0] * 0  # the value is there only once the device has come this far
        index = torch.arange(rows, device=device) + rows * number
        vectors = index[:, None].float().expand(rows, dimension) + busy
        thread.put(to_host(index, vectors))
        del vectors  # its memory is the next batch's
    thread.finish()
    index, vectors = (np.concatenate(parts) for parts in zip(*arrived, strict=True))
    np.testing.assert_array_equal(index, np.arange(batches * rows))
    np.testing.assert_array_equal(vectors, np.repeat(index[:, None], dimension, axis=1).astype(np.float32))


def test_the_allocators_peak_is_flat_over_ten_thousand_batches(
    model_folders: Callable[[str], Path], device: torch.device
) -> None:
    backbone = load_backbone(model_folders(NEARLY_FREE)).to(device)
    extractor = Extractor(backbone, speedups=Speedups(tune="off", probe="off"), computed_in=torch.float32)
    shapes = [(1 + 7 * n % 60, 8 + 11 * n % 100) for n in range(50)]

    @torch.inference_mode()
    def peak_over(batches: int) -> int:
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        for number in range(batches):
            rows, width = shapes[number % len(shapes)]
            length = torch.full((rows,), width, device=device)
            input_ids = torch.full((rows, width), 7, device=device)
            index = torch.arange(rows)
            extractor(Batch(index=index, input_ids=input_ids, length=length, prefix_length=0, trie=None)).cpu()
        return torch.cuda.max_memory_allocated() if device.type == "cuda" else 0

    batches = 10_000 if device.type == "cuda" else 100
    first = peak_over(batches // 10)
    assert peak_over(batches - batches // 10) <= first
