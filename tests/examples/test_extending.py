"""The examples of the page on extending: each runs, and does what it says."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from corrkd.data.readers.options import ReadOptions
from corrkd.media.clip import Clip
from tests.media.clips import tone, write_clip

FOLDER = Path(__file__).parents[2] / "examples" / "extending"
RUN = ("dataset_from_code", "layout", "loss", "target", "network", "method", "teacher", "condition")


@pytest.fixture(autouse=True)
def beside_each_other(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As `python examples/extending/NAME.py` in an empty folder."""
    monkeypatch.syspath_prepend(FOLDER)
    monkeypatch.setattr(sys, "argv", ["example"])
    monkeypatch.chdir(tmp_path)


def example(name: str) -> dict[str, Any]:
    return runpy.run_path(str(FOLDER / f"{name}.py"), run_name="example")


def test_all_of_them_are_tested() -> None:
    assert {path.stem for path in FOLDER.glob("*.py")} == {*RUN, "extractor"}


@pytest.mark.parametrize("name", RUN)
def test_it_runs(name: str, tmp_path: Path) -> None:
    runpy.run_path(str(FOLDER / f"{name}.py"), run_name="__main__")
    if name in ("method", "teacher"):
        (results,) = (tmp_path / "runs").glob("*/results.csv")
        methods = set(pd.read_csv(results)["method"])
        assert ("teacher" in methods) == (name == "method")
        assert {"student", "control"} <= methods


def test_the_layout_is_recognised_by_its_content() -> None:
    layout = example("layout")
    calls = layout["make_calls"]()
    assert layout["recognises"](calls)
    assert not any(layout["recognises"](other) for other in ([], {}, [{"id": 1}], "calls"))
    train = layout["read"](calls, "calls", ReadOptions()).split("train")
    assert train.lengths["audio"].tolist() == [2, 3, 4, 5, 6] * 6
    np.testing.assert_allclose(train.frames["audio"][0, :2], calls[0]["acoustic"], rtol=1e-6)
    calls[0]["split"] = "exam"
    with pytest.raises(KeyError):
        layout["read"](calls, "calls", ReadOptions())


def test_the_target_counts_ranks() -> None:
    target = example("target")["OrdinalTarget"].with_classes(3)
    sure = torch.tensor([[50.0, 0.0, 0.0]])
    losses = [float(target.task_loss(sure, torch.tensor([rank]))) for rank in range(3)]
    assert losses == pytest.approx([0.0, 1.0, 2.0])
    metrics = target.measure_predictions(np.array([0, 0, 0, 2]), np.array([0, 0, 0, 0]))
    assert (metrics["mae"], metrics["accuracy"], metrics["kappa"]) == (0.5, 0.75, 0.0)


def test_the_loss_is_a_form_of_rcd() -> None:
    loss = example("loss")
    options = loss["MoreOptions"].model_validate({"rcd": {"form": "distance", "weight": 2.0}})
    module = options.rcd.make(2)
    one, other = torch.tensor([[50.0, 0.0]]), torch.tensor([[0.0, 50.0]])
    assert float(module(one, other, torch.tensor([0]))) == 2.0
    assert float(module(one, one, torch.tensor([0]))) == 0.0


def test_the_extractor_hears_silence(tmp_path: Path) -> None:
    loudness = example("extractor")["Loudness"]()
    second = tone(1.0)
    sound = np.concatenate([second, np.zeros_like(second)])
    frames = loudness.frames(Clip(write_clip(tmp_path / "a.wav", sound=sound)))
    assert frames.present.tolist() == [True] * 10 + [False] * 10
    assert (frames.values[:10] > -30).all()
    assert (frames.values[10:] < -80).all()
