from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from corrkd.data.batches import Context, Samples
from corrkd.data.inputs import Inputs
from corrkd.data.synthetic import SyntheticSpec, make
from corrkd.evaluation.bayes import bayes_accuracy
from corrkd.methods.base import TrainingBatch
from corrkd.methods.self_mm import (
    LabelGeneration,
    SelfMM,
    centres,
    relative_distance,
    shifted_labels,
)
from corrkd.networks.self_mm import SelfMMNetwork, SelfMMSettings
from corrkd.settings import MissingSettings, TrainingSettings
from corrkd.targets.base import Target
from corrkd.targets.classes import ClassesTarget
from corrkd.targets.questions import QuestionsTarget
from corrkd.targets.score import ScoreTarget
from corrkd.training.fabric import Fabric
from corrkd.training.loop import Trained, train
from tests.conftest import make_dataset, make_samples, training_batch, values

CLASSES = ClassesTarget(name="classes", classes=("a", "b", "c"))
QUESTIONS = QuestionsTarget(name="questions", classes=("no", "yes"), questions=("p", "q"))
SCORE = ScoreTarget(name="score", classes=("negative", "positive"), cuts=(0.0,))
ONE = torch.ones(())
alphas = st.floats(-0.9, 0.9).filter(lambda x: abs(x) > 0.05)


