from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.numpy import load_file
from sklearn.metrics import accuracy_score, f1_score

import corrkd
from corrkd.errors import CorrKDError
from corrkd.experiment.experiment import prepare
from corrkd.missing.conditions import missing_subsets, standard_conditions
from corrkd.report.run_folder import read_csv
from tests.experiment.conftest import assert_same, contents, dataset_in, tiny, write_npz

ROLES = ("teacher", "student", "control")
COLUMNS = ["dataset", "method", "seed", "condition", "draw", "metric", "value"]


def read(folder: Path) -> pd.DataFrame:
    return read_csv(
        dataset_in(folder) / "results.csv",
        dtype={"seed": str},
        keep_default_na=False,
        na_values={"value": [""]},
    )


def tensors(folder: Path, role: str) -> dict[str, np.ndarray]:
    return load_file(folder / role / f"{role}.safetensors")


def predictions_of(run: Path, seed: int = 0) -> pd.DataFrame:
    folder = dataset_in(run) / f"seed-{seed}"
    return pd.concat(
        [pd.read_parquet(folder / role / "predictions.parquet") for role in ROLES],
        ignore_index=True,
    )


def history_of(run: Path) -> pd.DataFrame:
    folder = dataset_in(run) / "seed-0"
    return pd.concat([read_csv(folder / role / "history.csv") for role in ROLES], ignore_index=True)


def assert_equal_tensors(first: dict[str, np.ndarray], second: dict[str, np.ndarray]) -> None:
    assert first.keys() == second.keys()
    for name, value in first.items():
        np.testing.assert_array_equal(value, second[name], err_msg=name)


def test_the_files_of_a_run(finished: Path) -> None:
    top = {"plan.yaml", "results.csv", "report.html", "report.md", "tables", "figures", "synthetic"}
    assert top == {p.name for p in finished.iterdir()} - {".lock"}
    folder = finished / "synthetic"
    files = {"settings.yaml", "run.json", "results.csv", "costs.csv", "groups.csv"}
    assert files | {"seed-0", "seed-1"} == {p.name for p in folder.iterdir()}
    others = {
        "cost.json",
        "history.csv",
        "predictions.parquet",
        "representations.safetensors",
        "results.csv",
        "timings.csv",
        "SHA256SUMS",
    }
    for seed in ("seed-0", "seed-1"):
        assert {p.name for p in (folder / seed).iterdir()} == set(ROLES)
        for role in ROLES:
            models = {f"{role}.safetensors", f"{role}.json"} | (
                {"outputs.safetensors"} if role == "teacher" else set()
            )
            assert {p.name for p in (folder / seed / role).iterdir()} == models | others | {
                "tfevents"
            }
            assert list((folder / seed / role / "tfevents" / role).glob("events.*"))
    assert corrkd.load_settings(folder / "settings.yaml").seeds == (0, 1)
    facts = json.loads((folder / "run.json").read_text())
    assert [m["name"] for m in facts["methods"]] == ["teacher", "student", "control"]
    assert all("validation split" in m["selection"] for m in facts["methods"])


def test_results_are_tidy_and_complete(finished: Path) -> None:
    table = read(finished)
    assert list(table) == COLUMNS
    assert not table.duplicated(COLUMNS[:-1]).any()
    experiment = prepare(corrkd.load_settings(dataset_in(finished) / "settings.yaml"))
    expected = {(c.name, draw) for c in experiment.conditions() for draw in range(c.draws)}
    assert {("natural", 0), ("intact", 0)} <= expected
    assert ("ratio-0.5", 1) in expected
    metrics = {f"f1/{name}" for name in ("negative", "neutral", "positive")}
    metrics |= {"weighted_f1", "accuracy", "unweighted_accuracy", "ece", "ece_calibrated"}
    for role in ROLES:
        for seed in ("0", "1"):
            rows = table[(table["method"] == role) & (table["seed"] == seed)]
            metrics_by_draw = rows.groupby(["condition", "draw"])["metric"].agg(set).to_dict()
            assert metrics_by_draw.pop(("average", 0)) == metrics
            assert metrics_by_draw.pop(("ratios", 0)) == {"auc_weighted_f1", "auc_accuracy"}
            assert metrics_by_draw == dict.fromkeys(expected, metrics)
            assert rows["value"].between(0, 1).all()
    for reference in ("majority", "bayes"):
        rows = table[table["method"] == reference]
        assert set(rows["seed"]) == {""}
        assert set(rows["condition"]) == {c for c, _ in expected} | {"average", "ratios"}
    assert set(table["method"]) == {*ROLES, "majority", "bayes"}


