"""The encoder as a callable class of Ray Data: real actors in real processes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from memvec import Encoder

ray = pytest.importorskip("ray", reason="needs the extra `ray`")

pytestmark = [
    pytest.mark.processes,
    pytest.mark.filterwarnings("ignore"),  # Ray's own, of its first import and its shutdown
]


def test_two_actors_give_the_vectors_of_one_process(llama: Path) -> None:
    texts = [f"{'she likes tea and ' * (n % 5)}number {n}" for n in range(5000)]
    expected = Encoder(llama, device="cpu").encode(texts).numpy()
    ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False)  # two for the actors, the others for reading
    try:
        options = {"model": str(llama), "device": "cpu"}
        rows = ray.data.from_items([{"id": n, "text": text} for n, text in enumerate(texts)]).repartition(10)
        mapped = rows.map_batches(Encoder, fn_constructor_kwargs=options, batch_size=500, concurrency=2)
        found = {row["id"]: row["vector"] for row in mapped.take_all()}
    finally:
        ray.shutdown()
    np.testing.assert_allclose(np.stack([found[n] for n in range(5000)]), expected, rtol=1e-4, atol=1e-5)
