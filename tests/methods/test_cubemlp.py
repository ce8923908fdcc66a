from __future__ import annotations

import pytest
import torch

from corrkd.data.batches import Samples
from corrkd.data.synthetic import SyntheticSpec, make
from corrkd.evaluation.bayes import bayes_accuracy
from corrkd.methods.cubemlp import CubeMLP
from corrkd.networks.cubemlp import CubeMLPNetwork
from corrkd.settings import MissingSettings, TrainingSettings
from corrkd.training.fabric import Fabric
from corrkd.training.loop import train
from tests.conftest import make_dataset, make_samples


def fresh(samples: Samples) -> CubeMLP:
    torch.manual_seed(0)
    lengths = {m: x.shape[1] for m, x in samples.exists.items()}
    network = CubeMLPNetwork(samples.widths, lengths, target=samples.target)
    return CubeMLP(network)


@torch.no_grad()
def accuracy(network: torch.nn.Module, samples: Samples) -> float:
    network.eval()
    correct = [
        (network(b.complete()).logits.argmax(-1) == b.targets).float() for b in samples.batches(256)
    ]
    return float(torch.cat(correct).mean())


@pytest.mark.parametrize("target", ["classes", "binary-nonzero", "score"])
def test_a_short_training_lowers_the_task_loss(target: str) -> None:
    samples = make_samples(make_dataset(), target=target)
    trained = train(
        fresh(samples),
        samples,
        settings=TrainingSettings(epochs=12, batch_size=16, lr=5e-3),
        seed=3,
        fabric=Fabric(accelerator="cpu", devices=1),
        missing=MissingSettings(),
        validate=lambda _: 0.0,
    )
    assert trained.history[-1]["loss/task"] < 0.8 * trained.history[0]["loss/task"]
    assert set(trained.history[0]) >= {"loss/total", "loss/task"}


@pytest.mark.slow
def test_reaches_half_way_from_the_floor_to_bayes_accuracy() -> None:
    dataset = make(SyntheticSpec())
    samples, valid, test = (make_samples(dataset, split) for split in ("train", "valid", "test"))
    method = fresh(samples)
    trained = train(
        method,
        samples,
        settings=TrainingSettings(
            epochs=12,
            batch_size=32,
            lr=3e-3,
            optimizer="adamw",
            weight_decay=0.05,
            schedule="cosine",
        ),
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