def test_results_agree_with_the_predictions(finished: Path) -> None:
    results = read(finished).set_index(["method", "seed", "condition", "draw", "metric"])["value"]
    predictions = predictions_of(finished, 1)
    groups = predictions.groupby(["method", "condition", "draw"])
    assert len(groups) == 3 * 15
    for (method, condition, draw), rows in groups:
        key = (method, "1", condition, draw)
        expected = f1_score(rows["target"], rows["prediction"], average="weighted", zero_division=0)
        assert results[(*key, "weighted_f1")] == pytest.approx(expected, abs=1e-12)
        assert results[(*key, "accuracy")] == pytest.approx(
            accuracy_score(rows["target"], rows["prediction"])
        )
    subsets = [c.name for c in missing_subsets(("language", "audio", "vision"))]
    mean = np.mean([results["student", "1", name, 0, "weighted_f1"] for name in subsets])
    assert results["student", "1", "average", 0, "weighted_f1"] == pytest.approx(mean, abs=1e-12)


def test_natural_and_intact_divide_the_samples_by_what_is_missing(finished: Path) -> None:
    dataset = prepare(corrkd.load_settings(dataset_in(finished) / "settings.yaml")).dataset
    test = dataset.split("test")
    incomplete = set(test.ids[test.naturally_incomplete()])
    assert 0 < len(incomplete) < len(test)
    predictions = predictions_of(finished, 0)
    assert set(predictions[predictions["condition"] == "natural"]["id"]) == incomplete
    assert (
        set(predictions[predictions["condition"] == "intact"]["id"]) == set(test.ids) - incomplete
    )
    assert set(predictions[predictions["condition"] == "complete"]["id"]) == set(test.ids)


def test_the_saved_epoch_is_the_best_on_validation_the_earliest_on_ties(finished: Path) -> None:
    history = history_of(finished)
    for role in ROLES:
        rows = history[history["method"] == role].reset_index()
        assert list(rows["epoch"]) == list(range(1, len(rows) + 1))
        about = json.loads((dataset_in(finished) / "seed-0" / role / f"{role}.json").read_text())[
            "about"
        ]
        best = rows["valid/weighted_f1"].idxmax()
        assert about["epoch"] == rows["epoch"][best]
        assert rows["kept"].tolist() == (rows["epoch"] == about["epoch"]).astype(int).tolist()
        assert about["valid/weighted_f1"] == rows["valid/weighted_f1"][best]
    terms = history[history["method"] == "student"][
        ["loss/task", "loss/scd", "loss/cpd", "loss/rcd"]
    ]
    total = history[history["method"] == "student"]["loss/total"]
    np.testing.assert_allclose(terms.sum(axis=1), total, rtol=1e-5)


@pytest.mark.usefixtures("no_report")
def test_a_seed_alone_equals_the_seed_among_others(finished: Path, tmp_path: Path) -> None:
    """Bit for bit: nothing depends on the other seeds or on the caller's random state."""
    torch.manual_seed(99)
    np.random.seed(99)  # noqa: NPY002  (the state that a caller may have left)
    state = torch.get_rng_state()
    settings = corrkd.load_settings(dataset_in(finished) / "settings.yaml", overrides=["seeds=[1]"])
    corrkd.run(settings, tmp_path / "run")
    assert torch.equal(torch.get_rng_state(), state)
    assert_same(
        contents(dataset_in(tmp_path / "run") / "seed-1"), contents(dataset_in(finished) / "seed-1")
    )
    alone, together = read(tmp_path / "run"), read(finished)
    pd.testing.assert_frame_equal(
        alone, together[together["seed"].isin(["1", ""])].reset_index(drop=True), check_exact=True
    )


