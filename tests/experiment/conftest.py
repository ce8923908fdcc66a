"""A finished run that many tests read, and helpers that make and compare runs."""

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

# Files with times and dates, in which two equal runs may differ.
VARYING = ("timings.csv", "tfevents", ".lock", "cost.json", "costs.", "tables/time.", "log.txt")


def tiny(**changes: Any) -> dict[str, Any]:
    """Return the tiny settings with changes, a level deep."""
    tree = copy.deepcopy(TINY)
    for key, value in changes.items():
        tree[key] = {**tree[key], **value} if isinstance(tree.get(key), dict) else value
    return tree


def contents(folder: Path, pattern: str = "**/*") -> dict[str, bytes]:
    """Return the bytes of all files that must be reproducible, by path."""
    files = {str(p.relative_to(folder)): p for p in folder.glob(pattern) if p.is_file()}
    return {
        name: p.read_bytes()
        for name, p in sorted(files.items())
        if not any(fragment in name for fragment in VARYING)
    }


def assert_same(first: dict[str, bytes], second: dict[str, bytes]) -> None:
    """Compare files byte for byte; the failure lists those that differ."""
    assert first.keys() == second.keys()
    assert first
    assert not [name for name in first if first[name] != second[name]]


def write_npz(
    path: Path, widths: dict[str, int], count: int = 60, seed: int = 0, **more: Any
) -> Path:
    """Write a learnable dataset of named arrays: any number of modalities, three classes,
    splits of a half, a quarter and a quarter of the samples.
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
    """Return the folder of the only dataset in a run's folder."""
    (card,) = run.glob("*/run.json")
    return card.parent


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two seeds on the built-in dataset, some samples naturally incomplete, with its
    report; tests must not change it.
    """
    synthetic = {**TINY["data"]["synthetic"], "natural_missing": 0.4}
    settings = tiny(data={"synthetic": synthetic}, seeds=[0, 1])
    return made_once(tmp_path_factory, "finished", lambda folder: corrkd.run(settings, folder))


def run_unreported(settings: Any, folder: Path) -> corrkd.Run:
    """Run without the report, which takes longer than a tiny run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_module, "write_report", lambda folder: folder)
        return corrkd.run(settings, folder)


def run_sketched(settings: Any, folder: Path) -> corrkd.Run:
    """Run with a report whose figures are not drawn."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(figures, "picture", sketch)
        return corrkd.run(settings, folder)


@pytest.fixture
def no_report(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out the report, which takes longer than a tiny run."""
    monkeypatch.setattr(run_module, "write_report", lambda folder: folder)


@pytest.fixture
def jobs_run(monkeypatch: pytest.MonkeyPatch) -> list[Job]:
    """The jobs that ran in this process; the report is left out."""
    ran: list[Job] = []
    attempt = runner.attempt

    def recorded(job: Job, *arguments: Any) -> str | None:
        ran.append(job)
        return attempt(job, *arguments)

    monkeypatch.setattr(runner, "attempt", recorded)
    monkeypatch.setattr("corrkd.experiment.run.write_report", lambda out: out)
    return ran
