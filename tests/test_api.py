"""The stable public names, as the README shows them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import corrkd
from corrkd.data.convert import convert
from corrkd.experiment.experiment import read
from tests.experiment.conftest import finished, no_report, tiny, write_npz  # noqa: F401  (fixtures)

PUBLIC = {
    "run",
    "resume",
    "load_dataset",
    "load_student",
    "load_settings",
    "evaluate",
    "Settings",
    "CorrKDError",
}


@pytest.fixture(scope="module")
def data(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:  # noqa: F811
    """The finished run's dataset as a file."""
    path = tmp_path_factory.mktemp("data") / "set.safetensors"
    convert(read(corrkd.load_settings(finished / "synthetic" / "settings.yaml").data), path)
    return path


def test_the_public_names_exist() -> None:
    assert set(corrkd.__all__) >= PUBLIC
    assert dir(corrkd) == corrkd.__all__
    for name in corrkd.__all__:
        assert getattr(corrkd, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'predict'"):
        corrkd.predict  # noqa: B018


def test_the_loaded_student_gives_the_runs_results(finished: Path, data: Path) -> None:  # noqa: F811
    results = pd.read_csv(finished / "results.csv")
    for seed in (0, 1):
        table = corrkd.evaluate(
            corrkd.load_student(finished / "synthetic" / f"seed-{seed}"), corrkd.load_dataset(data)
        )
        expected = results[(results["method"] == "student") & (results["seed"] == seed)]
        merged = table.merge(expected, on=["condition", "draw", "metric"], validate="one_to_one")
        shared = set(expected["condition"]) - {"ratios"}  # the run tests fewer ratios and draws
        assert (
            {"complete", "natural", "average", "language", "ratio-0.5"}
            <= set(merged["condition"])
            <= shared | {"ratios"}
        )
        merged = merged[merged["condition"] != "ratios"]
        assert len(merged) == len(expected) - 2
        np.testing.assert_allclose(merged["value_x"], merged["value_y"], atol=1e-6)


def test_evaluate_takes_conditions_split_and_batch_size(finished: Path, data: Path) -> None:  # noqa: F811
    student, dataset = corrkd.load_student(finished), corrkd.load_dataset(data)
    sizes: list[int] = []
    table = corrkd.evaluate(
        student, dataset, conditions=["audio", "ratio-0.5"], draws=2, on_batch=sizes.append
    )
    assert set(zip(table["condition"], table["draw"], strict=True)) == {
        ("audio", 0),
        ("ratio-0.5", 0),
        ("ratio-0.5", 1),
    }
    assert sum(sizes) == len(dataset.split("test"))
    other = corrkd.evaluate(
        student, dataset, conditions=["audio", "ratio-0.5"], draws=2, batch_size=4
    )
    pd.testing.assert_frame_equal(table, other, check_exact=False, atol=1e-6)
    train = corrkd.evaluate(student, dataset, split="train", conditions=["audio"])
    assert not np.allclose(train["value"], table["value"][table["condition"] == "audio"])


@pytest.mark.usefixtures("no_report")
def test_run_takes_settings_a_mapping_or_a_preset(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    fast = tiny(
        teacher={"epochs": 1},
        student={"epochs": 1},
        evaluation={"conditions": {"ratio": [], "burst": []}},
    )
    done = corrkd.run(corrkd.load_settings(**fast))
    assert done.folder == Path("runs/synthetic")
    assert (
        done.average().keys().tolist()
        == sorted(done.average().keys())
        == ["bayes", "control", "majority", "student", "teacher"]
    )
    again = corrkd.run(fast, "elsewhere")
    pd.testing.assert_frame_equal(again.results, done.results, check_exact=True)
    with pytest.raises(corrkd.CorrKDError, match="unknown preset 'nope'"):
        corrkd.run("nope")
    with pytest.raises(corrkd.CorrKDError, match=r"student\.lrr: unknown key"):
        corrkd.run({"student": {"lrr": 1}})


def test_a_run_from_python_is_silent(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    corrkd.run(
        tiny(
            teacher={"epochs": 1},
            student={"epochs": 1},
            evaluation={"conditions": {"ratio": [], "burst": []}},
        ),
        tmp_path / "run",
    )
    assert capfd.readouterr() == ("", "")


def test_a_users_arrays(tmp_path: Path) -> None:
    dataset = corrkd.load_dataset(write_npz(tmp_path / "d.npz", {"speech": 4, "gaze": 2}))
    assert dataset.modalities == ("speech", "gaze")
    assert {name: len(split) for name, split in dataset.splits.items()} == {
        "train": 30,
        "valid": 15,
        "test": 15,
    }


def imported_by(statement: str) -> set[str]:
    code = f"{statement}\nimport sys\nprint(*{{name.partition('.')[0] for name in sys.modules}})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_importing_the_package_loads_nothing_heavy() -> None:
    heavy = {
        "torch",
        "numpy",
        "pandas",
        "lightning_fabric",
        "sklearn",
        "scipy",
        "matplotlib",
        "pydantic",
    }
    assert not imported_by("import corrkd") & heavy


def test_loading_a_dataset_imports_no_training_libraries() -> None:
    assert not imported_by("import corrkd; corrkd.load_dataset") & {
        "torch",
        "pandas",
        "lightning_fabric",
    }
