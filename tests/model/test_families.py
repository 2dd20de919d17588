"""A quick screen over many families: what memvec computes against the loop that it replaces, without a Trainer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from transformers import PreTrainedModel

from memvec.data.trie import build_trie
from memvec.model.backbone import Backbone
from memvec.model.copies import move_trie
from memvec.model.limits import length_boundaries
from memvec.model.pooling import last_token
from memvec.model.prefix import SharedPrefix, compute_prefix
from memvec.model.unpadded import can_leave_padding_out, last_states
from tests.helpers.families import FAMILIES, ORIGINAL_LENGTH, build_family

CPU = torch.device("cpu")
LENGTHS = [23, 14, 9, 5]
PREFIX = 4
LAYERS = (-1, 2)
# Their `hidden_states` are several streams; only `last_hidden_state` is one vector for each token.
STREAMS = {"gemma3n_text"}
NO_PREFIX = {
    "bamba", "falcon_h1", "falcon_mamba", "gemma3n_text", "jamba", "lfm2", "llama4_text", "mamba", "mamba2", "minimax",
    "nemotron_h", "olmo_hybrid", "qwen3_next", "recurrent_gemma", "rwkv", "zamba2",
}  # fmt: skip


def prompts(device: torch.device = CPU) -> list[torch.Tensor]:
    """Returns prompts, each `[1, T]`, that begin with the same tokens, longest first."""
    generator = torch.Generator().manual_seed(0)
    rows = [torch.randint(3, 400, (1, length), generator=generator).to(device) for length in LENGTHS]
    for row in rows:
        row[:, :PREFIX] = rows[0][:, :PREFIX]
    return rows


def reference(model: PreTrainedModel, layers: Sequence[int], *, streams: bool) -> list[torch.Tensor]:
    """Returns `[N, D]` of each layer, one prompt at a time through the full model with all of its hidden states."""
    rows = prompts(model.device)
    if streams:
        decoder = model.get_decoder()
        return [torch.stack([decoder(input_ids=row).last_hidden_state[0, -1] for row in rows])]
    states = [model(input_ids=row, output_hidden_states=True).hidden_states for row in rows]
    return [torch.stack([state[layer][0, -1] for state in states]) for layer in layers]


# Their attention has become one of transformers' own since 5.17.
OF_LATE = {"gptj", "codegen", "gpt_bigcode"}
# They pass on no arguments that transformers does not know, or compute attention in a way of their own.
PADDED = {
    "nemotron", "stablelm", "gemma2", "gpt_neo", "bloom", "falcon", "falcon_rotary", "mpt", "xglm", "biogpt", "gpt_oss",
    *(NO_PREFIX - {"gemma3n_text"}),
}  # fmt: skip


def pad(rows: list[torch.Tensor]) -> torch.Tensor:
    width = max(row.shape[1] for row in rows)
    return torch.cat([nn.functional.pad(row, (0, width - row.shape[1])) for row in rows])


def batches(boundaries: tuple[int, ...]) -> list[list[int]]:
    """Returns which prompts share a batch."""
    sides = [sum(length > boundary for boundary in boundaries) for length in LENGTHS]
    return [[row for row, side in enumerate(sides) if side == group] for group in sorted(set(sides), reverse=True)]


def without_padding(backbone: Backbone, rows: list[torch.Tensor]) -> list[torch.Tensor]:
    """Returns `[B, D]` of each layer, of prompts whose tokens are computed as one sequence, each once."""
    tokens = torch.cat(rows, dim=1)[0].cpu().numpy()
    trie = build_trie(tokens, np.asarray([row.shape[1] for row in rows]))
    assert len(trie.input_ids) <= len(tokens) - PREFIX * (len(rows) - 1)
    return last_states(backbone, move_trie(trie, lambda part: part.to(rows[0].device)))


def state_of(model: nn.Module) -> list[Any]:
    """Returns what a program that lends its model would miss: modules, hooks, modes, and the configuration."""
    config = model.config.to_dict()  # type: ignore[operator, union-attr]
    hooks = [(len(m._forward_hooks), len(m._forward_pre_hooks), len(m._backward_hooks)) for m in model.modules()]
    # A rope that changes with length keeps its second set of frequencies.
    names = [sorted(name for name in vars(m) if "inv_freq" not in name) for m in model.modules()]
    return [config, hooks, names, [(id(m), m.training) for m in model.modules()]]


@pytest.mark.parametrize("family", FAMILIES)
def test_batches_give_the_states_of_the_full_model(family: str) -> None:
    assert_batches_give_the_states_of_the_full_model(family)


@torch.no_grad()
def assert_batches_give_the_states_of_the_full_model(
    family: str, *, device: torch.device = CPU, rounding: float = 2e-5
) -> None:
    model = build_family(family).to(device)  # type: ignore[arg-type]
    before = state_of(model)
    layers = LAYERS[:1] if family in STREAMS else LAYERS
    backbone = Backbone(model.get_decoder(), layers=layers)  # type: ignore[arg-type]
    rows, length = prompts(device), torch.tensor(LENGTHS, device=device)
    boundaries = length_boundaries(model.config)
    assert boundaries == ((ORIGINAL_LENGTH,) if family == "phi3_long_rope" else ())
    groups = batches(boundaries)

    prefix = compute_prefix(backbone.decoder, rows[0][0, :PREFIX])
    # gemma3n's cache has grown a kind of layer of its own since transformers 5.17.
    assert family == "gemma3n_text" or isinstance(prefix, SharedPrefix) == (family not in NO_PREFIX), prefix
    padded = [backbone(pad([rows[row] for row in group])) for group in groups]
    found = {
        "padded": [
            torch.cat([last_token(s[n], length[g]) for s, g in zip(padded, groups, strict=True)])
            for n in range(len(layers))
        ]
    }
    if isinstance(prefix, SharedPrefix):
        rest = [row[:, PREFIX:] for row in rows]
        group = groups[-1]  # the shorter prompts, on the prefix's side of every boundary
        states = backbone(pad([rest[row] for row in group]), cache=prefix.expand(len(group)))
        found["prefix"] = [last_token(state, length[group] - PREFIX) for state in states]

    if can_leave_padding_out(backbone.decoder, computed_in=torch.float32, device=device) and family != "nemotron":
        parts = [without_padding(backbone, [rows[row] for row in group]) for group in groups]
        found["without padding"] = [torch.cat(states) for states in zip(*parts, strict=True)]

    if device.type == "cpu" and family not in OF_LATE:
        assert ("without padding" in found) == (family not in PADDED)
    assert state_of(model) == before
    for at, expected in enumerate(reference(model, layers, streams=family in STREAMS)):
        for way, vectors in found.items():
            wanted = expected[-len(vectors[at]) :]
            error = (vectors[at] - wanted).norm(dim=1) / wanted.norm(dim=1)
            assert error.max() < rounding, f"{way}, layer {layers[at]}: {error.tolist()}"


@torch.no_grad()
def test_a_rope_that_changes_with_length_is_why_rows_are_grouped() -> None:
    """Else the test above would not notice that they are not."""
    model = build_family("phi3_long_rope")
    (states,) = Backbone(model.get_decoder())(pad(prompts()))
    vectors, (expected,) = last_token(states, torch.tensor(LENGTHS)), reference(model, (-1,), streams=False)
    error = (vectors - expected).norm(dim=1) / expected.norm(dim=1)
    assert [bool(one > 0.1) for one in error] == [length <= ORIGINAL_LENGTH for length in LENGTHS]