def test_seeds_differ(finished: Path) -> None:
    for role in ROLES:
        first, second = (tensors(dataset_in(finished) / f"seed-{seed}", role) for seed in (0, 1))
        assert any(
            not np.array_equal(first[name], second[name])
            for name in first
            if name.startswith("network.")
        )
        np.testing.assert_array_equal(first["center.audio"], second["center.audio"])


@pytest.mark.usefixtures("no_report")
def test_student_and_control_share_initialisation_batches_and_masks(tmp_path: Path) -> None:
    """Without distillation the student is the control; with it, it is not."""
    for name, weight in (("without", 0.0), ("with", 1.0)):
        student = {"method": {term: {"weight": weight} for term in ("scd", "cpd", "rcd")}}
        corrkd.run(tiny(student=student), tmp_path / name, evaluate=False)
    folder, with_losses = (dataset_in(tmp_path / name) / "seed-0" for name in ("without", "with"))
    assert_equal_tensors(tensors(folder, "student"), tensors(folder, "control"))
    history = history_of(tmp_path / "without").set_index("method")
    assert (
        history.loc["student", "loss/task"].tolist() == history.loc["control", "loss/task"].tolist()
    )
    distilled = tensors(with_losses, "student")
    assert any(
        not np.array_equal(x, distilled[name]) for name, x in tensors(folder, "control").items()
    )
    assert_equal_tensors(tensors(folder, "control"), tensors(with_losses, "control"))


@pytest.mark.usefixtures("no_report")
def test_the_evaluations_batch_size_changes_rounding_alone(tmp_path: Path) -> None:
    tables, representations = [], []
    for size in (256, 5):
        folder = tmp_path / str(size)
        corrkd.run(tiny(evaluation={"batch_size": size}), folder)
        tables.append(predictions_of(folder))
        representations.append(
            load_file(dataset_in(folder) / "seed-0" / "student" / "representations.safetensors")
        )
    pd.testing.assert_frame_equal(tables[0], tables[1], check_exact=False, rtol=1e-4, atol=1e-5)
    for name, x in representations[0].items():
        np.testing.assert_allclose(x, representations[1][name], atol=5e-3)


@pytest.mark.usefixtures("no_report")
def test_a_set_too_large_for_memory_gives_the_same_bits(tmp_path: Path) -> None:
    data = write_npz(tmp_path / "d.npz", {"language": 5, "audio": 3})
    for name, size in (("resident", 4.0), ("batchwise", 0.0)):
        corrkd.run(tiny(data={"path": str(data), "resident_gigabytes": size}), tmp_path / name)
    resident, batchwise = (
        contents(tmp_path / name, "d/seed-0/*/*") for name in ("resident", "batchwise")
    )
    assert_same(resident, batchwise)


@pytest.mark.usefixtures("no_report")
@pytest.mark.parametrize(
    ("widths", "target"),
    [
        ({"speech": 6}, "classes"),
        ({"language": 5, "audio": 3}, "binary-has-zero"),
        ({"language": 5, "audio": 3}, "score"),
        ({"speech": 4, "gaze": 2, "NA": 3, "touch": 5}, "tertiles"),
    ],
)
def test_any_number_of_modalities_and_any_target(
    tmp_path: Path, widths: dict[str, int], target: str
) -> None:
    data = write_npz(tmp_path / "d.npz", widths)
    run = corrkd.run(tiny(data={"path": str(data), "target": target}), tmp_path / "run")
    expected = {
        c.name
        for c in standard_conditions(
            tuple(widths), evaluation_settings(run.folder), incomplete=np.array([False])
        )
    }
    assert set(read(run.folder)["condition"]) == expected | {"average", "ratios"}
    student = run.results[run.results["method"] == "student"]
    assert (
        {"mae", "corr"} <= set(student["metric"])
        if target == "score"
        else "ece" in set(student["metric"])
    )
    assert student[student["metric"] != "corr"]["value"].notna().all()
    assert (
        len(student[(student["condition"] == "complete") & (student["metric"] == "weighted_f1")])
        == 1
    )
    pd.testing.assert_frame_equal(read(run.folder), run.results[COLUMNS], check_exact=True)
    history = pd.read_csv(
        dataset_in(run.folder) / "seed-0" / "student" / "history.csv", keep_default_na=False
    )
    assert ("loss/rcd" in history) == (target != "score")


