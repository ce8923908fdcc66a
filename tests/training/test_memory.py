"""How many trainings fit into memory at once."""

from __future__ import annotations

import pytest
import torch

from corrkd.experiment.stages import MOST_STACKED, fitting
from corrkd.settings import TrainingSettings
from corrkd.training.memory import bytes_of_run
from corrkd.training.run import TrainingRun
from tests.training.test_stacked import MENDED, make_method, split


def run_of(batch_size: int) -> TrainingRun:
    samples = split("classes")
    settings = TrainingSettings(epochs=1, batch_size=batch_size)
    method = make_method("no-distillation", samples, 0)
    return TrainingRun(
        method=method, samples=samples, settings=settings, validate=lambda _: 0.0, seed=0
    )


def test_memory_of_a_training_grows_with_its_batch() -> None:
    fixed = 2 * bytes_of_run(run_of(8)) - bytes_of_run(run_of(16))
    of_a_sample = (bytes_of_run(run_of(16)) - fixed) / 16
    assert bytes_of_run(run_of(32)) == pytest.approx(fixed + 32 * of_a_sample, rel=0.05)
    method = run_of(8).method
    parameters = sum(p.numel() * 8 for p in method.parameters())
    assert fixed >= 6 * parameters  # weights, gradients, two moments, an average, the best
    # Each layer keeps at least its attention weights and its input vectors, for each modality.
    samples = split("classes")
    frames = [exists.shape[1] for exists in samples.exists.values()]
    assert of_a_sample >= 2 * 8 * sum(2 * t * t + 8 * t for t in frames)


@pytest.mark.parametrize(("name", "options"), [("corrkd", MENDED), ("self-mm", None)])
def test_a_methods_buffers_of_the_split_are_counted(
    name: str, options: dict[str, object] | None
) -> None:
    samples = split("classes")
    method = make_method(name, samples, 0, options)
    settings = TrainingSettings(epochs=1, batch_size=8)
    run = TrainingRun(
        method=method, samples=samples, settings=settings, validate=lambda _: 0.0, seed=0
    )
    before = sum(x.numel() * x.element_size() for x in method.buffers())
    assert bytes_of_run(run) > sum(x.numel() * x.element_size() for x in method.buffers()) > before


def test_measuring_leaves_the_training_unchanged() -> None:
    run = run_of(8)
    before = {name: x.clone() for name, x in run.method.state_dict().items()}
    bytes_of_run(run)
    assert run.method.training
    assert all(torch.equal(x, before[name]) for name, x in run.method.state_dict().items())
    assert all(p.grad is None for p in run.method.parameters())


@pytest.mark.parametrize(
    ("each", "free", "count"), [(10, 1000, MOST_STACKED), (100, 1000, 8), (1000, 1000, 1)]
)
def test_the_number_of_trainings_that_fit(each: int, free: int, count: int) -> None:
    assert fitting(each, free) == count
