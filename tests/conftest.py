"""Helpers shared by the tests: small datasets, fake entry points, and the folder of real data."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

# Tests run in parallel, and their processes inherit this; it must precede numpy and torch.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pytest
import torch
from filelock import FileLock
from torch import Tensor

from corrkd.data.batches import Samples
from corrkd.data.dataset import MultimodalDataset, Split
from corrkd.data.inputs import Inputs
from corrkd.data.normalise import fit_normalisation
from corrkd.methods.base import Losses, TrainingBatch
from corrkd.targets.classes import ClassesTarget
from corrkd.targets.questions import QuestionsTarget
from corrkd.targets.registry import make_target
from corrkd.targets.score import ScoreTarget

torch.set_num_threads(1)

CLASSES = ClassesTarget.with_classes(3)
QUESTIONS = QuestionsTarget.with_questions(4)
SCORE = ScoreTarget.signed()
Offer = Callable[..., None]


def make_split(
    count: int,
    widths: dict[str, int],
    *,
    frames: int = 6,
    seed: int = 0,
    name: str = "train",
    classes: int = 3,
) -> Split:
    """Return random samples of different lengths, whose features depend on the class."""
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.arange(count) % classes).astype(np.int64)
    features, lengths, present = {}, {}, {}
    for m, width in widths.items():
        lengths[m] = rng.integers(1, frames + 1, count)
        mask = np.arange(frames)[None, :] < lengths[m][:, None]
        present[m] = mask
        shift = (labels[:, None, None] - (classes - 1) / 2) * np.linspace(0.5, 1.5, width)
        features[m] = ((rng.normal(size=(count, frames, width)) + shift) * mask[..., None]).astype(
            np.float32
        )
    return Split(
        frames=features,
        lengths=lengths,
        present=present,
        ids=np.array([f"{name}-{i}" for i in range(count)]),
        labels=labels,
        scores=labels - (classes - 1) / 2 + rng.normal(size=count) * 0.1,
    )


def make_dataset(
    widths: dict[str, int] | None = None, sizes: tuple[int, int, int] = (48, 30, 36), **options: int
) -> MultimodalDataset:
    """Return a dataset of three small splits."""
    widths = widths or {"language": 5, "audio": 3, "vision": 4}
    names = ("train", "valid", "test")
    return MultimodalDataset(
        name="tiny",
        splits={
            n: make_split(size, widths, seed=i, name=n, **options)
            for i, (n, size) in enumerate(zip(names, sizes, strict=True))
        },
        sha256="0" * 64,
    )


def make_samples(
    dataset: MultimodalDataset,
    split: str = "train",
    target: str = "classes",
    device: torch.device | None = None,
    **options: object,
) -> Samples:
    """Return a split of a dataset as a network takes it."""
    normalisation = fit_normalisation(dataset.split("train"))
    return Samples(
        dataset.split(split),
        make_target(target, dataset),
        normalisation,
        device=device or torch.device("cpu"),
        **options,  # type: ignore[arg-type]
    )


def training_batch(samples: Samples, count: int | None = None, **changes: object) -> TrainingBatch:
    """Return the first `count` samples (default: all), complete, as passed to a method."""
    rows = torch.arange(len(samples) if count is None else count)
    batch = samples.take(rows)
    return TrainingBatch(batch.complete(), batch.targets, samples.context(rows))._replace(**changes)  # type: ignore[arg-type]


def values(losses: Losses) -> dict[str, Tensor]:
    """Return losses without their weights."""
    return {name: value for name, (_, value) in losses.items()}


def weights(losses: Losses) -> dict[str, float]:
    """Return the weights of losses by name."""
    return {name: weight for name, (weight, _) in losses.items()}


def total(losses: Losses) -> Tensor:
    """Return the loss that a step minimises."""
    return torch.stack([weight * value for weight, value in losses.values()]).sum()


def map_tensors(change: Callable[[Tensor], Tensor], inputs: Inputs) -> Inputs:
    """Return the inputs with every tensor changed."""
    return Inputs(*({m: change(x) for m, x in tensors.items()} for tensors in inputs))


def overwrite_invisible(inputs: Inputs, value: float) -> Inputs:
    """Return the inputs with `value` in all invisible frames, padding included."""
    frames, _, visible = inputs
    return inputs._replace(
        frames={m: torch.where(visible[m][..., None], x, value) for m, x in frames.items()}
    )


def made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """Return a read-only folder that all workers of a session share; the first one makes it."""
    base = factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "shared" / name
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / "lock"):
        if not (folder / "made").exists():
            make(folder / name)
            (folder / "made").touch()
    return folder / name


@pytest.fixture
def dataset() -> MultimodalDataset:
    return make_dataset()


@pytest.fixture
def offer(monkeypatch: pytest.MonkeyPatch) -> Offer:
    """Register entry points as if they were installed: offer(group, name="module:Class")."""
    points: list[metadata.EntryPoint] = []
    monkeypatch.setattr(
        metadata, "entry_points", lambda **which: metadata.EntryPoints(points).select(**which)
    )

    def add(group: str, **offered: str) -> None:
        points.extend(metadata.EntryPoint(name, value, group) for name, value in offered.items())

    return add


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real data."""
    folder = os.environ.get("CORRKD_DATA")
    if not folder:
        pytest.skip("CORRKD_DATA is not set")
    return Path(folder)


@pytest.fixture(scope="session")
def hazumi_pickle(real_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Hazumi set in MMSA's layout."""
    return build_real(real_data, tmp_path_factory, "hazumi")


@pytest.fixture(scope="session")
def mosi_pickle(real_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """CMU-MOSI's language and audio in MMSA's layout."""
    return build_real(real_data, tmp_path_factory, "mosi")


def build_real(real_data: Path, factory: pytest.TempPathFactory, name: str, *options: str) -> Path:
    """Write one of the real datasets by the script in its folder."""
    out = factory.mktemp("real") / f"{name}.pkl"
    subprocess.run(
        [sys.executable, str(real_data / "build.py"), name, str(out), *options],
        check=True,
        capture_output=True,
    )
    return out


LONG = ("experiment", "serve", "report", "examples", "tests", "media", "training", "methods")


def pytest_configure(config: pytest.Config) -> None:
    """Distribute files in the order below, not by their number of tests."""
    config.option.loadscopereorder = False


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put folders with slow files first, so that no worker gets one of them last."""
    folders = {name: i for i, name in enumerate(LONG)}
    items.sort(key=lambda item: folders.get(item.path.parent.name, len(LONG)))
