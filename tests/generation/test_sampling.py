"""Noise draws from the distribution that the scores mean."""

from __future__ import annotations

import torch

from memvec.generation.sampling import RowNoise, Sampling, row_seed

ROWS = 20_000


def test_the_noise_draws_tokens_by_their_probability() -> None:
    scores = torch.tensor([[0.0, 1.0, 2.0, -torch.inf]])
    noise = RowNoise([row_seed(0, attempt=0, row=row) for row in range(ROWS)], width=0)
    drawn = noise(torch.zeros(ROWS, 3, dtype=torch.long), scores.expand(ROWS, -1)).argmax(dim=1)
    shares = torch.bincount(drawn, minlength=4) / ROWS
    torch.testing.assert_close(shares, scores.softmax(dim=1)[0], atol=0.015, rtol=0)
    assert shares[3] == 0


def test_the_noise_of_a_token_depends_on_its_row_and_place_alone() -> None:
    scores, seeds = torch.zeros(2, 50), [5, 6]

    def noise_at(place: int, width: int = 4) -> torch.Tensor:
        return RowNoise(seeds, width=width)(torch.zeros(2, width + place, dtype=torch.long), scores)

    assert torch.equal(noise_at(3), noise_at(3, width=9))
    assert not torch.equal(noise_at(3), noise_at(4))
    assert not torch.equal(noise_at(3)[0], noise_at(3)[1])


def test_every_row_and_attempt_has_a_seed_of_its_own() -> None:
    seeds = {row_seed(seed, attempt=attempt, row=row) for seed in (0, 1) for attempt in (0, 1) for row in range(100)}
    assert len(seeds) == 400


def test_without_temperature_and_penalty_scores_stay_as_they_are() -> None:
    assert len(Sampling().processors([0], width=1)) == 0
    assert len(Sampling(temperature=0.5, top_p=0.9, repetition_penalty=1.1).processors([0], width=1)) == 4