def evaluation_settings(folder: Path) -> Any:
    return corrkd.load_settings(dataset_in(folder) / "settings.yaml").evaluation


@pytest.mark.usefixtures("no_report")
def test_yes_no_questions(tmp_path: Path) -> None:
    labels = np.random.default_rng(0).integers(0, 2, (60, 2))
    data = write_npz(
        tmp_path / "d.npz",
        {"language": 5, "audio": 3},
        labels=labels,
        question_names=np.array(["happy", "sad"]),
    )
    run = corrkd.run(tiny(data={"path": str(data), "target": "auto"}), tmp_path / "run")
    student = run.results[
        (run.results["method"] == "student") & (run.results["condition"] == "audio")
    ]
    values = student.set_index("metric")["value"]
    assert values["weighted_f1"] == pytest.approx(
        (values["weighted_f1/happy"] + values["weighted_f1/sad"]) / 2
    )
    predictions = predictions_of(run.folder)
    assert set(predictions["question"]) == {"happy", "sad"}
    assert (
        len(
            predictions[
                (predictions["method"] == "student") & (predictions["condition"] == "audio")
            ]
        )
        == 2 * 15
    )


@pytest.mark.usefixtures("no_report")
def test_the_test_split_cannot_influence_training(tmp_path: Path) -> None:
    widths = {"language": 5, "audio": 3}
    data = write_npz(tmp_path / "d.npz", widths)
    arrays = dict(np.load(data))
    test = arrays["split"] == "test"
    rng = np.random.default_rng(7)
    for m in widths:
        arrays[m][test] = 50 * rng.normal(size=arrays[m][test].shape)
    arrays["labels"][test] = rng.integers(0, 3, test.sum())
    np.savez(tmp_path / "other.npz", **arrays)
    for name in ("d", "other"):
        corrkd.run(
            tiny(data={"path": str(tmp_path / f"{name}.npz"), "name": "same"}), tmp_path / name
        )
    for role in ROLES:
        assert_equal_tensors(
            *(tensors(dataset_in(tmp_path / name) / "seed-0", role) for name in ("d", "other"))
        )
    first, second = (
        contents(dataset_in(tmp_path / name) / "seed-0", "*/history.csv") for name in ("d", "other")
    )
    assert_same(first, second)
    assert not read(tmp_path / "d").equals(read(tmp_path / "other"))


@pytest.mark.usefixtures("no_report")
def test_a_batch_larger_than_the_data_is_clipped_and_reported(tmp_path: Path) -> None:
    for size in (30, 1000):
        corrkd.run(tiny(student={"batch_size": size}), tmp_path / str(size), evaluate=False)
    notes = json.loads((tmp_path / "1000" / "synthetic" / "run.json").read_text())["notes"]
    assert any(
        "student.batch_size = 1000 is more than the 30 training samples" in note for note in notes
    )
    assert not json.loads((tmp_path / "30" / "synthetic" / "run.json").read_text())["notes"]
    models = [
        contents(tmp_path / size / "synthetic" / "seed-0", "*/*.safetensors")
        for size in ("30", "1000")
    ]
    assert_same(*models)


@pytest.mark.usefixtures("no_report")
@pytest.mark.parametrize("precision", ["bf16-mixed", "64-true"])
def test_other_precisions(tmp_path: Path, precision: str) -> None:
    run = corrkd.run(tiny(precision=precision), tmp_path / "run")
    assert run.results[run.results["method"] == "student"]["value"].notna().all()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.usefixtures("no_report")
def test_a_model_trained_on_a_gpu_is_read_on_a_cpu(tmp_path: Path) -> None:
    run = corrkd.run(tiny(device="cuda"), tmp_path / "run")
    student = run.results[run.results["method"] == "student"].set_index(
        ["condition", "draw", "metric"]
    )["value"]
    assert student.notna().all()
    dataset = prepare(
        corrkd.load_settings(dataset_in(run.folder) / "settings.yaml", overrides=["device=cpu"])
    ).dataset
    table = corrkd.evaluate(
        corrkd.load_student(run.folder), dataset, conditions=["complete", "ratio-0.5"], draws=2
    )
    ece = table[table["metric"] == "ece"].set_index(["condition", "draw", "metric"])["value"]
    np.testing.assert_allclose(ece, student[ece.index], atol=1e-3)


