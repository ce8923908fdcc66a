"""Resuming refuses files that changed since they were written: a flipped bit is a one-line error
that says what to do.
"""

from __future__ import annotations

import random
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

import corrkd
from corrkd.errors import CorrKDError
from corrkd.experiment.budget import Budget, read_budget
from corrkd.files import write_text
from corrkd.parsing import json_text, with_digest
from corrkd.training.checkpoint import load_checkpoint, save_checkpoint
from tests.experiment.conftest import assert_same, contents, tiny

FLIPS = 4  # of each file


def flipped(data: bytes, rng: random.Random) -> bytes:
    out = bytearray(data)
    out[rng.randrange(len(out))] ^= 1 << rng.randrange(8)
    return bytes(out)


def assert_refused(folder: Path, advice: str) -> None:
    with pytest.raises(CorrKDError, match=advice) as caught:
        corrkd.resume(folder)
    assert str(caught.value).isprintable()


@pytest.fixture(scope="module")
def finished_alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one seed with two out-of-fold teachers and prediction sets, without a report."""
    folder = tmp_path_factory.mktemp("resumed") / "run"
    patch = pytest.MonkeyPatch()
    patch.setattr("corrkd.experiment.run.write_report", lambda folder: folder)
    corrkd.run(tiny(teacher={"folds": 2}, data={"calibration": 0.3}), folder)
    patch.undo()
    return folder


@pytest.mark.parametrize(
    ("name", "advice"),
    [
        ("plan.yaml", r"plan\.yaml: .*(put it back|UTF-8)"),
        ("synthetic/run.json", r"run\.json: .*(delete it to go on|UTF-8|another folder|new run)"),
        *((f"synthetic/seed-0/student/{name}", r"damaged: its SHA-256 .* delete .*results\.csv "
                                               r"to evaluate again|UTF-8") for name in
          ("results.csv", "predictions.parquet", "representations.safetensors", "coverage.csv",
           "history.csv", "SHA256SUMS")),
    ],
)  # fmt: skip
def test_a_flipped_bit_in_a_finished_run(
    finished_alone: Path, tmp_path: Path, no_report: None, name: str, advice: str
) -> None:
    folder, rng = tmp_path / "run", random.Random(name)
    shutil.copytree(finished_alone, folder)
    content = (folder / name).read_bytes()
    for _ in range(FLIPS):
        (folder / name).write_bytes(flipped(content, rng))
        assert_refused(folder, advice)
    (folder / name).write_bytes(content)
    corrkd.resume(folder)
    assert_same(contents(folder), contents(finished_alone))


@pytest.mark.parametrize(
    ("name", "ending"),
    [
        ("teacher", "json"),
        ("teacher", "safetensors"),
        ("teacher-0-1", "safetensors"),
        *(pytest.param(*other, marks=pytest.mark.slow) for other in
          (("teacher-0-0", "json"), ("teacher-0-0", "safetensors"), ("teacher-0-1", "json"))),
    ],
)  # fmt: skip
def test_a_flipped_bit_in_a_teacher(
    finished_alone: Path, tmp_path: Path, no_report: None, name: str, ending: str
) -> None:
    folder, rng = tmp_path / "run", random.Random(name)
    shutil.copytree(finished_alone, folder)
    shutil.rmtree(folder / "synthetic" / "seed-0" / "student")
    path = folder / "synthetic" / "seed-0" / "teacher" / f"{name}.{ending}"
    content = path.read_bytes()
    for _ in range(FLIPS):
        path.write_bytes(flipped(content, rng))
        assert_refused(folder, rf"{name}\.")


def test_files_of_the_evaluation_can_be_checked_with_sha256sum(finished_alone: Path) -> None:
    command = ["sha256sum", "--strict", "-c", "SHA256SUMS"]
    done = subprocess.run(
        command,
        cwd=finished_alone / "synthetic" / "seed-0" / "student",
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(": OK") == 5


def test_a_flipped_bit_in_a_checkpoint(tmp_path: Path) -> None:
    path, rng = tmp_path / "student.ckpt", random.Random(0)
    state = {
        "method": {"w": torch.arange(600.0)},
        "progress": {"epoch": 3, "history": [{"lr": 0.1}]},
    }
    save_checkpoint(path, state)
    content = path.read_bytes()
    for _ in range(400):
        path.write_bytes(flipped(content, rng))
        with pytest.raises(
            CorrKDError, match=r"student\.ckpt: damaged, or no checkpoint; delete it to train"
        ):
            load_checkpoint(path, torch.device("cpu"))
    path.write_bytes(content)
    loaded = load_checkpoint(path, torch.device("cpu"))
    assert loaded is not None
    assert torch.equal(loaded["method"]["w"], state["method"]["w"])  # type: ignore[index]


def test_a_flipped_bit_in_a_budget(tmp_path: Path) -> None:
    path, rng = tmp_path / "budget.json", random.Random(0)
    budget = Budget(epochs=8, scores={4: 0.5, 8: 0.625}, seed=1)
    write_text(path, json_text(with_digest(budget.model_dump(mode="json"))))
    assert read_budget(tmp_path) == budget
    content = path.read_bytes()
    for _ in range(200):
        changed = flipped(content, rng)
        path.write_bytes(changed)
        if changed.split() == content.split():
            continue  # white space is not part of the contents
        with pytest.raises(CorrKDError, match=r"budget\.json"):
            read_budget(tmp_path)
