from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch.distributions import Normal, kl_divergence

from corrkd.data.batches import Batch
from corrkd.data.inputs import Inputs
from corrkd.methods.base import TrainingBatch
from corrkd.methods.smil import SMIL, centres
from corrkd.networks.smil import Gaussian, SMILNetwork, SMILSettings
from corrkd.settings import NetworkSettings
from corrkd.targets.base import Target
from tests.conftest import CLASSES, QUESTIONS, SCORE, make_dataset, make_samples, values
from tests.methods.translating import (
    FOUR,
    KINDS,
    TWO,
    check_finite_when_nothing_is_visible,
    check_only_visible_frames_count,
    fit,
    frames_of,
    make_inputs,
    network_for,
    progress_to_bayes,
)

TINY = NetworkSettings(
    width=8,
    heads=2,
    feedforward=16,
    layers=1,
    classifier=(6,),
    dropout=0.0,
    exclude_missing=True,
    kernel=3,
)
SMALL = SMILSettings(network=TINY, priors=2)


def network(
    widths: dict[str, int], target: Target = CLASSES, settings: SMILSettings = SMALL
) -> SMILNetwork:
    torch.manual_seed(0)
    net = SMILNetwork(widths, frames_of(widths), target=target, settings=settings).eval()
    net.set_priors({m: torch.randn(settings.priors, width) for m, width in widths.items()})
    return net


def started(target: str = "classes", **changes: Any) -> tuple[SMIL, Batch]:
    """Return a method before its first step, without draws; the last 8 of 16 samples lack audio."""
    samples = make_samples(make_dataset(), target=target)
    method = SMIL(network_for(SMILNetwork, samples, SMALL.model_copy(update=changes)))
    method.start(samples)
    method.eval()
    batch = samples.take(torch.arange(16))
    audio = batch.present["audio"].clone()
    audio[8:] = False
    return method, Batch(**{**batch.__dict__, "present": {**batch.present, "audio": audio}})


def terms(
    method: SMIL, batch: Batch, targets: torch.Tensor | None = None
) -> dict[str, torch.Tensor]:
    context = make_samples(make_dataset()).context(batch.rows)
    targets = batch.targets if targets is None else targets
    return values(method(TrainingBatch(batch.complete(), targets, context)))


@pytest.mark.parametrize("widths", [TWO, FOUR])
@pytest.mark.parametrize(("target", "shape"), KINDS)
def test_shapes(widths: dict[str, int], target: Target, shape: tuple[int, ...]) -> None:
    out = network(widths, target)(make_inputs(widths))
    assert out.logits.shape == shape
    assert out.representation.shape == (4, 8 * len(widths))


@pytest.mark.parametrize("widths", [TWO, FOUR])
def test_padding_and_invisible_frames_change_nothing(widths: dict[str, int]) -> None:
    check_only_visible_frames_count(network(widths), make_inputs(widths))
    check_finite_when_nothing_is_visible(network(widths), make_inputs(widths))


@pytest.mark.parametrize("training", [False, True])
def test_the_reconstruction_lies_in_the_hull_of_the_priors_and_depends_on_visible_frames(
    training: bool,
) -> None:
    net = network(FOUR).train(training)
    seen = net.look(make_inputs(FOUR))
    for m, width in FOUR.items():
        made, priors = net.reconstruct(m, seen), net.priors(m)
        assert made.shape == (4, width)
        with_ones = torch.cat([priors.T, torch.ones(1, len(priors))])  # the weights must sum to 1
        wanted = torch.cat([made.T, torch.ones(1, 4)])
        weights = torch.linalg.lstsq(with_ones, wanted).solution
        assert torch.allclose(with_ones @ weights, wanted, atol=1e-4)
        assert (weights > 0).all()
        assert not torch.allclose(made[0], made[1], atol=1e-4)
        assert torch.equal(net.reconstruct(m, seen), made) != training


def test_fewer_priors_than_requested_leave_the_hull_unchanged() -> None:
    net, inputs = network(TWO, settings=SMALL.model_copy(update={"priors": 5})), make_inputs(TWO)
    net.set_priors({m: torch.full((1, width), 3.0) for m, width in TWO.items()})
    for m in TWO:
        torch.testing.assert_close(
            net.reconstruct(m, net.look(inputs)), torch.full((4, TWO[m]), 3.0)
        )


def test_only_missing_frames_are_reconstructed() -> None:
    net = network(FOUR)
    frames, exists, visible = make_inputs(FOUR, share=1.0)
    audio = visible["audio"].clone()
    audio[2:] = False
    inputs = Inputs(frames, exists, {**visible, "audio": audio})
    before = net(inputs).logits
    by_hand = frames["audio"].clone()
    by_hand[2:] = net.reconstruct("audio", net.look(inputs))[2:, None]
    made = net(Inputs({**frames, "audio": by_hand}, exists, exists)).representation
    assert torch.allclose(made, net(inputs).representation, atol=1e-5)
    with torch.no_grad():
        net.priors("audio").mul_(-3.0)
    after = net(inputs).logits
    assert torch.equal(after[:2], before[:2])
    assert not torch.allclose(after[2:], before[2:], atol=1e-5)


def test_features_are_multiplied_by_the_perturbation() -> None:
    net, inputs = network(TWO), make_inputs(TWO)
    out = net.respond(inputs)
    factor = torch.nn.functional.softplus(out.perturbation.mean)
    with torch.no_grad():
        net.regularisation.mean.weight.zero_()
    plain = net.respond(inputs)
    assert torch.allclose(plain.representation * factor, out.representation, atol=1e-5)
    assert not torch.allclose(plain.logits, out.logits, atol=1e-6)
    torch.manual_seed(1)
    net.train()
    assert not torch.equal(net(inputs).logits, net(inputs).logits)


