from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from corrkd.losses import SampleRelationDistillation, sample_relation_distillation
from tests.losses.strategies import Batch, batches, few


def by_loops(student: Tensor, teacher: Tensor, groups: list[int], center: bool) -> float:
    """Compute the formula in plain Python."""
    s, t, n = student.tolist(), teacher.tolist(), len(groups)
    if center:
        mean = [sum(column) / n for column in zip(*s, strict=True)]
        s = [[x - m for x, m in zip(row, mean, strict=True)] for row in s]
    pairs = [(i, j) for i in range(n) for j in range(n) if i != j and groups[i] == groups[j]]
    total = sum((_cosine(s[i], s[j]) - _cosine(t[i], t[j])) ** 2 for i, j in pairs)
    return total / len(pairs) if pairs else 0.0


def _cosine(a: list[float], b: list[float]) -> float:
    lengths = math.hypot(*a) * math.hypot(*b)
    return sum(x * y for x, y in zip(a, b, strict=True)) / lengths if lengths else 0.0


@few
@given(batches(), st.booleans(), st.booleans())
def test_is_the_mean_over_pairs_with_the_same_teacher(
    batch: Batch, center: bool, several: bool
) -> None:
    groups = batch.labels if several else None
    loss = SampleRelationDistillation(center=center)(batch.student, batch.teacher, groups)
    group_list = batch.labels.tolist() if several else [0] * len(batch.labels)
    assert loss.item() == pytest.approx(
        by_loops(batch.student, batch.teacher, group_list, center), abs=1e-10
    )


@few
@given(batches(min_size=2, min_width=2), st.integers(0, 1000), st.floats(0.1, 10.0))
def test_rotation_and_scale_of_each_teacher_change_nothing(
    batch: Batch, seed: int, scale: float
) -> None:
    """The student's representations may also be rotated, scaled and shifted."""
    width = batch.teacher.shape[1]
    generator = torch.Generator().manual_seed(seed)
    rotation, _ = torch.linalg.qr(
        torch.randn(width, width, generator=generator, dtype=torch.float64)
    )
    shift = torch.randn(width, generator=generator, dtype=torch.float64)
    rotated = torch.where(
        (batch.labels == 0)[:, None], scale * batch.teacher @ rotation, batch.teacher
    )
    expected = sample_relation_distillation(batch.student, batch.teacher, batch.labels)
    moved = scale * batch.student @ rotation + shift
    torch.testing.assert_close(
        sample_relation_distillation(moved, rotated, batch.labels), expected, atol=1e-9, rtol=0
    )


def test_a_teacher_may_be_wider_and_equal_relations_give_zero() -> None:
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
    ("student", "teacher", "groups", "message"),
    [
        (torch.ones(2, 3), torch.ones(3, 3), None, r"\(N, D\) and \(N, E\)"),
        (torch.ones(0, 3), torch.ones(0, 3), None, r"N >= 1"),
        (torch.ones(2, 3), torch.ones(2, 3), torch.zeros(2), "labels must be integers"),
        (torch.ones(2, 3).long(), torch.ones(2, 3), None, "floating"),
    ],
)
def test_bad_inputs_are_refused(
    student: Tensor, teacher: Tensor, groups: Tensor | None, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        sample_relation_distillation(student, teacher, groups)
