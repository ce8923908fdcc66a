from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from corrkd.losses import DecoupledDivergence, decoupled_divergence
from tests.losses.strategies import Batch, few, responses


def by_loops(student: Tensor, teacher: Tensor, labels: list[int], nontarget: float) -> float:
    """The formula in plain Python, of (N, K) logits."""
    total = 0.0
    for own, known, y in zip(student.tolist(), teacher.tolist(), labels, strict=True):
        sides = []
        for logits in (known, own):
            top = max(logits)
            weights = [math.exp(x - top) for x in logits]
            rest = [w for k, w in enumerate(weights) if k != y]
            whole = sum(weights)
            sides.append(([weights[y] / whole, sum(rest) / whole], [w / sum(rest) for w in rest]))
        (b_t, n_t), (b_s, n_s) = sides
        total += _kl(b_t, b_s) + nontarget * _kl(n_t, n_s)
    return total / len(labels)


def _kl(of: list[float], given: list[float]) -> float:
    return sum(p * math.log(p / q) for p, q in zip(of, given, strict=True) if p > 0)


@few
@given(responses(), st.sampled_from([0.0, 1.0, 3.0]))
def test_is_the_divergence_of_both_parts(batch: Batch, nontarget: float) -> None:
    loss = decoupled_divergence(batch.student, batch.teacher, batch.labels, nontarget=nontarget)
    expected = by_loops(batch.student, batch.teacher, batch.labels.tolist(), nontarget)
    assert loss.item() == pytest.approx(expected, abs=1e-10)


@few
@given(responses(questions=True))
def test_questions_are_averaged_and_have_one_part(batch: Batch) -> None:
    loss = DecoupledDivergence(nontarget=7.0)(batch.student, batch.teacher, batch.labels)
    asked = batch.labels.shape[1]
    each = [
        by_loops(batch.student[:, q], batch.teacher[:, q], batch.labels[:, q].tolist(), 0.0)
        for q in range(asked)
    ]
    assert loss.item() == pytest.approx(sum(each) / asked, abs=1e-10)


@few
@given(responses(), st.floats(-50, 50))
def test_is_zero_only_where_both_respond_alike(batch: Batch, shift: float) -> None:
    """A shift of all logits changes no response; weighted by 1 - R^t[y], the two parts are the
    plain divergence.
    """
    assert decoupled_divergence(
        batch.teacher + shift, batch.teacher, batch.labels
    ).item() == pytest.approx(0, abs=1e-9)
    each = [batch.labels[[i]] for i in range(len(batch.labels))]
    plain = 0.0
    for i, y in enumerate(each):
        rest = 1.0 - batch.teacher[i].softmax(-1)[y].item()
        plain += decoupled_divergence(
            batch.student[[i]], batch.teacher[[i]], y, nontarget=rest
        ).item()
    known = batch.teacher.log_softmax(-1)
    expected = (known.exp() * (known - batch.student.log_softmax(-1))).sum().item()
    assert plain == pytest.approx(expected, abs=1e-9)


@few
@given(st.one_of(responses(), responses(questions=True)))
def test_gradients(batch: Batch) -> None:
    def loss(student: Tensor, teacher: Tensor) -> Tensor:
        return decoupled_divergence(student, teacher, batch.labels, nontarget=0.5)

    assert torch.autograd.gradcheck(
        loss, (batch.student.requires_grad_(), batch.teacher.requires_grad_())
    )


@pytest.mark.parametrize(
    ("student", "teacher", "labels", "line"),
    [
        (torch.ones(2, 3), torch.ones(2, 4), torch.tensor([0, 1]), "must both be"),
        (torch.ones(2, 1), torch.ones(2, 1), torch.tensor([0, 0]), "at least 2 classes"),
        (torch.ones(2, 3), torch.ones(2, 3), torch.tensor([0.0, 1.0]), "labels must be integers"),
    ],
)
def test_what_does_not_fit_is_told(
    student: Tensor, teacher: Tensor, labels: Tensor, line: str
) -> None:
    with pytest.raises(ValueError, match=line):
        decoupled_divergence(student, teacher, labels)
    with pytest.raises(ValueError, match="nontarget must not be negative"):
        DecoupledDivergence(nontarget=-1.0)
