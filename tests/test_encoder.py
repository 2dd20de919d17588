"""The encoder that a program holds: the vectors of the loop it replaces, and a lent model given back as it was."""

from __future__ import annotations

import asyncio
import copy
import multiprocessing
import pickle
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
from datasets import Dataset
from omegaconf import DictConfig
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

import memvec
from memvec import Encoder
from memvec.errors import ConfigError, InputError, ModelError
from memvec.model.checkpoint import Checkpoint
from tests.fixtures import TEXTS
from tests.helpers.adapters import adapted_model, save_adapter
from tests.helpers.models import build_model, build_tokenizer
from tests.helpers.reference import reference_vectors
from tests.helpers.refusals import refused

ZH = '请用一个Token总结以下文本"{text}"：'
CPU: dict[str, Any] = {"device": "cpu"}
# A model is compared with itself in these families: positions, windows, mixtures and states of many kinds.
LENT = ["llama", "gpt2", "gemma3", "qwen3_moe", "lfm2", "qwen2_5_vl"]


def reference(folder: Path, texts: list[str], *, layer: int = -1, template: str = ZH) -> torch.Tensor:
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    return reference_vectors(model, AutoTokenizer.from_pretrained(folder), texts, template=template, layer=layer)


def state_of(model: torch.nn.Module) -> dict[str, Any]:
    """Everything about a model that a program may rely on."""
    modules = dict(model.named_modules())
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks")
    return {
        "modules": {name: id(module) for name, module in modules.items()},
        "training": {name: module.training for name, module in modules.items()},
        "hooks": {name: [dict(getattr(module, kind)) for kind in hooks] for name, module in modules.items()},
        "compiled": {name: module._compiled_call_impl for name, module in modules.items()},
        "parameters": {
            name: (id(weight), weight.data_ptr(), weight.dtype, weight.device, weight.requires_grad, weight._version)
            for name, weight in model.named_parameters()
        },
        "gradients": {name: None if p.grad is None else p.grad.clone() for name, p in model.named_parameters()},
        "buffers": {name: (id(buffer), buffer.dtype) for name, buffer in model.named_buffers()},
        "config": model.config.to_dict(),  # type: ignore[operator]
        "attention": model.config._attn_implementation,  # type: ignore[union-attr]
        "attributes": {name: set(vars(module)) for name, module in modules.items()},
        "random": torch.random.get_rng_state().tolist(),
        "grad_mode": torch.is_grad_enabled(),
    }


def assert_unchanged(model: torch.nn.Module, before: dict[str, Any]) -> None:
    after = state_of(model)
    gradients = [(before.pop("gradients"), after.pop("gradients"))]
    assert after == before
    for was, now in gradients:
        assert all((was[n] is None and now[n] is None) or torch.equal(was[n], now[n]) for n in was)


def trained(model: PreTrainedModel) -> PreTrainedModel:
    """In training mode, with gradients of a step, and one module frozen in evaluation mode."""
    model.train()
    ids = torch.arange(3, 20)[None]
    model(input_ids=ids, labels=ids).loss.backward()
    next(model.children()).eval()
    return model


# --- vectors ---


def test_vectors_are_those_of_the_loop_and_of_predict(
    llama: Path, write_jsonl: Callable[..., Path], tiny_config: Callable[..., DictConfig]
) -> None:
    vectors = Encoder(llama, **CPU).encode(TEXTS)
    assert (vectors.shape, vectors.dtype, vectors.device.type) == ((len(TEXTS), 32), torch.float32, "cpu")
    torch.testing.assert_close(vectors, reference(llama, TEXTS), rtol=1e-5, atol=1e-5)
    cfg = tiny_config(write_jsonl(TEXTS))
    memvec.predict(cfg)
    torch.testing.assert_close(vectors, memvec.load(cfg.output_dir)["vector"][:], rtol=1e-5, atol=1e-5)


