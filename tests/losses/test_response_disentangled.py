from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from corrkd.losses import (
    ConcatCritic,
    ResponseDisentangledConsistency,
    jensen_shannon_information,
    response_disentangled_consistency,
)
from tests.losses.strategies import Batch, few, responses

Pair = Callable[[list[float], list[float]], float]


def smooth_critic(teacher: Tensor, student: Tensor) -> Tensor:
    """Score pairs by a function that is symmetric in neither its arguments nor the classes."""
    weights = torch.arange(1, teacher.shape[-1] + 1, dtype=teacher.dtype)
    return 4 * ((teacher - 0.3) * student * weights).sum(-1) - (teacher.sin() * weights).sum(-1)


def smooth_pair(teacher: list[float], student: list[float]) -> float:
    """Compute `smooth_critic` of one pair in plain Python."""
    triples = list(zip(range(1, len(teacher) + 1), teacher, student, strict=True))
    return 4 * sum((t - 0.3) * s * weight for weight, t, s in triples) - sum(
        math.sin(t) * weight for weight, t, _ in triples
    )


def information_by_loops(q: list[list[float]], u: list[list[float]]) -> float:
    """Compute J in plain Python."""
    n = len(q)
    if n == 1:
        return 0.0
    joint = sum(-_softplus(-smooth_pair(q[i], u[i])) for i in range(n)) / n
    product = sum(
        _softplus(smooth_pair(q[i], u[j])) for i in range(n) for j in range(n) if i != j
    ) / (n * (n - 1))
    return joint - product


def _softplus(x: float) -> float:
    return math.log1p(math.exp(x))


def by_loops(
    student: list[list[float]], teacher: list[list[float]], labels: list[int], renormalize: bool
) -> float:
    """Compute the formula in plain Python: logits (N, K), labels (N,)."""
    targets: list[list[list[float]]] = []
    nontargets: list[list[list[float]]] = []
    for logits in (teacher, student):
        response = [[math.exp(x) / sum(map(math.exp, row)) for x in row] for row in logits]
        targets.append([[r[y]] for r, y in zip(response, labels, strict=True)])
        others = [
            [p for k, p in enumerate(r) if k != y] for r, y in zip(response, labels, strict=True)
        ]
        nontargets.append([[p / sum(r) for p in r] for r in others] if renormalize else others)
    return -information_by_loops(*targets) - information_by_loops(*nontargets)


@few
@given(responses(), st.booleans())
def test_is_the_sum_over_all_pairs(batch: Batch, renormalize: bool) -> None:
    loss = response_disentangled_consistency(
        batch.student,
        batch.teacher,
        batch.labels,
        smooth_critic,
        smooth_critic,
        renormalize=renormalize,
    )
    expected = by_loops(
        batch.student.tolist(), batch.teacher.tolist(), batch.labels.tolist(), renormalize
    )
    assert loss.item() == pytest.approx(expected, rel=1e-9)


@few
@given(responses(questions=True))
def test_questions_are_averaged(batch: Batch) -> None:
    loss = response_disentangled_consistency(
        batch.student, batch.teacher, batch.labels, smooth_critic, smooth_critic
    )
    each = [
        by_loops(
            batch.student[:, q].tolist(),
            batch.teacher[:, q].tolist(),
            batch.labels[:, q].tolist(),
            False,
        )
        for q in range(batch.labels.shape[1])
    ]
    assert loss.item() == pytest.approx(sum(each) / len(each), rel=1e-9)


@few
@given(st.one_of(responses(min_size=2), responses(min_size=2, questions=True)))
def test_order_of_the_batch_does_not_matter(batch: Batch) -> None:
    order = torch.arange(len(batch.student)).roll(1)
    loss = ResponseDisentangledConsistency(batch.num_classes).double()
    torch.testing.assert_close(
        loss(batch.student[order], batch.teacher[order], batch.labels[order]),
        loss(batch.student, batch.teacher, batch.labels),
    )


@few
@given(st.one_of(responses(), responses(questions=True)), st.booleans())
def test_gradients(batch: Batch, renormalize: bool) -> None:
    def loss(student: Tensor, teacher: Tensor) -> Tensor:
        return response_disentangled_consistency(
            student, teacher, batch.labels, smooth_critic, smooth_critic, renormalize=renormalize
        )

    assert torch.autograd.gradcheck(
        loss, (batch.student.requires_grad_(), batch.teacher.requires_grad_())
    )


