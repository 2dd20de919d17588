"""The benchmark of a GPU, tried out on the processor with a model of no size."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.benchmarks import gpu, limit
from tests.benchmarks.gpu_contestants import GPU_CONTESTANTS
from tests.benchmarks.lengths import synthetic_texts
from tests.helpers.models import build_tokenizer

TEMPLATE = '请用一个Token总结以下文本"{text}"：'
IN_MEMORY = ["memvec", "reference", "without-prefix", "given-order", "memvec-eager"]


@pytest.mark.slow
def test_a_part_leaves_its_numbers_chart_and_profile(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limit, "SECONDS", 1e-4)
    chosen = [*IN_MEMORY, "predict", "vllm"]
    tiny = {"--device": "cpu", "--shape": "tiny", "--texts": "locomo", "--entries": "30", "--repeats": "1"}
    options = {**tiny, "--output": str(tmp_path), "--contestants": ",".join(chosen)}

    assert gpu.main([word for pair in options.items() for word in pair]) == 0

    results = json.loads((tmp_path / "tiny-locomo.json").read_text(encoding="utf-8"))
    assert list(results["contestants"]) == [name for name in chosen if name != "vllm"]
    assert "vllm" in results["skipped"]
    for name, numbers in results["contestants"].items():
        assert numbers["entries"] == (24 if GPU_CONTESTANTS[name].on_subset else 30)
        assert len(numbers["seconds"]) == 1
        assert numbers["min_cosine"] > 0.99
    alone, together = (results["contestants"][name]["details"] for name in ("without-prefix", "memvec"))
    assert together["computed_tokens"] < alone["computed_tokens"]
    assert (tmp_path / "tiny-locomo.png").exists()
    assert "aten::" in (tmp_path / "tiny-locomo-memvec-profile.txt").read_text(encoding="utf-8")
    said = capsys.readouterr()
    rows = re.findall(r"^\S+ tiny-locomo: (\S+): [\d.,]+ entries/s, .* cosine [01]\.", said.err, re.M)
    assert rows == [*IN_MEMORY, "predict"]
    assert "memvec is" in said.out


def test_a_benchmark_without_its_device_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    if gpu.torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    assert gpu.main([]) == 1
    assert "no CUDA device" in capsys.readouterr().err


@pytest.mark.parametrize(("name", "shortest", "longest"), [("locomo", 20, 75), ("mixed", 20, 2010)])
def test_synthetic_texts_have_prompts_of_the_lengths_drawn(name: str, shortest: int, longest: int) -> None:
    tokenizer = build_tokenizer()
    texts = synthetic_texts(name, 100, tokenizer, TEMPLATE)
    lengths = [len(tokenizer(TEMPLATE.replace("{text}", text))["input_ids"]) for text in texts]
    assert shortest <= min(lengths) <= max(lengths) <= longest
    assert texts == synthetic_texts(name, 100, tokenizer, TEMPLATE)
