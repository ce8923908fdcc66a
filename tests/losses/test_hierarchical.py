"""HMI and HAL: their values by loops, and the gradients of HAL's two players."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from corrkd.losses import (
    ConcatCritic,
    Discriminator,
    HierarchicalAdversarial,
    HierarchicalInformation,
    hierarchical_adversarial,
    hierarchical_information,
    jensen_shannon_information,
)
from tests.losses.strategies import few

Sides = tuple[list[Tensor], list[Tensor]]


@st.composite
def scales(draw: st.DrawFn, *, one_width: bool = True, max_samples: int = 6) -> Sides:
    """Draw student's and teacher's representations at one to three scales, float64."""
    samples = draw(st.integers(1, max_samples))
    random = torch.Generator().manual_seed(draw(st.integers(0, 2**32 - 1)))
    widths = draw(st.lists(st.integers(1, 5), min_size=1, max_size=3))
    factor = draw(st.sampled_from([0.1, 1.0, 10.0]))

    def side(extra: int) -> list[Tensor]:
        return [
            factor * torch.randn(samples, w + extra, generator=random, dtype=torch.float64)
            for w in widths
        ]

    return side(0), side(0 if one_width else 2)


def widths(side: Sequence[Tensor]) -> list[int]:
    return [x.shape[1] for x in side]


def perceptron(network: torch.nn.Module, row: list[float]) -> float:
    """Compute a network's output in plain Python."""
    weight, bias, output, offset = (p.tolist() for p in network.parameters())
    hidden = [
        max(0.0, sum(w * x for w, x in zip(unit, row, strict=True)) + b)
        for unit, b in zip(weight, bias, strict=True)
    ]
    return sum(w * h for w, h in zip(output[0], hidden, strict=True)) + offset[0]


def softplus(x: float) -> float:
    return max(x, 0.0) + math.log1p(math.exp(-abs(x)))


def seeded_generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@few
@given(scales(one_width=False))
def test_hmi_is_the_sum_over_scales_and_pairs(sides: Sides) -> None:
    student, teacher = sides
    loss = HierarchicalInformation(
        widths(student), widths(teacher), hidden=4, generator=seeded_generator()
    ).double()
    total, n = 0.0, len(student[0])
    for critic, s, t in zip(loss.critics, student, teacher, strict=True):
        for i in range(n):
            for j in range(n):
                score = perceptron(critic, t[i].tolist() + s[j].tolist())
                if n > 1:
                    total += softplus(-score) / n if i == j else softplus(score) / (n * (n - 1))
    assert loss(student, teacher).item() == pytest.approx(total, rel=1e-9)


@few
@given(scales())
def test_hmi_of_any_critic_matches_the_estimator(sides: Sides) -> None:
    def critic(teacher: Tensor, student: Tensor) -> Tensor:
        return (teacher * student).sum(-1)

    student, teacher = sides
    expected = -sum(
        jensen_shannon_information(critic, t, s).item()
        for s, t in zip(student, teacher, strict=True)
    )
    loss = hierarchical_information(student, teacher, [critic] * len(student))
    assert loss.item() == pytest.approx(expected, rel=1e-12)


def test_all_pairs_matches_the_critic_of_each_pair() -> None:
    critic = ConcatCritic(3, 2, 8, generator=seeded_generator()).double()
    q, u = torch.randn(5, 3, dtype=torch.float64), torch.randn(5, 2, dtype=torch.float64)
    each = torch.stack([critic(row.expand(5, -1), u) for row in q])
    torch.testing.assert_close(critic.all_pairs(q, u), each)
    # The estimator calls `all_pairs` for this class only.
    torch.testing.assert_close(
        jensen_shannon_information(critic, q, u),
        jensen_shannon_information(lambda a, b: critic(a, b), q, u),
    )


@few
@given(scales(), st.booleans())
def test_hal_is_the_cross_entropy_of_the_discriminators(sides: Sides, nonsaturating: bool) -> None:
    student, teacher = sides
    loss = HierarchicalAdversarial(
        widths(student), hidden=4, nonsaturating=nonsaturating, generator=seeded_generator()
    ).double()
    total = 0.0
    for discriminator, s, t in zip(loss.discriminators, student, teacher, strict=True):
        of_student = [softplus(perceptron(discriminator, row)) for row in s.tolist()]
        of_teacher = [softplus(-perceptron(discriminator, row)) for row in t.tolist()]
        total += (sum(of_student) + sum(of_teacher)) / len(s)
    assert loss(student, teacher).item() == pytest.approx(total, rel=1e-9)


