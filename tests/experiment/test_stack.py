"""A run with seeds and folds trained at once equals the run with each trained alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from safetensors.numpy import load_file

import corrkd
from corrkd.errors import CorrKDError
from corrkd.experiment import stages
from tests.experiment.conftest import dataset_in, run_unreported, tiny, write_npz


@pytest.fixture
def stacked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of trainings in each stack."""
    sizes: list[int] = []
    train_together = stages.train_together

    def counted(runs: Sequence[Any], **options: Any) -> Any:
        sizes.append(len(runs))
        return train_together(runs, **options)

    monkeypatch.setattr(stages, "train_together", counted)
    return sizes


def settings(tmp_path: Path, **changes: Any) -> dict[str, Any]:
    data = tmp_path / "people.npz"
    if not data.exists():
        write_npz(
            data, {"language": 5, "audio": 3}, person=np.array([f"p{i // 3}" for i in range(60)])
        )
    return tiny(
        data={"path": str(data), "synthetic": {}},
        teacher={"folds": 2, "repeats": 2},
        precision="64-true",
        seeds=[0, 1],
        **changes,
    )


def models(run: Path) -> dict[str, np.ndarray]:
    tensors = {}
    for path in sorted(dataset_in(run).rglob("*.safetensors")):
        if path.name not in ("representations.safetensors", "outputs.safetensors"):
            tensors |= {
                f"{path.parent.parent.name}/{path.stem}/{name}": x
                for name, x in load_file(path).items()
            }
    return tensors


def test_seeds_and_folds_trained_at_once_equal_each_trained_alone(
    tmp_path: Path, stacked: list[int]
) -> None:
    alone = run_unreported(settings(tmp_path, stack=1), tmp_path / "alone")
    assert not stacked
    together = run_unreported(settings(tmp_path, stack=4), tmp_path / "together")
    assert stacked == [4, 4, 2, 2, 2]  # five teachers a seed, students, controls
    ours, theirs = models(tmp_path / "together"), models(tmp_path / "alone")
    assert len({name.rpartition("/")[0] for name in ours}) == 2 * (5 + 2)
    assert ours.keys() == theirs.keys()
    for name, x in theirs.items():
        np.testing.assert_allclose(ours[name], x, rtol=0, atol=1e-6, err_msg=name)
    pd.testing.assert_frame_equal(together.results, alone.results, atol=1e-6)


def test_methods_that_cannot_be_stacked_are_trained_alone(
    tmp_path: Path, stacked: list[int]
) -> None:
    tree = settings(tmp_path, stack=5)
    tree["teacher"] = {**tree["teacher"], "folds": None, "repeats": 1}
    tree["student"] = {**tree["student"], "method": "gcnet"}
    run_unreported(tree, tmp_path / "run")
    assert stacked == [2]  # the teachers of both seeds


def test_a_stack_has_a_single_network(tmp_path: Path, stacked: list[int]) -> None:
    tree = settings(tmp_path, stack=8)
    others = [{"network": {"name": "mlp", "width": 8}, "repeats": 1}]
    tree["teacher"] = {**tree["teacher"], "others": others}
    run_unreported(tree, tmp_path / "run")
    assert stacked == [
        8,
        2,
        4,
        2,
        2,
    ]  # ten of the teacher's network, four of the other, students, controls


def test_if_a_stack_fails_each_training_is_retried_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(runs: Sequence[Any], **options: Any) -> Any:
        raise CorrKDError("the loss is no longer finite in epoch 2")

    monkeypatch.setattr(stages, "train_together", failing)
    tree = settings(tmp_path, stack=5)
    tree["teacher"] = {**tree["teacher"], "folds": None, "repeats": 1}
    assert not run_unreported(tree, tmp_path / "run").failures
    assert (
        corrkd.load_student(tmp_path / "run" / "people" / "seed-1" / "control").about["seed"] == 1
    )
