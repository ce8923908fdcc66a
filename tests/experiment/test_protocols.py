"""Presets and protocols of published tables, run on data of the same layout."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import corrkd
from tests.command import TINY

SHORT = ["teacher.epochs=1", "student.epochs=1", "seeds=[0]", "evaluation.draws=1"]


def write_mmsa(path: Path, bound: float) -> Path:
    """Write a file of MMSA's unaligned layout, with scores from -bound to bound in steps of a fifth of it."""
    rng = np.random.default_rng(0)
    splits = {}
    for split, count in (("train", 30), ("valid", 15), ("test", 15)):
        scores = bound * (np.arange(count) % 11 - 5) / 5
        splits[split] = {
            "id": np.array([f"{split}{i}$_$0" for i in range(count)]),
            "regression_labels": scores.astype(np.float32),
            **{
                m: (rng.normal(size=(count, 4, 5)) + scores[:, None, None] / bound).astype(np.float32)
                for m in ("text", "audio", "vision")
            },
            **{f"{m}_lengths": [4] * count for m in ("audio", "vision")},
        }
    path.write_bytes(pickle.dumps(splits))
    return path


@pytest.mark.parametrize(("preset", "bound"), [("mmsa-mosi", 3.0), ("mmsa-mosei", 3.0), ("mmsa-sims", 1.0)])
def test_a_preset_of_mmsa_runs_on_its_layout(preset: str, bound: float, tmp_path: Path) -> None:
    data: dict[str, Any] = {"path": str(write_mmsa(tmp_path / "unaligned.pkl", bound))}
    settings = corrkd.load_settings(
        preset=preset, data=data, overrides=SHORT, **{part: TINY[part] for part in ("teacher", "evaluation", "device")}
    )
    done = corrkd.run(settings, tmp_path / "run")
    target = settings.data.target
    complete = done.results[(done.results["condition"] == "complete") & (done.results["method"] == "student")]
    measured = complete.set_index("metric")["value"]
    expected = {"mosi-score": {"acc2_has_zero", "acc2_nonzero", "acc7"}, "sims-score": {"acc2", "acc3"}}[target]
    assert expected | {"weighted_f1", "acc5", "mae", "corr"} <= set(measured.index)
    assert measured[sorted(expected)].between(0, 1).all()
