"""Datasets in memory are trained on, evaluated, resumed and compared like files."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import corrkd
from corrkd.data.convert import as_converted, convert
from corrkd.data.dataset import MultimodalDataset
from corrkd.data.modalities import with_classes
from corrkd.errors import CorrKDError
from corrkd.experiment.plan import load_plan
from tests.conftest import make_dataset
from tests.experiment.conftest import assert_same, contents, tiny


@pytest.fixture(autouse=True)
def _unreported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("corrkd.experiment.run.write_report", lambda out: out)


def small(**changes: Any) -> dict[str, Any]:
    tree = tiny(**changes)
    tree["data"] = {"target": "classes"}
    return tree


def frame(count: int = 60) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    labels = np.arange(count) % 2
    speech = [
        (rng.normal(size=(1 + row % 4, 3)) + label).tolist() for row, label in enumerate(labels)
    ]
    speech[5] = None  # type: ignore[call-overload]
    vectors = {f"form_{index}": rng.normal(size=count) + labels for index in range(4)}
    return pd.DataFrame(
        {
            "speech": speech,
            **vectors,
            "label": np.array(["calm", "tense"])[labels],
            "person": np.arange(count) % 20,
        }
    )


def test_a_run_on_a_dataset_in_memory_equals_the_run_on_its_converted_file(
    tmp_path: Path, dataset: MultimodalDataset
) -> None:
    result = corrkd.run(small(), tmp_path / "memory", dataset=dataset)
    convert(dataset, tmp_path / "tiny.safetensors")
    other = corrkd.run(
        {**small(), "data": {"path": str(tmp_path / "tiny.safetensors"), "target": "classes"}},
        tmp_path / "file",
    )
    pd.testing.assert_frame_equal(result.results, other.results)
    stored = tmp_path / "memory" / "tiny" / "data.safetensors"
    assert stored.read_bytes() == (tmp_path / "tiny.safetensors").read_bytes()
    settings = corrkd.load_settings(tmp_path / "memory" / "tiny" / "settings.yaml")
    assert settings.data.path == str(stored.resolve())
    before = contents(tmp_path / "memory")
    (tmp_path / "memory" / "tiny" / "seed-0" / "student" / "results.csv").unlink()
    corrkd.resume(tmp_path / "memory")
    assert_same(contents(tmp_path / "memory"), before)
    with pytest.raises(CorrKDError, match="contains the data of this run"):
        corrkd.run(settings, tmp_path / "memory", overwrite=True)
    again = corrkd.run(small(), tmp_path / "memory", dataset=dataset, overwrite=True)
    pd.testing.assert_frame_equal(again.results, result.results)


@pytest.mark.parametrize(
    "jobs", [1, pytest.param(2, marks=pytest.mark.slow)]
)  # workers read the stored data
def test_a_data_frame_is_trained_on_and_predicted(tmp_path: Path, jobs: int) -> None:
    done = corrkd.run(small(seeds=[0, 1], jobs=jobs), tmp_path / "out", dataset=frame())
    assert set(done.average().index) >= {"student", "control"}
    student = corrkd.load_student(tmp_path / "out")
    table = corrkd.evaluate(student, frame(), conditions=["complete", "speech"])
    results = done.results[done.results["seed"].astype(str) == "0"]
    of_run = results.query(
        "method == 'student' and condition == 'complete' and metric == 'accuracy'"
    )
    judged = table.query("condition == 'complete' and metric == 'accuracy'")
    assert judged["value"].item() == pytest.approx(of_run["value"].item(), abs=1e-6)
    predictor = corrkd.Predictor.from_pretrained(tmp_path / "out")
    assert predictor.predict({"speech": None, "form": np.zeros(4)}).label in ("calm", "tense")


def test_a_run_is_not_continued_with_other_data(tmp_path: Path, dataset: MultimodalDataset) -> None:
    plan = load_plan(arms=["no-distillation"], budget="fixed", overrides=["device=cpu"])
    entry = plan.datasets["synthetic"]
    plan = plan.model_copy(
        update={
            "datasets": {
                "synthetic": entry.model_copy(update={"settings": corrkd.load_settings(**small())})
            }
        }
    )
    done = corrkd.compare(plan, tmp_path / "out", datasets={"a": dataset, "b": frame()})
    assert set(done.results["dataset"]) == {"a", "b"}
    assert (tmp_path / "out" / "b" / "data.safetensors").is_file()
    assert corrkd.compare(
        plan, tmp_path / "out", datasets={"a": dataset, "b": frame()}
    ).results.equals(done.results)
    with pytest.raises(CorrKDError, match="the data has changed since the run began"):
        corrkd.compare(plan, tmp_path / "out", datasets={"a": dataset, "b": frame(80)})
    two = plan.model_copy(update={"datasets": dict.fromkeys(("a", "b"), entry)})
    with pytest.raises(CorrKDError, match="has no dataset 'c'; it has a, b"):
        corrkd.compare(two, tmp_path / "other", datasets={"c": dataset})


def test_options_for_reading_files_are_refused_for_a_dataset(
    tmp_path: Path, dataset: MultimodalDataset
) -> None:
    with pytest.raises(CorrKDError, match=r"data\.label says how a file is read"):
        corrkd.run({"data": {"label": "happy"}}, tmp_path / "out", dataset=dataset)


def test_a_network_is_distilled_on_a_dict_of_arrays() -> None:
    rng = np.random.default_rng(0)
    labels = np.arange(60) % 2
    arrays = {
        "audio": rng.normal(size=(60, 3)) + labels[:, None],
        "text": rng.normal(size=(60, 4, 2)),
        "y": labels,
    }
    changes = {key: value for key, value in small().items() if key != "data"}
    result = corrkd.distil("corrkd", dataset=arrays, preset=None, settings=changes, test=False)
    assert result.student.modalities == ("language", "audio")


def test_classes_are_numbered_as_the_model_numbers_them(dataset: MultimodalDataset) -> None:
    named = replace(dataset, class_names=("c", "a", "b"))
    renumbered = with_classes(named, ("a", "b", "c"))
    before, after = named.splits["test"].labels, renumbered.splits["test"].labels
    assert before is not None
    assert after is not None
    assert [named.class_names[label] for label in before] == [
        renumbered.class_names[label] for label in after
    ]
    assert with_classes(named, ("x", "y", "z")) is named


@settings(deadline=None, max_examples=10)
@given(frames=st.integers(1, 5), classes=st.integers(2, 4), sha=st.sampled_from(["", "1" * 64]))
def test_a_dataset_is_read_back_as_expected(
    frames: int, classes: int, sha: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    dataset = replace(
        make_dataset(sizes=(9, 6, 6), frames=frames, classes=classes), sha256=sha, notes=("a note",)
    )
    path = tmp_path_factory.mktemp("converted") / "data.safetensors"
    convert(dataset, path)
    read, expected = corrkd.load_dataset(path), as_converted(dataset)
    for field in (
        "name",
        "sha256",
        "notes",
        "extra",
        "class_names",
        "layout",
        "missing_rule",
        "tokens",
        "posterior",
    ):
        assert getattr(read, field) == getattr(expected, field)
    for name, split in read.splits.items():
        for m, x in split.frames.items():
            assert np.array_equal(x, expected.splits[name].frames[m])
