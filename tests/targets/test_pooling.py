"""Weights of several networks in one response, fitted to labels."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from corrkd.targets.calibration import fit_temperature
from corrkd.targets.pooling import HIGHEST, fit_log_pool, fit_weighted_mean, log_pool


def cross_entropy(logits: Tensor, labels: Tensor) -> float:
    """Compute the cross-entropy by plain loops."""
    total = 0.0
    for row, label in zip(logits.double().tolist(), labels.tolist(), strict=True):
        top = max(row)
        total += np.log(sum(np.exp(x - top) for x in row)) + top - row[label]
    return total / len(labels)


def draw(seed: int, n: int = 400) -> tuple[Tensor, Tensor]:
    """Draw logits (3, n, 3) of two informative networks and one of noise, and labels."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(3, (n,), generator=generator)
    truth = torch.nn.functional.one_hot(labels, 3).float()
    noise = torch.randn(3, n, 3, generator=generator)
    signal = torch.tensor([1.5, 1.0, 0.0])[:, None, None] * truth
    return (signal + noise) * torch.tensor([4.0, 1.0, 1.0])[:, None, None], labels


def test_fitted_weights_are_a_local_optimum() -> None:
    logits, labels = draw(0)
    weights = fit_log_pool(logits, labels)
    best = cross_entropy(log_pool(logits, weights), labels)
    for step in itertools.product((-0.02, 0.0, 0.02), repeat=3):
        nearby = (weights + torch.tensor(step)).clamp(0.0, HIGHEST)
        assert cross_entropy(log_pool(logits, nearby), labels) >= best - 1e-6


def test_fitted_weights_match_bayes() -> None:
    logits, labels = draw(1, n=20_000)
    weights = fit_log_pool(logits, labels)
    # Bayes for unit noise: the signals, 1.5 / 4 and 1.
    torch.testing.assert_close(
        weights, torch.tensor([1.5 / 4, 1.0, 0.0]).double(), atol=0.06, rtol=0
    )


def test_the_weight_of_a_single_network_is_the_reciprocal_temperature() -> None:
    logits, labels = draw(2)
    weight = fit_log_pool(logits[:1], labels).item()
    assert weight == pytest.approx(1 / fit_temperature(logits[0], labels), rel=1e-3)


def test_questions_share_their_weights() -> None:
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(2, 50, 4, 2, generator=generator)
    labels = torch.randint(2, (50, 4), generator=generator)
    flat = fit_log_pool(logits.flatten(1, 2), labels.flatten())
    torch.testing.assert_close(fit_log_pool(logits, labels), flat)
    assert log_pool(logits, flat).shape == (50, 4, 2)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000), st.floats(-4, 4))
def test_constants_do_not_matter_and_huge_logits_stay_finite(seed: int, exponent: float) -> None:
    logits, labels = draw(seed, n=60)
    scaled = logits * 10.0**exponent
    weights = fit_log_pool(scaled, labels)
    assert torch.isfinite(weights).all()
    assert ((weights >= 0) & (weights <= HIGHEST)).all()
    shift = torch.arange(3.0)[:, None, None]
    torch.testing.assert_close(
        log_pool(scaled + shift, weights), log_pool(scaled, weights), atol=1e-2, rtol=1e-3
    )


def test_the_weighted_mean_of_scores_minimises_the_error() -> None:
    rng = np.random.default_rng(0)
    truth = rng.normal(size=500)
    scores = np.stack([truth + rng.normal(size=500), truth + 2 * rng.normal(size=500), 0 * truth])
    weights = fit_weighted_mean(torch.tensor(scores)[..., None], torch.tensor(truth))
    assert weights.sum().item() == pytest.approx(1.0)
    errors = [
        (np.mean((np.array([a, b, 1 - a - b]) @ scores - truth) ** 2), (a, b))
        for a in np.linspace(0, 1, 101)
        for b in np.linspace(0, 1 - a, 101)
    ]
    assert weights[:2].tolist() == pytest.approx(min(errors)[1], abs=0.02)


@pytest.mark.parametrize("scale", [1e-4, 1e4])
def test_weights_of_scores_do_not_depend_on_their_unit(scale: float) -> None:
    generator = torch.Generator().manual_seed(0)
    truth = torch.randn(200, generator=generator)
    scores = truth[None, :, None] + torch.randn(2, 200, 1, generator=generator)
    torch.testing.assert_close(
        fit_weighted_mean(scores * scale, truth * scale),
        fit_weighted_mean(scores, truth),
        atol=1e-4,
        rtol=1e-3,
    )
