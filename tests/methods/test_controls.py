"""The controls: plain KL, feature MSE, late fusion; and the paper's ablation of RCD."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from corrkd.methods.base import TeacherOutput
from corrkd.methods.corrkd import CorrKD
from corrkd.methods.feature_mse import FeatureMSE, FeatureMSEOptions
from corrkd.methods.late_fusion import LateFusion
from corrkd.methods.registry import BUILT_IN, method_class
from corrkd.methods.response_kl import ResponseKL, ResponseKLOptions
from corrkd.networks.base import Output
from corrkd.networks.corrkd import CorrKDNetwork
from corrkd.networks.late_fusion import LateFusionNetwork
from corrkd.settings import DistillationSettings, NetworkSettings
from corrkd.targets.base import Target
from tests.conftest import CLASSES, QUESTIONS, SCORE, make_dataset, make_samples

SMALL = NetworkSettings(width=8, heads=2, feedforward=16, layers=1, classifier=(6,), dropout=0.0)


def outputs(seed: int, shape: tuple[int, ...] = (7, 3)) -> Output:
    torch.manual_seed(seed)
    return Output(torch.randn(7, 24, dtype=torch.float64), torch.randn(shape, dtype=torch.float64))


def target() -> Target:
    return make_samples(make_dataset()).target


def network() -> CorrKDNetwork:
    dataset = make_dataset()
    return CorrKDNetwork(dataset.widths, dict.fromkeys(dataset.widths, 6), target=CLASSES, settings=SMALL)


def softmax(row: Tensor, temperature: float) -> list[float]:
    powers = [math.exp(float(x) / temperature) for x in row]
    return [p / sum(powers) for p in powers]


@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_divergence_by_hand(temperature: float) -> None:
    student, teacher = outputs(0).logits, outputs(1).logits
    total = 0.0
    for own, known in zip(student, teacher, strict=True):
        q, p = softmax(own, temperature), softmax(known, temperature)
        total += sum(b * (math.log(b) - math.log(a)) for a, b in zip(q, p, strict=True))
    expected = temperature**2 * total / len(student)
    assert CLASSES.response_divergence(student, teacher, temperature).item() == pytest.approx(expected, rel=1e-10)


def test_divergence_of_questions_is_the_mean_over_them_and_of_scores_the_squared_error() -> None:
    student, teacher = outputs(0, (7, 4, 2)).logits, outputs(1, (7, 4, 2)).logits
    each = [CLASSES.response_divergence(student[:, q], teacher[:, q]).item() for q in range(4)]
    assert QUESTIONS.response_divergence(student, teacher).item() == pytest.approx(sum(each) / 4)
    own, known = student[:, 0, :1], teacher[:, 0, :1]
    assert SCORE.response_divergence(own, known).item() == pytest.approx(((own - known) ** 2).mean().item())


def test_the_teacher_gets_no_gradient_and_large_logits_stay_finite() -> None:
    student = (1e4 * outputs(0).logits).requires_grad_()
    teacher = (1e4 * outputs(1).logits).requires_grad_()
    CLASSES.response_divergence(student, teacher).backward()
    assert teacher.grad is None
    assert student.grad is not None
    assert torch.isfinite(student.grad).all()


def test_terms_and_weights_of_the_distillations() -> None:
    output, known = outputs(0), TeacherOutput(*outputs(1))
    labels = torch.arange(7) % 3
    kl = ResponseKL(network(), target(), ResponseKLOptions(kl=0.5))
    terms = kl.terms(output, labels, known)
    assert list(terms) == list(kl.weights) == ["task", "kl"]
    assert kl.weights["kl"] == 0.5
    assert terms["task"].item() == pytest.approx(CLASSES.task_loss(output.logits, labels).item())
    mse = FeatureMSE(network(), target(), FeatureMSEOptions(mse=2.0))
    by_hand = sum(
        (float(a) - float(b)) ** 2
        for row, other in zip(output.representation, known.representation, strict=True)
        for a, b in zip(row, other, strict=True)
    )
    terms = mse.terms(output, labels, known)
    assert list(terms) == list(mse.weights) == ["task", "mse"]
    assert terms["mse"].item() == pytest.approx(by_hand / (7 * 24))


def test_corrkd_with_kl_in_place_of_rcd() -> None:
    output, known = outputs(0), TeacherOutput(*outputs(1))
    method = CorrKD(network(), target(), DistillationSettings(rcd=0.0, kl=1.0))
    terms = method.terms(output, torch.arange(7) % 3, known)
    assert list(terms) == list(method.weights) == ["task", "scd", "cpd", "kl"]
    assert terms["kl"].item() == pytest.approx(CLASSES.response_divergence(output.logits, known.logits).item())
    assert not [name for name, _ in method.named_parameters() if name.startswith("rcd")]


def test_late_fusion_averages_the_responses_of_what_is_visible() -> None:
    dataset = make_dataset()
    net = LateFusionNetwork(dataset.widths, dict.fromkeys(dataset.widths, 6), target=CLASSES, settings=SMALL).eval()
    batch = make_samples(dataset).take(torch.arange(5))
    visible = {**batch.present, "audio": torch.zeros_like(batch.present["audio"])}
    inputs = batch.complete()._replace(visible=visible)
    with torch.no_grad():
        votes, shown = net.votes(inputs)
        response = torch.softmax(net(inputs).logits, -1)
    assert shown.tolist() == [[True, False, True]] * 5
    mean = (torch.softmax(votes[0], -1) + torch.softmax(votes[2], -1)) / 2
    torch.testing.assert_close(response, mean)


def test_late_fusion_learns_nothing_of_a_modality_from_samples_without_it() -> None:
    dataset = make_dataset()
    net = LateFusionNetwork(dataset.widths, dict.fromkeys(dataset.widths, 6), target=CLASSES, settings=SMALL)
    method = LateFusion(net, target())
    batch = make_samples(dataset).take(torch.arange(5))
    visible = {m: x if m == "language" else torch.zeros_like(x) for m, x in batch.present.items()}
    inputs = batch.complete()._replace(visible=visible)
    loss = method(inputs, batch.targets)["task"]
    votes, _ = net.votes(inputs)
    assert loss.item() == pytest.approx(CLASSES.task_loss(votes[0], batch.targets).item(), rel=1e-5)
    loss.backward()
    for place, used in enumerate((True, False, False)):
        touched = any(p.grad is not None and bool(p.grad.any()) for p in net.classifiers[place].parameters())
        assert touched == used


@pytest.mark.parametrize("name", list(BUILT_IN))
def test_every_method_names_its_terms_as_its_weights(name: str) -> None:
    """Terms and weights agree in names and order, which the loop's records depend on."""
    kind = method_class(name)
    samples = make_samples(make_dataset())
    frames = {m: x.shape[1] for m, x in samples.exists.items()}
    torch.manual_seed(0)
    net = kind.network_type(samples.widths, frames, target=CLASSES)
    method = kind(net, samples.target, kind.options_type())
    assert kind.title
    method.start(samples)
    batch = samples.take(torch.arange(12))
    known = TeacherOutput(torch.randn(12, 120), torch.randn(12, 3)) if kind.needs_teacher else None
    terms = method(batch.complete(), batch.targets, known, samples.context(batch.rows))
    assert list(terms) == list(method.weights)
    assert all(torch.isfinite(value) and value.dim() == 0 for value in terms.values())
    assert {key.split(".")[0] for key in kind.search} <= {"options", "network", "stage"}
