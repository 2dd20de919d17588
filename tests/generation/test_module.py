"""Outputs of whole runs against the library's own `generate`, one prompt after the other."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import DictConfig
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoTokenizer,
    GenerationConfig,
    Phi3Config,
)

import memvec
from memvec.errors import ConfigError, ModelError
from memvec.generation import rows
from memvec.generation.generator import Generator
from memvec.generation.module import GenerationModule
from memvec.generation.transcript import Message
from memvec.model import memory
from memvec.model.parity import ExecutionMode
from tests.helpers.conversations import CHAT
from tests.helpers.families import LONG_ROPE
from tests.helpers.models import DECODER, build_tokenizer
from tests.helpers.refusals import refused, refused_as

Configure = Callable[..., DictConfig]
Write = Callable[..., Path]

TEMPLATE = "Facts of {text}:"
NEW_TOKENS = 12


def raw_lines(folder: Path | str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (Path(folder) / "raw.jsonl").read_text(encoding="utf-8").splitlines()]


def transcripts() -> list[str]:
    """Returns what the model is given of each conversation: the date, where there is one, and a line a message."""
    texts = []
    for row in CHAT:
        said = [Message(m.get("text") or m["content"], m.get("speaker") or m["role"]) for m in row["messages"]]
        head = [f"({row['date']})"] if "date" in row else []
        texts.append("\n".join([*head, *(message.render() for message in said)]))
    return texts


def prompt_of(tokenizer: Any, text: str) -> str:
    """Returns what a model is asked about a conversation."""
    chat = [{"role": "user", "content": TEMPLATE.replace("{text}", text)}]
    return str(tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True))


def answers_one_by_one(model: Path, *, image: bool = False, ends: Sequence[int] | None = None) -> list[tuple[str, int]]:
    """Returns the text and the number of tokens that the library writes about each conversation, greedily."""
    tokenizer = AutoTokenizer.from_pretrained(model)
    auto = AutoModelForImageTextToText if image else AutoModelForCausalLM
    language_model = auto.from_pretrained(model, dtype=torch.float32).eval()
    ends = [*(ends or ()), tokenizer.convert_tokens_to_ids("<|im_end|>")]
    config = GenerationConfig(max_new_tokens=NEW_TOKENS, do_sample=False, eos_token_id=ends, pad_token_id=0)
    answers = []
    for text in transcripts():
        ids = tokenizer(prompt_of(tokenizer, text), add_special_tokens=False, return_tensors="pt")
        output = language_model.generate(**ids, generation_config=config)[0, ids["input_ids"].shape[1] :]
        text = output[:-1] if int(output[-1]) in ends else output
        answers.append((tokenizer.decode(text, skip_special_tokens=True), len(output)))
    return answers


PLAIN = ("generation.attempts=1", "generation.repetition_penalty=1.0", "data.window_tokens=null")


@pytest.mark.parametrize(
    ("architecture", "path"),
    [
        ("llama", ExecutionMode.SHARED_PREFIX),
        ("gpt2", ExecutionMode.SHARED_PREFIX),
        ("mistral", ExecutionMode.BATCHED),  # sliding windows would count the padding behind a shared prefix
        ("gemma3", ExecutionMode.BATCHED),
        ("lfm2", ExecutionMode.BATCHED),  # its convolutions keep a state that is not keys and values
        ("qwen2_5_vl", ExecutionMode.SHARED_PREFIX),
    ],
)
def test_a_run_writes_what_the_library_writes_one_by_one(
    architecture: str,
    path: ExecutionMode,
    model_folders: Callable[[str], Path],
    write_conversations: Write,
    tiny_generation: Configure,
) -> None:
    model = model_folders(architecture)
    cfg = tiny_generation(write_conversations(), *PLAIN, model=model)
    summary = memvec.generate(cfg)
    found = [(line["text"], line["num_tokens"]) for line in raw_lines(cfg.output_dir)]
    assert found == answers_one_by_one(model, image=architecture == "qwen2_5_vl")
    assert summary.manifest["notes"]["path"] == path.value


@pytest.mark.slow
@pytest.mark.parametrize(
    "overrides",
    [
        ["data.batch_size=1"],
        ["model.prefix_cache=off"],
        ["model.probe=off", "data.max_tokens=300"],
        ["trainer.precision=64-true"],
    ],
    ids=str,
)
def test_how_windows_are_batched_does_not_change_what_is_written(
    overrides: list[str], write_conversations: Write, tiny_generation: Configure
) -> None:
    path, sampling = write_conversations(), ["generation.temperature=0.9", "generation.top_p=0.9"]
    sampling += ["trainer.precision=64-true"] if "trainer.precision=64-true" in overrides else []
    reference = tiny_generation(path, *PLAIN, *sampling, output="reference")
    cfg = tiny_generation(path, *PLAIN, *sampling, *overrides)
    memvec.generate(reference)
    memvec.generate(cfg)
    assert raw_lines(cfg.output_dir) == raw_lines(reference.output_dir)


@pytest.mark.slow
def with_ends(model: Path, folder: Path, ends: list[Any]) -> Path:
    """Returns a copy of a model that says which tokens end an answer."""
    shutil.copytree(model, folder)
    path = folder / "generation_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "eos_token_id": ends}))
    return folder


def test_the_end_of_an_answer_is_no_part_of_its_text(
    llama: Path, tmp_path: Path, write_conversations: Write, tiny_generation: Configure
) -> None:
    """Not every end token is flagged as special, so that decoding leaves it out."""
    ends = list(range(5, 400, 7))
    model = with_ends(llama, tmp_path / "model", [*ends, -1])  # some say -1 for none
    cfg = tiny_generation(write_conversations(), *PLAIN, model=model)
    memvec.generate(cfg)
    lines = raw_lines(cfg.output_dir)
    assert any(not line["is_cut"] for line in lines)
    assert [(line["text"], line["num_tokens"]) for line in lines] == answers_one_by_one(llama, ends=ends)


def test_no_weights_are_left_when_the_last_attempt_ends(
    write_conversations: Write, tiny_generation: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lightning copies what is left from a GPU to host memory; on a CPU another attempt may want it."""
    moved: list[bool] = []
    move = GenerationModule.cpu

    def cpu(self: GenerationModule) -> GenerationModule:
        moved.append(any(True for _ in self.parameters()))
        return move(self)

    monkeypatch.setattr(GenerationModule, "cpu", cpu)
    memvec.generate(tiny_generation(write_conversations(), *PLAIN, output="one"))
    assert moved == [False]
    two = tiny_generation(write_conversations(), *PLAIN, "generation.attempts=2", output="two")
    assert memvec.generate(two).counts.retried > 0
    assert moved == [False, True, False]


