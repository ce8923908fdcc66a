from __future__ import annotations

import math

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor

from corrkd.losses import (
    SampleContrastiveDistillation,
    sample_contrastive,
    sample_contrastive_distillation,
)
from corrkd.losses._shared import unit
from tests.losses.strategies import Batch, batches, few


def by_loops(student: Tensor, teacher: Tensor, boundary: float, normalize: bool) -> float:
    """Compute the formula, with "sum", in plain Python."""
    s, t = ([_unit(v) if normalize else v for v in x.tolist()] for x in (student, teacher))
    total = 0.0
    for i in range(len(s)):
        for j in range(len(s)):
            if j != i:
                total += (
                    math.dist(s[i], t[i]) ** 2 + max(0.0, boundary - math.dist(s[i], t[j])) ** 2
                )
    return total


def _unit(vector: list[float]) -> list[float]:
    return [x / math.hypot(*vector) for x in vector]


@few
@given(batches(min_size=2), st.sampled_from([0.5, 1.2, 40.0]), st.booleans())
def test_is_the_double_sum(batch: Batch, boundary: float, normalize: bool) -> None:
    expected = by_loops(batch.student, batch.teacher, boundary, normalize)
    options = {"boundary": boundary, "normalize": normalize}
    n = len(batch.student)

    total = sample_contrastive_distillation(
        batch.student, batch.teacher, **options, reduction="sum"
    )
    mean = sample_contrastive_distillation(batch.student, batch.teacher, **options)

    assert total.item() == pytest.approx(expected, rel=1e-10)
    assert mean.item() == pytest.approx(expected / (n * (n - 1)), rel=1e-10)


@few
@given(batches(min_size=2), st.booleans())
def test_order_of_the_batch_does_not_matter(batch: Batch, normalize: bool) -> None:
    order = torch.arange(len(batch.student)).roll(1)
    loss = SampleContrastiveDistillation(1.2, normalize)
    torch.testing.assert_close(
        loss(batch.student[order], batch.teacher[order]), loss(batch.student, batch.teacher)
    )


@few
@given(batches(min_size=2, min_width=2), st.booleans(), st.sampled_from(["mean", "sum"]))
def test_gradients(batch: Batch, normalize: bool, reduction: str) -> None:
    loss = SampleContrastiveDistillation(1.3, normalize, reduction)
    assert torch.autograd.gradcheck(
        loss, (batch.student.requires_grad_(), batch.teacher.requires_grad_())
    )


def test_batch_of_one_has_no_push_term() -> None:
    student = torch.tensor([[3.0, 4.0]], requires_grad=True)
    teacher = torch.tensor([[0.0, 2.0]])
    mean = sample_contrastive_distillation(student, teacher, boundary=9.0)
    assert mean.item() == pytest.approx(0.6**2 + 0.2**2)
    total = sample_contrastive_distillation(student, teacher, boundary=9.0, reduction="sum")
    total.backward()
    assert total.item() == 0.0
    assert student.grad is not None
    assert not student.grad.any()


def test_coinciding_samples_have_a_finite_gradient() -> None:
    student = torch.ones(4, 3, requires_grad=True)
    loss = sample_contrastive_distillation(student, torch.ones(4, 3), boundary=1.2)
    loss.backward()
    assert loss.item() == pytest.approx(1.2**2)
    assert student.grad is not None
    assert student.grad.isfinite().all()


def test_no_push_beyond_the_boundary() -> None:
    eye = torch.eye(4)
    assert sample_contrastive_distillation(eye, eye, boundary=1.4).item() == 0.0
    assert sample_contrastive_distillation(eye, eye, boundary=1.5).item() == pytest.approx(
        (1.5 - math.sqrt(2)) ** 2, rel=1e-5
    )


