from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from corrkd.data.batches import Samples
from corrkd.errors import CorrKDError
from corrkd.evaluation.sweep import mean_missing_f1
from corrkd.methods.base import Method, TeacherOutputs
from corrkd.methods.corrkd import CorrKD, CorrKDOptions
from corrkd.methods.gcnet import GCNet
from corrkd.methods.response_kl import ResponseKL
from corrkd.methods.task import TaskOnly
from corrkd.networks.corrkd import CorrKDNetwork
from corrkd.networks.registry import network_class
from corrkd.networks.saved import build_network
from corrkd.settings import MissingSettings, NetworkSettings, TrainingSettings
from corrkd.training.fabric import Fabric
from corrkd.training.loop import VALID, Record, Trained, teacher_outputs, train
from tests.conftest import (
    CLASSES,
    QUESTIONS,
    SCORE,
    make_dataset,
    make_samples,
    training_batch,
    values,
)
from tests.networks.test_all_networks import in_conversations

SMALL = NetworkSettings(width=8, heads=2, feedforward=16, layers=1, classifier=(6,), dropout=0.2)
STAGE = TrainingSettings(epochs=4, batch_size=16, lr=1e-2)


class StoppedError(Exception):
    pass


def fresh(samples: Samples, seed: int = 0) -> CorrKDNetwork:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return build_network(
            samples.target,
            samples.widths,
            {m: x.shape[1] for m, x in samples.exists.items()},
            SMALL,
        )


def corrkd(samples: Samples) -> CorrKD:
    with torch.random.fork_rng():
        torch.manual_seed(5)
        return CorrKD(fresh(samples), CorrKDOptions(), teachers=teachers(samples))


def teachers(samples: Samples) -> TeacherOutputs:
    return teacher_outputs(fresh(samples, 1), samples)


def fit(
    method: Method, samples: Samples, stage: TrainingSettings = STAGE, **options: object
) -> Trained:
    valid = make_samples(make_dataset(), "valid", samples.target.name)
    return train(
        method,
        samples,
        settings=stage,
        seed=3,
        **{
            "fabric": Fabric(accelerator="cpu", devices=1),
            "missing": MissingSettings(),
            "validate": lambda network: mean_missing_f1(network, valid),
            **options,
        },  # type: ignore[arg-type]
    )


def same(first: Trained, second: Trained) -> bool:
    return (
        all(torch.equal(first.state[name], second.state[name]) for name in first.state)
        and first.history == second.history
        and (first.epoch, first.score) == (second.epoch, second.score)
    )


