"""A finished run that many tests look at, and what they compare runs by."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import corrkd
from corrkd.experiment import run as run_module
from corrkd.experiment import runner
from corrkd.experiment.job import Job
from corrkd.report import figures
from tests.command import TINY, sketch
from tests.conftest import made_once

# Seconds and dates: what two equal runs may differ in.
APART = ("timings.csv", "tfevents", ".lock", "cost.json", "costs.", "tables/time.", "log.txt")


def tiny(**changes: Any) -> dict[str, Any]:
    """The tiny settings with changes, a level deep."""
    tree = copy.deepcopy(TINY)
    for key, value in changes.items():
        tree[key] = {**tree[key], **value} if isinstance(tree.get(key), dict) else value
    return tree


def contents(folder: Path, pattern: str = "**/*") -> dict[str, bytes]:
    """The bytes of all that must be reproducible, by path."""
    files = {str(p.relative_to(folder)): p for p in folder.glob(pattern) if p.is_file()}
    return {
        name: p.read_bytes()
        for name, p in sorted(files.items())
        if not any(word in name for word in APART)
    }


def assert_same(one: dict[str, bytes], other: dict[str, bytes]) -> None:
    """Byte for byte; says which files differ."""
    assert one.keys() == other.keys()
    assert one
    assert not [name for name in one if one[name] != other[name]]


def write_npz(
    path: Path, widths: dict[str, int], count: int = 60, seed: int = 0, **more: Any
) -> Path:
    """A learnable dataset of named arrays: modalities of any number, three classes, splits of 30,
    15 and 15.
    """
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % 3
    arrays: dict[str, Any] = {
        m: (rng.normal(size=(count, 4, width)) + (labels - 1)[:, None, None]).astype(np.float32)
        for m, width in widths.items()
    }
    split = np.repeat(["train", "valid", "test"], [count // 2, count // 4, count // 4])
    arrays |= {
        "labels": labels,
        "scores": labels - 1 + 0.1 * rng.normal(size=count),
        "split": split,
    }
    np.savez(path, **{**arrays, **more})
    return path


def dataset_in(run: Path) -> Path:
    """The folder of the only dataset in a run's folder."""
    (card,) = run.glob("*/run.json")
    return card.parent


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two seeds on the built-in dataset, some samples naturally incomplete, with its report. Not to
    be changed.
    """
    synthetic = {**TINY["data"]["synthetic"], "natural_missing": 0.4}
    settings = tiny(data={"synthetic": synthetic}, seeds=[0, 1])
    return made_once(tmp_path_factory, "finished", lambda folder: corrkd.run(settings, folder))


def run_unreported(settings: Any, folder: Path) -> corrkd.Run:
    """A run without its report, which takes longer than a tiny run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_module, "write_report", lambda folder: folder)
        return corrkd.run(settings, folder)


def run_sketched(settings: Any, folder: Path) -> corrkd.Run:
    """A run with its report, whose figures are made but not drawn."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(figures, "picture", sketch)
        return corrkd.run(settings, folder)


@pytest.fixture
def no_report(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leaves out the report, which takes longer than a tiny run."""
    monkeypatch.setattr(run_module, "write_report", lambda folder: folder)


@pytest.fixture
def jobs_run(monkeypatch: pytest.MonkeyPatch) -> list[Job]:
    """Which jobs ran, in this process. The report is left out."""
    ran: list[Job] = []
    attempt = runner.attempt

    def watching(job: Job, *arguments: Any) -> str | None:
        ran.append(job)
        return attempt(job, *arguments)

    monkeypatch.setattr(runner, "attempt", watching)
    monkeypatch.setattr("corrkd.experiment.run.write_report", lambda out: out)
    return ran
