"""The controls: plain KL, feature MSE, late fusion; and the paper's ablation of RCD."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from corrkd.errors import CorrKDError
from corrkd.methods.base import Losses, Method, TeacherOutputs, WeightedLoss
from corrkd.methods.corrkd import CorrKD, CorrKDOptions
from corrkd.methods.feature_mse import FeatureMSE, FeatureMSEOptions
from corrkd.methods.late_fusion import LateFusion
from corrkd.methods.registry import BUILT_IN, method_class
from corrkd.methods.response_kl import KL, ResponseKL, ResponseKLOptions
from corrkd.networks.base import Output
from corrkd.networks.corrkd import CorrKDNetwork
from corrkd.networks.late_fusion import LateFusionNetwork
from corrkd.networks.registry import network_class
from corrkd.settings import NetworkSettings
from tests.conftest import (
    CLASSES,
    QUESTIONS,
    SCORE,
    make_dataset,
    make_samples,
    total,
    training_batch,
    values,
    weights,
)

SMALL = NetworkSettings(width=8, heads=2, feedforward=16, layers=1, classifier=(6,), dropout=0.0)


def outputs(seed: int, shape: tuple[int, ...] = (7, 3)) -> Output:
    torch.manual_seed(seed)
    return Output(torch.randn(7, 24, dtype=torch.float64), torch.randn(shape, dtype=torch.float64))


def network(settings: NetworkSettings = SMALL) -> CorrKDNetwork:
    dataset = make_dataset()
    return CorrKDNetwork(
        dataset.widths, dict.fromkeys(dataset.widths, 6), target=CLASSES, settings=settings
    )


def losses_of(method: Method, output: Output, labels: Tensor) -> Losses:
    """Return the losses of a student that outputs `output`."""
    method.student.in_context = lambda inputs, context: output
    return method(training_batch(make_samples(make_dataset()), len(labels), targets=labels))


def softmax(row: Tensor, temperature: float) -> list[float]:
    powers = [math.exp(float(x) / temperature) for x in row]
    return [p / sum(powers) for p in powers]


@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_divergence_by_hand(temperature: float) -> None:
    student, teacher = outputs(0).logits, outputs(1).logits
    total = 0.0
    for student_row, teacher_row in zip(student, teacher, strict=True):
        q, p = softmax(student_row, temperature), softmax(teacher_row, temperature)
        total += sum(b * (math.log(b) - math.log(a)) for a, b in zip(q, p, strict=True))
    expected = temperature**2 * total / len(student)
    assert CLASSES.response_divergence(student, teacher, temperature).item() == pytest.approx(
        expected, rel=1e-10
    )


def test_question_divergence_is_a_mean_and_score_divergence_a_squared_error() -> None:
    student, teacher = outputs(0, (7, 4, 2)).logits, outputs(1, (7, 4, 2)).logits
    each = [CLASSES.response_divergence(student[:, q], teacher[:, q]).item() for q in range(4)]
    assert QUESTIONS.response_divergence(student, teacher).item() == pytest.approx(sum(each) / 4)
    student_scores, teacher_scores = student[:, 0, :1], teacher[:, 0, :1]
    assert SCORE.response_divergence(student_scores, teacher_scores).item() == pytest.approx(
        ((student_scores - teacher_scores) ** 2).mean().item()
    )


def test_the_teacher_gets_no_gradient_and_large_logits_stay_finite() -> None:
    student = (1e4 * outputs(0).logits).requires_grad_()
    teacher = (1e4 * outputs(1).logits).requires_grad_()
    CLASSES.response_divergence(student, teacher).backward()
    assert teacher.grad is None
    assert student.grad is not None
    assert torch.isfinite(student.grad).all()


def test_terms_and_weights_of_the_distillations() -> None:
    output, teachers = outputs(0), TeacherOutputs(*outputs(1))
    labels = torch.arange(7) % 3
    losses = losses_of(
        ResponseKL(network(), ResponseKLOptions(kl=KL(weight=0.5)), teachers=teachers),
        output,
        labels,
    )
    assert weights(losses) == {"task": 1.0, "kl": 0.5}
    terms = values(losses)
    assert terms["task"].item() == pytest.approx(CLASSES.task_loss(output.logits, labels).item())
    by_hand = sum(
        (float(a) - float(b)) ** 2
        for row, other in zip(output.representation, teachers.representation, strict=True)
        for a, b in zip(row, other, strict=True)
    )
    losses = losses_of(
        FeatureMSE(network(), FeatureMSEOptions(mse=WeightedLoss(weight=2.0)), teachers=teachers),
        output,
        labels,
    )
    assert weights(losses) == {"task": 1.0, "mse": 2.0}
    terms = values(losses)
    assert terms["mse"].item() == pytest.approx(by_hand / (7 * 24))


def test_corrkd_with_kl_instead_of_rcd() -> None:
    output, teachers = outputs(0), TeacherOutputs(*outputs(1))
    method = CorrKD(
        network(),
        CorrKDOptions.model_validate({"rcd": {"weight": 0.0}, "kl": {"weight": 1.0}}),
        teachers=teachers,
    )
    terms = values(losses_of(method, output, torch.arange(7) % 3))
    assert list(terms) == ["task", "scd", "cpd", "kl"]
    assert terms["kl"].item() == pytest.approx(
        CLASSES.response_divergence(output.logits, teachers.logits).item()
    )
    assert not [name for name, _ in method.named_parameters() if name.startswith("rcd")]


def test_late_fusion_averages_the_responses_of_visible_modalities() -> None:
    dataset = make_dataset()
    net = LateFusionNetwork(
        dataset.widths, dict.fromkeys(dataset.widths, 6), target=CLASSES, settings=SMALL
    ).eval()
    batch = make_samples(dataset).take(torch.arange(5))
    visible = {**batch.present, "audio": torch.zeros_like(batch.present["audio"])}
    inputs = batch.complete()._replace(visible=visible)
    with torch.no_grad():
        votes, has_vote = net.votes(inputs)
        response = torch.softmax(net(inputs).logits, -1)
    assert has_vote.tolist() == [[True, False, True]] * 5
    mean = (torch.softmax(votes[0], -1) + torch.softmax(votes[2], -1)) / 2
    torch.testing.assert_close(response, mean)


def test_late_fusion_trains_no_modality_on_samples_without_it() -> None:
    dataset = make_dataset()
    net = LateFusionNetwork(
        dataset.widths, dict.fromkeys(dataset.widths, 6), target=CLASSES, settings=SMALL
    )
    samples = make_samples(dataset)
    batch = samples.take(torch.arange(5))
    visible = {m: x if m == "language" else torch.zeros_like(x) for m, x in batch.present.items()}
    inputs = batch.complete()._replace(visible=visible)
    loss = values(LateFusion(net)(training_batch(samples, 5, inputs=inputs)))["task"]
    votes, _ = net.votes(inputs)
    assert loss.item() == pytest.approx(CLASSES.task_loss(votes[0], batch.targets).item(), rel=1e-5)
    loss.backward()
    for index, used in enumerate((True, False, False)):
        touched = any(
            p.grad is not None and bool(p.grad.any()) for p in net.classifiers[index].parameters()
        )
        assert touched == used


@pytest.mark.parametrize("name", list(BUILT_IN))
def test_every_method_returns_named_losses(name: str) -> None:
    """The names are the same in every batch, as the loop's records require."""
    kind = method_class(name)
    samples = make_samples(make_dataset())
    frames = {m: x.shape[1] for m, x in samples.exists.items()}
    torch.manual_seed(0)
    net = network_class(kind.network or "corrkd")(samples.widths, frames, target=CLASSES)
    outputs = TeacherOutputs(torch.randn(48, net.representation_width), torch.randn(48, 3))
    teachers = outputs if kind.needs_teacher else None
    method = kind(net, kind.options_type(), teachers=teachers)
    assert kind.title
    method.start(samples)
    losses = method(training_batch(samples, 12))
    assert list(losses) == list(method(training_batch(samples, 7)))
    assert all(weight > 0 for weight in weights(losses).values())
    assert all(torch.isfinite(value) and value.dim() == 0 for value in values(losses).values())
    assert {key.split(".")[0] for key in kind.search} <= {"method", "network"}


