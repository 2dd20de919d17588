"""The machine's own limit: its best matmul rate, on the shapes of the model's own layers.

In: a task. Out: operations per second, and where they were reached.

How: `torch.nn.functional.linear` in the task's dtype, every shape at several numbers of rows, the best rate of all. In
float32 torch has two routes on a processor, MKL and oneDNN; the second is asked for by a setting whose name promises
bfloat16, so it counts only where its result is as near to float64 as float32 is. On a processor without bfloat16
matmuls, float32 is the best rate for bfloat16 too.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch.nn.functional import linear

from memvec.model.torch_internals import has_fast_matmul
from tests.benchmarks.task import Task, product_shapes, quiet_libraries

ROWS = {"cpu": (256, 512, 1024, 2048), "cuda": (4096, 8192, 16_384, 32_768)}
FLOAT32_ERROR = 1e-6  # more than this against float64 is not float32
SECONDS = 0.03  # of one measurement


def build(task: Task) -> Callable[[], dict[str, object]]:
    """Returns the function that measures once."""
    quiet_libraries()
    torch.set_num_threads(task.threads)
    shapes = product_shapes(task.model)
    dtype = task.dtype if task.device == "cuda" or has_fast_matmul(task.dtype) else torch.float32
    routes = [route for route in ("none", "bf16") if _is_usable(route, task.device, dtype, shapes[-1])]

    @torch.inference_mode()
    def measure() -> dict[str, object]:
        found = []
        for outputs, inputs in shapes:
            for rows in ROWS[task.device]:
                x = torch.randn(rows, inputs, device=task.device, dtype=dtype)
                w = torch.randn(outputs, inputs, device=task.device, dtype=dtype)
                for route in routes:
                    with _route(route):
                        seconds = _seconds(lambda x=x, w=w: linear(x, w), task.device)
                    found.append((2 * rows * outputs * inputs / seconds, [rows, outputs, inputs], route))
        rate, shape, route = max(found)
        name = str(dtype).removeprefix("torch.")
        where = {"shape": shape, "route": route, "dtype": name, "device": _device_name(task.device)}
        return {"flop_per_second": rate, **where}

    return measure


def _is_usable(route: str, device: str, dtype: torch.dtype, shape: tuple[int, int]) -> bool:
    """Whether a route exists beside the default one and keeps the dtype's precision."""
    if route == "none":
        return True
    if dtype != torch.float32 or device != "cpu":
        return False
    torch.manual_seed(0)
    x, w = torch.randn(512, shape[1]), torch.randn(shape)
    with _route(route):
        result = linear(x, w).double()
    exact = linear(x.double(), w.double())
    return float((result - exact).norm() / exact.norm()) < FLOAT32_ERROR


@contextmanager
def _route(name: str) -> Iterator[None]:
    before = torch.backends.mkldnn.matmul.fp32_precision
    torch.backends.mkldnn.matmul.fp32_precision = name
    try:
        yield
    finally:
        torch.backends.mkldnn.matmul.fp32_precision = before


def _seconds(product: Callable[[], torch.Tensor], device: str) -> float:
    """Returns the seconds of one product: the best of three series, each long enough for the clock."""

    def series(count: int) -> float:
        start = time.perf_counter()
        for _ in range(count):
            product()
        if device == "cuda":
            torch.cuda.synchronize()
        return (time.perf_counter() - start) / count

    series(2)
    count = max(1, int(SECONDS / series(1)))
    return min(series(count) for _ in range(3))


def _device_name(device: str) -> str:
    if device == "cuda":
        return torch.cuda.get_device_name()
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
