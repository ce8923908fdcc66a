"""The examples of the page on extending: each runs and does what it claims."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

import corrkd
from corrkd.data.readers.options import ReadOptions
from corrkd.data.synthetic import SyntheticSpec, make
from corrkd.media.clip import Clip
from corrkd.media.extractors.registry import make_extractor
from tests.conftest import Offer
from tests.experiment.conftest import run_unreported, tiny
from tests.media.clips import tone, write_clip
from tests.test_docs import run_blocks

FOLDER = Path(__file__).parents[2] / "examples" / "extending"
RUN = ("dataset_from_code", "layout", "loss", "target", "network", "method", "teacher", "condition")


@pytest.fixture(autouse=True)
def in_an_empty_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Set up a run as by `python examples/extending/NAME.py` in an empty folder."""
    monkeypatch.syspath_prepend(FOLDER)
    monkeypatch.setattr(sys, "argv", ["example"])
    monkeypatch.chdir(tmp_path)


def example(name: str) -> dict[str, Any]:
    return runpy.run_path(str(FOLDER / f"{name}.py"), run_name="example")


def test_all_examples_are_tested() -> None:
    assert {path.stem for path in FOLDER.glob("*.py")} == {*RUN, "extractor"}


@pytest.mark.parametrize("name", RUN)
def test_the_example_runs(name: str, tmp_path: Path) -> None:
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


def test_the_layout_is_written_to_a_file_for_runs() -> None:
    runpy.run_path(str(FOLDER / "layout.py"), run_name="__main__")
    written = corrkd.load_dataset("calls.safetensors")
    assert [len(written.split(name)) for name in ("train", "valid", "test")] == [30, 10, 10]
    assert written.modalities == ("audio",)
    assert written.class_names == ("calm", "tense")


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
    first, second = torch.tensor([[50.0, 0.0]]), torch.tensor([[0.0, 50.0]])
    assert float(module(first, second, torch.tensor([0]))) == 2.0
    assert float(module(first, first, torch.tensor([0]))) == 0.0


def test_the_extractor_measures_silence(tmp_path: Path) -> None:
    loudness = example("extractor")["Loudness"]()
    second = tone(1.0)
    sound = np.concatenate([second, np.zeros_like(second)])
    frames = loudness.frames(Clip(write_clip(tmp_path / "a.wav", sound=sound)))
    assert frames.present.tolist() == [True] * 10 + [False] * 10
    assert (frames.values[:10] > -30).all()
    assert (frames.values[10:] < -80).all()


EXAMPLES = {
    "target": "target:OrdinalTarget",
    "network": "network:MeanNetwork",
    "method": "method:Direction",
    "condition": "condition:Halved",
    "extractor": "extractor:Loudness",
}
PAGE = {kind: f"page:{class_.partition(':')[2]}" for kind, class_ in EXAMPLES.items()}


@pytest.mark.parametrize("classes", [EXAMPLES, PAGE], ids=["examples", "page"])
def test_examples_work_as_entry_points(
    classes: dict[str, str], offer: Offer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A run with target, network, method and condition by their names."""
    pytest.importorskip("av")
    if classes is PAGE:
        page = ModuleType("page")
        monkeypatch.setitem(sys.modules, "page", page)
        vars(page).update(run_blocks("docs/extending.md"))
    offer("corrkd.targets", ordinal=classes["target"])
    offer("corrkd.networks", mean=classes["network"])
    offer("corrkd.methods", direction=classes["method"])
    offer("corrkd.conditions", halved=classes["condition"])
    offer("corrkd.extractors", loudness=classes["extractor"])
    assert make_extractor("loudness", "audio").width == 1
    settings = tiny(
        data={"target": "ordinal"},
        teacher={"network": {"name": "mean"}},
        student={"method": "direction"},
        evaluation={"conditions": {"ratio": [0.5], "burst": [], "halved": True}, "draws": 1},
    )
    done = run_unreported(settings, tmp_path / "run")
    results = done.results[done.results["method"] == "student"]
    assert {"complete", "halved"} <= set(results["condition"])
    student = corrkd.load_student(done.folder)
    assert type(student.network).__name__ == "MeanNetwork"
    assert student.target.kind == "ordinal"
    data = make(SyntheticSpec(**settings["data"]["synthetic"]))
    table = corrkd.evaluate(student, data, conditions=["halved"])
    assert set(table["condition"]) == {"halved"}


def test_the_loss_is_selected_in_the_settings(offer: Offer, tmp_path: Path) -> None:
    offer("corrkd.methods", **{"more-corrkd": "loss:MoreCorrKD"})
    rcd = {"form": "distance", "weight": 2.0}
    settings = tiny(student={"method": {"name": "more-corrkd", "rcd": rcd}})
    done = run_unreported(settings, tmp_path / "run")
    (history,) = done.folder.glob("**/student/history.csv")
    assert (pd.read_csv(history)["loss/rcd"] > 0).all()