def test_a_distillation_without_teachers_is_refused_in_one_line() -> None:
    with pytest.raises(
        CorrKDError, match="Plain KL distillation: needs the outputs of teachers"
    ) as error:
        ResponseKL(network())
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("kind", "term"), [(CorrKD, "scd"), (FeatureMSE, "mse")])
def test_a_projection_is_learnt_between_different_widths(kind: type[Method], term: str) -> None:
    samples = make_samples(make_dataset())
    wide = network(SMALL.model_copy(update={"width": 16}))
    teachers = TeacherOutputs(torch.randn(48, 24), torch.randn(48, 3))
    method = kind(
        wide,
        kind.options_type.model_validate({"cpd": {"weight": 0.0}} if kind is CorrKD else {}),
        teachers=teachers,
    )
    method.start(samples)
    batch = training_batch(samples, 12)
    loss = values(method.eval()(batch))[term]
    projected = wide(batch.inputs).representation @ method.projector.weight.T
    compared = teachers.representation[:12]
    expected = (
        method.scd(projected, compared)
        if kind is CorrKD
        else (projected - compared).square().mean()
    )
    assert torch.allclose(loss, expected)
    loss.backward()
    assert method.projector.weight.grad.abs().sum() > 0


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (
            CorrKD,
            r"CorrKD: SCD compares representations, and the teachers have none; .*, or set "
            r"method.scd.weight to 0",
        ),
        (FeatureMSE, r"Feature-MSE distillation: .* and the teachers have none; .*, or train kl"),
    ],
)
def test_teachers_without_representations_are_refused_where_those_are_compared(
    kind: type[Method], message: str
) -> None:
    with pytest.raises(CorrKDError, match=message) as error:
        kind(network(), teachers=TeacherOutputs(torch.zeros(48, 0), torch.randn(48, 3)))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (ResponseKL, None),
        (CorrKD, CorrKDOptions.model_validate({"scd": {"weight": 0.0}})),
        (
            CorrKD,
            CorrKDOptions.model_validate(
                {"scd": {"form": "relations"}, "cpd": {"form": "all", "parts": True}}
            ),
        ),
    ],
)
def test_a_student_may_be_wider_than_its_teachers_where_angles_are_compared(
    kind: type[Method], options: CorrKDOptions | None
) -> None:
    samples = make_samples(make_dataset())
    wide = network(SMALL.model_copy(update={"width": 16}))
    method = kind(wide, options, teachers=TeacherOutputs(torch.randn(48, 24), torch.randn(48, 3)))
    method.start(samples)
    total(method(training_batch(samples, 12))).backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in wide.parameters())
