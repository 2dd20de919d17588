"""Queries get the vectors that the run would have given them, and nothing that a manifest says runs as code."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import DictConfig

import memvec
from memvec.config.prompts import named_prompt
from memvec.encoder import Encoder
from memvec.errors import ConfigError, ModelError, RunFolderError
from memvec.model.torch_internals import has_fast_matmul
from memvec.prompt.template import Prompt
from memvec.retrieval.encoder import QueryOptions, query_encoder, query_options
from memvec.run.folder import RunFolder
from memvec.run.manifest import read_manifest
from tests.fixtures import TEXTS
from tests.helpers.adapters import adapted_model, save_adapter
from tests.helpers.configs import compose
from tests.helpers.models import build_tokenizer, save_model
from tests.helpers.reference import reference_vectors
from tests.helpers.refusals import refused, refused_as

CPU = QueryOptions(accelerator="cpu")


def encoder_of(run: RunFolder, options: QueryOptions = CPU) -> Encoder:
    return query_encoder(run, read_manifest(run), options)


@pytest.fixture(scope="module")
def finished(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A run with a layer, a prompt, a precision and a length that are none of them the defaults."""
    root = tmp_path_factory.mktemp("queries")
    path = root / "memories.jsonl"
    path.write_text("".join(json.dumps({"id": n, "text": text}) + "\n" for n, text in enumerate(TEXTS)))
    overrides = [
        *("model.layer=2", "prompt=chat", "trainer.precision=bf16-true", "data.max_length=40", "data.limit=5"),
        *(f"data.path={path}", f"output_dir={root / 'run'}", "model=hub", f"model.name_or_path={llama}"),
        *("trainer.accelerator=cpu", "trainer.devices=1", "trainer.enable_progress_bar=false"),
    ]
    return memvec.predict(compose(overrides)).folder


@pytest.fixture
def run(finished: RunFolder, tmp_path: Path) -> RunFolder:
    """A copy of it, for a test to change."""
    return RunFolder(shutil.copytree(finished.root, tmp_path / "run"))


@pytest.fixture
def change(run: RunFolder) -> Callable[..., None]:
    """Changes a value of the run's manifest."""

    def at(name: str, value: Any) -> None:
        content = json.loads(run.manifest.read_text())
        *outer, last = name.split(".")
        place = content
        for part in outer:
            place = place[part]
        place[last] = value
        run.manifest.write_text(json.dumps(content))

    return at


def test_a_query_gets_the_vector_that_the_run_gave_it(run: RunFolder) -> None:
    vectors = encoder_of(run).encode(TEXTS[:5])
    expected = memvec.load(run.root)["vector"][:]
    torch.testing.assert_close(vectors, expected, rtol=0.02, atol=0.02)
    assert (vectors == vectors.bfloat16().float()).all() == has_fast_matmul(torch.bfloat16)


def test_a_query_is_computed_in_the_dtype_that_was_asked_for(
    write_jsonl: Callable[..., Path], tiny_config: Callable[..., DictConfig]
) -> None:
    emulated = ("trainer.precision=bf16-true", "model.tune=off")
    run = memvec.predict(tiny_config(write_jsonl(TEXTS[:5]), *emulated)).folder
    vectors = encoder_of(run).encode(TEXTS[:5])
    assert (vectors == vectors.bfloat16().float()).all()


def test_another_prompt_gives_other_vectors(run: RunFolder) -> None:
    other = encoder_of(run, QueryOptions(Prompt(*named_prompt("one_word_en")), "cpu"))
    assert not torch.allclose(other.encode(TEXTS[:2]), encoder_of(run).encode(TEXTS[:2]), atol=0.1)


def test_a_model_that_is_gone_or_changed_is_said(
    write_jsonl: Callable[..., Path], tiny_config: Callable[..., DictConfig], llama: Path, tmp_path: Path
) -> None:
    model = Path(shutil.copytree(llama, tmp_path / "model"))
    run = memvec.predict(tiny_config(write_jsonl(TEXTS[:3]), model=model)).folder
    shutil.rmtree(model)
    with refused(
        ModelError, "run", found=re.compile(r"the model it was made with cannot be used: .*model: no such folder")
    ):
        encoder_of(run)
    save_model(model, "qwen2")
    with refused(
        ModelError, "run", found=re.compile(r"is no longer the model it was made with: model was '\w{64}', is '\w{64}'")
    ):
        encoder_of(run)