@pytest.mark.usefixtures("no_report")
def test_early_stopping(tmp_path: Path) -> None:
    corrkd.run(
        tiny(teacher={"epochs": 50, "patience": 2, "lr": 1e-9}), tmp_path / "run", evaluate=False
    )
    teacher = pd.read_csv(dataset_in(tmp_path / "run") / "seed-0" / "teacher" / "history.csv")
    best = teacher["epoch"][teacher["valid/weighted_f1"].idxmax()]
    assert teacher["epoch"].max() == best + 2


@pytest.mark.usefixtures("no_report")
def test_a_trained_run_can_be_evaluated_later(finished: Path, tmp_path: Path) -> None:
    settings = corrkd.load_settings(dataset_in(finished) / "settings.yaml", overrides=["seeds=[0]"])
    trained = corrkd.run(settings, tmp_path / "run", evaluate=False)
    assert trained.results.empty
    assert not (tmp_path / "run" / "results.csv").exists()
    corrkd.resume(tmp_path / "run")
    assert_same(
        contents(dataset_in(tmp_path / "run") / "seed-0"), contents(dataset_in(finished) / "seed-0")
    )


@pytest.mark.usefixtures("no_report")
def test_a_set_without_a_test_split_can_be_evaluated_on_another(tmp_path: Path) -> None:
    split = np.repeat(["train", "valid"], [40, 20])
    data = write_npz(tmp_path / "d.npz", {"language": 5, "audio": 3}, split=split)
    settings = tiny(data={"path": str(data)})
    with pytest.raises(CorrKDError, match="has no split 'test'"):
        corrkd.run(settings, tmp_path / "run")
    corrkd.run(
        {**settings, "evaluation": {**settings["evaluation"], "split": "valid"}}, tmp_path / "run"
    )
    assert (
        len(
            load_file(
                tmp_path / "run" / "d" / "seed-0" / "student" / "representations.safetensors"
            )["targets"]
        )
        == 20
    )


@pytest.mark.usefixtures("no_report")
def test_overwriting_a_run_keeps_other_files(tmp_path: Path) -> None:
    settings = tiny(
        data={"synthetic": {"train": 6, "valid": 6, "test": 6, "frames": 2}}, teacher={"epochs": 1}
    )
    out = tmp_path / "run"
    corrkd.run(settings, out, evaluate=False)
    before = contents(out)
    with pytest.raises(CorrKDError, match="already contains a run"):
        corrkd.run(settings, out)
    assert contents(out) == before
    (out / "my notes.txt").write_text("mine")
    corrkd.run({**settings, "seeds": [4]}, out, evaluate=False, overwrite=True)
    assert not (out / "synthetic" / "seed-0").exists()
    assert (out / "my notes.txt").read_text() == "mine"
    other = tmp_path / "project"
    (other / "figures").mkdir(parents=True)
    (other / "settings.yaml").write_text("seeds: [0]\n")
    (other / "thesis.tex").write_text("mine")
    with pytest.raises(CorrKDError, match="contains other files and no run"):
        corrkd.run(settings, other, overwrite=True)
    assert {p.name for p in other.iterdir()} == {"figures", "settings.yaml", "thesis.tex"}


@pytest.mark.slow
def test_several_seeds_at_once_change_nothing(finished: Path, tmp_path: Path) -> None:
    settings = corrkd.load_settings(dataset_in(finished) / "settings.yaml", overrides=["jobs=2"])
    corrkd.run(settings, tmp_path / "run")
    serial, parallel = contents(finished), contents(tmp_path / "run")
    assert serial.pop("plan.yaml") != parallel.pop("plan.yaml")  # jobs
    for name in ("report.html", "report.md", "synthetic/settings.yaml"):  # they show the settings
        serial.pop(name), parallel.pop(name)
    assert_same(serial, parallel)
