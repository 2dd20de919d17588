"""Batches that do not fit into memory, with errors that torch's allocator really raises."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from omegaconf import DictConfig

import memvec
from memvec.errors import ModelError
from memvec.model.memory import compute_in_parts, is_out_of_memory
from memvec.model.module import HiddenStateModule
from tests.fixtures import TEXTS
from tests.helpers.refusals import refused

MORE_THAN_ANY_MACHINE_HAS = 2**50  # bytes


def exhaust_memory() -> None:
    torch.empty(MORE_THAN_ANY_MACHINE_HAS, dtype=torch.uint8)


def allocation_error() -> RuntimeError:
    with pytest.raises(RuntimeError) as caught:
        exhaust_memory()
    return caught.value


def test_the_allocators_own_error_is_recognised() -> None:
    assert is_out_of_memory(allocation_error())
    assert is_out_of_memory(MemoryError())
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory."))


@pytest.mark.parametrize("error", [RuntimeError("mat1 and mat2 shapes cannot be multiplied"), ValueError("memory")])
def test_other_errors_are_never_taken_for_it(error: Exception) -> None:
    def compute(part: slice) -> torch.Tensor:
        raise error

    assert not is_out_of_memory(error)
    with pytest.raises(type(error)):
        compute_in_parts(compute, parts=[slice(0, 4)], shape=(2,))


@pytest.mark.parametrize("fits", [1, 2, 3, 5, 8])
@pytest.mark.parametrize("rows", [1, 2, 7, 8, 33])
def test_a_batch_is_halved_until_it_fits_and_comes_back_in_order(rows: int, fits: int) -> None:
    sizes: list[int] = []

    def compute(part: slice) -> torch.Tensor:
        if part.stop - part.start > fits:
            exhaust_memory()
        sizes.append(part.stop - part.start)
        return torch.arange(part.start, part.stop, dtype=torch.float32)[:, None].expand(-1, 3)

    result, too_large = compute_in_parts(compute, parts=[slice(0, rows)], shape=(3,))
    assert torch.equal(result, torch.arange(rows, dtype=torch.float32)[:, None].expand(-1, 3))
    assert too_large == []
    assert max(sizes) <= fits
    assert sum(sizes) == rows


def test_a_row_that_does_not_fit_alone_is_named() -> None:
    def compute(part: slice) -> torch.Tensor:
        if part.start <= 3 < part.stop:
            exhaust_memory()
        return torch.ones(part.stop - part.start, 2)

    result, too_large = compute_in_parts(compute, parts=[slice(0, 6)], shape=(2,))
    assert too_large == [3]
    assert result[3].isnan().all()
    assert result[[0, 1, 2, 4, 5]].eq(1).all()


def test_where_others_compute_along_no_batch_is_halved() -> None:
    def compute(part: slice) -> torch.Tensor:
        exhaust_memory()
        raise AssertionError

    with refused(ModelError, "out of memory", found="a batch of 6 entries", advice="set a smaller data.max_tokens"):
        compute_in_parts(compute, parts=[slice(0, 6)], shape=(2,), may_halve=False)


def test_when_no_row_fits_all_are_named() -> None:
    def compute(part: slice) -> torch.Tensor:
        exhaust_memory()
        raise AssertionError

    result, too_large = compute_in_parts(compute, parts=[slice(0, 3)], shape=(2,))
    assert result.shape == (3, 2)
    assert too_large == [0, 1, 2]


@pytest.fixture
def memory_limit(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, int], None]:
    """Makes the decoder allocate more than there is for batches of more rows, or rows of more tokens, than given."""

    def limit(rows: int, tokens: int) -> None:
        configure = HiddenStateModule.configure_model

        def check(module: torch.nn.Module, args: tuple[()], kwargs: dict[str, torch.Tensor]) -> None:
            if kwargs["input_ids"].shape[0] > rows or kwargs["input_ids"].shape[1] > tokens:
                exhaust_memory()

        def configure_model(self: HiddenStateModule) -> None:
            configure(self)
            assert self.backbone is not None
            self.backbone.decoder.register_forward_pre_hook(check, with_kwargs=True)

        monkeypatch.setattr(HiddenStateModule, "configure_model", configure_model)

    return limit


def test_a_run_gets_through_batches_that_do_not_fit(
    memory_limit: Callable[[int, int], None],
    write_jsonl: Callable[..., Path],
    tiny_config: Callable[..., DictConfig],
) -> None:
    whole = tiny_config(write_jsonl(TEXTS), output="whole")
    memvec.predict(whole)
    memory_limit(2, 1000)
    halved = tiny_config(write_jsonl(TEXTS), output="halved")
    memvec.predict(halved)
    torch.testing.assert_close(memvec.load(halved.output_dir)["vector"][:], memvec.load(whole.output_dir)["vector"][:])


@pytest.mark.parametrize("prefix_cache", ["auto", "off"])
def test_an_entry_that_does_not_fit_alone_is_rejected(
    prefix_cache: str,
    memory_limit: Callable[[int, int], None],
    write_jsonl: Callable[..., Path],
    tiny_config: Callable[..., DictConfig],
) -> None:
    memory_limit(100, 60)
    cfg = tiny_config(write_jsonl(["short", "far too long " * 20, "short too"]), f"model.prefix_cache={prefix_cache}")
    summary = memvec.predict(cfg)
    assert summary.counts.entries == 2
    assert memvec.load(cfg.output_dir)["id"][:] == ["m/0", "m/2"]
    (line,) = (Path(cfg.output_dir) / "rejected.jsonl").read_text().splitlines()
    rejection = json.loads(line)
    assert rejection["id"] == "m/1"
    assert rejection["row"] == 2
    assert "out of memory" in rejection["reason"]
    assert "tokens do not fit even alone" in rejection["reason"]
