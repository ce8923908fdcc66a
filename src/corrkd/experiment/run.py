"""Running a plan in its folder: data, teachers, students, tests, results and report. This is common
to `run`, `train`, `compare` and `resume`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from corrkd.csv_files import write_csv
from corrkd.data.dataset import MultimodalDataset
from corrkd.errors import CorrKDError
from corrkd.experiment import folder
from corrkd.experiment.arm import TEACHER, resolve, teachers_of
from corrkd.experiment.budget import read_budget
from corrkd.experiment.card import run_card, sample_groups
from corrkd.experiment.experiment import SYNTHETIC, Experiment, check_splits, prepare, read
from corrkd.experiment.folder import COSTS, GROUPS, RESULTS
from corrkd.experiment.job import COST, Job
from corrkd.experiment.plan import DatasetPlan, Plan, arms_of, plan_of_run, read_plan
from corrkd.experiment.processes import is_first_process, wait_for_all, world_size
from corrkd.experiment.progress import Reporter, reporter_of
from corrkd.experiment.references import references
from corrkd.experiment.runner import Failure, run_jobs
from corrkd.experiment.scaling import Unscaled, scaled
from corrkd.experiment.settings import ArmSettings, Settings, load_settings
from corrkd.experiment.stages import check_tested, make_method, read_table, write_table
from corrkd.experiment.stored_data import (
    InMemory,
    dataset_in_memory,
    plan_with_dataset,
    plan_with_datasets,
    store,
    stored_in,
    usual_folder,
)
from corrkd.experiment.teachers import others_arms, outputs_from_outside, placeholder_outputs
from corrkd.files import (
    FAILURES,
    PLAN,
    REPORTED,
    file_names,
    make_folder,
    remove_parts,
    write_bytes,
    write_text,
)
from corrkd.methods.base import TeacherOutputs
from corrkd.missing.conditions import AVERAGE
from corrkd.networks.saved import seed_folders
from corrkd.parsing import check_digest, read_json, refusing
from corrkd.report.report import write_report
from corrkd.report.reported import read_reported
from corrkd.report.run_folder import open_datasets
from corrkd.workers import Backend


@dataclass(frozen=True)
class Run:
    """The results of a plan.

    Attributes:
        folder: folder with report.html and a folder for each dataset.
        results: tidy rows: dataset (its folder's name), method, seed (empty for floor and ceiling),
            condition, draw, metric, value; empty before an evaluation.
        failures: runs that failed.
    """

    folder: Path
    results: pd.DataFrame
    failures: list[Failure]

    def __repr__(self) -> str:
        methods = ", ".join(self.results["method"].drop_duplicates())
        failures = f"; failed: {len(self.failures)}" if self.failures else ""
        return f"Run({self.folder}: {methods or 'not evaluated'}{failures})"

    def average(self, metric: str = "weighted_f1") -> pd.Series[float]:
        """Return the mean of a metric over the missing subsets ("Avg.") and seeds, by method; with
        several datasets, by dataset and method.
        """
        rows = self.results[
            (self.results["condition"] == AVERAGE) & (self.results["metric"] == metric)
        ]
        keys = ["dataset", "method"] if rows["dataset"].nunique() > 1 else "method"
        return rows.groupby(keys)["value"].mean()


def run(
    settings: Settings | Unscaled | Mapping[str, Any] | str | None = None,
    out: str | Path | None = None,
    *,
    dataset: Any = None,
    overwrite: bool = False,
    evaluate: bool = True,
    progress: bool | None = None,
) -> Run:
    """Train teacher, student and control for every seed, test them under every missing condition
    and write the report.

    Args:
        settings: from `load_settings`, nested keys and values, or a preset's name; or an
            `Unscaled`, which is scaled to the data (`corrkd.experiment.scaling`). Default: an
            `Unscaled` if there is a dataset, else the preset `synthetic`.
        dataset: used instead of `data.path`: a `MultimodalDataset`, or any input of `load_dataset`.
            It is stored in the folder.
        out: the output folder; default: runs/<name of the dataset>, made valid by
            `corrkd.files.file_names`.
        overwrite: replace an existing run.
        evaluate: whether to test the trained networks.
        progress: whether to show progress; default: only on a terminal or in a notebook.

    Raises:
        CorrKDError: if settings, data or the folder are invalid, or a training failed.
    """
    reporter = reporter_of(progress)
    if settings is None:
        settings = SYNTHETIC if dataset is None else Unscaled()
    data: MultimodalDataset | None = None
    if isinstance(settings, Unscaled):
        _check_folder(out, overwrite=overwrite)  # before the data is read
        settings, data = _scaled(settings, dataset, reporter)
    else:
        if isinstance(settings, str):
            settings = load_settings(preset=settings)
        elif not isinstance(settings, Settings):
            settings = load_settings(**settings)
        if dataset is not None:
            data = dataset_in_memory(dataset, settings.data)
    if settings.jobs > 1 and world_size() > 1:
        raise CorrKDError(
            "settings: jobs > 1 cannot be combined with several processes per training; "
            "set jobs to 1"
        )
    in_memory: InMemory = {}
    in_file: InMemory = {}
    if dataset is not None and data is not None:
        plan, in_memory = plan_with_dataset(settings, data)
    else:
        plan = plan_of_run(settings)
        in_file = {} if data is None else dict.fromkeys(plan.datasets, data)
    done = execute(
        plan,
        out,
        in_memory=in_memory,
        in_file=in_file,
        overwrite=overwrite,
        evaluate=evaluate,
        reporter=reporter,
    )
    return _without_failures(done)


def _scaled(
    unscaled: Unscaled, source: Any, reporter: Reporter
) -> tuple[Settings, MultimodalDataset]:
    """Return settings scaled to the data, and the data: `source`, or what the settings name if it
    is None. Report the chosen settings.
    """
    settings = unscaled.load()
    if source is None:
        with (
            reporter.busy(f"reading {settings.data.path}") if is_first_process() else nullcontext()
        ):
            dataset = read(settings.data)
    else:
        dataset = dataset_in_memory(source, settings.data)
    settings, note = scaled(unscaled, dataset)
    if is_first_process():
        reporter.say(f"note: {note}")
    return settings, dataset


def compare(
    plan: Plan,
    out: str | Path,
    *,
    datasets: Mapping[str, Any] | None = None,
    overwrite: bool = False,
    backend: Backend = "joblib",
    address: str | None = None,
    reported: str | Path | None = None,
    progress: bool | None = None,
) -> Run:
    """Carry out the rest of a plan and write its report.

    Args:
        plan: from `load_plan`.
        out: folder of the plan. If it already contains this plan, the plan is continued.
        datasets: by name, each a `MultimodalDataset` or any input of `load_dataset`. They replace
            the plan's datasets of these names, or its only one, and are stored in the folder.
        overwrite: start again from the beginning.
        backend: as in `run_jobs`.
        address: as in `run_jobs`.
        reported: CSV file with results from papers, which the report shows and marks as such.
        progress: whether to show progress; default: only on a terminal or in a notebook.

    Returns:
        The results, and the runs that failed.

    Raises:
        CorrKDError: if data, arms or the folder are invalid, or the plan in the folder has other
            settings.
    """
    plan, in_memory = plan_with_datasets(plan, datasets or {})
    return execute(
        plan,
        out,
        in_memory=in_memory,
        overwrite=overwrite,
        continues=True,
        backend=backend,
        address=address,
        reported=reported,
        reporter=reporter_of(progress),
    )


def resume(out: str | Path, *, evaluate: bool = True, progress: bool | None = None) -> Run:
    """Continue an interrupted run or comparison. The results are bit-identical to those of an
    uninterrupted run. `progress`: as in `run`.

    Raises:
        CorrKDError: if the folder contains no plan or that of a hyper-parameter search, the data
            has changed, or a training failed.
    """
    plan = read_plan(Path(out), unchanged=True)
    if plan.trials is not None:
        raise CorrKDError(
            f"{out}: contains a search over hyper-parameters; continue it with "
            f"`corrkd resume {out}`"
        )
    return _without_failures(
        execute(plan, out, continues=True, evaluate=evaluate, reporter=reporter_of(progress))
    )


def _without_failures(done: Run) -> Run:
    if done.failures:
        first, *others = done.failures
        more = f"; and {len(others)} more runs failed" if others else ""
        raise CorrKDError(f"{first.job.arm}, seed {first.job.seed}: {first.error}{more}")
    return done


def execute(
    plan: Plan,
    out: str | Path | None,
    *,
    in_memory: InMemory | None = None,
    in_file: InMemory | None = None,
    overwrite: bool = False,
    continues: bool = False,
    evaluate: bool = True,
    backend: Backend = "joblib",
    address: str | None = None,
    reported: str | Path | None = None,
    reporter: Reporter,
) -> Run:
    """Carry out a plan in its folder, for `run`, `compare` and `resume`.

    `in_memory` are datasets to store in the folder. `in_file` are datasets already read from the
    paths of the plan.
    """
    if not is_first_process():  # only the first process reports
        reporter = Reporter(quiet=True)
    _check_folder(out, overwrite=overwrite, continues=continues)  # before the data is read
    in_memory, datasets = in_memory or {}, dict(in_file or {})
    if in_memory:
        out = usual_folder(in_memory) if out is None else Path(out)
        plan, stored = stored_in(plan, in_memory, out)
        datasets |= stored
    experiments = {
        name: prepared(name, dataset_plan, reporter, datasets.get(name))
        for name, dataset_plan in plan.datasets.items()
    }
    out = _usual_folder(experiments) if out is None else Path(out)
    with folder.locked(out) if is_first_process() else nullcontext():
        if is_first_process():
            folder.check(out, overwrite=overwrite, continues=continues)
            plan = _begin(out, plan, experiments, in_memory, overwrite=overwrite)
            if reported is not None:
                keep_reported(out, Path(reported))
            for name in experiments:
                _say_notes(name, out, reporter)
        wait_for_all(next(iter(experiments.values())).settings)
        jobs = [
            Job(out.resolve() / name, dataset_plan, arm, seed, evaluate)
            for name, dataset_plan in plan.datasets.items()
            for seed in dataset_plan.settings.seeds
            for arm in dataset_plan.arms
        ]
        failures = run_jobs(
            jobs,
            experiments,
            at_once=plan.jobs,
            reporter=reporter,
            backend=backend,
            address=address,
        )
        if not is_first_process():
            return Run(out, pd.DataFrame(), failures)
        return _collect(out, plan, jobs, experiments, failures, evaluate, reporter)


def _check_folder(out: str | Path | None, *, overwrite: bool, continues: bool = False) -> None:
    if out is not None and is_first_process():  # the others may find its files
        folder.check(Path(out), overwrite=overwrite, continues=continues)


def _usual_folder(experiments: Mapping[str, Experiment]) -> Path:
    name = next(iter(experiments.values())).dataset.name
    return Path("runs") / file_names([name])[name]


def prepared(
    name: str,
    dataset_plan: DatasetPlan,
    reporter: Reporter,
    dataset: MultimodalDataset | None = None,
) -> Experiment:
    """Return the experiment on a dataset. Every method is created once, so that errors appear
    before any training.
    """
    arms = arms_of(dataset_plan)
    with reporter.busy(f"reading {dataset_plan.settings.data.path}"):
        experiment = prepare(dataset_plan.settings, dataset)
    teaching, others = [], []
    for teacher_name in teachers_of(arms, dataset_plan.settings):
        teacher = resolve(
            teacher_name, dataset_plan.arms.get(teacher_name, ArmSettings()), dataset_plan.settings
        )
        teaching.append(teacher)
        others += others_arms(teacher, dataset_plan.settings.teacher)
    check_splits(experiment, [*arms, *others])
    samples = experiment.samples("train")
    teachers: dict[str | None, TeacherOutputs] = {}
    if (outside := outputs_from_outside(experiment)) is not None:
        teachers[TEACHER] = outside
    for teacher in teaching:
        teachers[teacher.name] = placeholder_outputs(
            make_method(teacher, experiment, 0, samples).student, samples
        )
    for arm in [*arms, *others]:
        try:
            make_method(arm, experiment, 0, samples, teachers.get(arm.taught_by))
        except CorrKDError as error:
            raise CorrKDError(f"dataset {name}, arm {arm.name}: {error}") from None
    return experiment


def _say_notes(name: str, out: Path, reporter: Reporter) -> None:
    for note in open_datasets(out)[name].card.notes:
        reporter.say(f"note: {note}")


# --------------------------------------------------------------------------------------------------
# the folder


def _begin(
    out: Path,
    plan: Plan,
    experiments: Mapping[str, Experiment],
    in_memory: InMemory,
    *,
    overwrite: bool,
) -> Plan:
    """Write the plan and settings to the folder, and return the plan as written. Raises CorrKDError
    if the folder was begun with other settings.
    """
    remove_parts(out)
    if overwrite and (out / PLAN).is_file():
        _check_data_stay(out, plan, in_memory)
        folder.empty(out, read_plan(out).datasets)
    folder.refuse_links(out, plan.datasets)
    before = read_plan(out, unchanged=True) if (out / PLAN).is_file() else None
    datasets = {}
    for name, dataset_plan in plan.datasets.items():
        if before is not None and name in before.datasets:
            _check_same(out, name, before.datasets[name], dataset_plan)
            budgets = _chosen(out / name, before.datasets[name])
            chosen = {arm: epochs for arm, epochs in budgets.items() if dataset_plan.chooses(arm)}
            dataset_plan = dataset_plan.model_copy(
                update={"epochs": {**dataset_plan.epochs, **chosen}}
            )
        datasets[name] = dataset_plan.model_copy(
            update={"settings": folder.with_whole_paths(dataset_plan.settings)}
        )
    plan = plan.model_copy(update={"datasets": datasets})
    if before is None:
        write_text(out / PLAN, plan.to_yaml())  # first, since it marks the folder as a plan's
    for name, experiment in experiments.items():
        make_folder(out / name)
        _write_facts(out / name, experiment, plan, plan.datasets[name])
        if name in in_memory:
            store(in_memory[name], out / name)
        folder.write_settings(out / name, plan.datasets[name].settings)
    write_text(out / PLAN, plan.to_yaml())
    return plan


def _check_data_stay(out: Path, plan: Plan, in_memory: InMemory) -> None:
    """Raise CorrKDError if a folder to be emptied contains the data of its plan."""
    for name, dataset_plan in plan.datasets.items():
        path = Path(dataset_plan.settings.data.path).resolve()
        if (
            name not in in_memory
            and path.name == folder.DATA
            and path.parent.parent == out.resolve()
        ):
            raise CorrKDError(
                f"{out}: contains the data of this run ({path.name}); choose another folder"
            )


def _write_facts(
    dataset: Path, experiment: Experiment, plan: Plan, dataset_plan: DatasetPlan
) -> None:
    folder.write_card(
        dataset, run_card(experiment, dataset_plan, arms_of(dataset_plan), plan.search)
    )
    write_csv(dataset / GROUPS, sample_groups(experiment)[1])


def keep_reported(out: Path, reported: Path) -> None:
    """Copy a file with results from papers to the folder. Raises CorrKDError if it is invalid."""
    read_reported(reported, open_datasets(out))
    write_bytes(out / REPORTED, reported.read_bytes())


def _with_budgets(out: Path, plan: Plan) -> Plan:
    """Return the plan with the numbers of epochs that have been chosen so far."""
    datasets = {
        name: dataset_plan.model_copy(update={"epochs": _chosen(out / name, dataset_plan)})
        for name, dataset_plan in plan.datasets.items()
    }
    return plan.model_copy(update={"datasets": datasets})


def _chosen(dataset: Path, dataset_plan: DatasetPlan) -> dict[str, int]:
    """Return the number of epochs by arm: from the plan, or chosen by any seed in the dataset's
    folder.
    """
    budgets = {
        arm: budget.epochs
        for arm in dataset_plan.arms
        if dataset_plan.chooses(arm)
        for seed in reversed(seed_folders(dataset))  # the lowest seed takes precedence
        if (budget := read_budget(seed / arm)) is not None
    }
    return {**budgets, **dataset_plan.epochs}


def _check_same(out: Path, name: str, before: DatasetPlan, now: DatasetPlan) -> None:
    """Raise CorrKDError if a dataset was begun with other settings than the plan's."""
    old, new = (_flat(_lasting(dataset_plan)) for dataset_plan in (before, now))
    changed = sorted(key for key in {*old, *new} if old.get(key) != new.get(key))
    where = f"{out}: contains a run with other settings: dataset {name}"
    advice = "choose another folder, or replace the run with --overwrite"
    if changed:
        raise CorrKDError(
            f"{where}, {changed[0]} was {old.get(changed[0])}, is {new.get(changed[0])}; {advice}"
        )
    chosen = before.model_copy(update={"epochs": _chosen(out / name, before)})
    for arm in arms_of(now):
        if arm.name in before.arms:
            epochs = [
                None
                if dataset_plan.chooses(arm.name)
                else dataset_plan.epochs.get(arm.name, arm.training.epochs)
                for dataset_plan in (chosen, now)
            ]
            if None not in epochs and epochs[0] != epochs[1]:
                raise CorrKDError(
                    f"{where}, {arm.name}.epochs was {epochs[0]}, is {epochs[1]}; {advice}"
                )
            was, is_ = (
                _flat(resolve(arm.name, before.arms[arm.name], before.settings).to_json()),
                _flat(arm.to_json()),
            )
            changed = sorted(key for key in {*was, *is_} if was.get(key) != is_.get(key))
            if changed:
                key = changed[0]
                raise CorrKDError(
                    f"{where}, {arm.name}.{key} was {was.get(key)}, is {is_.get(key)}; {advice}"
                )


def _lasting(dataset_plan: DatasetPlan) -> dict[str, Any]:
    """Return the settings on which all runs of a dataset depend; those of arms are compared
    separately.
    """
    tree = folder.with_whole_paths(dataset_plan.settings).model_dump(mode="json")
    lasting = {
        key: tree[key]
        for key in ("data", "missing", "evaluation", "threads", "device", "precision")
    }
    lasting["budget"] = (
        None if dataset_plan.budget is None else dataset_plan.budget.model_dump(mode="json")
    )
    return {
        **lasting,
        "teacher": {
            key: tree["teacher"][key]
            for key in ("folds", "repeats", "temperature", "weights", "others", "outputs")
        },
    }


def _flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(tree, Mapping):
        return {prefix: tree}
    return {
        k: v
        for key, value in tree.items()
        for k, v in _flat(value, f"{prefix}.{key}" if prefix else key).items()
    }


# --------------------------------------------------------------------------------------------------
# the results


def _collect(
    out: Path,
    plan: Plan,
    jobs: Sequence[Job],
    experiments: Mapping[str, Experiment],
    failures: list[Failure],
    evaluated: bool,
    reporter: Reporter,
) -> Run:
    """Collect results, costs and failures of the finished jobs, and write the report."""
    plan = _with_budgets(out, plan)
    write_text(out / PLAN, plan.to_yaml())
    rows = [(f.job.dataset.name, f.job.arm, f.job.seed, f.error) for f in failures]
    (out / FAILURES).unlink(missing_ok=True)
    if rows:
        write_csv(
            out / FAILURES, pd.DataFrame(rows, columns=["dataset", "method", "seed", "error"])
        )
    if not evaluated:
        return Run(out, pd.DataFrame(), failures)
    tables = []
    for name, experiment in experiments.items():
        _write_facts(out / name, experiment, plan, plan.datasets[name])
        done = [job for job in jobs if job.dataset.name == name and job.done]
        for job in done:
            check_tested(job.folder)
        parts = [read_table(job.folder / RESULTS) for job in done]
        table = pd.concat([*parts, references(experiment)], ignore_index=True)
        write_table(out / name / RESULTS, table)
        write_csv(
            out / name / COSTS,
            pd.DataFrame([_cost(job) for job in done], columns=["method", "seed", *_COSTS]),
        )
        tables.append(table.assign(dataset=name))
    results = pd.concat(tables, ignore_index=True)
    write_table(out / RESULTS, results)
    with reporter.busy("writing the report"):
        write_report(out)
    return Run(out, results, failures)


_COSTS = ["parameters", "epochs", "train_seconds", "peak_memory_bytes", "device"]


def _cost(job: Job) -> dict[str, Any]:
    path = job.folder / COST
    advice = "delete it to leave out the cost of the run"
    cost: dict[str, Any] = read_json(path, advice) if path.is_file() else {}
    with refusing(path, f"damaged; {advice}"):
        if cost:
            check_digest(cost, path, advice)
        return {
            "method": job.arm,
            "seed": job.seed,
            **{key: cost.get(key, np.nan) for key in _COSTS},
        }
