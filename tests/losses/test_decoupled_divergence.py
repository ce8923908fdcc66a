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
    """Compute the formula of (N, K) logits in plain Python."""
    total = 0.0
    for s, t, y in zip(student.tolist(), teacher.tolist(), labels, strict=True):
        sides = []
        for logits in (t, s):
            top = max(logits)
            exps = [math.exp(x - top) for x in logits]
            others = [w for k, w in enumerate(exps) if k != y]
            norm = sum(exps)
            sides.append(([exps[y] / norm, sum(others) / norm], [w / sum(others) for w in others]))
        (b_t, n_t), (b_s, n_s) = sides
        total += _kl(b_t, b_s) + nontarget * _kl(n_t, n_s)
    return total / len(labels)


def _kl(p: list[float], q: list[float]) -> float:
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True) if a > 0)


@few
@given(responses(), st.sampled_from([0.0, 1.0, 3.0]))
def test_is_the_sum_of_both_divergences(batch: Batch, nontarget: float) -> None:
    loss = decoupled_divergence(batch.student, batch.teacher, batch.labels, nontarget=nontarget)
    expected = by_loops(batch.student, batch.teacher, batch.labels.tolist(), nontarget)
    assert loss.item() == pytest.approx(expected, abs=1e-10)


@few
@given(responses(questions=True))
def test_questions_are_averaged_and_have_no_nontarget_term(batch: Batch) -> None:
    loss = DecoupledDivergence(nontarget=7.0)(batch.student, batch.teacher, batch.labels)
    num_questions = batch.labels.shape[1]
    each = [
        by_loops(batch.student[:, q], batch.teacher[:, q], batch.labels[:, q].tolist(), 0.0)
        for q in range(num_questions)
    ]
    assert loss.item() == pytest.approx(sum(each) / num_questions, abs=1e-10)


@few
@given(responses(), st.floats(-50, 50))
def test_terms_add_up_to_the_plain_divergence(batch: Batch, shift: float) -> None:
    """Weight the nontarget term by 1 - R^t[y]; a shift of all logits changes no response."""
    assert decoupled_divergence(
        batch.teacher + shift, batch.teacher, batch.labels
    ).item() == pytest.approx(0, abs=1e-9)
    each = [batch.labels[[i]] for i in range(len(batch.labels))]
    plain = 0.0
    for i, y in enumerate(each):
        nontarget_share = 1.0 - batch.teacher[i].softmax(-1)[y].item()
        plain += decoupled_divergence(
            batch.student[[i]], batch.teacher[[i]], y, nontarget=nontarget_share
        ).item()
    log_teacher = batch.teacher.log_softmax(-1)
    expected = (log_teacher.exp() * (log_teacher - batch.student.log_softmax(-1))).sum().item()
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
    ("student", "teacher", "labels", "message"),
    [
        (torch.ones(2, 3), torch.ones(2, 4), torch.tensor([0, 1]), "must both be"),
        (torch.ones(2, 1), torch.ones(2, 1), torch.tensor([0, 0]), "at least 2 classes"),
        (torch.ones(2, 3), torch.ones(2, 3), torch.tensor([0.0, 1.0]), "labels must be integers"),
    ],
)
def test_bad_inputs_are_refused(
    student: Tensor, teacher: Tensor, labels: Tensor, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        decoupled_divergence(student, teacher, labels)
    with pytest.raises(ValueError, match="nontarget must not be negative"):
        DecoupledDivergence(nontarget=-1.0)
