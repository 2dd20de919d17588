"""A model and a tokenizer that a program lends: taken as they are at each call, and given back."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule
from transformers import BertTokenizer, PreTrainedModel

from memvec import Encoder
from memvec.errors import ConfigError, ModelError
from memvec.model import lending
from memvec.model.parity import ExecutionMode
from tests.fixtures import TEXTS
from tests.helpers.families import build_family
from tests.helpers.models import build_model, build_tokenizer
from tests.helpers.reference import reference_vectors, relative_errors
from tests.helpers.refusals import refused

ZH = '请用一个Token总结以下文本"{text}"：'
MANY = [f"{text} number {number}" for number in range(4) for text in TEXTS]
ROUNDING = 1e-5


def assert_as_the_loop(
    encoder: Encoder, model: PreTrainedModel, tokenizer: Any, texts: list[str], *, layer: int = -1
) -> None:
    expected = reference_vectors(model, tokenizer, texts, template=ZH, layer=layer)
    assert relative_errors(encoder.encode(texts), expected).max() < ROUNDING


def test_token_types_that_a_tokenizer_gives_are_heeded() -> None:
    """GPT-2 adds their embedding to every token's; Chinese checkpoints come with BERT's tokenizer."""
    characters = sorted({character for text in [ZH, *TEXTS] for character in text if not character.isspace()})
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *characters, *(f"##{one}" for one in characters)]
    tokenizer = BertTokenizer(vocab={word: at for at, word in enumerate(words)})
    assert "token_type_ids" in tokenizer("tea")
    model = build_model("gpt2")
    for prefix_cache in ("auto", "off"):
        encoder = Encoder(model, tokenizer=tokenizer, prefix_cache=prefix_cache)
        assert_as_the_loop(encoder, model, tokenizer, MANY)
    model.set_attn_implementation("eager")  # with which padding is not left out
    encoder = Encoder(model, tokenizer=tokenizer)
    assert_as_the_loop(encoder, model, tokenizer, MANY)
    assert encoder._loaded().extractor.mode is ExecutionMode.SHARED_PREFIX


def test_a_hook_that_comes_later_is_probed() -> None:
    model, tokenizer = build_model("llama"), build_tokenizer()
    encoder = Encoder(model, tokenizer=tokenizer)
    encoder.encode(TEXTS)

    def steer(module: nn.Module, args: Any, output: torch.Tensor) -> torch.Tensor:
        return torch.cat([output[:, :-1], output[:, -1:] + 1], dim=1)  # the last place: padding, in a batch

    layer = model.model.layers[0]
    expected = reference_vectors(model, tokenizer, MANY, template=ZH)  # adds hooks of transformers' own
    harmless = layer.register_forward_hook(lambda module, args, output: None)
    torch.testing.assert_close(encoder.encode(MANY), expected, rtol=1e-4, atol=1e-5)
    harmless.remove()
    handle = layer.register_forward_hook(steer)  # as many as before
    steered = encoder.encode(MANY)
    assert relative_errors(steered, reference_vectors(model, tokenizer, MANY, template=ZH)).max() < ROUNDING
    handle.remove()
    torch.testing.assert_close(encoder.encode(MANY), expected, rtol=1e-4, atol=1e-5)


def test_an_attention_that_comes_later_is_taken() -> None:
    model, tokenizer = build_model("llama"), build_tokenizer()
    encoder = Encoder(model, tokenizer=tokenizer)
    encoder.encode(TEXTS)
    assert encoder._loaded().extractor.mode is ExecutionMode.UNPADDED
    model.set_attn_implementation("eager")
    encoder.encode(TEXTS)
    assert encoder._loaded().extractor.mode is not ExecutionMode.UNPADDED


class OfTheBatch(nn.Module):
    """Scales by the whole batch, as dynamic quantisation does."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        scaled: torch.Tensor = self.inner(states) * states.abs().max()
        return scaled


@pytest.mark.parametrize("is_later", [False, True])
def test_rows_of_one_length_are_probed_side_by_side(is_later: bool) -> None:
    model, tokenizer = build_model("llama"), build_tokenizer()
    encoder = Encoder(model, tokenizer=tokenizer)
    if is_later:
        encoder.encode(TEXTS)
    for layer in model.model.layers:
        layer.mlp = OfTheBatch(layer.mlp)
    assert_as_the_loop(encoder, model, tokenizer, ["likes tea a lot", "likes tea a bit", "likes a lot of tea"])
    assert encoder._loaded().extractor.mode is ExecutionMode.ONE_BY_ONE


def test_few_texts_run_in_a_mode_that_was_probed() -> None:
    model, tokenizer = build_model("gpt2"), build_tokenizer()
    encoder = Encoder(model, tokenizer=tokenizer, prefix_cache="auto")
    encoder.encode(TEXTS)
    held = encoder._loaded()
    held._mode = ExecutionMode.SHARED_PREFIX
    held._mode_of_few = ExecutionMode.ONE_BY_ONE
    encoder.encode(["tea"])
    assert held.extractor.mode is ExecutionMode.ONE_BY_ONE