def test_with_two_classes_the_second_term_repeats_the_first() -> None:
    random = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(6, 2, generator=random), torch.randn(6, 2, generator=random)
    labels = torch.tensor([0, 1, 1, 0, 1, 0])

    def critic(t: Tensor, s: Tensor) -> Tensor:
        return 5 * (t * s).sum(-1) - 1

    def mirrored(t: Tensor, s: Tensor) -> Tensor:
        return critic(1 - t, 1 - s)

    target = (
        teacher.softmax(-1)[torch.arange(6), labels, None],
        student.softmax(-1)[torch.arange(6), labels, None],
    )
    once = -jensen_shannon_information(critic, *target)
    loss = response_disentangled_consistency(student, teacher, labels, critic, mirrored)
    torch.testing.assert_close(loss, 2 * once)


def test_the_critic_sees_renormalised_nontargets() -> None:
    critic_inputs: list[Tensor] = []

    def recording_critic(teacher: Tensor, student: Tensor) -> Tensor:
        critic_inputs.extend([teacher, student])
        return teacher.sum(-1)

    # The target's share is all but 1e-40 of the response: dividing rounded probabilities would give
    # 0/0.
    logits = torch.tensor([[100.0, math.log(3.0), 0.0], [2.0, 100.0, 2.0]])
    labels = torch.tensor([0, 1])
    response_disentangled_consistency(
        logits, logits, labels, smooth_critic, recording_critic, renormalize=True
    )
    expected = torch.tensor([[0.75, 0.25], [0.5, 0.5]])
    torch.testing.assert_close(critic_inputs[0], expected.repeat_interleave(2, 0))
    torch.testing.assert_close(critic_inputs[1], expected.repeat(2, 1))


def test_batch_of_one_is_zero_and_reaches_every_parameter() -> None:
    loss = ResponseDisentangledConsistency(3)
    student = torch.randn(1, 3, generator=torch.Generator().manual_seed(0)).requires_grad_()
    value = loss(student, torch.zeros(1, 3), torch.tensor([1]))
    value.backward()
    assert value.item() == 0.0
    for leaf in (student, *loss.parameters()):
        assert leaf.grad is not None
        assert not leaf.grad.any()


# The joint distribution of two discrete variables, in 64ths.
COUNTS = torch.tensor([[20, 4, 2], [3, 15, 1], [2, 5, 12]])


def exact_pairs(repeats: int) -> tuple[Tensor, Tensor]:
    """Return a one-hot batch whose empirical joint distribution is exactly COUNTS / 64."""
    cells = torch.cartesian_prod(torch.arange(3), torch.arange(3))
    rows = cells.repeat_interleave(COUNTS.flatten() * repeats, 0)
    eye = torch.eye(3, dtype=torch.float64)
    return eye[rows[:, 0]], eye[rows[:, 1]]


def table_critic(table: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
    """Return a critic that looks F(q, u) up in a table."""
    return lambda q, u: torch.einsum("ma,ab,mb->m", q, table, u)


@pytest.mark.parametrize("repeats", [1, 4])
def test_best_critic_gives_the_jensen_shannon_divergence(repeats: int) -> None:
    joint = COUNTS.double() / COUNTS.sum()
    product = joint.sum(1, keepdim=True) * joint.sum(0, keepdim=True)
    middle = (joint + product) / 2
    divergence = (
        (joint * (joint / middle).log()).sum() + (product * (product / middle).log()).sum()
    ) / 2
    best = (joint / product).log()
    n = int(COUNTS.sum()) * repeats

    j = jensen_shannon_information(table_critic(best), *exact_pairs(repeats))

    # All N^2 pairs would be the product exactly. Leaving out the N matched ones, which follow the
    # joint, moves the second expectation from E_product to (N E_product - E_joint) / (N - 1).
    penalty = -torch.nn.functional.softplus(best)
    left_out = ((product - joint) * penalty).sum() / (n - 1)
    torch.testing.assert_close(j, 2 * divergence - math.log(4) + left_out, rtol=1e-12, atol=0)
    assert abs(left_out) < 1 / n

    for seed in range(5):
        other = best + torch.randn(
            3, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
        )
        assert jensen_shannon_information(table_critic(other), *exact_pairs(repeats)) < j


def test_mismatched_pairs_are_teacher_i_with_student_j() -> None:
    # Only (q_0, u_1) scores high.
    q, u = torch.tensor([[1.0], [0.0]]), torch.tensor([[0.0], [1.0]])
    high = jensen_shannon_information(lambda a, b: 10 * (a * b).squeeze(-1), q, u)
    assert high.item() == pytest.approx(-math.log(2) - (math.log1p(math.exp(10)) + math.log(2)) / 2)
    # q and u may differ in width.
    wide = jensen_shannon_information(lambda a, b: 10 * a[:, 0] * b[:, 1], q, torch.cat([u, u], 1))
    assert wide.item() == pytest.approx(high.item())


def test_a_trained_critic_detects_dependence() -> None:
    random = torch.Generator().manual_seed(3)
    q = torch.rand(64, 1, generator=random)
    shuffled = q[torch.randperm(64, generator=random)]
    estimates = []
    for u in (q, shuffled):
        critic = ConcatCritic(1, 1, generator=torch.Generator().manual_seed(0))
        optimizer = torch.optim.Adam(critic.parameters(), lr=1e-2)
        for _ in range(150):
            optimizer.zero_grad()
            j = jensen_shannon_information(critic, q, u)
            (-j).backward()
            optimizer.step()
        estimates.append(j.item())
    assert estimates[0] > -0.8
    assert estimates[1] < -1.2


def test_critic_is_a_perceptron_on_the_concatenation() -> None:
    critic = ConcatCritic(2, 3, 8, generator=torch.Generator().manual_seed(0))
    random = torch.Generator().manual_seed(1)
    q, u = torch.randn(5, 2, generator=random), torch.randn(5, 3, generator=random)
    plain = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 1))
    for mine, theirs in zip(critic.parameters(), plain.parameters(), strict=True):
        theirs.data.copy_(mine)
    torch.testing.assert_close(critic(q, u), plain(torch.cat([q, u], 1))[:, 0])


