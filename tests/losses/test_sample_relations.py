from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from corrkd.losses import SampleRelationDistillation, sample_relation_distillation
from tests.losses.strategies import Batch, batches, few


def by_loops(student: Tensor, teacher: Tensor, by: list[int], center: bool) -> float:
    """The formula in plain Python."""
    own, known, n = student.tolist(), teacher.tolist(), len(by)
    if center:
        mean = [sum(column) / n for column in zip(*own, strict=True)]
        own = [[x - m for x, m in zip(row, mean, strict=True)] for row in own]
    pairs = [(i, j) for i in range(n) for j in range(n) if i != j and by[i] == by[j]]
    total = sum((_cosine(own[i], own[j]) - _cosine(known[i], known[j])) ** 2 for i, j in pairs)
    return total / len(pairs) if pairs else 0.0


def _cosine(a: list[float], b: list[float]) -> float:
    lengths = math.hypot(*a) * math.hypot(*b)
    return sum(x * y for x, y in zip(a, b, strict=True)) / lengths if lengths else 0.0


@few
@given(batches(), st.booleans(), st.booleans())
def test_is_the_mean_over_pairs_of_one_teacher(batch: Batch, center: bool, several: bool) -> None:
    by = batch.labels if several else None
    loss = SampleRelationDistillation(center=center)(batch.student, batch.teacher, by)
    whose = batch.labels.tolist() if several else [0] * len(batch.labels)
    assert loss.item() == pytest.approx(
        by_loops(batch.student, batch.teacher, whose, center), abs=1e-10
    )


@few
@given(batches(min_size=2, min_width=2), st.integers(0, 1000), st.floats(0.1, 10.0))
def test_each_teacher_has_axes_of_its_own(batch: Batch, seed: int, scale: float) -> None:
    """Turning and stretching what one of the teachers made, or the student's, or adding to all of
    the student's: nothing changes.
    """
    width = batch.teacher.shape[1]
    generator = torch.Generator().manual_seed(seed)
    rotation, _ = torch.linalg.qr(
        torch.randn(width, width, generator=generator, dtype=torch.float64)
    )
    shift = torch.randn(width, generator=generator, dtype=torch.float64)
    turned = torch.where(
        (batch.labels == 0)[:, None], scale * batch.teacher @ rotation, batch.teacher
    )
    expected = sample_relation_distillation(batch.student, batch.teacher, batch.labels)
    moved = scale * batch.student @ rotation + shift
    torch.testing.assert_close(
        sample_relation_distillation(moved, turned, batch.labels), expected, atol=1e-9, rtol=0
    )


def test_a_wider_teacher_is_fine_and_alike_is_zero() -> None:
    student = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    wide = torch.cat([student - student.mean(0), torch.zeros(5, 4)], 1)
    assert sample_relation_distillation(student, wide).item() == pytest.approx(0.0, abs=1e-10)


@few
@given(batches(min_size=2, min_width=2))
def test_gradients(batch: Batch) -> None:
    def loss(student: Tensor, teacher: Tensor) -> Tensor:
        return sample_relation_distillation(student, teacher, batch.labels, center=False)

    assert torch.autograd.gradcheck(
        loss, (batch.student.requires_grad_(), batch.teacher.requires_grad_())
    )


@pytest.mark.parametrize(
    ("student", "teacher", "by", "line"),
    [
        (torch.ones(2, 3), torch.ones(3, 3), None, r"\(N, D\) and \(N, E\)"),
        (torch.ones(0, 3), torch.ones(0, 3), None, r"N >= 1"),
        (torch.ones(2, 3), torch.ones(2, 3), torch.zeros(2), "labels must be integers"),
        (torch.ones(2, 3).long(), torch.ones(2, 3), None, "floating"),
    ],
)
def test_what_does_not_fit_is_told(
    student: Tensor, teacher: Tensor, by: Tensor | None, line: str
) -> None:
    with pytest.raises(ValueError, match=line):
        sample_relation_distillation(student, teacher, by)
