"""A condition of another package in a run, its report, later evaluations, masks in a file and
predictions.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor

import corrkd
from corrkd.data.batches import Batch
from corrkd.data.synthetic import SyntheticSpec, make
from corrkd.evaluation.judge import masks_of
from corrkd.missing.conditions import Condition, condition, standard_conditions
from corrkd.missing.manifest import load_manifest, save_manifest
from corrkd.report import write_report
from corrkd.serve.predict_file import predict_file
from corrkd.settings import EvaluationSettings
from tests.conftest import Offer
from tests.experiment.conftest import run_unreported, tiny

ONCE = {"epochs": 1}


class Every(Condition):
    """Each K-th frame of every modality is missing: "every-2" keeps half of them."""

    kind = "every"
    meaning = "each K-th frame missing (every)"
    settings_type: ClassVar[Any] = list[int]

    @classmethod
    def parse(cls, name: str, modalities: Sequence[str], draws: int = 1) -> Self | None:
        step = name.removeprefix("every-")
        return (
            cls(name=name, available=tuple(modalities), draws=draws)
            if step.isdecimal() and int(step)
            else None
        )

    @classmethod
    def from_settings(
        cls, value: list[int], modalities: Sequence[str], draws: int
    ) -> Sequence[Self]:
        return [
            cls(name=f"every-{step}", available=tuple(modalities), draws=draws) for step in value
        ]

    @classmethod
    def claims(cls, name: str) -> bool:
        return name.startswith("every-")

    def dropped(self, batch: Batch, *, seed: int, draw: int) -> dict[str, Tensor]:
        step = int(self.name.removeprefix("every-"))
        return {
            m: ((torch.arange(x.shape[1]) + 1) % step == 0).expand_as(x)
            for m, x in batch.exists.items()
        }


@pytest.fixture(autouse=True)
def installed(offer: Offer) -> None:
    offer("corrkd.conditions", every=f"{__name__}:Every")


@pytest.fixture
def done(tmp_path: Path) -> corrkd.Run:
    conditions = {"ratio": [], "burst": [0.5], "every": [1, 2]}
    settings = tiny(teacher=ONCE, student=ONCE, evaluation={"conditions": conditions, "draws": 2})
    return run_unreported(settings, tmp_path / "run")


def test_from_a_run_to_predictions(done: corrkd.Run, tmp_path: Path) -> None:
    write_report(done.folder, draws=100)
    results = done.results[done.results["metric"] == "accuracy"].set_index(["method", "condition"])[
        "value"
    ]
    assert {"every-1", "every-2", "burst-0.5"} <= set(results.index.get_level_values("condition"))
    assert done.results.groupby("condition")["draw"].max()[["every-2", "burst-0.5"]].tolist() == [
        0,
        1,
    ]
    assert (
        results["bayes", "every-1"].item()
        < results["bayes", "every-2"].item()
        < results["bayes", "complete"].item()
    )
    report = (done.folder / "report.md").read_text("utf-8")
    assert "a contiguous gap of that share (burst), each K-th frame missing (every)" in report
    assert {"every-1", "every-2", "burst 0.5"} <= set(
        pd.read_csv(done.folder / "tables" / "other-conditions-weighted-f1.csv")
    )

    student = corrkd.load_student(done.folder)
    data = make(SyntheticSpec(**tiny()["data"]["synthetic"]))
    later = corrkd.evaluate(student, data, conditions=["every-2"]).set_index("metric")["value"]
    assert later["accuracy"] == results["student", "every-2"].item()
    save_manifest(tmp_path / "masks.safetensors", masks_of(student, data, conditions=["every-2"]))
    replayed = corrkd.evaluate(student, data, masks=load_manifest(tmp_path / "masks.safetensors"))
    assert replayed.set_index("metric")["value"]["accuracy"] == later["accuracy"]

    out = tmp_path / "predictions.jsonl"
    predict_file(corrkd.Predictor(student), data, out, split="test", condition="every-2")
    frames = data.split("test").lengths["audio"]
    np.testing.assert_allclose(
        pd.read_json(out, lines=True)["used"].str["audio"], np.ceil(frames / 2) / frames
    )


def test_its_settings_are_validated(tmp_path: Path) -> None:
    for value, problem in (
        (["two"], r"evaluation\.conditions\.every\.0: input should be a valid integer"),
        ([0], "every-0"),
    ):
        with pytest.raises(corrkd.CorrKDError, match=problem):
            corrkd.run(tiny(evaluation={"conditions": {"every": value}}), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_modality_named_like_a_condition_is_refused_only_where_that_is_tested() -> None:
    names = ("every", "other")
    assert condition("every", names).available == ("every",)
    standard_conditions(names, EvaluationSettings(), incomplete=np.array([False]))
    tested = EvaluationSettings(conditions={"every": [2]})
    standard_conditions(("language", "audio"), tested, incomplete=np.array([False]))
    with pytest.raises(
        corrkd.CorrKDError, match="modality 'every-2': its name means something else"
    ):
        standard_conditions(("every-2", "other"), tested, incomplete=np.array([False]))


def test_a_report_without_the_package_is_a_one_line_error(
    done: corrkd.Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.metadata.entry_points", lambda **_: ())
    with pytest.raises(
        corrkd.CorrKDError,
        match=r"run\.json: .*unknown condition 'every-1'; available: complete, language",
    ):
        write_report(done.folder)
