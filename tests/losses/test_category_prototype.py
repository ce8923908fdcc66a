from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from corrkd.losses import CategoryPrototypeDistillation, category_prototype_distillation
from tests.losses.strategies import Batch, batches, few


def by_loops(student: Tensor, teacher: Tensor, labels: list[int]) -> float:
    """Compute the formula in plain Python."""
    n, present = len(labels), sorted(set(labels))
    total = 0.0
    for k in present:
        rows = [i for i in range(n) if labels[i] == k]
        similarities = []
        for h in (student.tolist(), teacher.tolist()):
            prototype = [sum(h[i][d] for i in rows) / len(rows) for d in range(len(h[0]))]
            similarities.append([_cosine(h[i], prototype) for i in range(n)])
        total += sum((a - b) ** 2 for a, b in zip(*similarities, strict=True))
    return total / (n * len(present))


def _cosine(a: list[float], b: list[float]) -> float:
    lengths = math.hypot(*a) * math.hypot(*b)
    return sum(x * y for x, y in zip(a, b, strict=True)) / lengths if lengths else 0.0


@few
@given(batches())
def test_is_the_mean_over_samples_and_present_classes(batch: Batch) -> None:
    loss = category_prototype_distillation(
        batch.student, batch.teacher, batch.labels, batch.num_classes
    )
    assert loss.item() == pytest.approx(
        by_loops(batch.student, batch.teacher, batch.labels.tolist()), abs=1e-12
    )


@few
@given(batches(min_size=2))
def test_centring_subtracts_the_mean_representation(batch: Batch) -> None:
    loss = CategoryPrototypeDistillation(batch.num_classes, center=True)(
        batch.student, batch.teacher, batch.labels
    )
    if len(batch.labels.unique()) == 1:  # the mean of all, less the mean: no direction
        assert loss.item() == 0.0
        return
    centred = [side - side.mean(0) for side in (batch.student, batch.teacher)]
    assert loss.item() == pytest.approx(by_loops(*centred, batch.labels.tolist()), abs=1e-9)


@few
@given(st.one_of(batches(), batches(questions=True)), st.booleans())
def test_the_teachers_prototypes_may_be_passed_in(batch: Batch, center: bool) -> None:
    n, width = batch.teacher.shape
    labels = batch.labels.reshape(n, -1)
    random = torch.Generator().manual_seed(3)
    prototypes = torch.randn(
        n, labels.shape[1], batch.num_classes, width, generator=random, dtype=torch.float64
    )
    student = batch.student - batch.student.mean(0) if center else batch.student
    expected = []
    for q, answers in enumerate(labels.T.tolist()):
        total, present = 0.0, sorted(set(answers))
        for k in present:
            rows = [i for i in range(n) if answers[i] == k]
            prototype = (student[rows].mean(0) * (not center or len(rows) < n)).tolist()
            for i in range(n):
                teacher_cosine = _cosine(batch.teacher[i].tolist(), prototypes[i, q, k].tolist())
                total += (_cosine(student[i].tolist(), prototype) - teacher_cosine) ** 2
        expected.append(total / (n * len(present)))
    loss = CategoryPrototypeDistillation(batch.num_classes, center=center)(
        batch.student, batch.teacher, batch.labels, prototypes
    )
    assert loss.item() == pytest.approx(sum(expected) / len(expected), abs=1e-9)
    with pytest.raises(ValueError, match="teacher_prototypes must be"):
        category_prototype_distillation(
            batch.student,
            batch.teacher,
            batch.labels,
            batch.num_classes,
            teacher_prototypes=prototypes[:, :, :, :0],
        )


@few
@given(
    st.one_of(batches(), batches(questions=True)), st.booleans(), st.booleans(), st.integers(0, 99)
)
def test_uncounted_samples_change_nothing(
    batch: Batch, center: bool, passed: bool, seed: int
) -> None:
    n, random = len(batch.student), torch.Generator().manual_seed(seed)
    counted = torch.rand(n, generator=random) < 0.6
    q = batch.labels[0].numel()
    prototypes = torch.randn(
        n, q, batch.num_classes, batch.teacher.shape[1], generator=random, dtype=torch.float64
    )
    loss = CategoryPrototypeDistillation(batch.num_classes, center=center)
    arguments = (batch.student, batch.teacher, batch.labels, prototypes if passed else None)
    masked = loss(*arguments, counted)
    if not counted.any():
        assert masked.item() == 0.0
        return
    counted_only = [x if x is None else x[counted] for x in arguments]
    torch.testing.assert_close(masked, loss(*counted_only), atol=1e-10, rtol=1e-9)
    with pytest.raises(ValueError, match="counted must be"):
        loss(*arguments, counted.long())


@few
@given(batches(questions=True))
def test_questions_are_averaged(batch: Batch) -> None:
    loss = category_prototype_distillation(batch.student, batch.teacher, batch.labels, 2)
    each = [by_loops(batch.student, batch.teacher, answers) for answers in batch.labels.T.tolist()]
    assert loss.item() == pytest.approx(sum(each) / len(each), abs=1e-12)


@few
@given(st.one_of(batches(), batches(questions=True)))
def test_order_of_the_batch_does_not_matter(batch: Batch) -> None:
    order = torch.arange(len(batch.student)).roll(1)
    loss = CategoryPrototypeDistillation(batch.num_classes)
    torch.testing.assert_close(
        loss(batch.student[order], batch.teacher[order], batch.labels[order]),
        loss(batch.student, batch.teacher, batch.labels),
    )