def test_critics_start_from_the_generator_or_from_the_global_seed() -> None:
    def initial(seed: int | None) -> list[Tensor]:
        generator = None if seed is None else torch.Generator().manual_seed(seed)
        return [
            p.detach() for p in ResponseDisentangledConsistency(3, generator=generator).parameters()
        ]

    state = torch.get_rng_state()
    assert all(torch.equal(a, b) for a, b in zip(initial(5), initial(5), strict=True))
    assert torch.equal(state, torch.get_rng_state())
    assert not any(torch.equal(a, b) for a, b in zip(initial(5), initial(6), strict=True))
    with torch.random.fork_rng():
        torch.manual_seed(7)
        first = initial(None)
        torch.manual_seed(7)
        assert all(torch.equal(a, b) for a, b in zip(first, initial(None), strict=True))


def test_critic_in_another_precision_meets_the_logits() -> None:
    random = torch.Generator().manual_seed(1)
    student, teacher = torch.randn(5, 3, generator=random), torch.randn(5, 3, generator=random)
    labels = torch.tensor([0, 1, 2, 0, 1])
    loss = ResponseDisentangledConsistency(3, generator=torch.Generator().manual_seed(0))
    expected = loss(student, teacher, labels)
    wide = loss(student.double(), teacher.double(), labels)
    assert wide.dtype == torch.float64
    torch.testing.assert_close(wide.float(), expected)
    half = loss.bfloat16()(student, teacher, labels)
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, expected, rtol=1e-2, atol=0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"teacher_logits": torch.ones(2, 4)}, r"\(2, 3\) and \(2, 4\)"),
        (
            {"student_logits": torch.ones(2, 1), "teacher_logits": torch.ones(2, 1)},
            "at least 2 classes",
        ),
        ({"labels": torch.zeros(2, 1, dtype=torch.int64)}, r"shape \(2,\)"),
        ({"labels": torch.zeros(2)}, "integers"),
        (
            {"target_critic": lambda t, s: t},
            r"must return \(M,\), here \(4,\), but it returned \(4, 1\)",
        ),
    ],
)
def test_bad_inputs_are_refused(change: dict[str, object], message: str) -> None:
    arguments = {
        "student_logits": torch.ones(2, 3),
        "teacher_logits": torch.ones(2, 3),
        "labels": torch.zeros(2, dtype=torch.int64),
        "target_critic": smooth_critic,
        "nontarget_critic": smooth_critic,
        **change,
    }
    with pytest.raises(ValueError, match=message):
        response_disentangled_consistency(**arguments)  # type: ignore[arg-type]


def test_bad_input_of_the_estimator_and_the_module() -> None:
    with pytest.raises(ValueError, match="N >= 1"):
        jensen_shannon_information(smooth_critic, torch.ones(2, 3), torch.ones(3, 3))
    with pytest.raises(ValueError, match="floating point"):
        jensen_shannon_information(
            smooth_critic, torch.ones(2, 3), torch.ones(2, 3, dtype=torch.int64)
        )
    with pytest.raises(ValueError, match="at least 2"):
        ResponseDisentangledConsistency(1)
