"""Helpers for tests of methods that translate or reconstruct modalities."""

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


def make_inputs(widths: Mapping[str, int], count: int = 4, share: float = 0.6) -> Inputs:
    """Return random inputs with a `share` of the frames visible."""
    generator = torch.Generator().manual_seed(0)
    sizes = frames_of(widths)
    frames = {
        m: torch.randn(count, sizes[m], width, generator=generator) for m, width in widths.items()
    }
    lengths = {m: torch.randint(1, sizes[m] + 1, (count, 1), generator=generator) for m in widths}
    exists = {m: torch.arange(sizes[m])[None] < lengths[m] for m in widths}
    visible = {m: e & (torch.rand(e.shape, generator=generator) < share) for m, e in exists.items()}
    return Inputs(frames, exists, visible)


def check_only_visible_frames_count(network: nn.Module, inputs: Inputs) -> None:
    """Check that the values of invisible frames and two frames of padding change nothing."""
    first = network(inputs).logits
    assert torch.equal(network(overwrite_invisible(inputs, 1e6)).logits, first)

    def pad(x: Tensor) -> Tensor:
        padding = torch.zeros_like(x[:, :1]) if x.dtype == torch.bool else torch.ones_like(x[:, :1])
        return torch.cat([x, padding, padding], 1)

    assert torch.allclose(network(map_tensors(pad, inputs)).logits, first, atol=1e-5)


def check_finite_when_nothing_is_visible(network: nn.Module, inputs: Inputs) -> None:
    nothing = {m: torch.zeros_like(e) for m, e in inputs.exists.items()}
    logits = network(inputs._replace(visible=nothing)).logits
    logits.sum().backward()
    assert torch.isfinite(logits).all()
    assert all(torch.isfinite(p.grad).all() for p in network.parameters() if p.grad is not None)


def network_for(kind: type[nn.Module], samples: Samples, settings: Any = None) -> Any:
    torch.manual_seed(0)
    sizes = {m: x.shape[1] for m, x in samples.exists.items()}
    target = samples.target
    return kind(samples.widths, sizes, target=target, settings=settings)


def accuracy(network: nn.Module, samples: Samples) -> float:
    network.eval()
    batch = samples.take(torch.arange(len(samples)))
    with torch.no_grad():
        predictions = network(batch.complete()).logits.argmax(-1)
    return float((predictions == batch.targets).double().mean())


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


def progress_to_bayes(
    network_kind: type[nn.Module], method_kind: type[Method], *, epochs: int
) -> float:
    """Train on the complete built-in dataset; return where the test accuracy lies between the
    majority floor (0) and the Bayes accuracy (1).
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