@pytest.mark.parametrize("nonsaturating", [False, True])
def test_hal_gives_each_player_its_gradient(nonsaturating: bool) -> None:
    """The discriminators' gradient is that of -V; the student's that of V, or of -log De."""
    torch.manual_seed(0)
    student, teacher = (
        torch.randn(6, 3, dtype=torch.float64, requires_grad=True) for _ in range(2)
    )
    loss = HierarchicalAdversarial([3], hidden=4, nonsaturating=nonsaturating).double()
    loss([student], [teacher]).backward()
    of_discriminator = [p.grad for p in loss.parameters()]

    de = torch.sigmoid(loss.discriminators[0](student))
    value = (1 - de).log().mean() + torch.sigmoid(loss.discriminators[0](teacher)).log().mean()
    for gradient, expected in zip(
        of_discriminator, torch.autograd.grad(-value, loss.parameters()), strict=True
    ):
        torch.testing.assert_close(gradient, expected)
    de = torch.sigmoid(loss.discriminators[0](student))
    aim = -de.log().mean() if nonsaturating else (1 - de).log().mean()
    torch.testing.assert_close(student.grad, torch.autograd.grad(aim, student)[0])


def test_the_discriminator_learns_to_separate_and_the_student_to_mislead() -> None:
    torch.manual_seed(0)
    teacher = torch.randn(128, 2) + 3.0
    start = torch.randn(128, 2)
    student = start.clone().requires_grad_()
    loss = HierarchicalAdversarial([2], hidden=16, nonsaturating=True)
    discriminator_optimizer = torch.optim.Adam(loss.parameters(), lr=1e-2)
    for _ in range(200):
        discriminator_optimizer.zero_grad()
        value = loss([start], [teacher])
        value.backward()
        discriminator_optimizer.step()
    assert value.item() < 0.3  # 1.39 at equilibrium
    joint_optimizer = torch.optim.Adam([student, *loss.parameters()], lr=1e-2)
    for _ in range(600):
        joint_optimizer.zero_grad()
        value = loss([student], [teacher])
        value.backward()
        joint_optimizer.step()
    assert value.item() > 1.0
    assert (student.mean(0) - teacher.mean(0)).norm() < 0.5 * (
        start.mean(0) - teacher.mean(0)
    ).norm()


@few
@given(scales(max_samples=3))
def test_gradients(sides: Sides) -> None:
    """Check HMI's derivatives; HAL's value is no common potential of its players."""

    def critic(teacher: Tensor, student: Tensor) -> Tensor:
        return (teacher * student).sum(-1).sin()

    student, teacher = ([x.requires_grad_() for x in side] for side in sides)
    count = len(student)

    def information(*tensors: Tensor) -> Tensor:
        return hierarchical_information(tensors[:count], tensors[count:], [critic] * count)

    assert torch.autograd.gradcheck(information, (*student, *teacher))
    assert torch.autograd.gradgradcheck(information, (*student, *teacher))


def test_hmi_of_one_sample_is_zero_and_reaches_every_parameter() -> None:
    loss = HierarchicalInformation([3, 2], [3, 2])
    student = [torch.randn(1, 3, requires_grad=True), torch.randn(1, 2, requires_grad=True)]
    value = loss(student, [torch.randn(1, 3), torch.randn(1, 2)])
    value.backward()
    assert value.item() == 0.0
    assert all(
        leaf.grad is not None and not leaf.grad.any() for leaf in (*student, *loss.parameters())
    )


def test_initial_values_come_from_the_generator() -> None:
    for make in (
        lambda seed: HierarchicalInformation([3], [3], generator=seeded_generator(seed)),
        lambda seed: HierarchicalAdversarial([3], generator=seeded_generator(seed)),
    ):
        first, repeated, other = (list(make(seed).parameters()) for seed in (5, 5, 6))
        assert all(torch.equal(a, b) for a, b in zip(first, repeated, strict=True))
        assert not any(torch.equal(a, b) for a, b in zip(first, other, strict=True))


def test_bad_inputs_are_refused() -> None:
    x, wide = torch.ones(2, 3), torch.ones(2, 4)
    critic, discriminator = ConcatCritic(3, 3), Discriminator(3)
    for loss in (
        lambda s, t: hierarchical_information(s, t, [critic]),
        lambda s, t: hierarchical_adversarial(s, t, [discriminator]),
    ):
        with pytest.raises(
            ValueError, match=r"as many scales of student and teacher .* 2, 1 and 1"
        ):
            loss([x, x], [x])
        with pytest.raises(ValueError, match=r"\(2, 3\) and \(3, 3\)"):
            loss([x], [torch.ones(3, 3)])
    with pytest.raises(ValueError, match=r"\(2, 3\) and \(2, 4\)"):
        hierarchical_adversarial([x], [wide], [discriminator])
    with pytest.raises(ValueError, match="at least one"):
        hierarchical_information([], [], [])
    with pytest.raises(ValueError, match="at least one scale"):
        HierarchicalAdversarial([])
    with pytest.raises(ValueError, match="there are 1 and 2"):
        HierarchicalInformation([3], [3, 4])
