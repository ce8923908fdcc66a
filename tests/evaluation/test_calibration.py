from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import cross_entropy

from corrkd.evaluation.calibration import fit_temperature


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10**6), st.floats(0.2, 8.0))
def test_finds_how_much_too_sure_the_logits_are(seed: int, scale: float) -> None:
    """Labels drawn from softmax(x): logits scale * x need the temperature scale."""
    random = torch.Generator().manual_seed(seed)
    true = 2 * torch.randn(4000, 3, generator=random, dtype=torch.float64)
    labels = torch.multinomial(true.softmax(-1), 1, generator=random)[:, 0]
    found = fit_temperature(scale * true, labels)
    assert found == pytest.approx(scale, rel=0.15)
    best = cross_entropy(scale * true / found, labels)
    for other in (0.9 * found, 1.1 * found):
        assert cross_entropy(scale * true / other, labels) > best


def test_questions_share_one_and_the_ends_are_bounds() -> None:
    logits = torch.tensor([[[5.0, 0.0], [0.0, 5.0]], [[0.0, 5.0], [5.0, 0.0]]])
    right = torch.tensor([[0, 1], [1, 0]])
    assert 0.05 <= fit_temperature(logits, right) < 0.5
    assert fit_temperature(logits, 1 - right) == pytest.approx(20.0, rel=0.1)
    flat = fit_temperature(logits.flatten(0, 1), torch.tensor([0, 1, 0, 0]))
    assert fit_temperature(logits, torch.tensor([[0, 1], [0, 0]])) == pytest.approx(flat)
