"""From files in published layouts to runs, evaluations and predictions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import corrkd
from tests.data.readers.samples import mmsa, write_pickle
from tests.experiment.conftest import dataset_in, no_report, tiny  # noqa: F401  (fixture)

pytestmark = pytest.mark.usefixtures("no_report")
QUICK = {
    "teacher": {"epochs": 1},
    "student": {"epochs": 1},
    "evaluation": {"conditions": {"ratio": [], "burst": []}},
}


def run(path: Path, out: Path, **data: Any) -> corrkd.Run:
    settings = tiny(data={"path": str(path), "synthetic": {}, "target": "auto", **data}, **QUICK)
    return corrkd.run(corrkd.load_settings(**settings), out=out)


def test_a_modality_that_the_test_split_lacks_is_evaluated_and_predicted(tmp_path: Path) -> None:
    data = mmsa(aligned=True)
    del data["test"]["audio"]
    path = write_pickle(tmp_path / "set.pkl", data)
    done = run(path, tmp_path / "run")
    table = corrkd.evaluate(corrkd.load_student(done.folder), corrkd.load_dataset(path))
    f1 = table[table["metric"] == "weighted_f1"].set_index("condition")["value"]
    assert np.isfinite(f1).all()
    assert f1["language+vision"] == f1["complete"]  # without audio in any sample
    predictor = corrkd.Predictor.from_pretrained(done.folder)
    assert (
        predictor.predict({"language": data["test"]["text"][0], "audio": None}).used["audio"] == 0
    )


def test_scores_with_ties_are_trained_on_and_loaded(tmp_path: Path) -> None:
    data = mmsa()
    for split in data.values():
        del split["classification_labels"], split["annotations"]
        split["regression_labels"] = np.where(np.arange(len(split["id"])) % 5 == 4, 4.0, 2.0)
    done = run(write_pickle(tmp_path / "set.pkl", data), tmp_path / "run", target="score")
    student = corrkd.load_student(done.folder)
    assert (student.target.kind, student.target.classes, student.target.cuts) == (
        "score",
        ("low", "high"),
        (4.0,),
    )


def test_the_selected_label_is_stored_in_the_settings(tmp_path: Path) -> None:
    data = mmsa()
    for seed, split in enumerate(data.values()):
        split["emotions"] = (
            np.random.default_rng(seed).integers(0, 2, (len(split["id"]), 6)).astype(float)
        )
        split["emotions"][0], split["emotions"][1] = 0, 3
    done = run(write_pickle(tmp_path / "set.pkl", data), tmp_path / "run", label="happy,fear")
    assert "label: happy,fear" in (dataset_in(done.folder) / "settings.yaml").read_text()
    assert corrkd.load_student(done.folder).target.questions == ("happy", "fear")