@pytest.mark.slow
@pytest.mark.parametrize("batch_size", [1, 3, 256])
def test_answers_beyond_a_rope_that_changes_are_the_librarys(
    batch_size: int, tmp_path: Path, write_conversations: Write, tiny_generation: Configure
) -> None:
    tokenizer = build_tokenizer()
    lengths = [len(tokenizer(prompt_of(tokenizer, text))["input_ids"]) for text in transcripts()]
    boundary = min(lengths) + NEW_TOKENS // 2  # the shortest comes to it while others are behind it
    assert max(lengths) > boundary
    torch.manual_seed(0)
    rope = {"rope_parameters": LONG_ROPE, "original_max_position_embeddings": boundary}
    folder = tmp_path / "model"
    AutoModelForCausalLM.from_config(Phi3Config(**{**DECODER, **rope})).eval().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    cfg = tiny_generation(write_conversations(), *PLAIN, f"data.batch_size={batch_size}", model=folder)
    memvec.generate(cfg)
    assert [(line["text"], line["num_tokens"]) for line in raw_lines(cfg.output_dir)] == answers_one_by_one(folder)


def test_another_seed_draws_another_text(write_conversations: Write, tiny_generation: Configure) -> None:
    texts = []
    for seed in (0, 1):
        cfg = tiny_generation(
            write_conversations(), *PLAIN, "generation.temperature=1.0", f"generation.seed={seed}", output=f"run-{seed}"
        )
        memvec.generate(cfg)
        texts.append([line["text"] for line in raw_lines(cfg.output_dir)])
    assert texts[0] != texts[1]