def test_the_same_seed_gives_the_same_bits_and_keeps_the_global_generator() -> None:
    samples = make_samples(make_dataset())
    first = fit(corrkd(samples), samples)
    torch.manual_seed(77)
    before = torch.random.get_rng_state()
    assert same(first, fit(corrkd(samples), samples))
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize("average", [0.0, 0.9])
@pytest.mark.parametrize("stopped", [1, 2, 3])
def test_an_interrupted_training_resumes_with_the_same_bits(
    tmp_path: Path, stopped: int, average: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("corrkd.training.run.SHARE", math.inf)  # each epoch is written
    samples = make_samples(make_dataset())
    stage = STAGE.model_copy(update={"average": average})
    uninterrupted = fit(corrkd(samples), samples, stage)

    def stop(record: Record) -> None:
        if record["epoch"] == stopped:
            raise StoppedError

    path = tmp_path / "last.ckpt"
    with pytest.raises(StoppedError):
        fit(corrkd(samples), samples, stage, checkpoint=path, on_epoch=stop)
    assert path.exists() == (stopped > 1)
    epochs: list[float] = []
    resumed = fit(
        corrkd(samples),
        samples,
        stage,
        checkpoint=path,
        on_epoch=lambda record: epochs.append(record["epoch"]),
    )
    assert same(uninterrupted, resumed)
    assert epochs == list(range(stopped, 5))


def test_reading_frames_by_batch_changes_nothing() -> None:
    dataset = make_dataset()
    assert same(
        fit(corrkd(make_samples(dataset)), make_samples(dataset)),
        fit(corrkd(make_samples(dataset)), make_samples(dataset, resident_bytes=0)),
    )


def test_the_epoch_with_the_highest_score_is_kept_and_the_earliest_on_ties() -> None:
    samples = make_samples(make_dataset())
    scores = iter([0.2, 0.5, 0.5, 0.4])
    states = []

    def validate(network: CorrKDNetwork) -> float:
        states.append({name: value.clone() for name, value in network.state_dict().items()})
        return next(scores)

    trained = fit(TaskOnly(fresh(samples)), samples, validate=validate)
    assert (trained.epoch, trained.score) == (2, 0.5)
    assert all(torch.equal(trained.state[name], states[1][name]) for name in trained.state)
    assert [record[VALID] for record in trained.history] == [0.2, 0.5, 0.5, 0.4]


def test_the_last_epoch_is_kept_if_configured() -> None:
    samples = make_samples(make_dataset())
    scores = iter([0.2, 0.5, 0.5, 0.4])
    stage = STAGE.model_copy(update={"keep": "last"})
    trained = fit(TaskOnly(fresh(samples)), samples, stage, validate=lambda network: next(scores))
    assert (trained.epoch, trained.score) == (4, 0.4)
    other = fit(TaskOnly(fresh(samples)), samples, stage, validate=lambda network: 0.0)
    assert all(torch.equal(trained.state[name], other.state[name]) for name in trained.state)


def test_averaged_weights_are_the_running_average_and_do_not_affect_training() -> None:
    samples = make_samples(make_dataset())
    name = [key for key, _ in fresh(samples).named_parameters()][-2]  # the last layer's weight

    def steps(average: float) -> tuple[list[torch.Tensor], Trained, list[torch.Tensor]]:
        """Return parameters after every step, the result, and parameters at validation."""
        method, after, validated = TaskOnly(fresh(samples)), [], []
        watched = dict(method.student.named_parameters())[name]

        def validate(network: CorrKDNetwork) -> float:
            validated.append(watched.detach().clone())
            return 0.0

        # A forward pass begins with the parameters of the step before.
        method.register_forward_pre_hook(lambda *_: after.append(watched.detach().clone()))
        stage = STAGE.model_copy(update={"average": average, "keep": "last"})
        trained = fit(method, samples, stage, validate=validate)
        return [*after[1:], watched.detach().clone()], trained, validated

    plain, _, _ = steps(0.0)
    after, trained, validated = steps(0.9)
    assert all(torch.equal(a, b) for a, b in zip(plain, after, strict=True))
    expected = fresh(samples).state_dict()[name].double()
    for step, weight in enumerate(after, 1):
        decay = min(0.9, step / (step + 9))
        expected = decay * expected + (1 - decay) * weight.double()
    assert torch.equal(trained.state[name], validated[-1])
    torch.testing.assert_close(trained.state[name].double(), expected, atol=1e-6, rtol=1e-5)
    assert not torch.equal(trained.state[name], after[-1])


def test_patience_stops_early() -> None:
    samples = make_samples(make_dataset())
    trained = fit(
        TaskOnly(fresh(samples)),
        samples,
        STAGE.model_copy(update={"epochs": 50, "patience": 3}),
        validate=lambda _: 0.5,
    )
    assert len(trained.history) == 4


def test_student_and_control_see_the_same_batches_and_masks() -> None:
    """With all distillation weights at zero the student is the control, bit for bit."""
    samples = make_samples(make_dataset())
    nothing = CorrKDOptions.model_validate({term: {"weight": 0} for term in ("scd", "cpd", "rcd")})
    student = fit(CorrKD(fresh(samples), nothing, teachers=teachers(samples)), samples)
    control = fit(TaskOnly(fresh(samples)), samples)
    assert same(student, control)


@pytest.mark.parametrize("target", ["classes", "binary-nonzero", "score"])
def test_every_kind_of_target_learns(target: str) -> None:
    samples = make_samples(make_dataset(), target=target)
    trained = fit(corrkd(samples), samples, STAGE.model_copy(update={"epochs": 12}))
    assert trained.history[-1]["loss/task"] < 0.8 * trained.history[0]["loss/task"]
    assert set(trained.history[0]) == {
        "epoch",
        "lr",
        "loss/total",
        "loss/task",
        "loss/scd",
        "loss/cpd",
        VALID,
    } | ({"loss/rcd"} if target != "score" else set())


def test_a_batch_larger_than_the_data_is_all_of_it() -> None:
    samples = make_samples(make_dataset())
    larger, exact = (
        fit(TaskOnly(fresh(samples)), samples, STAGE.model_copy(update={"batch_size": n}))
        for n in (9999, 48)
    )
    assert same(larger, exact)


def test_a_loss_that_is_not_finite_stops_the_training() -> None:
    samples = make_samples(make_dataset())
    method = TaskOnly(fresh(samples))
    with torch.no_grad():
        method.student.classifier[-1].bias.fill_(math.nan)
    with pytest.raises(CorrKDError, match="no longer finite in epoch 1 of 4; lower lr"):
        fit(method, samples)


@pytest.mark.parametrize("damage", ["truncate", "garbage", "shape"])
def test_a_damaged_checkpoint_is_refused_in_one_line(tmp_path: Path, damage: str) -> None:
    samples = make_samples(make_dataset())
    path = tmp_path / "last.ckpt"
    fit(corrkd(samples), samples, checkpoint=path)
    content = path.read_bytes()
    if damage == "truncate":
        path.write_bytes(content[: len(content) // 2])
    elif damage == "garbage":
        path.write_bytes(b"cos\nsystem\n(S'touch /tmp/never'\ntR.")
    method: Method = TaskOnly(fresh(samples)) if damage == "shape" else corrkd(samples)
    with pytest.raises(CorrKDError, match=r"last\.ckpt.*delete it to train") as caught:
        fit(method, samples, checkpoint=path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("schedule", "last"), [("constant", 1e-2), ("cosine", 1.5e-3), ("linear", 2.5e-3)]
)
def test_schedules(schedule: str, last: float) -> None:
    samples = make_samples(make_dataset())
    trained = fit(
        TaskOnly(fresh(samples)), samples, STAGE.model_copy(update={"schedule": schedule})
    )
    rates = [record["lr"] for record in trained.history]
    assert rates[0] == 1e-2
    assert rates[-1] == pytest.approx(last, rel=0.03)
    warm = fit(TaskOnly(fresh(samples)), samples, STAGE.model_copy(update={"warmup": 0.5}))
    assert [record["lr"] for record in warm.history] == pytest.approx(
        [1e-2 / 6, 1e-2 * 4 / 6, 1e-2, 1e-2]
    )


def test_balanced_class_weights_are_inverse_to_frequency() -> None:
    samples = make_samples(make_dataset())
    counts = torch.bincount(samples.targets).float()
    weights = samples.target.balanced_class_weights(samples.targets)
    assert torch.allclose(weights * counts, (weights * counts)[0].expand(3))
    assert (weights[samples.targets]).mean() == pytest.approx(1.0)


def test_task_losses_by_hand() -> None:
    torch.manual_seed(0)
    logits, labels = torch.randn(5, 3, dtype=torch.float64), torch.tensor([0, 2, 1, 1, 0])
    expected = (
        -sum(
            float(torch.log_softmax(row, -1)[k])
            for row, k in zip(logits, labels.tolist(), strict=True)
        )
        / 5
    )
    assert float(CLASSES.task_loss(logits, labels)) == pytest.approx(expected)
    responses, targets = torch.randn(5, 4, 2, dtype=torch.float64), torch.randint(0, 2, (5, 4))
    each = [float(CLASSES.task_loss(responses[:, q], targets[:, q])) for q in range(4)]
    assert float(QUESTIONS.task_loss(responses, targets)) == pytest.approx(sum(each) / 4)
    scores = torch.randn(5, dtype=torch.float64)
    assert float(SCORE.task_loss(logits[:, :1], scores)) == pytest.approx(
        float((logits[:, 0] - scores).abs().mean())
    )


def test_the_schedule_covers_the_steps_that_are_run() -> None:
    """Whole conversations, longer than a batch, make fewer steps than ceil(N / batch)."""
    samples = make_samples(in_conversations(make_dataset(), size=5))
    kind = network_class("gcnet")
    frames = {m: x.shape[1] for m, x in samples.exists.items()}
    method = GCNet(
        build_network(samples.target, samples.widths, frames, kind.settings_type(), kind)
    )
    counts: list[int] = []
    batches = method.batches

    def counted(*args: Any, **options: Any) -> Any:
        counts.append(len(batches(*args, **options)))
        return batches(*args, **options)

    method.batches = counted  # type: ignore[method-assign]
    stage = STAGE.model_copy(update={"schedule": "linear", "batch_size": 3})
    history = fit(method, samples, stage, validate=lambda network: 0.0).history
    planned, run = counts[: stage.epochs], counts[stage.epochs :]
    assert planned == run
    assert sum(run) < stage.epochs * math.ceil(len(samples) / 3)
    for record, done in zip(history, np.cumsum([0, *run]), strict=False):
        assert record["lr"] == pytest.approx(stage.lr * (1 - done / sum(run)))


@pytest.mark.parametrize("precision", ["32-true", "64-true", "bf16-mixed"])
def test_a_batch_keeps_its_structure_in_every_precision(precision: Any) -> None:
    """A step's arguments and losses pass through Fabric's conversions."""
    samples = make_samples(make_dataset())
    method = corrkd(samples)
    if precision == "64-true":
        method = method.double()
    fabric = Fabric(accelerator="cpu", devices=1, precision=precision)
    record = fit(
        method,
        samples,
        STAGE.model_copy(update={"epochs": 1}),
        fabric=fabric,
        validate=lambda _: 0.0,
    ).history[0]
    names = ("task", "scd", "cpd", "rcd")
    assert record["loss/total"] == pytest.approx(
        sum(record[f"loss/{name}"] for name in names), rel=1e-5
    )


def test_a_teacher_of_conversations_gets_complete_ones_and_its_rows_are_in_order() -> None:
    samples = make_samples(in_conversations(make_dataset(), size=5))
    kind = network_class("gcnet")
    frames = {m: x.shape[1] for m, x in samples.exists.items()}
    torch.manual_seed(0)
    network = build_network(samples.target, samples.widths, frames, kind.settings_type(), kind)
    outputs = teacher_outputs(network, samples, batch_size=7)
    rows = torch.arange(len(samples))
    with torch.no_grad():
        together = network.eval().in_context(samples.take(rows).complete(), samples.context(rows))
        apart = network(samples.take(rows).complete())
    torch.testing.assert_close(outputs.logits, together.logits, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(
        outputs.representation, together.representation, atol=1e-5, rtol=1e-4
    )
    assert not torch.allclose(outputs.logits, apart.logits, atol=1e-3)


def test_a_student_of_conversations_learns_with_a_general_method() -> None:
    samples = make_samples(in_conversations(make_dataset(), size=5))
    kind = network_class("gcnet")
    frames = {m: x.shape[1] for m, x in samples.exists.items()}
    torch.manual_seed(0)
    network = build_network(samples.target, samples.widths, frames, kind.settings_type(), kind)
    method = ResponseKL(network, teachers=teachers(samples))
    batch = training_batch(samples)
    expected = network.eval().in_context(batch.inputs, batch.context).logits
    task, _ = values(method(batch)).values()
    torch.testing.assert_close(task, samples.target.task_loss(expected, batch.targets))
    history = fit(
        method, samples, STAGE.model_copy(update={"epochs": 12}), validate=lambda _: 0.0
    ).history
    assert history[-1]["loss/task"] < 0.8 * history[0]["loss/task"]
