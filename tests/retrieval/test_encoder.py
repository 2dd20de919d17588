"""Queries get the vectors that the run would have given them, and nothing that a manifest says runs as code."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import DictConfig

import memvec
from memvec.config.prompts import prompt_config
from memvec.errors import ModelError
from memvec.fields import JsonObject
from memvec.model.widening import multiplies
from memvec.retrieval.encoder import QueryEncoder
from memvec.run.folder import RunFolder
from memvec.run.manifest import Manifest, known_of
from memvec.run.summary import read_summary
from tests.conftest import TEXTS
from tests.helpers.models import save_model

ENCODER = QueryEncoder(accelerator="cpu")


@pytest.fixture
def run(write_jsonl: Callable[..., Path], tiny_config: Callable[..., DictConfig]) -> RunFolder:
    """A run with a layer, a prompt, a precision and a length that are none of them the defaults."""
    overrides = ("model.layer=2", "prompt=chat", "trainer.precision=bf16-true", "data.max_length=40", "data.limit=5")
    return memvec.predict(tiny_config(write_jsonl(TEXTS), *overrides)).folder


def test_a_query_gets_the_vector_that_the_run_gave_the_same_text(run: RunFolder) -> None:
    vectors = ENCODER.encode(run, TEXTS[:5])
    expected = memvec.load(run.root)["vector"][:]
    torch.testing.assert_close(vectors, expected, rtol=0.02, atol=0.02)
    assert (vectors == vectors.bfloat16().float()).all() == multiplies(torch.bfloat16)


def test_a_query_is_computed_in_the_dtype_that_the_run_was_told_to_keep(
    write_jsonl: Callable[..., Path], tiny_config: Callable[..., DictConfig]
) -> None:
    emulated = ("trainer.precision=bf16-true", "model.tune=off")
    run = memvec.predict(tiny_config(write_jsonl(TEXTS[:5]), *emulated)).folder
    vectors = ENCODER.encode(run, TEXTS[:5])
    assert (vectors == vectors.bfloat16().float()).all()


def test_another_prompt_gives_other_vectors(run: RunFolder) -> None:
    other = QueryEncoder(prompt_config("one_word_en"), "cpu")
    assert not torch.allclose(other.encode(run, TEXTS[:2]), ENCODER.encode(run, TEXTS[:2]), atol=0.1)


def test_a_model_that_is_gone_or_changed_is_said(
    write_jsonl: Callable[..., Path], tiny_config: Callable[..., DictConfig], llama: Path, tmp_path: Path
) -> None:
    model = Path(shutil.copytree(llama, tmp_path / "model"))
    run = memvec.predict(tiny_config(write_jsonl(TEXTS[:3]), model=model)).folder
    shutil.rmtree(model)
    with pytest.raises(ModelError, match=r"run: the model it was made with cannot be used: .*model: no such folder"):
        ENCODER.encode(run, ["tea"])
    save_model(model, "qwen2")
    with pytest.raises(ModelError, match=r"is no longer the model it was made with: model was '\w{64}', is '\w{64}'"):
        ENCODER.encode(run, ["tea"])


@pytest.fixture
def manifest(run: RunFolder) -> dict[str, Any]:
    copy: dict[str, Any] = json.loads(json.dumps(read_summary(run).manifest))
    return copy


def known(manifest: dict[str, Any]) -> Manifest:
    return known_of(JsonObject(Path("manifest.json"), manifest))


def test_a_manifest_says_which_numbers_but_never_that_code_may_run(manifest: dict[str, Any]) -> None:
    manifest["config"]["model"].update(
        _target_="os.system", trust_remote_code=True, use_safetensors=False, attn_implementation="someone/kernel"
    )
    manifest["config"]["prompt"]["_target_"] = manifest["config"]["data"]["_target_"] = "os.system"
    cfg = ENCODER.config(known(manifest))
    assert cfg.model._target_ == "memvec.model.module.HiddenStateModule"
    assert cfg.prompt._target_ == "memvec.prompt.template.Prompt"
    assert (cfg.model.trust_remote_code, cfg.model.use_safetensors) == (False, True)
    assert cfg.model.attn_implementation is None
    allowed = QueryEncoder(trust_remote_code=True, use_safetensors=False).config(known(manifest))
    assert (allowed.model.trust_remote_code, allowed.model.use_safetensors) == (True, False)


def test_a_hub_model_is_taken_at_the_commit_of_the_run(manifest: dict[str, Any]) -> None:
    manifest["fingerprint"]["model"] = "0123456789" * 4
    assert ENCODER.config(known(manifest)).model.revision == "0123456789" * 4
    manifest["fingerprint"]["model"] = "0123456789abcdef" * 4  # the digest of a folder's files
    assert ENCODER.config(known(manifest)).model.revision is None


def test_a_manifest_of_an_earlier_or_later_version_is_read_as_far_as_it_is_known(manifest: dict[str, Any]) -> None:
    del manifest["config"]["model"]["tune"]
    manifest["config"]["model"]["of_the_future"] = 1
    assert ENCODER.config(known(manifest)).model.layer == 2
