from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import cross_entropy

from corrkd.losses import (
    CorrKDLoss,
    category_prototype_distillation,
    response_disentangled_consistency,
    sample_contrastive_distillation,
)

from .strategies import Batch, batches, few

weights = st.fixed_dictionaries({}, optional=dict.fromkeys(("scd", "cpd", "rcd"), st.floats(0, 10)))


def logits_of(batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    random = torch.Generator().manual_seed(len(batch.labels))
    shape = (*batch.labels.shape, batch.num_classes)
    student, teacher = (torch.randn(shape, generator=random, dtype=torch.float64) for _ in range(2))
    return student, teacher


@few
@given(batch=st.one_of(batches(), batches(questions=True)), weights=weights)
def test_is_the_weighted_sum_of_the_three_losses(batch: Batch, weights: dict[str, float]) -> None:
    loss = CorrKDLoss(
        batch.num_classes, weights=weights, boundary=1.4, generator=torch.Generator().manual_seed(0)
    )
    student, teacher = logits_of(batch)
    total, terms = loss(batch.student, student, batch.teacher, teacher, batch.labels)
    expected = {
        "scd": sample_contrastive_distillation(batch.student, batch.teacher, boundary=1.4),
        "cpd": category_prototype_distillation(
            batch.student, batch.teacher, batch.labels, batch.num_classes
        ),
    }
    if loss.rcd is not None:
        critics = loss.rcd.target_critic, loss.rcd.nontarget_critic
        expected["rcd"] = response_disentangled_consistency(
            student, teacher, batch.labels, *critics
        )
    used = {name: value for name, value in expected.items() if weights.get(name, 1.0)}
    assert terms.keys() == used.keys()
    for name, value in used.items():
        torch.testing.assert_close(terms[name], value.detach())
    weighted = sum(
        (weights.get(name, 1.0) * value for name, value in used.items()),
        torch.zeros((), dtype=torch.float64),
    )
    torch.testing.assert_close(total, weighted)


@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e4])
@pytest.mark.parametrize("same", [False, True])
def test_gradients_are_finite(scale: float, same: bool) -> None:
    torch.manual_seed(0)
    loss, labels = CorrKDLoss(3), torch.arange(12) % 3
    teacher, teacher_logits = scale * torch.randn(12, 8), scale * torch.randn(12, 3)
    student, logits = teacher.clone(), teacher_logits.clone()
    if not same:
        student, logits = scale * torch.randn(12, 8), scale * torch.randn(12, 3)
    student.requires_grad_(), logits.requires_grad_()
    total, terms = loss(student, logits, teacher, teacher_logits, labels)
    total.backward()
    assert total.isfinite()
    assert all(not value.requires_grad for value in terms.values())
    for tensor in (student, logits, *loss.parameters()):
        assert tensor.grad is not None
        assert tensor.grad.isfinite().all()


def test_its_critics_learn_with_the_student_and_are_saved() -> None:
    torch.manual_seed(0)
    loss, student = CorrKDLoss(3, weights={"scd": 0.5}), torch.nn.Linear(5, 8 + 3)
    optimizer = torch.optim.Adam([*student.parameters(), *loss.parameters()], lr=1e-2)
    x, labels = torch.randn(30, 5), torch.arange(30) % 3
    teacher, teacher_logits = torch.randn(30, 8), torch.randn(30, 3)
    before = {name: value.clone() for name, value in loss.state_dict().items()}
    assert set(before) == {f"rcd.{name}" for name in loss.rcd.state_dict()}  # type: ignore[union-attr]
    totals = []
    for _ in range(30):
        representation, logits = student(x).split([8, 3], 1)
        total, _ = loss(representation, logits, teacher, teacher_logits, labels)
        total = total + cross_entropy(logits, labels)
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        totals.append(total.item())
    assert totals[-1] < 0.9 * totals[0]
    assert any(not torch.equal(before[name], value) for name, value in loss.state_dict().items())
    assert "'scd': 0.5" in repr(loss)


def test_with_zero_weights_the_total_is_zero_and_differentiable() -> None:
    loss = CorrKDLoss(2, weights=dict.fromkeys(("scd", "cpd", "rcd"), 0.0))
    logits = torch.randn(4, 2, requires_grad=True)
    total, terms = loss(
        torch.randn(4, 3), logits, torch.randn(4, 3), torch.randn(4, 2), torch.arange(4) % 2
    )
    total.backward()
    assert (total.item(), terms, list(loss.parameters())) == (0.0, {}, [])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"num_classes": 3, "weights": {"scf": 1.0}},
            "unknown loss 'scf'; available: scd, cpd, rcd",
        ),
        ({"num_classes": 3, "weights": {"scd": -1.0}}, "scd must be a number from 0 up"),
        ({"num_classes": 3, "weights": {"cpd": float("nan")}}, "cpd must be a number from 0 up"),
        ({"num_classes": 1}, "num_classes must be at least 2"),
        ({"num_classes": 2, "boundary": 0.0}, "boundary must be greater than 0"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CorrKDLoss(**options)  # type: ignore[arg-type]