def tensor(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


# The offset


@given(alphas, alphas, st.floats(0.1, 3.0))
@settings(deadline=None, max_examples=60)
def test_the_offset_is_as_published_where_fused_representation_and_label_agree(
    unimodal: float, fused: float, size: float
) -> None:
    """y_s = y_m + (alpha_s - alpha_m)/2 (y_m + alpha_m)/alpha_m, clipped to the range of the
    labels.
    """
    truth = size if fused > 0 else -size
    published = truth + (unimodal - fused) / 2 * (truth + fused) / fused
    label = float(shifted_labels(tensor(unimodal), tensor(fused), tensor(truth), 3.0 * ONE, ONE))
    assert label == pytest.approx(min(max(published, -3.0), 3.0), abs=1e-9)


@given(alphas, alphas, alphas, st.sampled_from([-1.0, 1.0]))
@settings(deadline=None, max_examples=60)
def test_labels_grow_with_the_nearness_to_a_class(
    first: float, second: float, fused: float, truth: float
) -> None:
    low, high = sorted((first, second))
    labels = shifted_labels(
        tensor(low, high, fused), tensor(fused).expand(3), tensor(truth).expand(3), ONE, ONE
    )
    assert labels[0] <= labels[1]
    assert labels[2] == pytest.approx(truth)
    assert labels.abs().max() <= 1.0


def test_without_centres_the_samples_label_is_kept() -> None:
    features = torch.randn(4, 2)
    result = centres(features, torch.zeros(4, 1, dtype=torch.bool))
    assert result.isinf().all()
    for positive, negative in ((torch.inf, 1.0), (1.0, torch.inf), (torch.inf, torch.inf)):
        alpha = relative_distance(tensor(positive), tensor(negative))
        assert shifted_labels(alpha, tensor(0.3), tensor(1.0), ONE, ONE) == 1.0


def test_centres_and_alpha_by_hand() -> None:
    torch.manual_seed(0)
    scores = torch.tensor([-2.0, -1.0, 1.0, 2.0, 3.0])
    labels = LabelGeneration(SCORE)
    labels.start(scores, [4], 4)
    memory, sample = torch.randn(5, 4), torch.randn(1, 4)
    counted = torch.tensor([True, True, True, False, True])
    near = float(((sample[0] - (memory[2] + memory[4]) / 2) ** 2).sum()) / 2
    far = float(((sample[0] - (memory[0] + memory[1]) / 2) ** 2).sum()) / 2
    alpha = labels.alpha(sample, memory, labels.truth, counted)
    assert float(alpha) == pytest.approx((far - near) / (far + near), rel=1e-4)
    labels = LabelGeneration(CLASSES)
    labels.start(torch.tensor([0, 0, 1, 1, 2]), [4], 4)
    d = [float(((sample[0] - x) ** 2).sum()) for x in (memory[:2].mean(0), memory[2], memory[4])]
    alpha = labels.alpha(sample, memory, labels.truth, counted)
    for k in range(3):
        other = min(d[j] for j in range(3) if j != k)
        assert float(alpha[0, k]) == pytest.approx((other - d[k]) / (other + d[k]), rel=1e-4)


# The labels


def at_classes(labels: Tensor, noise: float = 0.1) -> Tensor:
    """Representations around a point for each class."""
    return 3.0 * torch.eye(3)[labels] + noise * torch.randn(len(labels), 3)


def test_unimodal_labels_move_towards_the_class_they_belong_to() -> None:
    """Some samples have a first modality of the next class: only its labels move, step by step."""
    torch.manual_seed(0)
    truth = torch.arange(60) % 3
    swapped = torch.arange(60) < 12
    first = torch.where(swapped, (truth + 1) % 3, truth)
    labels = LabelGeneration(CLASSES)
    labels.start(truth, [3, 3], 3)
    rows, everywhere = torch.arange(60), [torch.ones(60, dtype=torch.bool)] * 2
    belongs = []
    for _ in range(6):
        labels.update(rows, at_classes(truth), [at_classes(first), at_classes(truth)], everywhere)
        moved = labels.distribution(labels.of(0, rows))
        assert torch.allclose(moved.sum(1), torch.ones(60))
        belongs.append(moved[rows, first][swapped].mean())
    assert belongs[0] < 1e-4  # at first every label is the sample's
    assert all(later >= earlier for earlier, later in pairwise(belongs))
    assert belongs[-1] > 0.8
    assert (moved.argmax(1) == first).all()
    assert moved[rows, truth][~swapped].min() > 0.8
    assert labels.distribution(labels.of(1, rows))[rows, truth].min() > 0.8


@pytest.mark.parametrize("target", [QUESTIONS, SCORE])
def test_signed_labels_move_to_the_side_they_belong_to(target: Target) -> None:
    torch.manual_seed(0)
    side = torch.arange(40) % 2 * 2.0 - 1.0
    swapped = torch.arange(40) < 6
    targets = torch.stack([side > 0, side > 0], 1).long() if target is QUESTIONS else side
    labels = LabelGeneration(target)
    labels.start(targets, [2], 2)
    rows = torch.arange(40)
    for _ in range(5):
        moved_side = torch.where(swapped, -side, side)
        unimodal, fused = (2.0 * x[:, None] + torch.randn(40, 2) for x in (moved_side, side))
        labels.update(rows, fused, [unimodal], [torch.ones(40, dtype=torch.bool)])
    signed = labels.of(0, rows)[:, 0] * side
    assert signed[swapped].mean() < -0.3
    assert signed[~swapped].mean() > signed[swapped].mean() + 0.5
    assert labels.unimodal.abs().max() <= 1.0


def test_scores_are_relative_to_a_neutral_point() -> None:
    for scores, neutral in (
        (torch.tensor([-1.0, 2.0, 2.0]), 0.0),
        (torch.tensor([10.0, 20.0, 60.0]), 30.0),
    ):
        labels = LabelGeneration(SCORE)
        labels.start(scores, [2], 2)
        assert float(labels.neutral) == neutral
        assert torch.equal(labels.truth[:, 0] + neutral, scores)
        assert labels.bound == labels.truth.abs().max()


def test_the_unit_of_a_score_does_not_matter() -> None:
    truth = torch.randn(30, generator=torch.Generator().manual_seed(0))
    generated = []
    for unit in (1.0, 100.0):
        torch.manual_seed(0)
        labels = LabelGeneration(SCORE)
        labels.start(unit * truth, [2], 2)
        for _ in range(4):
            unimodal, fused = (
                truth[:, None] + torch.randn(30, 2),
                truth[:, None] + torch.randn(30, 2),
            )
            labels.update(torch.arange(30), fused, [unimodal], [torch.ones(30, dtype=torch.bool)])
        generated.append(labels.of(0, torch.arange(30)) / unit)
    assert torch.allclose(*generated, atol=1e-5)
    assert not torch.allclose(generated[0][:, 0], truth, atol=1e-2)


def test_momentum_is_as_published() -> None:
    """From the second epoch i on: (i - 1)/(i + 1) of the old label, 2/(i + 1) of the new."""
    torch.manual_seed(0)
    truth = torch.arange(30) % 3
    labels = LabelGeneration(CLASSES)
    labels.start(truth, [3], 3)
    rows, visible = torch.arange(30), [torch.ones(30, dtype=torch.bool)]
    for epoch in range(1, 5):
        old = labels.of(0, rows).clone()
        unimodal, fused = at_classes(truth.roll(1), 1.0), at_classes(truth, 1.0)
        fused_alpha = labels.alpha(fused, labels.fused, labels.truth, labels.seen[0] > 0)
        alpha = labels.alpha(unimodal, labels.memory_0, labels.unimodal[0], labels.seen[0] > 0)
        new = shifted_labels(alpha, fused_alpha, labels.truth, ONE, ONE)
        labels.update(rows, fused, [unimodal], visible)
        expected = old if epoch == 1 else (epoch - 1) / (epoch + 1) * old + 2 / (epoch + 1) * new
        assert torch.allclose(labels.of(0, rows), expected, atol=1e-6)
        assert torch.equal(labels.memory_0, unimodal)
    assert not torch.equal(labels.of(0, rows), labels.truth)


def test_an_invisible_modality_keeps_its_label() -> None:
    torch.manual_seed(0)
    truth = torch.arange(30) % 3
    labels = LabelGeneration(CLASSES)
    labels.start(truth, [3], 3)
    rows, visible = torch.arange(30), torch.arange(30) >= 5
    for _ in range(3):
        labels.update(rows, at_classes(truth, 1.0), [at_classes(truth.roll(1), 1.0)], [visible])
    assert torch.equal(labels.of(0, rows)[:5], labels.truth[:5])
    assert not labels.memory_0[:5].any()
    assert not torch.equal(labels.of(0, rows)[5:], labels.truth[5:])
    assert labels.seen[0].tolist() == [0] * 5 + [3] * 25


# Training


def fresh(samples: Samples, network: SelfMMSettings | None = None) -> SelfMM:
    torch.manual_seed(0)
    lengths = {m: x.shape[1] for m, x in samples.exists.items()}
    return SelfMM(SelfMMNetwork(samples.widths, lengths, target=samples.target, settings=network))


def fit(method: SelfMM, samples: Samples, epochs: int = 12, **options: object) -> Trained:
    return train(
        method,
        samples,
        settings=TrainingSettings(epochs=epochs, batch_size=16, lr=5e-3),
        seed=3,
        fabric=Fabric(accelerator="cpu", devices=1),
        **{"validate": lambda _: 0.0, **options},  # type: ignore[arg-type]
    )


@torch.no_grad()
def accuracy(network: torch.nn.Module, samples: Samples) -> float:
    network.eval()
    correct = [
        (network(b.complete()).logits.argmax(-1) == b.targets).float() for b in samples.batches(256)
    ]
    return float(torch.cat(correct).mean())


@pytest.mark.parametrize("target", ["classes", "binary-nonzero", "score"])
@pytest.mark.parametrize("missing", [None, MissingSettings()])
def test_a_short_training_lowers_the_task_loss(
    target: str, missing: MissingSettings | None
) -> None:
    samples = make_samples(make_dataset(), target=target)
    trained = fit(fresh(samples), samples, missing=missing)
    assert trained.history[-1]["loss/task"] < 0.8 * trained.history[0]["loss/task"]
    assert trained.history[0]["loss/unimodal"] == 0.0  # all labels are still the samples'
    assert trained.history[2]["loss/unimodal"] > 0.0


def test_training_detects_samples_with_the_audio_of_another_class() -> None:
    dataset = make_dataset(sizes=(96, 30, 30))
    split = dataset.splits["train"]
    swapped = np.zeros(96, bool)
    swapped[np.flatnonzero(split.labels == 0)[:8]] = True
    donors = np.flatnonzero(split.labels == 2)[:8]
    for arrays in (split.frames, split.present, split.lengths):
        arrays["audio"][swapped] = arrays["audio"][donors]
    samples = make_samples(dataset)
    method = fresh(samples)
    fit(method, samples, epochs=15)
    labels = method.labels.distribution(method.labels.of(1, torch.arange(96)))
    usual = torch.as_tensor(~swapped & (split.labels == 0))
    assert labels[torch.as_tensor(swapped), 2].mean() > labels[usual, 2].mean() + 0.2


def test_the_unimodal_tasks_train_the_encoders() -> None:
    samples = make_samples(make_dataset())
    method = fresh(samples)
    method.start(samples)
    method.labels.unimodal.mul_(0.5)
    terms = values(method(training_batch(samples, 8)))
    terms["unimodal"].backward()
    assert all(p.grad is not None and p.grad.any() for p in method.student.encoders.parameters())
    assert all(p.grad is not None and p.grad.any() for p in method.student.projections.parameters())
    assert all(p.grad is None for p in method.student.head.parameters())


@pytest.mark.parametrize("target", [CLASSES, QUESTIONS, SCORE])
def test_the_unimodal_loss_by_hand(target: Target) -> None:
    torch.manual_seed(0)
    network = SelfMMNetwork({"a": 3, "b": 2}, {"a": 4, "b": 4}, target=target)
    method = SelfMM(network)
    shapes = {"classes": (6,), "questions": (6, 2), "score": (6,)}
    targets = torch.randn(6) if target is SCORE else torch.randint(0, 2, shapes[target.kind])
    method.labels.start(targets, [32, 32], 64)
    method.labels.unimodal.copy_(method.labels.truth * torch.rand(2, 6, 1))
    frames = {m: torch.randn(6, 4, d) for m, d in (("a", 3), ("b", 2))}
    exists = {m: torch.ones(6, 4, dtype=torch.bool) for m in frames}
    visible = {"a": exists["a"], "b": torch.arange(6)[:, None].expand(6, 4) < 4}
    inputs, rows = Inputs(frames, exists, visible), torch.arange(6)
    method.eval()
    terms = values(method(TrainingBatch(inputs, targets, Context(rows, rows, rows, rows))))
    expected = 0.0
    for index, output in enumerate(network.tasks(inputs)[1]):
        for i in range(6 if index == 0 else 4):
            label, truth = method.labels.unimodal[index, i], method.labels.truth[i]
            weight = torch.tanh((label - truth).abs())
            if target is SCORE:
                loss = weight[0] * (output.logits[i, 0] - method.labels.neutral - label[0]).abs()
            elif target is CLASSES:
                p = (label + 1) / 2
                loss = -weight.max() * (p / p.sum() * torch.log_softmax(output.logits[i], -1)).sum()
            else:
                p = torch.stack([1 - (label + 1) / 2, (label + 1) / 2], -1)
                loss = -(weight * (p * torch.log_softmax(output.logits[i], -1)).sum(-1)).mean()
            expected += float(loss.detach()) / 6
    assert float(terms["unimodal"].detach()) == pytest.approx(expected, rel=1e-3)
    assert torch.equal(
        method.labels.seen, torch.zeros(2, 6, dtype=torch.int64)
    )  # evaluation leaves the memory alone


def test_an_interrupted_training_resumes_with_its_memory(tmp_path: Path) -> None:
    samples = make_samples(make_dataset())

    def stop(record: dict[str, float]) -> None:
        if record["epoch"] == 3:
            raise KeyboardInterrupt

    uninterrupted = fresh(samples)
    straight = fit(uninterrupted, samples, epochs=5)
    path = tmp_path / "last.ckpt"
    with pytest.raises(KeyboardInterrupt):
        fit(fresh(samples), samples, epochs=5, checkpoint=path, on_epoch=stop)
    restarted = fresh(samples)
    resumed = fit(restarted, samples, epochs=5, checkpoint=path)
    assert straight.history == resumed.history
    assert torch.equal(uninterrupted.labels.unimodal, restarted.labels.unimodal)


@pytest.mark.slow
def test_reaches_half_way_from_the_floor_to_bayes_accuracy() -> None:
    dataset = make(SyntheticSpec())
    samples, valid, test = (make_samples(dataset, split) for split in ("train", "valid", "test"))
    method = fresh(samples)
    stage = TrainingSettings(
        epochs=12, batch_size=32, lr=3e-3, optimizer="adamw", weight_decay=0.05, schedule="cosine"
    )
    trained = train(
        method,
        samples,
        settings=stage,
        seed=0,
        fabric=Fabric(accelerator="cpu", devices=1),
        validate=lambda network: accuracy(network, valid),
    )
    method.student.load_state_dict(trained.state)
    floor = float(torch.bincount(test.targets).max()) / len(test)
    bayes = bayes_accuracy(
        dataset.posterior("test", {m: x.numpy() for m, x in test.present.items()})
    )
    reached = accuracy(method.student, test)
    assert reached >= (floor + bayes) / 2, (
        f"floor {floor:.3f}, reached {reached:.3f}, Bayes {bayes:.3f}"
    )


@pytest.mark.slow
@pytest.mark.parametrize("target", ["classes", "score"])
def test_generated_labels_are_closer_to_the_modalitys_posterior_than_the_samples_labels(
    target: str,
) -> None:
    dataset = make(SyntheticSpec())
    samples = make_samples(dataset, target=target)
    method = fresh(samples)
    fit(method, samples, epochs=8)
    labels = method.labels
    for index, m in enumerate(method.student.modalities):
        generated, truth = labels.of(index, torch.arange(len(samples))), labels.truth
        visible = {m: samples.present[m].numpy()}
        if target == "classes":
            generated, truth = labels.distribution(generated), labels.distribution(truth)
            exact = dataset.posterior("train", visible)
        else:
            exact = dataset.posterior.score("train", visible)[0]
        agreement = [
            np.corrcoef(x.numpy().ravel(), exact.ravel())[0, 1] for x in (generated, truth)
        ]
        assert agreement[0] > agreement[1], (m, agreement)
