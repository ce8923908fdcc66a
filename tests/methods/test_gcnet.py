"""GCNet in training: dropped features are restored from other modalities and the conversation."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from corrkd.data.batches import Samples
from corrkd.data.dataset import MultimodalDataset, Split
from corrkd.data.inputs import Inputs
from corrkd.data.synthetic import make
from corrkd.evaluation.bayes import bayes_accuracy
from corrkd.methods.gcnet import (
    GCNet,
    dropped_share,
    restoration_loss,
    standardised,
    utterance_means,
)
from corrkd.networks.gcnet import GCNetSettings, GCNetwork
from corrkd.settings import MissingSettings, TrainingSettings
from corrkd.training.fabric import Fabric
from corrkd.training.loop import train
from tests.conftest import make_dataset, make_samples

SMALL = GCNetSettings(width=16, heads=2, dropout=0.0)


def fresh(samples: Samples, settings: GCNetSettings = SMALL) -> GCNet:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        frames = {m: x.shape[1] for m, x in samples.exists.items()}
        target = samples.target
        net = GCNetwork(samples.widths, frames, target=target, settings=settings)
        return GCNet(net)


def fit(
    method: GCNet,
    samples: Samples,
    *,
    epochs: int = 10,
    lr: float = 5e-3,
    missing: MissingSettings | None,
) -> list:
    stage = TrainingSettings(epochs=epochs, batch_size=32, lr=lr, schedule="cosine")
    fabric = Fabric(accelerator="cpu", devices=1)
    return train(
        method,
        samples,
        settings=stage,
        validate=lambda _: 0.0,
        seed=1,
        fabric=fabric,
        missing=missing,
    ).history


def talks(name: str, count: int, seed: int) -> Split:
    """Make conversations of eight utterances about a hidden topic that each modality depends on."""
    rng = np.random.default_rng(seed)
    topic = np.repeat(rng.normal(size=(count, 2)), 8, 0)
    mixing = np.random.default_rng(0)
    features = {
        m: (
            (topic @ mixing.normal(size=(2, d)))[:, None] + 0.5 * rng.normal(size=(8 * count, 3, d))
        ).astype(np.float32)
        for m, d in (("language", 4), ("audio", 3))
    }
    exists = np.ones((8 * count, 3), bool)
    return Split(
        frames=features,
        lengths={m: exists.sum(1) for m in features},
        present=dict.fromkeys(features, exists),
        ids=np.array([f"{name}-{i}" for i in range(8 * count)]),
        labels=(topic[:, 0] > 0).astype(np.int64),
        groups={
            "video": np.repeat([f"{name}{i}" for i in range(count)], 8),
            "speaker": np.tile(["x", "y"], 4 * count),
        },
        order=np.tile(np.arange(8), count),
    )


def conversations() -> MultimodalDataset:
    sizes = {"train": 40, "valid": 20, "test": 20}
    splits = {name: talks(name, count, seed) for seed, (name, count) in enumerate(sizes.items(), 1)}
    return MultimodalDataset(name="talks", splits=splits, sha256="0" * 64)


def test_restores_dropped_features_better_than_the_mean() -> None:
    """On unseen conversations, from the other modality or from the neighbouring utterances."""
    dataset = conversations()
    samples, unseen = make_samples(dataset), make_samples(dataset, "test")
    method = fresh(samples)
    fit(method, samples, epochs=30, missing=MissingSettings())
    batch = unseen.take(torch.arange(len(unseen)))
    means = utterance_means(batch.frames, batch.present)
    truth = {m: standardised(x, batch.present[m].any(1)) for m, x in means.items()}
    context = unseen.context(batch.rows)
    # Features are standardised: the mean's error is 1.
    no_language = {"language": batch.present["language"] & False, "audio": batch.present["audio"]}
    assert (
        restoration_error(method, batch, no_language, context, truth, slice(None))["language"] < 0.5
    )
    third = torch.arange(len(unseen)) % 8 == 3
    no_third = {m: present & ~third[:, None] for m, present in batch.present.items()}
    with_context = restoration_error(method, batch, no_third, context, truth, third)
    without_context = restoration_error(method, batch, no_third, None, truth, third)
    assert all(error < 0.5 for error in with_context.values())
    assert all(without_context[m] > 2 * with_context[m] for m in with_context)


def restoration_error(method, batch, visible, context, truth, rows):  # type: ignore[no-untyped-def]
    method.eval()
    with torch.no_grad():
        restored = method.student.restore(
            method.student(Inputs(batch.frames, batch.exists, visible), context).representation
        )
    return {m: float((restored[m] - truth[m])[rows].square().mean()) for m in truth}


def test_reconstruction_counts_only_dropped_frames_that_existed() -> None:
    present = torch.tensor([[True, True, False, False]] * 3 + [[False] * 4])
    visible = torch.tensor(
        [[True, True, False, False], [True, False, False, False], [False] * 4, [False] * 4]
    )
    share = dropped_share(present, visible)
    assert share.tolist() == [0.0, 0.5, 1.0, 0.0]
    truth = {"a": torch.zeros(4, 2)}
    restored = {"a": torch.tensor([[9.0, 9.0], [1.0, 1.0], [2.0, 2.0], [9.0, 9.0]])}
    assert float(restoration_loss(restored, truth, {"a": share})) == pytest.approx(
        (0.5 * 1 + 1 * 4) / 4
    )
    assert float(restoration_loss(restored, truth, {"a": torch.zeros(4)})) == 0.0
    duplicated = [{**side, "b": side["a"]} for side in (restored, truth, {"a": share})]
    assert float(restoration_loss(*duplicated)) == pytest.approx(2 * (0.5 * 1 + 1 * 4) / 4)


def test_features_are_standardised_over_present_utterances() -> None:
    torch.manual_seed(0)
    means, present = 3 + 5 * torch.randn(50, 4), torch.arange(50) % 3 > 0
    means[:, 1] = 2.0
    out = standardised(means, present)
    assert torch.allclose(out[present].mean(0), torch.zeros(4), atol=1e-5)
    assert torch.allclose(out[present][:, [0, 2, 3]].std(0, correction=0), torch.ones(3), atol=1e-5)
    assert not out[~present].any()
    assert not out[:, 1].any()
    assert not standardised(means, present & False).any()


def test_batches_follow_the_conversations() -> None:
    samples = make_samples(conversations())
    rows = fresh(samples).batches(samples, 32, torch.Generator().manual_seed(0))
    conversation = samples.context(torch.arange(len(samples))).conversation
    assert [len(r) for r in rows] == [32] * 10
    assert all(len(conversation[r].unique()) == 4 for r in rows)
    again = fresh(samples).batches(samples, 32, torch.Generator().manual_seed(1))
    assert not torch.equal(torch.cat(list(rows)), torch.cat(list(again)))


@pytest.mark.parametrize("target", ["classes", "binary-nonzero", "score"])
def test_every_kind_of_target_learns(target: str) -> None:
    samples = make_samples(make_dataset(), target=target)
    history = fit(fresh(samples), samples, epochs=12, lr=1e-2, missing=MissingSettings())
    assert history[-1]["loss/task"] < 0.8 * history[0]["loss/task"]
    assert history[-1]["loss/reconstruction"] < history[0]["loss/reconstruction"]


def test_complete_samples_leave_nothing_to_restore() -> None:
    samples = make_samples(make_dataset())
    history = fit(fresh(samples), samples, epochs=1, missing=None)
    assert history[0]["loss/reconstruction"] == 0.0


@pytest.mark.slow
def test_reaches_half_way_from_the_floor_to_bayes_accuracy() -> None:
    dataset = make()
    samples, test = make_samples(dataset), make_samples(dataset, "test")
    method = fresh(samples, GCNetSettings())
    fit(method, samples, epochs=8, lr=3e-3, missing=MissingSettings())
    batch = test.take(torch.arange(len(test)))
    method.eval()
    with torch.no_grad():
        predictions = method.student(batch.complete(), test.context(batch.rows)).logits.argmax(1)
    accuracy = float((predictions == test.targets).float().mean())
    floor = float(torch.bincount(test.targets).max() / len(test))
    assert dataset.posterior is not None
    best = bayes_accuracy(
        dataset.posterior("test", {m: x.numpy() for m, x in test.present.items()})
    )
    assert accuracy > (floor + best) / 2