def test_many_calls_of_any_size_give_what_one_call_gives(llama: Path) -> None:
    texts = [f"{'she likes tea and ' * (n % 7)}number {n}" for n in range(300)]
    encoder = Encoder(llama, **CPU)
    whole = encoder.encode(texts)
    parts = torch.cat([encoder.encode(texts[:1]), encoder.encode(texts[1:4]), encoder.encode(texts[4:])])
    torch.testing.assert_close(parts, whole, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(encoder.encode(texts[::-1]).flip(0), whole, rtol=1e-5, atol=1e-5)


def test_a_layer_list_gives_one_vector_a_layer_in_order(llama: Path) -> None:
    vectors = Encoder(llama, layer=[1, -1, 0, 1], **CPU).encode(TEXTS)
    assert vectors.shape == (len(TEXTS), 4, 32)
    for at, layer in enumerate([1, -1, 0, 1]):
        torch.testing.assert_close(vectors[:, at], reference(llama, TEXTS, layer=layer), rtol=1e-5, atol=1e-5)
    assert Encoder(llama, layer=[2], **CPU).encode(TEXTS[:2]).shape == (2, 1, 32)


@pytest.mark.parametrize("texts", [
    tuple(TEXTS[:3]),
    np.asarray(TEXTS[:3]),
    np.asarray(TEXTS[:3], dtype=object),
    pd.Series(TEXTS[:3], index=[7, 7, 1]),
    pa.array(TEXTS[:3]),
    pa.chunked_array([TEXTS[:1], TEXTS[1:3]]),
    Dataset.from_dict({"text": TEXTS[:3]})["text"],
], ids=["tuple", "numpy", "objects", "series", "arrow", "chunked", "column"])  # fmt: skip
def test_every_list_of_texts_is_read_as_one(texts: Any, llama: Path) -> None:
    torch.testing.assert_close(Encoder(llama, **CPU).encode(texts), reference(llama, TEXTS[:3]), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "texts",
    [pd.DataFrame({"text": ["a"]}), {"text": ["a"]}, (text for text in ["a"]), {"a"}, b"a", "a", 7, None],
    ids=lambda value: type(value).__name__,
)
def test_what_is_no_list_of_texts_is_refused(texts: Any, llama: Path) -> None:
    with refused(InputError, "texts", found="found"):
        Encoder(llama, **CPU).encode(texts)


@pytest.mark.parametrize("bad", ["", " \n", None, 7, float("nan"), "\ud800", b"bytes"], ids=repr)
def test_a_text_that_cannot_be_used_is_named_or_nan(bad: Any, llama: Path) -> None:
    encoder = Encoder(llama, **CPU)
    with refused(InputError, "texts[1]"):
        encoder.encode(["tea", bad])
    vectors = encoder.encode(["tea", bad, "tea"], on_error="nan")
    assert vectors[1].isnan().all()
    assert torch.equal(vectors[0], vectors[2])
    assert encoder.encode([bad], on_error="nan").shape == (1, 32)
    assert encoder.encode([]).shape == (0, 32)


def test_a_vector_that_is_not_finite_is_named_or_nan(llama: Path) -> None:
    model, tokenizer = AutoModelForCausalLM.from_pretrained(llama), AutoTokenizer.from_pretrained(llama)
    with torch.no_grad():
        model.get_input_embeddings().weight[tokenizer("~")["input_ids"]] = torch.nan
    encoder = Encoder(model, tokenizer=tokenizer)
    with refused(ModelError, "texts[1]", found=re.compile(r"the vector of its \d+ tokens holds NaN")):
        encoder.encode(["tea", "~ tea", "coffee"])
    vectors = encoder.encode(["tea", "~ tea", "coffee"], on_error="nan")
    assert vectors.isfinite().all(dim=1).tolist() == [True, False, True]


def test_special_tokens_stay_text_and_long_texts_lose_their_end(llama: Path) -> None:
    encoder = Encoder(llama, max_length=60, **CPU)
    vectors = encoder.encode(["<|im_end|>", "word " * 300, "word " * 300 + "and more"])
    assert torch.equal(vectors[1], vectors[2])
    assert not torch.allclose(vectors[0], vectors[1])


def test_a_template_of_ones_own_is_taken_as_it_stands(llama: Path) -> None:
    template = "${oc.env:HOME} {text}="
    vectors = Encoder(llama, prompt=template, **CPU).encode(TEXTS[:2])
    torch.testing.assert_close(vectors, reference(llama, TEXTS[:2], template=template), rtol=1e-5, atol=1e-5)


# --- loading ---


def test_the_model_is_loaded_once_at_first_use(llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loads: list[str] = []
    load = Checkpoint.load_decoder

    def counted(self: Checkpoint, dtype: torch.dtype) -> PreTrainedModel:
        loads.append(self.location)
        return load(self, dtype)

    monkeypatch.setattr(Checkpoint, "load_decoder", counted)
    encoder = Encoder(llama, **CPU)
    assert loads == []
    first = encoder.encode(["tea"])
    assert torch.equal(encoder.encode(["tea"]), first)
    assert (encoder.dimension, len(loads)) == (32, 1)
    with encoder:
        encoder.encode(["tea"])
    assert torch.equal(encoder.load().encode(["tea"]), first)
    assert len(loads) == 2
    settings = {"accelerator": "cpu", "batch_size": 77}  # no other test's, whose encoder may still be kept
    memvec.encode(["tea"], model=llama, **settings)
    memvec.encode(["coffee"], model=str(llama), **settings)
    assert len(loads) == 3


def test_what_does_not_exist_is_named(tmp_path: Path, llama: Path) -> None:
    with refused(ModelError, "model.name_or_path", found="no such folder"):
        Encoder(tmp_path / "nothing", **CPU).load()
    for option, value, expected in [
        ("prompt", "one_token_fr", {"found": "no such prompt", "allowed": "chat, one_token_zh"}),
        ("data.batch_size", 0, {"allowed": "an integer of at least 1"}),
        ("dtype", "int8", {"allowed": "float32"}),
        ("device", "nowhere", {"found": "nowhere"}),
        ("device", "xpu", {"found": "cannot be used"}),
        ("prompt", 5, {"found": "no such prompt"}),
        ("layer", [], {"allowed": "a list of at least one"}),
        ("model.layer", 9, {"found": "the model has 3 layers"}),
        ("data.max_length", 5, {"found": "leaves no room"}),
    ]:
        with refused(ConfigError, option, value, **expected):
            Encoder(llama, **{**CPU, option.rpartition(".")[2]: value}).load()
    with refused(ConfigError, "tokenizer", str(llama), allowed="a tokenizer or processor that the program holds"):
        Encoder(llama, tokenizer=str(llama))
    with refused(ConfigError, "tokenizer", None):
        Encoder(build_model("llama"))
    with refused(ModelError, "model", found="found Linear"):
        Encoder(torch.nn.Linear(2, 2), tokenizer=build_tokenizer()).load()


def test_the_fingerprint_changes_with_whatever_changes_vectors(llama: Path) -> None:
    one = Encoder(llama, **CPU).fingerprint
    assert Encoder(llama, batch_size=2, **CPU).fingerprint == one
    for options in ({"layer": 1}, {"prompt": "raw"}, {"dtype": "bfloat16"}, {"max_length": 90}):
        assert Encoder(llama, **{**CPU, **options}).fingerprint != one
    model = build_model("llama")
    lent = Encoder(model, tokenizer=build_tokenizer())
    before = lent.fingerprint
    with torch.no_grad():
        model.get_input_embeddings().weight[5] += 1
    assert lent.fingerprint["model"] != before["model"]


# --- a model that the program holds ---


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated")  # torch's own, as it imports its compiler
def test_a_compiled_model_gives_the_vectors_of_what_it_wraps() -> None:
    model, tokenizer = build_model("llama"), build_tokenizer()
    expected = Encoder(model, tokenizer=tokenizer).encode(["tea", "cat"])
    assert torch.equal(Encoder(torch.compile(model), tokenizer=tokenizer).encode(["tea", "cat"]), expected)


@pytest.mark.parametrize("architecture", LENT)
def test_a_lent_model_is_given_back_as_it_was(architecture: str) -> None:
    model, tokenizer = trained(build_model(architecture)), build_tokenizer()
    backend = tokenizer.backend_tokenizer
    backend.enable_truncation(7)
    backend.enable_padding(length=9)
    expected = reference_vectors(copy.deepcopy(model).eval(), build_tokenizer(), TEXTS, template=ZH)
    before = state_of(model)
    encoder = Encoder(model, tokenizer=tokenizer, layer=[1, -1])
    vectors = encoder.encode(TEXTS * 3)  # enough for the shared prefix
    torch.testing.assert_close(vectors[: len(TEXTS), 1], expected, rtol=1e-5, atol=1e-5)
    encoder.encode(TEXTS[:1])
    assert_unchanged(model, before)
    assert (backend.truncation["max_length"], backend.padding["length"]) == (7, 9)


@pytest.mark.parametrize("failing", ["text", "model"])
def test_a_lent_model_is_given_back_after_a_failure(failing: str) -> None:
    model = trained(build_model("llama"))
    encoder = Encoder(model, tokenizer=build_tokenizer())
    encoder.encode(TEXTS[:2])
    handle = None
    if failing == "model":

        def fail(module: torch.nn.Module, args: Any, kwargs: Any) -> None:
            raise ValueError("in the middle")

        handle = model.model.layers[1].register_forward_pre_hook(fail, with_kwargs=True)
    before = state_of(model)
    with pytest.raises((ValueError, InputError)):
        encoder.encode(TEXTS[:20] + ([""] if failing == "text" else []))
    assert_unchanged(model, before)
    if handle is not None:
        handle.remove()
    assert encoder.encode(TEXTS[:2]).isfinite().all()


def test_a_training_step_between_two_calls_gives_new_vectors() -> None:
    model, tokenizer = build_model("llama").train(), build_tokenizer()
    encoder = Encoder(model, tokenizer=tokenizer)
    texts = [f"{text} {n}" for n in range(3) for text in TEXTS[:8]]  # enough for the shared prefix
    first = encoder.encode(texts)
    ids = torch.arange(3, 30)[None]
    model(input_ids=ids, labels=ids).loss.backward()
    torch.optim.SGD(model.parameters(), lr=0.5).step()
    second = encoder.encode(texts)
    assert not torch.allclose(first, second)
    expected = reference_vectors(copy.deepcopy(model).eval(), tokenizer, texts, template=ZH)
    torch.testing.assert_close(second, expected, rtol=1e-5, atol=1e-5)
    assert encoder.encode(texts[:3]).requires_grad is False


def test_a_decoder_alone_and_a_processor_are_taken(llama: Path) -> None:
    class Processor:
        tokenizer = AutoTokenizer.from_pretrained(llama)

    decoder = AutoModel.from_pretrained(llama)
    vectors = Encoder(decoder, tokenizer=Processor()).encode(TEXTS)
    torch.testing.assert_close(vectors, reference(llama, TEXTS), rtol=1e-5, atol=1e-5)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # peft asks for it
def test_an_adapter_that_is_active_counts() -> None:
    peft = pytest.importorskip("peft")
    torch.manual_seed(3)
    config = peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj", "down_proj"], init_lora_weights=False)
    model, tokenizer = peft.get_peft_model(build_model("llama"), config), build_tokenizer()
    plain = reference_vectors(build_model("llama"), tokenizer, TEXTS, template=ZH)
    expected = reference_vectors(model.eval(), tokenizer, TEXTS, template=ZH)
    before = state_of(model)
    vectors = Encoder(model, tokenizer=tokenizer).encode(TEXTS)
    torch.testing.assert_close(vectors, expected, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(vectors, plain, rtol=1e-2)
    assert_unchanged(model, before)


def test_an_adapter_is_merged_into_a_model_of_its_own(llama: Path, tmp_path: Path) -> None:
    adapter = save_adapter(tmp_path, llama)
    expected = reference_vectors(adapted_model(llama, adapter), build_tokenizer(), TEXTS, template=ZH)
    encoder = Encoder(llama, adapter=adapter, **CPU)
    torch.testing.assert_close(encoder.encode(TEXTS), expected, rtol=1e-5, atol=1e-5)
    assert encoder.fingerprint.keys() - Encoder(llama, **CPU).fingerprint.keys() == {"adapter"}
    vectors = memvec.encode(TEXTS, model=llama, adapter=adapter, accelerator="cpu")
    torch.testing.assert_close(vectors, expected, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(memvec.encode(TEXTS, model=llama, accelerator="cpu"), vectors, rtol=1e-2)
    with refused(ConfigError, "adapter", "lora", found="a model that the program holds brings its own"):
        Encoder(build_model("llama"), tokenizer=build_tokenizer(), adapter="lora")


# --- engines, threads and processes ---


def test_a_batch_of_columns_gets_a_column_of_vectors(llama: Path) -> None:
    encoder, expected = Encoder(llama, **CPU), reference(llama, TEXTS[:4])
    columns = {"id": np.arange(4), "text": np.asarray(TEXTS[:4])}
    found = encoder(columns)
    assert list(found) == ["id", "text", "vector"]
    assert found["vector"].dtype == np.float32
    np.testing.assert_allclose(found["vector"], expected.numpy(), rtol=1e-5, atol=1e-5)
    assert list(columns) == ["id", "text"]
    table = encoder(pa.table({"id": range(4), "text": TEXTS[:4]}))
    assert table.column_names == ["id", "text", "vector"]
    assert table.schema.field("vector").type == pa.list_(pa.float32(), 32)
    np.testing.assert_allclose(np.stack(table["vector"].to_numpy()), expected.numpy(), rtol=1e-5, atol=1e-5)
    with refused(InputError, "batch", found="no column 'text'; columns found: id"):
        encoder({"id": [1]})


@pytest.mark.parametrize("processes", [None, 2])
@pytest.mark.processes
def test_datasets_map_runs_it(processes: int | None, llama: Path) -> None:
    dataset = Dataset.from_dict({"text": TEXTS})
    mapped = dataset.map(Encoder(llama, **CPU), batched=True, batch_size=5, num_proc=processes, new_fingerprint="f")
    vectors = torch.tensor(mapped["vector"][:])
    torch.testing.assert_close(vectors, reference(llama, TEXTS), rtol=1e-5, atol=1e-5)


@pytest.mark.processes
def test_a_dataloader_worker_runs_it(llama: Path) -> None:
    loader = torch.utils.data.DataLoader(TEXTS, batch_size=4, num_workers=1, collate_fn=Encoder(llama, **CPU).encode)
    torch.testing.assert_close(torch.cat(list(loader)), reference(llama, TEXTS), rtol=1e-5, atol=1e-5)


def test_it_is_pickled_without_its_model_and_loads_where_it_runs(llama: Path) -> None:
    encoder = Encoder(llama, **CPU)
    expected = encoder.encode(TEXTS)
    pickled = pickle.dumps(encoder)
    assert len(pickled) < 5000
    assert torch.equal(pickle.loads(pickled).encode(TEXTS), expected)


@pytest.mark.parametrize("method", ["fork", "spawn"])
@pytest.mark.processes
def test_a_worker_process_loads_its_own(method: str, llama: Path) -> None:
    encoder = Encoder(llama, **CPU)
    expected = encoder.encode(TEXTS)
    with multiprocessing.get_context(method).Pool(1) as pool:
        found = torch.from_numpy(pool.apply(_encode, (encoder, TEXTS)))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def _encode(encoder: Encoder, texts: list[str]) -> Any:
    return encoder.encode(texts).numpy()


def test_several_threads_share_one_encoder(llama: Path) -> None:
    encoder = Encoder(llama, **CPU)
    parts = [[f"{text} {n}" for text in TEXTS[: 1 + n % 5]] for n in range(24)]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(encoder.encode, parts))
    for vectors, texts in zip(found, parts, strict=True):
        torch.testing.assert_close(vectors, encoder.encode(texts), rtol=1e-5, atol=1e-5)

    async def gathered() -> list[torch.Tensor]:
        return await asyncio.gather(*(asyncio.to_thread(encoder.encode, texts) for texts in parts[:4]))

    for vectors, expected in zip(asyncio.run(gathered()), found[:4], strict=True):
        torch.testing.assert_close(vectors, expected, rtol=1e-5, atol=1e-5)
