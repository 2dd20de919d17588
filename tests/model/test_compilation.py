"""Compiling by region: the same vectors, and a run that continues where there is no compiler."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from omegaconf import DictConfig

import memvec
from memvec.data.collator import Batch
from memvec.fields import JsonObject
from memvec.layout import RunLayout
from memvec.model.extractor import Extractor
from memvec.model.packing import can_pack, is_packed, pack
from memvec.model.speedups import Speedups
from memvec.model.tuning import DEFAULT, PACKED, Choice
from memvec.model.warm_up import warm_up_notes
from tests.helpers.processes import arguments, finish, start

TEXTS = [f"she moved to town number {n} and likes it {'very ' * (n % 9)}much" for n in range(100)]

# What inductor and the libraries it imports say while they compile is not memvec's to mend.
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


@pytest.mark.processes
@pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler")
def test_a_compiled_model_gives_the_same_vectors(
    write_jsonl: Callable[..., Path], tiny_config: Callable[..., DictConfig], llama: Path, tmp_path: Path
) -> None:
    path = write_jsonl(TEXTS)
    plain = tiny_config(path, "data.batch_size=2", output="plain")
    memvec.predict(plain)
    compiled = tmp_path / "compiled"  # in a process of its own: what others have compiled or set stays out of it
    code, said = finish(start(arguments(path, compiled, llama, "data.batch_size=2", "model.compile=true")))
    assert code == 0, said
    assert JsonObject.read(RunLayout(compiled).manifest).take("notes.compile_seconds", float) > 0, said
    torch.testing.assert_close(
        memvec.load(compiled)["vector"][:], memvec.load(plain.output_dir)["vector"][:], rtol=1e-4, atol=1e-5
    )


@pytest.fixture
def no_compiler(tmp_path: Path) -> Iterator[None]:
    """Leaves inductor without a C++ compiler and without what was compiled before."""
    import torch._inductor.config as inductor

    torch._dynamo.reset()
    with inductor.patch({"cpp.cxx": (str(tmp_path / "no-such-compiler"),), "force_disable_caches": True}):
        yield


@pytest.mark.usefixtures("no_compiler")
def test_without_a_compiler_the_run_says_so_and_goes_on(
    write_jsonl: Callable[..., Path], tiny_config: Callable[..., DictConfig], caplog: pytest.LogCaptureFixture
) -> None:
    cfg = tiny_config(write_jsonl(TEXTS), "data.batch_size=2", "model.compile=true")
    with caplog.at_level("WARNING", logger="memvec"):
        summary = memvec.predict(cfg)
    assert "the compiler cannot be used" in caplog.text
    assert summary.manifest["notes"]["compile_seconds"] is None
    assert len(memvec.load(cfg.output_dir)) == len(TEXTS)


def packed_extractor(model: Path, *, gain: float) -> Extractor:
    """Returns an extractor whose packed weights were measured to be `gain` times as fast as plain ones."""
    encoder = memvec.Encoder(model, tune="off", compile=False)
    encoder.encode(TEXTS[:4])
    extractor = encoder._loaded().extractor
    if not can_pack(extractor.decoder, dtype=torch.float32, device=extractor.device):
        pytest.skip("this processor does not multiply packed weights")
    pack(extractor.decoder)
    extractor.matmuls = Choice(PACKED, {DEFAULT: 100 * gain, PACKED: 100.0})
    extractor.speedups = Speedups(compile=True)
    return extractor


def full_batch() -> Batch:
    input_ids = torch.randint(3, 400, (4, 20), generator=torch.Generator().manual_seed(0))
    return Batch(index=torch.arange(4), input_ids=input_ids, length=torch.full((4,), 20), prefix_length=0, trie=None)


@pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler")
@pytest.mark.parametrize(("gain", "stays"), [(1.05, False), (1.5, True)])
def test_weights_whose_packing_gained_little_give_way(llama: Path, gain: float, stays: bool) -> None:
    torch._dynamo.reset()
    extractor = packed_extractor(llama, gain=gain)
    before = extractor(full_batch())
    assert extractor.compile(full_batch, batches=1)
    assert is_packed(extractor.decoder) == stays
    assert warm_up_notes(extractor)["matmuls"] == (PACKED if stays else DEFAULT)
    torch.testing.assert_close(extractor(full_batch()), before, rtol=1e-4, atol=1e-5)


@pytest.mark.usefixtures("no_compiler")
def test_weights_stay_packed_where_nothing_can_be_compiled(llama: Path) -> None:
    extractor = packed_extractor(llama, gain=1.05)
    before = extractor(full_batch())
    assert not extractor.compile(full_batch, batches=1)
    assert is_packed(extractor.decoder)
    assert warm_up_notes(extractor)["matmuls"] == PACKED
    torch.testing.assert_close(extractor(full_batch()), before, rtol=0, atol=0)