def test_in_half_precision_the_rotary_frequencies_stay_float32(
    write_conversations: Write, tiny_generation: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    dtypes: list[torch.dtype] = []
    step = GenerationModule.predict_step

    def look(self: GenerationModule, batch: Any, batch_idx: int = 0) -> torch.Tensor:
        assert self.loaded is not None
        dtypes.append(self.loaded.model.model.rotary_emb.inv_freq.dtype)
        dtypes.append(self.loaded.model.lm_head.weight.dtype)
        return step(self, batch, batch_idx)

    monkeypatch.setattr(GenerationModule, "predict_step", look)
    memvec.generate(tiny_generation(write_conversations(), *PLAIN, "trainer.precision=bf16-true", "model.tune=off"))
    assert set(dtypes[::2]) == {torch.float32}
    assert set(dtypes[1::2]) == {torch.bfloat16}


@pytest.mark.slow
def test_a_batch_that_does_not_fit_is_halved_down_to_a_window(
    write_conversations: Write, tiny_generation: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = tiny_generation(write_conversations(), *PLAIN, output="expected")
    memvec.generate(expected)
    write = Generator._write

    def limited(self: Generator, batch: Any, part: slice, **how: Any) -> torch.Tensor:
        if part.stop - part.start > 1 or 0 in batch["index"][part]:
            raise torch.OutOfMemoryError("no room")
        return write(self, batch, part, **how)

    monkeypatch.setattr(Generator, "_write", limited)
    cfg = tiny_generation(write_conversations(), *PLAIN)
    summary = memvec.generate(cfg)
    assert raw_lines(cfg.output_dir) == raw_lines(expected.output_dir)[1:]
    failed = [json.loads(line) for line in (Path(cfg.output_dir) / "failed.jsonl").read_text().splitlines()]
    of_memory = [line["id"] for line in failed if "out of memory: " in line["reason"]]
    assert of_memory == ["ann/1-0"]
    assert summary.counts.windows == 3
    assert memory.is_out_of_memory(torch.OutOfMemoryError())


@pytest.mark.parametrize(
    ("name", "value", "fields"),
    [
        ("generation.temperature", -1, {"allowed": "a number of at least 0.0"}),
        ("generation.top_p", 2, {"allowed": "a number from 0.0 to 1.0"}),
        ("generation.repetition_penalty", "high", {"allowed": "a number"}),
        ("generation.attempts", 3, {"allowed": "1, 2"}),
        ("generation.max_new_tokens", 0, {"allowed": "an integer of at least 1"}),
        ("generation.max_new_tokens", 256, {"found": "the model takes 256 tokens, the prompt included"}),
        ("data.window_tokens", 0, {"allowed": "an integer of at least 1"}),
        ("data.overlap", -1, {"allowed": "an integer of at least 0"}),
    ],
)
def test_an_option_that_makes_no_sense_says_what_is_allowed(
    name: str, value: Any, fields: dict[str, Any], write_conversations: Write, tiny_generation: Configure
) -> None:
    cfg = tiny_generation(write_conversations(), f"{name}={value}")
    with refused(ConfigError, name, value, **fields):
        memvec.generate(cfg)
    assert not Path(cfg.output_dir).exists()


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        (
            "generation.prompt.template=no field",
            ConfigError("prompt.template", "no field", allowed="{text} exactly once"),
        ),
        (
            "generation.prompt.examples=[{conversation: a}]",
            ConfigError("generation.prompt.examples", {"conversation": "a"}, allowed="a conversation and an answer"),
        ),
    ],
)
def test_a_prompt_that_makes_no_sense_says_what_is_allowed(
    override: str, expected: ConfigError, write_conversations: Write, tiny_generation: Configure
) -> None:
    cfg = tiny_generation(write_conversations(), override)
    with refused_as(expected):
        memvec.generate(cfg)
    assert not Path(cfg.output_dir).exists()


def test_a_model_without_a_chat_template_is_refused_in_one_line(
    write_conversations: Write, tiny_generation: Configure, tmp_path: Path, llama: Path
) -> None:
    folder = tmp_path / "model"
    AutoModelForCausalLM.from_pretrained(llama).save_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(llama)
    tokenizer.chat_template = None
    tokenizer.save_pretrained(folder)
    with refused(ModelError, folder, found="has no chat template"):
        memvec.generate(tiny_generation(write_conversations(), model=folder))


def test_outputs_are_read_with_the_prompt_that_they_answer(
    write_conversations: Write, tiny_generation: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[str, tuple[str, ...]]] = []
    parse = rows.parse

    def look(output: str, **options: Any) -> Any:
        seen.append((options["prompt"].transcript, options["prompt"].speakers))
        return parse(output, **options)

    monkeypatch.setattr(rows, "parse", look)
    memvec.generate(tiny_generation(write_conversations(), *PLAIN))
    assert dict(seen) == dict(zip(transcripts(), [("Ann",), ("user", "assistant"), ("小林",)], strict=True))
