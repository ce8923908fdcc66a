from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from concurrent.futures import BrokenExecutor, Future
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from safetensors.numpy import load_file

import corrkd
from corrkd.errors import CorrKDError
from corrkd.evaluation.sweep import mean_f1
from corrkd.experiment import runner
from corrkd.experiment.experiment import prepare
from corrkd.experiment.job import Job
from corrkd.experiment.plan import DatasetPlan, Plan, load_plan
from corrkd.experiment.progress import Reporter
from corrkd.experiment.run import Run, compare
from corrkd.experiment.runner import Failure, run_jobs, state_table
from corrkd.experiment.settings import ArmSettings, Settings, read_yaml
from corrkd.missing.conditions import missing_subsets, subsets
from corrkd.networks.saved import load_network
from corrkd.report import figures
from corrkd.report.run_folder import RunFolder, read_csv
from corrkd.report.standings import method_counts, standings
from corrkd.training.loop import VALID
from tests.command import sketch
from tests.experiment.conftest import (
    assert_same,
    contents,
    dataset_in,
    run_unreported,
    tiny,
    write_npz,
)

METHODS = ["late-fusion", "corrkd-kl", "no-distillation"]


def plan_of(
    methods: Any = METHODS, seeds: int = 1, tmp: Path | None = None, **changes: Any
) -> Plan:
    """Return a comparison on the tiny built-in dataset, read from a file as a user writes it."""
    settings = {key: value for key, value in tiny(**changes).items() if key != "seeds"}
    tree = {
        "datasets": {"built-in": {"settings": settings}},
        "arms": methods,
        "seeds": seeds,
        "budget": "fixed",
    }
    assert tmp is not None
    (tmp / "plan.yaml").write_text(json.dumps(tree))  # JSON is YAML
    return load_plan(tmp / "plan.yaml")


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A comparison in two processes with its report, whose figures are not drawn."""
    tmp = tmp_path_factory.mktemp("compared")
    plan = plan_of(["corrkd-kl", "no-distillation"], tmp=tmp).model_copy(update={"jobs": 2})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(figures, "picture", sketch)
        return compare(plan, tmp / "out")


def test_the_files_of_a_comparison(compared: Run) -> None:
    assert compared.failures == []
    assert (compared.folder / "report.html").is_file()
    folder = compared.folder / "built-in"
    table = pd.read_csv(folder / "results.csv", dtype={"seed": str}, keep_default_na=False)
    arms = {"teacher", "corrkd-kl", "no-distillation"}  # `corrkd-kl` needs the teacher
    assert set(table["method"]) == {*arms, "majority", "bayes"}
    costs = pd.read_csv(folder / "costs.csv").set_index("method")
    assert set(costs.index) == arms
    assert (costs["train_seconds"] > 0).all()
    assert (costs["peak_memory_bytes"] > 1e7).all()
    for arm in arms:
        tensors = load_file(folder / "seed-0" / arm / f"{arm}.safetensors")
        size = sum(
            x.size
            for name, x in tensors.items()
            if name.startswith("network.") and "fill" not in name
        )
        assert costs.loc[arm, "parameters"] == size
    facts = json.loads((folder / "run.json").read_text())
    assert facts["groups"]["count"] == len(
        set(pd.read_csv(folder / "groups.csv", dtype=str)["group"])
    )
    assert {m["name"]: m["kind"] for m in facts["methods"]}["corrkd-kl"] == "ablation"
    assert any("mask seed" in line for line in facts["protocol"])


def test_a_method_is_the_same_in_a_comparison_as_in_a_run(compared: Run, tmp_path: Path) -> None:
    """Initialisation, batches, masks and selection are the same, bit for bit."""
    run_unreported(tiny(seeds=[0]), tmp_path / "run")
    for arm, role in (("teacher", "teacher"), ("no-distillation", "control")):
        ours = load_file(compared.folder / "built-in" / "seed-0" / arm / f"{arm}.safetensors")
        other = load_file(dataset_in(tmp_path / "run") / "seed-0" / role / f"{role}.safetensors")
        assert ours.keys() == other.keys()
        for name, value in ours.items():
            np.testing.assert_array_equal(value, other[name], err_msg=name)
    results = read_csv(dataset_in(tmp_path / "run") / "results.csv", keep_default_na=False)
    table = compared.results
    values = table[table["method"] == "no-distillation"]["value"].to_numpy(float)
    np.testing.assert_array_equal(
        values, results[results["method"] == "control"]["value"].to_numpy(float)
    )


def test_only_missing_jobs_are_run(jobs_run: list[Job], tmp_path: Path) -> None:
    plan, out = plan_of(tmp=tmp_path), tmp_path / "out"
    compare(plan, out)
    assert [job.arm for job in jobs_run] == ["teacher", *METHODS]  # the teacher first
    before = contents(out)
    jobs_run.clear()
    compare(plan, out)
    assert jobs_run == []
    assert_same(before, contents(out))
    (out / "built-in" / "seed-0" / "corrkd-kl" / "results.csv").unlink()
    (out / "built-in" / "seed-0" / "corrkd-kl" / "progress").write_text(
        "corrkd-kl 1/2"
    )  # as a killed process leaves it
    compare(plan, out)
    assert [job.arm for job in jobs_run] == ["corrkd-kl"]
    assert_same(before, contents(out))
    jobs_run.clear()
    compare(plan_of([*METHODS, "feature-mse"], seeds=2, tmp=tmp_path), out)
    assert {(job.arm, job.seed) for job in jobs_run} == {
        ("feature-mse", 0), *((arm, 1) for arm in ("teacher", *METHODS, "feature-mse")),
    }  # fmt: skip


def test_a_failed_run_is_reported_and_others_continue(jobs_run: list[Job], tmp_path: Path) -> None:
    plan = plan_of(
        {"late-fusion": {"lr": 1e30, "clip_norm": None}, "no-distillation": {}}, tmp=tmp_path
    )
    done = compare(plan, tmp_path / "out")
    assert [(f.job.arm, "no longer finite" in f.error) for f in done.failures] == [
        ("late-fusion", True)
    ]
    assert set(done.results["method"]) == {"no-distillation", "majority", "bayes"}
    listed = pd.read_csv(tmp_path / "out" / "failures.csv")
    assert list(listed["method"]) == ["late-fusion"]
    jobs_run.clear()
    assert len(compare(plan, tmp_path / "out").failures) == 1
    assert [job.arm for job in jobs_run] == ["late-fusion"]


class KillingSettings(Settings):
    """Settings that kill the worker that reads them, as if memory had run out."""

    def model_dump_json(self, **_: Any) -> str:  # called in the worker
        os.kill(os.getpid(), signal.SIGKILL)
        return ""


@pytest.mark.slow
def test_a_killed_worker_fails_only_its_job(tmp_path: Path) -> None:
    """Jobs that run beside it are retried."""
    settings = corrkd.load_settings(**tiny())
    arms = {"no-distillation": ArmSettings(epochs=1)}
    sound = DatasetPlan(settings=settings, arms=arms)
    deadly = DatasetPlan(settings=settings, arms=arms).model_copy(
        update={"settings": KillingSettings.model_validate(settings.model_dump())}
    )
    jobs = [
        Job(tmp_path / name, plan, "no-distillation", seed, evaluate=False)
        for name, plan, seed in (("deadly", deadly, 0), ("sound", sound, 0), ("sound", sound, 1))
    ]
    failures = run_jobs(jobs, {}, at_once=2, reporter=Reporter(quiet=True))
    assert [(f.job.key, f.error) for f in failures] == [
        (("deadly", "no-distillation", 0), "its process was killed; it may have run out of memory")
    ]
    assert [job.done for job in jobs] == [False, True, True]


def test_jobs_beside_a_killed_worker_are_retried_alone(tmp_path: Path) -> None:
    dataset_plan = DatasetPlan(
        settings=corrkd.load_settings(**tiny(seeds=[0, 1, 2])),
        arms={"kl": ArmSettings(), "teacher": ArmSettings()},
    )
    arms = {"no-distillation": ArmSettings()}
    jobs = [
        Job(tmp_path / "a", dataset_plan.model_copy(update={"arms": arms}), "no-distillation", seed)
        for seed in range(3)
    ]
    running: dict[int, Future[str | None]] = {}
    running_seeds = []

    def submit(job: Job) -> Future[str | None]:
        """Let job 1 kill the pool and the jobs beside it; the others end when they run alone."""
        future = running[job.seed] = Future()
        running_seeds.append(sorted(seed for seed, other in running.items() if not other.done()))
        if job.seed == 1:
            for other in running.values():
                if not other.done():
                    other.set_exception(BrokenExecutor())
        elif len(running_seeds) > 2:
            future.set_result(None)
        return future

    failures: list[Failure] = []
    runner._schedule(jobs, submit, 2, failures)
    assert [(failure.job.seed, failure.error.split(";")[0]) for failure in failures] == [
        (1, "its process was killed")
    ]
    assert running_seeds == [[0], [0, 1], [0], [1], [2]]


def test_jobs_that_need_a_failed_job_are_not_started(jobs_run: list[Job], tmp_path: Path) -> None:
    plan = plan_of(
        {"teacher": {"lr": 1e30, "clip_norm": None}, "kl": {}, "no-distillation": {}}, tmp=tmp_path
    )
    done = compare(plan, tmp_path / "out")
    assert [job.arm for job in jobs_run] == ["teacher", "no-distillation"]
    lines = {failure.job.arm: failure.error for failure in done.failures}
    assert lines["kl"].startswith(
        "not begun: teacher with seed 0, which it needs, has failed (the loss is no longer"
    )
    assert set(lines) == {"teacher", "kl"}


def test_a_method_started_with_other_settings_is_not_continued(
    jobs_run: list[Job], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    compare(plan_of(["no-distillation"], tmp=tmp_path), out)
    before = contents(out)
    other = plan_of({"no-distillation": {"lr": 0.5}}, tmp=tmp_path)
    with pytest.raises(CorrKDError, match=r"no-distillation\.lr was .*, is 0\.5; .*--overwrite"):
        compare(other, out)
    with pytest.raises(CorrKDError, match=r"dataset built-in, missing\.modality was 0\.3, is 0\.9"):
        compare(plan_of(["no-distillation"], tmp=tmp_path, missing={"modality": 0.9}), out)
    assert_same(before, contents(out))
    jobs_run.clear()
    compare(other, out, overwrite=True)
    assert [job.arm for job in jobs_run] == ["no-distillation"]


def test_a_folder_with_other_files_is_left_alone(jobs_run: list[Job], tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("mine")
    for overwrite in (False, True):
        with pytest.raises(CorrKDError, match="contains other files and no run"):
            compare(plan_of(tmp=tmp_path), tmp_path / "out", overwrite=overwrite)
    assert (tmp_path / "out" / "thesis.txt").read_text() == "mine"
    assert jobs_run == []


def test_unsupported_data_are_reported_before_any_training(
    jobs_run: list[Job], tmp_path: Path
) -> None:
    data = write_npz(tmp_path / "one.npz", {"speech": 4})
    plan = load_plan(
        data=[str(data)], arms=["no-distillation", "dmd"], overrides=["student.epochs=1"]
    )
    with pytest.raises(
        CorrKDError,
        match=r"dataset one, arm dmd: DMD: distils between modalities, but .* only speech",
    ):
        compare(plan, tmp_path / "out")
    assert jobs_run == []


def test_cross_validation_tests_every_seed_on_its_fold(jobs_run: list[Job], tmp_path: Path) -> None:
    person = np.array([f"p{i // 3}" for i in range(60)])
    data = write_npz(tmp_path / "people.npz", {"language": 5, "audio": 3}, person=person)
    settings = tiny(
        data={"path": str(data), "synthetic": {}, "resample": {"folds": 3, "train": 24}},
        evaluation={"split": "valid"},
        teacher={"keep": "last", "folds": 2, "epochs": 1},
        student={"keep": "last", "epochs": 1},
    )
    tree = {"datasets": {"cv": {"settings": {k: v for k, v in settings.items() if k != "seeds"}}}}
    (tmp_path / "plan.yaml").write_text(
        json.dumps({**tree, "arms": ["no-distillation", "kl"], "seeds": 3})
    )
    done = compare(load_plan(tmp_path / "plan.yaml", budget="fixed"), tmp_path / "out")
    assert not done.failures
    folder = tmp_path / "out" / "cv"
    tested = []
    for seed in range(3):
        teachers = sorted(
            path.name for path in (folder / f"seed-{seed}" / "teacher").glob("teacher*.safetensors")
        )
        assert teachers == [
            "teacher-0-0.safetensors",
            "teacher-0-1.safetensors",
            "teacher.safetensors",
        ]
        rows = pd.read_parquet(folder / f"seed-{seed}" / "kl" / "predictions.parquet")
        tested += sorted(set(rows["id"]))
    groups = pd.read_csv(folder / "groups.csv")
    assert sorted(tested) == sorted(groups["id"])  # each once: 30 of train and 15 of valid
    assert len(tested) == 45
    # Seeds that test different people share a table; the floor has a value for each fold.
    run = RunFolder.open(folder)
    counts = method_counts(run)
    assert {c.shape for by_seed in counts.values() for c in by_seed.values()} == {(2, 15, 1, 3, 3)}
    kl = standings(counts, ["kl"], "no-distillation", 200)["kl"]
    assert kl.difference is not None
    assert kl.difference.low <= kl.difference.mean <= kl.difference.high
    assert set(done.results.loc[done.results["method"] == "majority", "seed"]) == {"0", "1", "2"}


def test_the_live_table_counts_jobs(tmp_path: Path) -> None:
    dataset_plan = DatasetPlan(settings=corrkd.load_settings(**tiny()), arms={"kl": ArmSettings()})
    jobs = [Job(tmp_path / "set", dataset_plan, "kl", seed) for seed in range(3)]
    for job in jobs:
        job.folder.mkdir(parents=True)
    (jobs[0].folder / "results.csv").write_text("")
    (jobs[1].folder / "progress").write_text("kl 3/16\n")
    table = state_table(jobs)
    columns = {str(column.header): list(column.cells) for column in table.columns}
    assert columns["done"] == ["1", "1"]
    assert columns["running"][0] == "seed 1: 3/16"
    assert columns["left"] == ["1", "1"]


@pytest.mark.parametrize(
    ("tree", "line"),
    [
        ({"method": ["kl"]}, "unknown key 'method'; allowed: datasets, arms, seeds, jobs, search"),
        (
            {"arms": {"kl": {"lrr": 1}}},
            r"arms\.kl\.lrr: unknown key; allowed: epochs, .*, method, network, title, "
            r"trains_on",
        ),
        ({"arms": 3}, "expected a list of names"),
        ({"arms": ["klx"]}, "unknown method 'klx'; available: self-mm, "),
        (
            {"arms": ["kl"], "datasets": {"a/b": {}}},
            "dataset 'a/b': a name of a folder, which must be letters",
        ),
        ({"arms": ["kl"], "datasets": {"a": {"data": 1}}}, r"datasets\.a: expected \{settings"),
        (
            {"arms": ["kl"], "datasets": {"a": {"arms": {"gcnet": {}}}}},
            "gcnet: is not among the plan's",
        ),
        ({"datasets": {"a": {}}}, "no arm"),
        ({"arms": ["kl"], "jobs": 0}, "jobs"),
    ],
)
def test_an_invalid_plan_is_a_one_line_error(
    tree: dict[str, Any], line: str, tmp_path: Path
) -> None:
    (tmp_path / "plan.yaml").write_text(json.dumps(tree))
    with pytest.raises(CorrKDError, match=line) as error:
        load_plan(tmp_path / "plan.yaml")
    assert "\n" not in str(error.value)


def test_a_plan_keeps_the_changes_of_a_dataset(tmp_path: Path) -> None:
    tree = {
        "arms": {"kl": {"method": {"kl": {"weight": 2.0}}}, "gcnet": {}},
        "seeds": [3, 4],
        "datasets": {
            "a": {},
            "b": {"arms": {"kl": {"lr": 0.1}}, "settings": {"preset": "synthetic"}},
        },
    }
    (tmp_path / "plan.yaml").write_text(json.dumps(tree))
    plan = load_plan(tmp_path / "plan.yaml", overrides=["student.epochs=9"], jobs=2)
    assert list(plan.datasets["a"].arms) == ["teacher", "kl", "gcnet"]
    assert plan.datasets["a"].arms["kl"].model_fields_set == {"method"}
    assert plan.datasets["b"].arms["kl"].model_dump(exclude_unset=True) == {
        "method": {"kl": {"weight": 2.0}}, "lr": 0.1,
    }  # fmt: skip
    assert all(
        dataset_plan.settings.seeds == (3, 4) and dataset_plan.settings.student.epochs == 9
        for dataset_plan in plan.datasets.values()
    )
    assert (
        plan.datasets["b"].settings.student.lr
        == corrkd.load_settings(preset="synthetic").student.lr
    )
    (tmp_path / "again.yaml").write_text(plan.to_yaml())
    assert Plan.model_validate(read_yaml(tmp_path / "again.yaml")) == plan


def test_reported_numbers_are_checked_first_and_kept(jobs_run: list[Job], tmp_path: Path) -> None:
    paper, plan = tmp_path / "paper.csv", plan_of(["no-distillation"], tmp=tmp_path)
    paper.write_text("method,condition,metric,value\nTheirs,nowhere,weighted_f1,61.2\n")
    with pytest.raises(CorrKDError, match="nowhere"):
        compare(plan, tmp_path / "out", reported=paper)
    assert jobs_run == []
    paper.write_text("method,condition,metric,value\nTheirs,Avg.,weighted_f1,61.2\n")
    compare(plan, tmp_path / "out", reported=paper)
    assert (tmp_path / "out" / "reported.csv").read_bytes() == paper.read_bytes()


@pytest.mark.slow
def test_a_ray_cluster_gives_the_same_models(tmp_path: Path) -> None:
    """A local Ray gives the same bits as joblib."""
    plan = plan_of(["no-distillation", "kl"], tmp=tmp_path).model_copy(update={"jobs": 2})
    compare(plan, tmp_path / "joblib")
    compare(plan, tmp_path / "ray", backend="ray")
    joblib_files, ray_files = (
        contents(tmp_path / name, "built-in/seed-0/*/*.safetensors") for name in ("joblib", "ray")
    )
    assert_same(joblib_files, ray_files)


def test_a_missing_ray_is_a_one_line_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(
        CorrKDError, match=r"--backend ray needs Ray: pip install 'corrkd\[cluster\]'"
    ):
        compare(plan_of(["no-distillation"], tmp=tmp_path), tmp_path / "out", backend="ray")


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the system's own figure is used")
@pytest.mark.slow
def test_peak_memory_excludes_the_parent_process() -> None:
    run = (
        "import torch; from corrkd.experiment.processes import peak_memory as peak; "
        "print(peak(torch.device('cpu')))"
    )
    large = (
        f"import subprocess, sys; held = b'x' * 2**30; subprocess.run([sys.executable, '-c', "
        f"{run!r}], check=True)"
    )
    peak = int(
        subprocess.run([sys.executable, "-c", large], check=True, capture_output=True).stdout
    )
    assert 1e8 < peak < 2**30


@pytest.mark.parametrize(
    ("trains_on", "conditions"), [("complete", subsets), ("missing", missing_subsets)]
)
def test_the_epoch_is_selected_on_the_kind_of_samples_trained_on(
    jobs_run: list[Job], tmp_path: Path, trains_on: str, conditions: Any
) -> None:
    plan = plan_of({"cubemlp": {"trains_on": trains_on}}, tmp=tmp_path, student={"epochs": 1})
    compare(plan, tmp_path / "out")
    saved = load_network(tmp_path / "out" / "built-in" / "seed-0" / "cubemlp" / "cubemlp")
    valid = prepare(plan.datasets["built-in"].settings).samples("valid")
    validated = conditions(valid.modalities)
    validated = validated[-1:] if trains_on == "complete" else validated
    assert saved.about[VALID] == pytest.approx(mean_f1(saved.network, valid, validated))


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the peak cannot be reset")
def test_peak_memory_excludes_earlier_jobs() -> None:
    """An earlier job in the same process used more."""
    code = (
        "import torch; from corrkd.experiment.processes import peak_memory, reset_peak_memory; cpu "
        "= torch.device('cpu');large = b'x' * 2**30; del large; reset_peak_memory(cpu); "
        "print(peak_memory(cpu))"
    )
    peak = int(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True).stdout)
    assert 1e8 < peak < 2**30


def test_the_reference_of_a_plan(tmp_path: Path) -> None:
    """The command line overrides a dataset's, which overrides the file's; it is stored."""
    tree = {
        "arms": ["kl", "no-distillation", "corrkd"],
        "reference": "kl",
        "datasets": {"a": {"settings": tiny()}, "b": {"settings": tiny(), "reference": "teacher"}},
    }
    path = tmp_path / "plan.yaml"
    path.write_text(yaml.safe_dump(tree))
    plan = load_plan(path)
    assert {n: d.reference_arm for n, d in plan.datasets.items()} == {"a": "kl", "b": "teacher"}
    overridden = load_plan(path, reference="no-distillation")
    assert {d.reference_arm for d in overridden.datasets.values()} == {"no-distillation"}
    (tmp_path / "again.yaml").write_text(plan.to_yaml())
    assert load_plan(tmp_path / "again.yaml").datasets["b"].reference_arm == "teacher"
    path.write_text(yaml.safe_dump({key: tree[key] for key in ("arms", "datasets")}))
    assert load_plan(path).datasets["a"].reference_arm == "corrkd"
    with pytest.raises(CorrKDError, match=r"datasets\.a: reference: is not one of the arms"):
        load_plan(path, reference="dmd")