# Each of these ran a command, or read a variable, where a configuration was made of the manifest.
COMMAND = {"_target_": "os.system", "command": "touch {}"}
SCALARS = [
    *("config.model.layer", "config.model.name_or_path", "config.model.revision", "config.model.prefix_cache"),
    *("config.model.adapter", "fingerprint.adapter"),
    *("config.model.tune", "config.model.probe", "config.data.max_length", "config.prompt.template"),
    *("config.prompt.chat", "fingerprint.precision", "fingerprint.model"),
]


@pytest.mark.parametrize("name", SCALARS)
@pytest.mark.parametrize("value", [COMMAND, "${oc.env:SECRET}", ["${oc.env:SECRET}"]])
def test_a_manifests_value_is_never_built_or_resolved(
    name: str,
    value: Any,
    run: RunFolder,
    change: Callable[..., None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(os.environ, "SECRET", "hunter2")
    witness = tmp_path / "witness"
    change(name, json.loads(json.dumps(value).replace("{}", str(witness))))
    for use in (lambda: memvec.search(run.root, ["tea"], accelerator="cpu"), lambda: memvec.load(run.root)):
        with refused(RunFolderError, "manifest.json") as caught:
            use()
        said = str(caught.value)
        assert "hunter2" not in said
        assert said.isprintable()
    assert not witness.exists()


def test_what_a_manifest_holds_besides_is_not_looked_at(run: RunFolder, change: Callable[..., None]) -> None:
    for name in ("config.model", "config.prompt", "config.data", "config.trainer"):
        change(f"{name}._target_", "os.system")
    change("config.model.trust_remote_code", True)
    change("config.model.use_safetensors", False)
    change("config.model.attn_implementation", "someone/kernel")
    change("config.trainer.callbacks", [COMMAND])
    encoder = encoder_of(run)
    assert (encoder.trust_remote_code, encoder.use_safetensors, encoder.attn_implementation) == (False, True, None)
    assert len(encoder.encode(["tea"])) == 1


def test_a_models_code_is_allowed_by_whoever_searches(run: RunFolder) -> None:
    assert encoder_of(run, QueryOptions(accelerator="cpu", trust_remote_code=True)).trust_remote_code


def test_a_value_that_no_encoder_takes_names_the_manifest(run: RunFolder, change: Callable[..., None]) -> None:
    change("config.model.layer", 99)
    with refused(RunFolderError, "manifest.json", found=re.compile(r"queries cannot be encoded as it says: .*99")):
        encoder_of(run)
    change("config.model.layer", 2)
    change("fingerprint.precision", "transformer-engine")
    with refused(RunFolderError, "manifest.json", found="transformer-engine"):
        encoder_of(run)


@pytest.mark.parametrize(
    ("name", "value", "found", "allowed"),
    [
        ("config.model.layer", [], " is a list", "an integer, or a list of different ones"),
        ("config.model.layer", [1, 1], " is a list", "an integer, or a list of different ones"),
        ("config.model.layer", [1, 2.5], "[1] is 2.5", "an integer"),
        ("config.model.layer", [True], "[0] is True", "an integer"),
        ("fingerprint.layer", [[1]], "[0] is a list", "an integer"),
        ("config.writer.dtype", "object", " is 'object'", "float32 or float16"),
        ("config.writer.dtype", 16, " is 16", "a text"),
        ("config.writer.normalize", "yes", " is 'yes'", "true or false"),
    ],
)
def test_layers_and_form_of_a_manifest_are_of_their_types(
    name: str, value: Any, found: str, allowed: str, run: RunFolder, change: Callable[..., None]
) -> None:
    change(name, value)
    for use in (lambda: memvec.search(run.root, ["tea"], accelerator="cpu"), lambda: memvec.load(run.root)):
        with refused_as(RunFolderError.damaged(run.manifest, f"{name}{found}", allowed=allowed)):
            use()


def test_layers_that_the_vectors_are_not_of_are_said(run: RunFolder, change: Callable[..., None]) -> None:
    change("config.model.layer", [2, 1])
    with refused(RunFolderError, found="column 'vector_2' is not of "):
        memvec.load(run.root)
    change("config.model.layer", 2)
    change("config.writer.dtype", "float16")
    with refused(RunFolderError, found=re.compile(r"column 'vector' is not of .*halffloat")):
        memvec.load(run.root)


def test_a_hub_model_is_taken_at_the_commit_of_the_run(
    run: RunFolder, change: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[str | None] = []
    change("fingerprint.model", "0123456789" * 4)
    monkeypatch.setattr(Encoder, "load", lambda self: taken.append(self.revision) or self)
    monkeypatch.setattr(Encoder, "fingerprint", property(lambda self: dict(read_manifest(run).fingerprint)))
    encoder_of(run)
    change("fingerprint.model", "0123456789abcdef" * 4)  # the digest of a folder's files
    encoder_of(run)
    assert taken == ["0123456789" * 4, None]


def test_a_manifest_of_another_version_is_read_as_far_as_known(run: RunFolder, change: Callable[..., None]) -> None:
    change("config.model.of_the_future", 1)
    content = json.loads(run.manifest.read_text())
    del content["config"]["writer"]["dtype"], content["config"]["writer"]["normalize"]
    del content["config"]["model"]["tune"], content["fingerprint"]["precision"], content["parts"]
    run.manifest.write_text(json.dumps(content))
    manifest = read_manifest(run)
    assert (manifest.layer, manifest.tune, manifest.precision, manifest.parts) == (2, "auto", "bf16-true", None)
    assert len(memvec.load(run.root)) == 5


def test_what_a_chat_template_is_given_is_given_to_queries(run: RunFolder, change: Callable[..., None]) -> None:
    words = {"enable_thinking": False}
    change("config.prompt.chat_template_kwargs", words)
    change("config.prompt.turns", [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "hi"}])
    prompt = read_manifest(run).prompt
    assert prompt is not None
    assert (prompt.chat_template_kwargs, [turn["role"] for turn in prompt.turns]) == (words, ["user", "assistant"])
    with_queries_own = ["prompt=chat", "+prompt.chat_template_kwargs.enable_thinking=false", f"output_dir={run.root}"]
    own = query_options(compose([*with_queries_own, "query=tea"], config_name="search")).prompt
    assert own is not None
    assert (own.chat, own.chat_template_kwargs) == (True, words)
    change("config.prompt.chat_template_kwargs", {"f": COMMAND})
    with refused(RunFolderError, "manifest.json", found="chat_template_kwargs.f is an object"):
        read_manifest(run)


def test_a_device_that_is_not_there_is_an_error_of_the_option(run: RunFolder) -> None:
    with refused(ConfigError, "accelerator", "abc", found="this machine has none"):
        encoder_of(run, QueryOptions(accelerator="abc"))


def test_a_run_with_an_adapter_is_searched_with_it(
    write_jsonl: Callable[..., Path], tiny_config: Callable[..., DictConfig], llama: Path, tmp_path: Path
) -> None:
    adapter = save_adapter(tmp_path / "adapter", llama)
    cfg = tiny_config(write_jsonl(TEXTS), f"model.adapter={adapter}")
    run = memvec.predict(cfg).folder
    expected = reference_vectors(adapted_model(llama, adapter), build_tokenizer(), TEXTS, template=cfg.prompt.template)
    torch.testing.assert_close(memvec.load(run.root)["vector"][:], expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(encoder_of(run).encode(TEXTS), expected, rtol=1e-5, atol=1e-5)
    with refused(RunFolderError, "run", found=re.compile(r"a run of something else: adapter was '\w{64}', is None")):
        memvec.predict(tiny_config(write_jsonl(TEXTS)))
    save_adapter(adapter, llama, r=2)
    with refused(
        ModelError,
        "run",
        found=re.compile(r"is no longer the model it was made with: adapter was '\w{64}', is '\w{64}'"),
    ):
        encoder_of(run)
    shutil.rmtree(adapter)
    with refused(
        ModelError,
        "run",
        found=re.compile(r"the model it was made with cannot be used: model\.adapter=.*: no such folder"),
    ):
        encoder_of(run)


def test_an_adapter_of_the_hub_is_taken_at_the_commit_of_the_run(
    run: RunFolder, change: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[str | None] = []
    change("config.model.adapter", "owner/lora")
    change("fingerprint.adapter", "0123456789" * 4)
    monkeypatch.setattr(Encoder, "load", lambda self: taken.append(self.adapter) or self)
    monkeypatch.setattr(Encoder, "fingerprint", property(lambda self: dict(read_manifest(run).fingerprint)))
    encoder_of(run)
    assert taken == [f"owner/lora@{'0123456789' * 4}"]
