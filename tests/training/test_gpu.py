"""Training on a GPU: captured, stacked, reproducible."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch

from corrkd.settings import MissingSettings, TrainingSettings
from corrkd.training.fabric import Fabric
from corrkd.training.loop import train_run
from corrkd.training.run import Trained, TrainingRun
from corrkd.training.stacked import train_together
from tests.conftest import make_dataset, make_samples
from tests.training.test_stacked import MENDED, SETTINGS, make_method, scores

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")


def train_on_gpu(
    name: str, seeds: Sequence[int], *, alone: bool = False, compiled: bool = False
) -> list[Trained]:
    """Train in float64 on the GPU."""
    fabric = Fabric(accelerator="cuda", devices=1)
    fabric.launch()
    samples = make_samples(make_dataset(), device=fabric.device, dtype=torch.float64)
    settings: TrainingSettings = SETTINGS.model_copy(update={"lr": 2.0**-7, "schedule": "constant"})
    runs = [
        TrainingRun(
            method=make_method(name, samples, seed, MENDED if name == "corrkd" else None).to(
                fabric.device
            ),
            samples=samples,
            settings=settings,
            validate=scores(seed),
            seed=seed,
            missing=MissingSettings(),
        )
        for seed in seeds
    ]
    if alone:
        return [train_run(run, fabric) for run in runs]
    return train_together(runs, fabric=fabric, compiled=compiled)


def assert_close(ours: list[Trained], theirs: list[Trained], tolerance: float) -> None:
    for a, b in zip(ours, theirs, strict=True):
        for name, value in b.state.items():
            assert torch.allclose(a.state[name], value, rtol=0, atol=tolerance), name


@pytest.mark.parametrize(
    "name", ["no-distillation", "corrkd", "kl", "feature-mse", "cubemlp", "dmd", "self-mm"]
)
def test_a_captured_stack_matches_separate_trainings(name: str) -> None:
    together = train_on_gpu(name, range(3))
    assert_close(
        together, train_on_gpu(name, range(3), alone=True), 1e-7
    )  # learning rates are float32 where captured
    assert_close(together[1:2], train_on_gpu(name, [1]), 1e-7)


@pytest.mark.parametrize("name", ["corrkd", "cubemlp", "dmd", "self-mm"])
def test_results_are_reproducible(name: str) -> None:
    assert_close(train_on_gpu(name, range(3)), train_on_gpu(name, range(3)), 0.0)


@pytest.mark.slow
def test_compiled_and_captured_steps_match_captured_steps() -> None:
    assert_close(
        train_on_gpu("corrkd", range(2), compiled=True), train_on_gpu("corrkd", range(2)), 1e-7
    )
