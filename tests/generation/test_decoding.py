"""What is written to a batch is what each row alone would get, however rows come, end and leave."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerFast

from memvec.data.collator import real_tokens
from memvec.generation import decoding
from memvec.generation.cache import bytes_per_token, preallocated_cache
from memvec.generation.decoding import Prompts, RepetitionStop, turn_end_ids, write_answers
from memvec.generation.replay import StepReplay
from memvec.generation.sampling import Sampling, row_seed
from memvec.model.prefix import SharedPrefix, compute_prefix
from tests.helpers.families import FAMILIES, build_family
from tests.helpers.models import build_model

ROOM = 20
ENDS = list(range(2, 400, 9))  # so many that rows end at different times
SEEDS = [row_seed(0, attempt=0, row=row) for row in range(5)]


@pytest.fixture(params=["llama", "qwen3", "gpt2", "gemma3", "qwen3_moe"])
def model(request: pytest.FixtureRequest) -> PreTrainedModel:
    return build_model(request.param)


def prompts_of(lengths: list[int]) -> list[list[int]]:
    draw = torch.Generator().manual_seed(1)
    return [torch.randint(3, 400, (length,), generator=draw).tolist() for length in lengths]


def batch_of(prompts: list[list[int]], model: PreTrainedModel, prefix: SharedPrefix | None = None) -> Prompts:
    """Returns left-padded prompts; with a prefix, it stands before the padding and its keys and values in the cache."""
    shared = prefix.input_ids.tolist() if prefix is not None else []
    width = len(shared) + max(map(len, prompts))
    rows = [shared + [0] * (width - len(shared) - len(prompt)) + prompt for prompt in prompts]
    length = torch.tensor([len(shared) + len(prompt) for prompt in prompts])
    mask = real_tokens(length, width=width, left_behind=len(shared))
    expanded = prefix.expand(len(rows)) if prefix is not None else None
    cache = preallocated_cache(model.config, room=width + ROOM, prefix=expanded)
    return Prompts(torch.tensor(rows), mask.long(), cache)


def alone(model: PreTrainedModel, prompt: list[int], **options: Any) -> list[int]:
    """Returns what the library itself writes to one prompt, without a cache of ours, greedily."""
    config = GenerationConfig(max_new_tokens=ROOM, do_sample=False, eos_token_id=ENDS, pad_token_id=0, **options)
    return model.generate(torch.tensor([prompt]), generation_config=config)[0, len(prompt) :].tolist()


def written(answers: torch.Tensor) -> list[list[int]]:
    return [row[row >= 0].tolist() for row in answers]


@torch.inference_mode()
def write(
    model: PreTrainedModel, prompts: Prompts, seeds: list[int] = SEEDS, *, replays: bool = False, **sampling: Any
) -> list[list[int]]:
    return written(
        write_answers(
            model,
            prompts,
            sampling=Sampling(**sampling),
            seeds=seeds,
            end_token_ids=ENDS,
            max_new_tokens=ROOM,
            replay=StepReplay(model) if replays else None,
        )
    )


@pytest.mark.parametrize("replays", [False, True])
@pytest.mark.parametrize("chunk", [1, 3, 100])
def test_a_batch_gets_what_the_library_writes_to_each_alone(
    chunk: int, replays: bool, model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decoding, "TOKENS_IN_A_CHUNK", chunk)
    prompts = prompts_of([30, 5, 17, 17, 9])
    expected = [alone(model, prompt) for prompt in prompts]
    assert len({len(row) for row in expected}) > 1  # rows do leave before others
    assert write(model, batch_of(prompts, model), replays=replays) == expected


@pytest.mark.parametrize("family", ["llama", "qwen3", "gpt2", "qwen2_5_vl"])
@pytest.mark.parametrize("read_at_once", [1, 10, 2048])
def test_a_shared_prefix_before_the_padding_changes_nothing(
    read_at_once: int, family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decoding, "TOKENS_IN_A_CHUNK", 4)
    monkeypatch.setattr(decoding, "TOKENS_READ_AT_ONCE", read_at_once)
    model = build_model(family)
    head, prompts = prompts_of([12])[0], prompts_of([12, 4, 9, 3, 5])[1:]
    prefix = compute_prefix(model.get_decoder(), torch.tensor(head))
    assert isinstance(prefix, SharedPrefix)
    expected = [alone(model, head + prompt) for prompt in prompts]
    for rows in (4, 4, 3):  # the prefix itself is not written to
        for replays in (False, True):
            batch = batch_of(prompts[:rows], model, prefix)
            assert write(model, batch, replays=replays) == expected[:rows]


def test_prompts_are_read_some_rows_at_a_time_unpadded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(decoding, "TOKENS_READ_AT_ONCE", 20)
    model = build_model("llama")
    prefix = compute_prefix(model.get_decoder(), torch.tensor(prompts_of([12])[0]))
    assert isinstance(prefix, SharedPrefix)
    read: list[tuple[int, int]] = []
    model.get_decoder().register_forward_pre_hook(
        lambda module, args, kwargs: read.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    write(model, batch_of(prompts_of([16, 9, 8, 3]), model, prefix))
    assert read[:3] == [(1, 16), (2, 9), (1, 3)]
    assert {width for _, width in read[3:]} == {1}  # the other tokens are written together
    assert read[3][0] > 1


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_what_a_token_takes_is_known_of_every_family(family: str) -> None:
    model = build_family(family)
    with torch.inference_mode():
        taken = bytes_per_token(model.get_decoder())
    if family in ("llama", "mistral", "gpt2"):
        heads = model.config.num_key_value_heads if family != "gpt2" else model.config.num_attention_heads
        size = model.config.hidden_size // model.config.num_attention_heads
        assert taken == 2 * 4 * model.config.num_hidden_layers * heads * size
    assert 256 <= taken <= 32 * 1024  # of gemma4, some layers have heads of another size


# Whose numbers depend on how long a row's batch is, or on its padding; the probe finds that out.
DEPEND_ON_THE_BATCH = {"llama_dynamic_rope", "minimax", "rwkv"}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`past_key_values` is deprecated:FutureWarning")  # RWKV knows no cache
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_writes_to_a_batch_what_it_does_alone(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding, "TOKENS_IN_A_CHUNK", 3)
    model, prompts = build_family(family), prompts_of([30, 5, 17, 17, 9])
    expected = [alone(model, prompt) for prompt in prompts]
    batches = [[row] for row in range(5)] if family in DEPEND_ON_THE_BATCH else [[0, 1, 2, 3, 4], [3, 0, 1]]
    for rows in batches:
        for replays in (False, True):
            batch = batch_of([prompts[row] for row in rows], model)
            assert write(model, batch, replays=replays) == [expected[row] for row in rows]


def test_a_checkpoint_that_says_no_cache_decodes_with_one() -> None:
    model = build_model("llama")
    model.config.use_cache = model.generation_config.use_cache = False
    widths: list[int] = []
    model.get_decoder().register_forward_pre_hook(
        lambda module, args, kwargs: widths.append(kwargs["input_ids"].shape[1]), with_kwargs=True
    )
    write(model, batch_of(prompts_of([16, 9]), model))
    assert set(widths[1:]) == {1}


def test_a_recurrent_model_runs_with_the_librarys_cache() -> None:
    model = build_model("lfm2")
    prompts = batch_of(prompts_of([9, 9, 9]), model)
    assert prompts.cache is None
    assert write(model, prompts) == [alone(model, prompt) for prompt in prompts_of([9, 9, 9])]


@pytest.mark.parametrize(
    "sampling", [{"temperature": 0.8}, {"temperature": 1.5, "top_p": 0.9, "repetition_penalty": 1.3}]
)
def test_what_a_row_draws_depends_on_its_seed_alone(sampling: dict[str, float]) -> None:
    model = build_model("llama")
    prompts = prompts_of([30, 5, 17, 17, 9])
    together = write(model, batch_of(prompts, model), **sampling)
    one_by_one = [
        write(model, batch_of([p], model), [seed], **sampling)[0] for p, seed in zip(prompts, SEEDS, strict=True)
    ]
    assert together == one_by_one
    others = [row_seed(0, attempt=1, row=row) for row in range(5)]
    assert write(model, batch_of(prompts, model), others, **sampling) != together


def test_the_repetition_penalty_does_not_count_the_prompt() -> None:
    model = build_model("llama")
    prompts = prompts_of([30, 5])
    plain = write(model, batch_of(prompts, model))
    penalised = write(model, batch_of(prompts, model), repetition_penalty=5.0)
    assert [row[0] for row in penalised] == [row[0] for row in plain]  # nothing was written yet
    assert all(len(set(row)) == len(row) for row in penalised)


def test_a_row_that_repeats_itself_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding, "REPEATED_TOKENS", 4)
    stop = RepetitionStop(width=2, has_ended=torch.zeros(3, dtype=torch.bool))
    rows = torch.tensor(
        [
            [9, 9, *[5, 6] * 5],  # the last four tokens stand there three times and more
            [9, 9, 1, 2, 3, 4, 7, 1, 2, 3, 4, 8],  # twice
            [5, 6, 5, 6, 5, 6, 5, 6, 5, 6, 1, 2],  # in the prompt, for the most part
        ]
    )
    assert stop(rows, torch.empty(0)).tolist() == [True, False, False]
    assert stop.stopped_at.tolist() == [10, 0, 0]
    stop = RepetitionStop(width=2, has_ended=torch.tensor([False, False, True]))
    assert stop(rows, torch.empty(0)).tolist() == [True, False, True]


def test_an_answer_that_repeated_itself_holds_all_it_wrote(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding, "REPEATED_TOKENS", 3)
    model = build_model("nearly_free")
    prompts = batch_of(prompts_of([4, 6]), model)
    answers = write_answers(model, prompts, sampling=Sampling(), seeds=[0, 1], end_token_ids=[2], max_new_tokens=200)
    for row in written(answers):
        assert len(row) < 200
        tail = row[-3:]
        assert sum(row[at : at + 3] == tail for at in range(len(row) - 2)) == decoding.REPEATS


def test_an_answer_ends_with_each_of_the_models_end_tokens(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert turn_end_ids(tokenizer) == {end}
    other = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer.backend_tokenizer, eos_token="<|endoftext|>", chat_template=tokenizer.chat_template
    )
    assert turn_end_ids(other) == {end, other.eos_token_id}  # flagged as special in tokenizer.json, and named nowhere
    other.add_special_tokens({"additional_special_tokens": ["<|im_end|>"]})
    assert turn_end_ids(other) == {end, other.eos_token_id}


@pytest.mark.parametrize(
    ("head", "options", "is_told"),
    [
        ("{% if persona is not defined %}{{ raise_exception('which persona?') }}{% endif %}", {"persona": "x"}, True),
        ("{% if messages[-1].role != 'user' %}{{ raise_exception('no user') }}{% endif %}", {}, False),
    ],
)
def test_a_chat_template_with_demands_ends_answers_too(
    head: str, options: dict[str, str], is_told: bool, tokenizer: PreTrainedTokenizerFast
) -> None:
    demanding = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer.backend_tokenizer,
        eos_token="<|endoftext|>",
        chat_template=head + str(tokenizer.chat_template),
    )
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert turn_end_ids(demanding, options=options) == {demanding.eos_token_id, *([end] if is_told else [])}


def test_an_end_token_beyond_the_vocabulary_is_no_padding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding, "REPEATED_TOKENS", 2)
    model = build_model("llama")
    prompts = batch_of(prompts_of([30, 5, 17, 17, 9]), model)
    options: dict[str, Any] = {"sampling": Sampling(), "seeds": SEEDS, "max_new_tokens": 100}
    with torch.inference_mode():
        answers = written(write_answers(model, prompts, end_token_ids=[model.config.vocab_size + 1], **options))
    assert len({len(answer) for answer in answers}) > 1  # rows that repeat themselves end before the others