def test_divergence_matches_torch() -> None:
    torch.manual_seed(0)
    mean, deviation = torch.randn(3, 4), torch.rand(3, 4) + 0.1
    expected = kl_divergence(Normal(mean, deviation), Normal(0.5, 0.7)).sum(1)
    assert torch.allclose(Gaussian(mean, deviation).divergence(0.5, 0.7), expected, atol=1e-5)


def test_priors_are_the_centres_of_present_samples() -> None:
    """Samples without the modality do not move the centres."""
    dataset = make_dataset()
    split = dataset.split("train")
    points = np.array([[-3.0, 0, 0], [0, 4.0, 0], [0, 0, 5.0]], np.float32)
    split.frames["audio"][:] = (
        points[np.arange(48) % 3][:, None] * split.present["audio"][..., None]
    )
    split.present["audio"][:10] = False
    split.frames["audio"][:10] = 99.0
    samples = make_samples(dataset)
    expected = samples.take(torch.arange(12, 15)).frames["audio"][:, 0]
    priors = centres(samples, 3)["audio"].float()
    assert torch.cdist(expected, priors).min(1).values.max() < 1e-4
    assert centres(make_samples(make_dataset()), 1000)["vision"].shape == (48, 4)


def test_priors_are_saved_in_the_checkpoint() -> None:
    method, _ = started()
    restored, _ = started()
    restored.student.set_priors(
        {m: torch.zeros(2, w) for m, w in {"language": 5, "audio": 3, "vision": 4}.items()}
    )
    restored.load_state_dict(method.state_dict())
    assert torch.equal(restored.student.priors("audio"), method.student.priors("audio"))
    assert method.student.priors("audio").abs().max() > 0


@pytest.mark.parametrize("target", ["classes", "score"])
def test_without_adaptation_each_loss_is_the_task_loss_of_its_samples(target: str) -> None:
    method, batch = started(target, inner_lr=0.0)
    out = terms(method, batch)
    logits = method.student(batch.complete()).logits
    assert torch.allclose(
        out["inner"], method.target.task_loss(logits[8:], batch.targets[8:]), atol=1e-6
    )
    assert torch.allclose(
        out["outer"], method.target.task_loss(logits[:8], batch.targets[:8]), atol=1e-6
    )


def test_the_outer_loss_is_of_parameters_adapted_to_the_incomplete_samples() -> None:
    method, batch = started(inner_lr=0.5)
    out = terms(method, batch)
    before = {name: p.detach().clone() for name, p in method.student.named_parameters()}
    parameters = list(method.student.parameters())
    gradients = torch.autograd.grad(out["inner"], parameters, retain_graph=True, allow_unused=True)
    with torch.no_grad():
        for p, g in zip(parameters, gradients, strict=True):
            p -= 0.5 * (0.0 if g is None else g)
        logits = method.student(batch.complete()).logits
        by_hand = method.target.task_loss(logits[:8], batch.targets[:8])
        for name, p in method.student.named_parameters():
            p.copy_(before[name])
    assert torch.allclose(out["outer"], by_hand, atol=1e-5)
    other = batch.targets.clone()
    other[8:] = (other[8:] + 1) % 3
    assert not torch.allclose(terms(method, batch, other)["outer"], by_hand, atol=1e-4)
    out["outer"].backward()
    assert method.student.encoders[0].embed.weight.grad.abs().max() > 0


def test_a_batch_without_complete_or_without_incomplete_samples_has_finite_terms() -> None:
    method, batch = started()
    for missing in (True, False):
        present = {m: torch.zeros_like(x) if missing else x for m, x in batch.exists.items()}
        out = terms(method, Batch(**{**batch.__dict__, "present": present}))
        assert out["outer" if missing else "inner"] == 0
        assert out["inner" if missing else "outer"] > 0
        sum(out.values()).backward()
        assert all(
            torch.isfinite(p.grad).all() for p in method.student.parameters() if p.grad is not None
        )


@pytest.mark.parametrize(
    ("target", "targets"),
    [
        (CLASSES, torch.arange(6) % 3),
        (QUESTIONS, torch.arange(24).reshape(6, 4) % 2),
        (SCORE, torch.linspace(-2, 1, 6)),
    ],
)
def test_the_masked_loss_is_the_task_loss_of_its_rows(
    target: Target, targets: torch.Tensor
) -> None:
    torch.manual_seed(0)
    logits = torch.randn(6, *target.response_shape)
    selected = torch.tensor([True, False, True, True, False, False])
    for weights in (None, torch.tensor([0.5, 2.0, 1.0])[: logits.shape[-1]]):
        expected = target.task_loss(logits[selected], targets[selected], weights)
        assert torch.allclose(
            target.masked_task_loss(logits, targets, selected, weights), expected, atol=1e-6
        )


@pytest.mark.parametrize("target", ["classes", "score"])
def test_learns_to_predict_and_to_reconstruct(target: str) -> None:
    samples = make_samples(make_dataset(), target=target)
    method = SMIL(network_for(SMILNetwork, samples, SMALL))
    history = fit(method, samples, missing=True, epochs=20).history
    assert history[-1]["loss/inner"] < 0.8 * history[0]["loss/inner"]
    assert history[-1]["loss/reconstruction"] < 0.95 * history[0]["loss/reconstruction"]


@pytest.mark.slow
def test_reaches_half_way_from_the_floor_to_bayes_accuracy() -> None:
    assert progress_to_bayes(SMILNetwork, SMIL, epochs=4) > 0.5
