"""What the tests of the methods that translate or reconstruct modalities share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from corrkd.data.batches import Samples
from corrkd.data.inputs import Inputs
from corrkd.data.synthetic import make
from corrkd.evaluation.bayes import bayes_accuracy
from corrkd.methods.base import Method
from corrkd.settings import MissingSettings, TrainingSettings
from corrkd.training.fabric import Fabric
from corrkd.training.loop import Trained, train
from tests.conftest import CLASSES, QUESTIONS, SCORE, make_samples, map_tensors, overwrite_invisible

KINDS = [(CLASSES, (4, 3)), (QUESTIONS, (4, 4, 2)), (SCORE, (4, 1))]
TWO = {"language": 7, "audio": 3}
FOUR = {"lan.guage": 7, "audio": 3, "vision": 5, "pulse": 2}
LENGTHS = (6, 9, 1, 4)


def frames_of(widths: Mapping[str, int]) -> dict[str, int]:
    return dict(zip(widths, LENGTHS, strict=False))


def inputs(widths: Mapping[str, int], count: int = 4, share: float = 0.6) -> Inputs:
    """Random inputs, of which a `share` of the frames is visible."""
    generator = torch.Generator().manual_seed(0)
    most = frames_of(widths)
    frames = {
        m: torch.randn(count, most[m], width, generator=generator) for m, width in widths.items()
    }
    lengths = {m: torch.randint(1, most[m] + 1, (count, 1), generator=generator) for m in widths}
    exists = {m: torch.arange(most[m])[None] < lengths[m] for m in widths}
    visible = {m: e & (torch.rand(e.shape, generator=generator) < share) for m, e in exists.items()}
    return Inputs(frames, exists, visible)


def check_only_the_visible_counts(network: nn.Module, given: Inputs) -> None:
    """Other values at invisible places, and two more frames of padding, change nothing."""
    first = network(given).logits
    assert torch.equal(network(overwrite_invisible(given, 1e6)).logits, first)

    def longer(x: Tensor) -> Tensor:
        more = torch.zeros_like(x[:, :1]) if x.dtype == torch.bool else torch.ones_like(x[:, :1])
        return torch.cat([x, more, more], 1)

    assert torch.allclose(network(map_tensors(longer, given)).logits, first, atol=1e-5)


def check_nothing_visible_is_finite(network: nn.Module, given: Inputs) -> None:
    nothing = {m: torch.zeros_like(e) for m, e in given.exists.items()}
    logits = network(given._replace(visible=nothing)).logits
    logits.sum().backward()
    assert torch.isfinite(logits).all()
    assert all(torch.isfinite(p.grad).all() for p in network.parameters() if p.grad is not None)


def network_for(kind: type[nn.Module], samples: Samples, settings: Any = None) -> Any:
    torch.manual_seed(0)
    most = {m: x.shape[1] for m, x in samples.exists.items()}
    target = samples.target
    return kind(samples.widths, most, target=target, settings=settings)


def accuracy(network: nn.Module, samples: Samples) -> float:
    network.eval()
    batch = samples.take(torch.arange(len(samples)))
    with torch.no_grad():
        answers = network(batch.complete()).logits.argmax(-1)
    return float((answers == batch.targets).double().mean())


def fit(
    method: Method, samples: Samples, *, missing: bool = False, validate: Any = None, **stage: Any
) -> Trained:
    return train(
        method,
        samples,
        settings=TrainingSettings(**{"epochs": 10, "batch_size": 16, "lr": 1e-2, **stage}),
        validate=validate or (lambda _: 0.5),
        seed=3,
        fabric=Fabric(accelerator="cpu", devices=1),
        missing=MissingSettings() if missing else None,
    )


def share_of_the_way(
    network_kind: type[nn.Module], method_kind: type[Method], *, epochs: int
) -> float:
    """Trained on the built-in dataset, complete: where the test accuracy lies between the majority
    floor (0) and the Bayes rule's (1).
    """
    dataset = make()
    training, valid, test = (make_samples(dataset, split) for split in ("train", "valid", "test"))
    network = network_for(network_kind, training)
    options = {
        "epochs": epochs,
        "batch_size": 64,
        "lr": 3e-3,
        "optimizer": "adamw",
        "schedule": "cosine",
    }
    trained = fit(method_kind(network), training, validate=lambda n: accuracy(n, valid), **options)
    network.load_state_dict(trained.state)
    floor = float((test.targets == training.targets.mode().values).double().mean())
    best = bayes_accuracy(dataset.posterior("test", dataset.split("test").present))
    return (accuracy(network, test) - floor) / (best - floor)