def test_short_distances_are_exact_in_float32() -> None:
    teacher = torch.full((2, 120), 100.0)
    student = teacher.clone()
    student[0, 0] += 0.125
    # Positives: 1/8 and 0; both mismatched distances: 1/8 and 0 too.
    loss = sample_contrastive_distillation(
        student, teacher, boundary=1.0, normalize=False, reduction="sum"
    )
    assert loss.item() == pytest.approx(0.125**2 + 0.875**2 + 1.0, rel=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"teacher": torch.ones(3, 4)}, r"\(2, 4\) and \(3, 4\)"),
        ({"teacher": torch.ones(2, 4, dtype=torch.int64)}, "floating point"),
        ({"student": torch.ones(0, 4), "teacher": torch.ones(0, 4)}, "N >= 1"),
        ({"boundary": 0.0}, "boundary must be greater than 0"),
        ({"boundary": math.nan}, "boundary must be greater than 0"),
        ({"reduction": "none"}, "mean, sum"),
    ],
)
def test_bad_inputs_are_refused(change: dict[str, object], message: str) -> None:
    arguments = {
        "student": torch.ones(2, 4),
        "teacher": torch.ones(2, 4),
        "boundary": 1.2,
        **change,
    }
    with pytest.raises(ValueError, match=message):
        sample_contrastive_distillation(**arguments)  # type: ignore[arg-type]


def test_module_refuses_what_the_function_refuses() -> None:
    with pytest.raises(ValueError, match="boundary"):
        SampleContrastiveDistillation(-1.0)
    with pytest.raises(ValueError, match="reduction"):
        SampleContrastiveDistillation(reduction="none")


@few
@given(batches(min_size=2, min_width=2), st.booleans())
def test_second_derivatives(batch: Batch, normalize: bool) -> None:
    loss = SampleContrastiveDistillation(1.3, normalize)
    student, teacher = ((unit(x) if normalize else x) for x in (batch.student, batch.teacher))
    assume(
        ((torch.cdist(student, teacher) - 1.3).abs() > 1e-4).all()
    )  # the hinge has none at the boundary
    assert torch.autograd.gradgradcheck(
        loss, (batch.student.requires_grad_(), batch.teacher.requires_grad_())
    )


def test_second_derivatives_are_finite_where_points_coincide() -> None:
    student = torch.zeros(3, 4, requires_grad=True)
    for normalize in (True, False):
        loss = sample_contrastive_distillation(
            student, torch.zeros(3, 4), boundary=1.2, normalize=normalize
        )
        (first,) = torch.autograd.grad(loss, student, create_graph=True)
        (second,) = torch.autograd.grad(first.sum(), student)
        assert first.isfinite().all()
        assert second.isfinite().all()


@pytest.mark.parametrize("block", [1, 7 * 5, 2 * 7 * 5, 3 * 7 * 5])
def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    """Blocks of one row or of several, the last one smaller: the same loss and derivatives."""
    torch.manual_seed(0)
    student = torch.randn(7, 5, dtype=torch.float64, requires_grad=True)
    teacher = torch.randn(7, 5, dtype=torch.float64, requires_grad=True)

    def derivatives() -> list[Tensor]:
        loss = sample_contrastive_distillation(student, teacher, boundary=4.0, normalize=False)
        first = torch.autograd.grad(loss, (student, teacher), create_graph=True)
        return [
            loss,
            *first,
            *torch.autograd.grad(sum(x.square().sum() for x in first), (student, teacher)),
        ]

    expected = derivatives()
    monkeypatch.setattr(sample_contrastive, "BLOCK", block)
    for actual, value in zip(derivatives(), expected, strict=True):
        torch.testing.assert_close(actual, value)


def test_no_more_than_a_block_is_saved_for_the_backward_pass(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sample_contrastive, "BLOCK", 4 * 64 * 8)
    student, teacher = torch.randn(64, 8, requires_grad=True), torch.randn(64, 8)
    saved_sizes: list[int] = []

    def record(x: Tensor) -> Tensor:
        saved_sizes.append(x.numel())
        return x

    with torch.autograd.graph.saved_tensors_hooks(record, lambda x: x):
        sample_contrastive_distillation(student, teacher, boundary=1.2)
    assert max(saved_sizes) <= 64 * 8  # all N x N x D differences would be 64 times that