def test_encoders_of_one_model_take_turns() -> None:
    model, tokenizer = build_model("llama").train(), build_tokenizer()
    encoders = [Encoder(model, tokenizer=tokenizer, layer=layer) for layer in (-1, 1)]
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda encoder: [encoder.encode(TEXTS) for _ in range(15)], encoders))
    assert model.config._attn_implementation == "sdpa"
    assert all(module.training for module in model.modules())
    model.eval()
    for encoder, layer in zip(encoders, (-1, 1), strict=True):
        assert_as_the_loop(encoder, model, tokenizer, TEXTS, layer=layer)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_the_programs_default_dtype_does_not_matter(dtype: torch.dtype) -> None:
    encoder = Encoder(build_model("llama"), tokenizer=build_tokenizer())
    expected = encoder.encode(TEXTS)
    torch.set_default_dtype(dtype)
    try:
        found = [encoder.encode(TEXTS), encoder.encode([]), encoder.encode([""], on_error="nan")]
    finally:
        torch.set_default_dtype(torch.float32)
    assert {vectors.dtype for vectors in found} == {torch.float32}
    torch.testing.assert_close(found[0], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("prefix_cache", ["auto", "off"])
def test_the_programs_default_device_does_not_matter(prefix_cache: str) -> None:
    encoder = Encoder(build_model("llama"), tokenizer=build_tokenizer(), prefix_cache=prefix_cache)
    expected = encoder.encode(TEXTS)
    torch.set_default_device("meta")
    try:
        found = encoder.encode(TEXTS)
    finally:
        torch.set_default_device(None)
    torch.testing.assert_close(found, expected)


def test_a_decoder_compiled_in_place_serves_every_layer() -> None:
    model, tokenizer = build_model("llama"), build_tokenizer()
    model.model.compile(backend="eager")
    compiled = model.model._compiled_call_impl
    for layer in (-1, 1):
        assert_as_the_loop(Encoder(model, tokenizer=tokenizer, layer=layer), model, tokenizer, TEXTS, layer=layer)
    assert model.model._compiled_call_impl is compiled


@torch.no_grad()
def test_layers_compiled_in_place_stay_compiled() -> None:
    model, tokenizer = build_model("llama"), build_tokenizer()
    compiled: list[int] = []

    def backend(graph: Any, inputs: Any) -> Any:
        def run(*args: Any) -> Any:
            compiled.append(1)
            return graph(*args)

        return run

    for layer in model.model.layers:
        layer.compile(backend=backend)
    ids = torch.arange(3, 12)[None]
    model(input_ids=ids, use_cache=False)
    before = len(compiled)
    vectors = Encoder(model, tokenizer=tokenizer).encode(TEXTS)
    assert len(compiled) == before  # the hooks that take states are not for a compiler
    model(input_ids=ids, use_cache=False)
    assert len(compiled) == 2 * before > 0
    torch.testing.assert_close(vectors, reference_vectors(model, tokenizer, TEXTS, template=ZH), rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # peft asks for it
def test_an_adapter_that_some_tokens_switch_on_is_refused() -> None:
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(target_modules=["q_proj"], task_type="CAUSAL_LM", alora_invocation_tokens=[5, 6])
    model = peft.get_peft_model(build_model("llama"), config)
    with refused(ModelError, "model", found="aLoRA"):
        Encoder(model, tokenizer=build_tokenizer()).encode(TEXTS)


def test_nothing_but_nan_stands_for_a_vector_that_is_not_finite() -> None:
    model = build_model("llama")
    with torch.no_grad():
        model.model.norm.weight.fill_(torch.inf)
    vectors = Encoder(model, tokenizer=build_tokenizer()).encode(TEXTS, on_error="nan")
    assert vectors.isnan().all()


def test_tokens_added_later_are_known() -> None:
    model, tokenizer = build_model("llama"), build_tokenizer()
    encoder = Encoder(model, tokenizer=tokenizer)
    encoder.encode(TEXTS)
    tokenizer.add_tokens(["tea"])
    model.resize_token_embeddings(len(tokenizer))
    assert_as_the_loop(encoder, model, tokenizer, ["likes tea", "drinks tea"])


def test_a_processor_that_makes_other_tokens_is_refused() -> None:
    class Ending:
        tokenizer = build_tokenizer()

        def __call__(self, text: list[str]) -> dict[str, list[list[int]]]:
            return {"input_ids": [[*self.tokenizer(one)["input_ids"], 2] for one in text]}

    with refused(ConfigError, "tokenizer", "Ending", found="makes other tokens of a text"):
        Encoder(build_model("llama"), tokenizer=Ending()).encode(TEXTS)


def test_what_cannot_be_lent_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokenizer = build_model("llama"), build_tokenizer()
    with refused(ConfigError, "attn_implementation", "eager", found="taken as it is"):
        Encoder(model, tokenizer=tokenizer, attn_implementation="eager")
    with refused(ConfigError, "to", "cuda:99", found="cannot be used"):
        Encoder(model, tokenizer=tokenizer).encode(TEXTS, to="cuda:99")
    monkeypatch.setattr(lending, "FSDPModule", type(model))  # as FSDP2 makes of the whole model
    with refused(ModelError, "model", found="FSDP2 shards all of"):
        Encoder(model, tokenizer=tokenizer).encode(TEXTS)
    assert not isinstance(model, FSDPModule)


def test_the_layer_may_be_a_number_of_numpy() -> None:
    model, tokenizer = build_model("llama"), build_tokenizer()
    assert_as_the_loop(Encoder(model, tokenizer=tokenizer, layer=np.int64(1)), model, tokenizer, TEXTS, layer=1)


def test_a_dataframe_gets_a_column_of_vectors() -> None:
    encoder = Encoder(build_family("llama"), tokenizer=build_tokenizer())
    frame = encoder(pd.DataFrame({"text": TEXTS, "id": range(len(TEXTS))}))
    assert list(frame.columns) == ["text", "id", "vector"]
    np.testing.assert_array_equal(np.stack(frame["vector"]), encoder.encode(TEXTS).numpy())