@few
@given(batches(min_width=2), st.integers(0, 1000), st.floats(0.01, 100.0))
def test_only_angles_count(batch: Batch, seed: int, scale: float) -> None:
    width = batch.student.shape[1]
    random = torch.randn(
        width, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )
    rotation, _ = torch.linalg.qr(random)
    loss = CategoryPrototypeDistillation(batch.num_classes)
    expected = loss(batch.student, batch.teacher, batch.labels)
    torch.testing.assert_close(
        loss(scale * batch.student @ rotation, batch.teacher, batch.labels), expected
    )
    # A teacher that is the student rotated and scaled gives zero.
    same = loss(batch.student, scale * batch.student @ rotation, batch.labels)
    assert same.item() == pytest.approx(0.0, abs=1e-20)


@few
@given(st.one_of(batches(min_width=2), batches(min_width=2, questions=True)))
def test_gradients(batch: Batch) -> None:
    def loss(student: Tensor, teacher: Tensor) -> Tensor:
        return category_prototype_distillation(student, teacher, batch.labels, batch.num_classes)

    assert torch.autograd.gradcheck(
        loss, (batch.student.requires_grad_(), batch.teacher.requires_grad_())
    )


def test_absent_classes_change_nothing() -> None:
    random = torch.Generator().manual_seed(1)
    student, teacher = torch.randn(6, 4, generator=random), torch.randn(6, 4, generator=random)
    labels = torch.tensor([0, 1, 0, 1, 1, 0])
    few_classes = category_prototype_distillation(student, teacher, labels, 2)
    torch.testing.assert_close(
        category_prototype_distillation(student, teacher, labels, 7), few_classes
    )
    torch.testing.assert_close(
        category_prototype_distillation(student, teacher, labels + 3, 7), few_classes
    )


def test_one_class_and_one_sample() -> None:
    # Each representation equals its prototype: similarity 1 on both sides.
    student = torch.tensor([[3.0, 4.0]], requires_grad=True)
    loss = category_prototype_distillation(
        student, torch.tensor([[1.0, -1.0]]), torch.tensor([2]), 3
    )
    loss.backward()
    assert loss.item() == pytest.approx(0.0, abs=1e-12)
    assert student.grad is not None
    assert student.grad.abs().max() < 1e-6


def test_gradient_flows_through_the_prototypes() -> None:
    # Sample 0 is compared with the prototype of class 1, which is sample 1: moving sample 1 must
    # count twice.
    teacher = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    student = torch.tensor([[1.0, 0.2], [0.3, 1.0]], requires_grad=True)
    category_prototype_distillation(student, teacher, torch.tensor([0, 1]), 2).backward()
    angle = lambda s: torch.cosine_similarity(s[0], s[1], dim=0)  # noqa: E731
    # Both off-diagonal similarities are this cosine, against the teacher's 0: L = 2 cos^2 / 4.
    by_hand = student.detach().clone().requires_grad_()
    (angle(by_hand) ** 2 / 2).backward()
    torch.testing.assert_close(student.grad, by_hand.grad)


def test_cosine_of_a_zero_vector_is_zero() -> None:
    teacher = torch.eye(2)
    student = torch.zeros(2, 2, requires_grad=True)
    loss = category_prototype_distillation(student, teacher, torch.tensor([0, 1]), 2)
    loss.backward()
    # Student's similarities are 0 throughout, the teacher's 1 0 / 0 1.
    assert loss.item() == 0.5
    assert student.grad is not None
    assert not student.grad.any()


def test_a_prototype_that_cancels_out() -> None:
    student = torch.tensor([[1.0, 2.0], [-1.0, -2.0]], requires_grad=True)
    loss = category_prototype_distillation(student, torch.ones(2, 2), torch.tensor([0, 0]), 1)
    loss.backward()
    assert loss.item() == pytest.approx(1.0)
    assert student.grad is not None
    assert student.grad.isfinite().all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"teacher": torch.ones(3, 4)}, r"\(2, 4\) and \(3, 4\)"),
        ({"labels": torch.zeros(3, dtype=torch.int64)}, r"shape \(2,\)"),
        ({"labels": torch.zeros(2)}, "integers"),
        ({"labels": torch.tensor(0)}, r"shape \(2,\)"),
        ({"labels": torch.zeros(2, 1, 1, dtype=torch.int64)}, r"shape \(2, 1\)"),
        ({"labels": torch.zeros(2, 0, dtype=torch.int64)}, "question"),
        ({"num_classes": 0}, "at least 1"),
    ],
)
def test_bad_inputs_are_refused(change: dict[str, object], message: str) -> None:
    arguments = {
        "student": torch.ones(2, 4),
        "teacher": torch.ones(2, 4),
        "labels": torch.zeros(2, dtype=torch.int64),
        "num_classes": 2,
        **change,
    }
    with pytest.raises(ValueError, match=message):
        category_prototype_distillation(**arguments)  # type: ignore[arg-type]


@given(batches(min_width=2), st.integers(1, 4))
def test_teacher_and_student_may_differ_in_width(batch: Batch, extra: int) -> None:
    """Angles are compared within each side, so constant zero features change nothing."""
    wider = torch.cat([batch.teacher, batch.teacher.new_zeros(len(batch.teacher), extra)], 1)
    labels, classes = batch.labels, batch.num_classes
    expected = category_prototype_distillation(batch.student, batch.teacher, labels, classes)
    torch.testing.assert_close(
        category_prototype_distillation(batch.student, wider, labels, classes), expected
    )
