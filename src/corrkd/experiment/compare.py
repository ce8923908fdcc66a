"""Every method on every dataset with every seed, under one protocol: the grid, then its tables."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from corrkd.csv_files import write_csv
from corrkd.data.dataset import SPLITS
from corrkd.data.resample import dependence_groups
from corrkd.errors import CorrKDError
from corrkd.experiment import run_folder
from corrkd.experiment.arm import TEACHER, Arm, resolve
from corrkd.experiment.budget import read_budget, with_epochs
from corrkd.experiment.compare_settings import REPORTED, ComparePlan, DatasetPlan, read_plan
from corrkd.experiment.grid import Backend, Failure, Job, run_grid
from corrkd.experiment.job import COST
from corrkd.experiment.prepare import Experiment, prepare
from corrkd.experiment.progress import Reporter
from corrkd.experiment.references import references
from corrkd.experiment.seed import check_tested, make_method, read_table, write_table
from corrkd.files import FAILURES, PLAN, make_folder, remove_parts, write_bytes, write_text
from corrkd.networks.saved import seed_folders
from corrkd.parsing import check_digest, check_yaml_digest, read_json, refusing
from corrkd.report import comparison_page
from corrkd.report.reported import read_reported
from corrkd.report.run_folder import selection_rules


@dataclass(frozen=True)
class Comparison:
    """What a comparison left.

    Attributes:
        folder: with report.html and a run folder for each dataset.
        results: tidy rows of all datasets: dataset, method, seed, condition, draw, metric, value.
        failures: runs without results.
    """

    folder: Path
    results: pd.DataFrame
    failures: list[Failure]


def compare(
    plan: ComparePlan,
    out: str | Path,
    *,
    overwrite: bool = False,
    backend: Backend = "joblib",
    address: str | None = None,
    reported: str | Path | None = None,
    reporter: Reporter | None = None,
) -> Comparison:
    """Runs what is missing of a comparison and writes its report.

    Args:
        plan: from `load_plan`.
        out: its folder. One that holds a comparison goes on with it.
        overwrite: start anew.
        backend, address: as of `run_grid`.
        reported: CSV file with numbers from papers, shown beside ours and marked.
        reporter: where progress is said; default: nowhere.

    Raises:
        CorrKDError: for anything wrong with data, methods or the folder; where the folder's comparison has other settings for a method.
    """
    out, reporter = Path(out).resolve(), reporter or Reporter(quiet=True)
    with run_folder.locked(out):
        if overwrite:
            _empty(out)
        _check_folder(out)
        experiments = {name: _prepared(name, part, reporter) for name, part in plan.datasets.items()}
        plan = _begin(out, plan, experiments)
        if reported is not None:
            keep_reported(out, Path(reported))
        jobs = [
            Job(out, name, arm, seed, leads=part.chooses(arm) and seed == part.settings.seeds[0])
            for name, part in plan.datasets.items()
            for arm in part.methods
            for seed in part.settings.seeds
        ]
        failures = run_grid(
            jobs,
            at_once=plan.jobs,
            reporter=reporter,
            backend=backend,
            address=address,
            after_leading=lambda: write_text(out / PLAN, _with_budgets(out, plan).to_yaml()),
        )
        return _collect(out, plan, jobs, experiments, failures, reporter)


def keep_reported(out: Path, reported: Path) -> None:
    """Copies a papers' numbers file into the comparison's folder. Raises CorrKDError where it is wrong, before anything is trained."""
    read_reported(reported, comparison_page.open_comparison(out))
    write_bytes(out / REPORTED, reported.read_bytes())


def kept_reported(out: Path) -> Path | None:
    """The file that the folder keeps, if any."""
    return out / REPORTED if (out / REPORTED).is_file() else None


def _prepared(name: str, part: DatasetPlan, reporter: Reporter) -> Experiment:
    """A dataset read and every method made once, so that what cannot work is said before anything is trained."""
    with reporter.busy(f"reading {part.settings.data.path}"):
        experiment = prepare(part.settings, part.methods)
    samples = experiment.samples("train")
    for arm in experiment.arms:
        try:
            make_method(arm, experiment, 0, samples)
        except CorrKDError as error:
            raise CorrKDError(f"dataset {name}, method {arm.name}: {error}") from None
    return experiment


def _check_folder(out: Path) -> None:
    inside = [p.name for p in out.iterdir() if p.name != ".lock" and p.suffix != ".part"]
    if inside and PLAN not in inside:
        raise CorrKDError(f"{out}: holds other files and no comparison; choose another folder")


def _empty(out: Path) -> None:
    """Removes a comparison that is there, and nothing else."""
    if not (out / PLAN).is_file():
        return
    names = read_plan(out).datasets
    _refuse_links(out, names)
    for name in names:
        folder = out / name
        if folder.is_dir():
            run_folder.empty(folder)
            for file in ("costs.csv", "groups.csv"):
                (folder / file).unlink(missing_ok=True)
            if not any(folder.iterdir()):
                folder.rmdir()
    run_folder.empty(out)
    for file in (FAILURES, REPORTED, PLAN):
        (out / file).unlink(missing_ok=True)


def _refuse_links(out: Path, names: Iterable[str]) -> None:
    """Raises CorrKDError where a dataset's folder is a link: nothing outside the comparison's folder is written or removed."""
    for name in names:
        if (out / name).is_symlink():
            raise CorrKDError(
                f"{out / name}: is a link to another folder; remove the link, or put the folder itself there"
            )


def _begin(out: Path, plan: ComparePlan, experiments: Mapping[str, Experiment]) -> ComparePlan:
    """Writes what the grid's processes read, and returns the plan as written. What was trained with other settings is not gone on with."""
    remove_parts(out)
    _refuse_links(out, plan.datasets)
    before = None
    if (out / PLAN).is_file():
        check_yaml_digest(out / PLAN, "put it back, choose another folder, or start anew with --overwrite")
        before = read_plan(out)
    datasets = dict(plan.datasets)
    for name, part in plan.datasets.items():
        if before is not None and name in before.datasets:
            _check_same(out, name, before.datasets[name], part, experiments[name])
            known = {arm: n for arm, n in _chosen(out / name, before.datasets[name]).items() if part.chooses(arm)}
            datasets[name] = part.model_copy(update={"epochs": {**part.epochs, **known}})
    plan = plan.model_copy(update={"datasets": datasets})
    for name, experiment in experiments.items():
        make_folder(out / name)
        _write_facts(out, name, experiment, plan)
        run_folder.write_settings(out / name, run_folder.with_whole_paths(experiment.settings))
    whole = {
        name: part.model_copy(update={"settings": run_folder.with_whole_paths(part.settings)})
        for name, part in plan.datasets.items()
    }
    plan = plan.model_copy(update={"datasets": whole})
    write_text(out / PLAN, plan.to_yaml())
    return plan


def _write_facts(out: Path, name: str, experiment: Experiment, plan: ComparePlan) -> None:
    facts = experiment.at(experiment.settings.seeds[0]).facts()
    group, table = _groups(experiment)
    about = {
        "groups": {"name": group, "count": int(table["group"].nunique())},
        "comparison": {"stated": stated(experiment, plan.search, plan.datasets[name])},
    }
    run_folder.write_facts(out / name, {**facts, **about})
    write_csv(out / name / "groups.csv", table)


def _with_budgets(out: Path, plan: ComparePlan) -> ComparePlan:
    """The plan with the budgets that were chosen."""
    datasets = {
        name: part.model_copy(update={"epochs": _chosen(out / name, part)}) for name, part in plan.datasets.items()
    }
    return plan.model_copy(update={"datasets": datasets})


def _chosen(folder: Path, part: DatasetPlan) -> dict[str, int]:
    """By arm, the number of epochs that the plan names or that was chosen in the dataset's folder, with whichever seed."""
    budgets = {
        arm: budget.epochs
        for arm in part.methods
        if part.chooses(arm)
        for seed in reversed(seed_folders(folder))  # the lowest counts
        if (budget := read_budget(seed / arm)) is not None
    }
    return {**budgets, **part.epochs}


def _check_same(out: Path, name: str, before: DatasetPlan, now: DatasetPlan, experiment: Experiment) -> None:
    old, new = (_flat(_lasting(part)) for part in (before, now))
    changed = sorted(key for key in {*old, *new} if old.get(key) != new.get(key))
    where = f"{out}: holds a comparison with other settings: dataset {name}"
    advice = "choose another folder, or start anew with --overwrite"
    if changed:
        raise CorrKDError(f"{where}, {changed[0]} was {old.get(changed[0])}, is {new.get(changed[0])}; {advice}")
    chosen = before.model_copy(update={"epochs": _chosen(out / name, before)})
    for arm in experiment.arms:
        if arm.name in before.methods:
            epochs = [
                None if part.chooses(arm.name) else part.epochs.get(arm.name, arm.stage.epochs)
                for part in (chosen, now)
            ]
            if None not in epochs and epochs[0] != epochs[1]:
                raise CorrKDError(f"{where}, method {arm.name}, epochs was {epochs[0]}, is {epochs[1]}; {advice}")
            was, is_ = (
                _flat(resolve(arm.name, before.methods[arm.name], before.settings).to_json()),
                _flat(arm.to_json()),
            )
            changed = sorted(key for key in {*was, *is_} if was.get(key) != is_.get(key))
            if changed:
                key = changed[0]
                raise CorrKDError(f"{where}, method {arm.name}, {key} was {was.get(key)}, is {is_.get(key)}; {advice}")


def _lasting(part: DatasetPlan) -> dict[str, Any]:
    """Settings that every run of a dataset depends on; those of the arms are compared by arm."""
    whole = run_folder.with_whole_paths(part.settings).model_dump(mode="json")
    lasting = {key: whole[key] for key in ("data", "missing", "evaluation", "threads", "device", "precision")}
    lasting["budget"] = None if part.budget is None else part.budget.model_dump(mode="json")
    return {**lasting, "teacher": {key: whole["teacher"][key] for key in ("folds", "repeats", "temperature")}}


def _flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(tree, Mapping):
        return {prefix: tree}
    return {k: v for key, part in tree.items() for k, v in _flat(part, f"{prefix}.{key}" if prefix else key).items()}


def _groups(experiment: Experiment) -> tuple[str, pd.DataFrame]:
    """What the tested samples are clustered by, and each sample's group; those of all folds, where each seed tests its own."""
    names = SPLITS[:2] if experiment.cross_validated else [experiment.settings.evaluation.split]
    splits = [experiment.dataset.split(name) for name in names]
    keep = np.concatenate([experiment.target.of(s, f"dataset {experiment.dataset.name}")[1] for s in splits])
    group, members = dependence_groups(*splits)
    return group, pd.DataFrame({"id": np.concatenate([s.ids for s in splits])[keep], "group": members[keep]})


def stated(experiment: Experiment, search: str, part: DatasetPlan) -> list[str]:
    """What was the same for every method, in sentences."""
    settings, arms = experiment.settings, experiment.arms
    missing = settings.missing
    students = [arm for arm in arms if arm.name != TEACHER]
    lines = [
        f"Test masks: the same for every method and training seed (mask seed {settings.evaluation.mask_seed}, "
        f"{settings.evaluation.draws} draws of what is random).",
        "Training masks: drawn anew in every epoch from seed, sample and modality, so the same for every method that trains on incomplete "
        f"samples (a modality is lost with probability {missing.modality:g}, {missing.frames_low:g} to {missing.frames_high:g} of "
        f"the frames, {missing.complete:g} of the samples stay complete). Trained on complete samples, as in their papers: "
        f"{', '.join(arm.title for arm in arms if arm.complete) or 'none'}.",
        "Initialisation: networks of one structure begin with the same parameters for a seed; the teacher has its own.",
        f"Selection: {selection_rules((arm.selection, arm.title) for arm in arms)}. Nothing is chosen on the "
        f"{settings.evaluation.split} split.",
        _epochs_stated(arms, part),
        f"Batch size: {_shared('batch_size', students)}; learning rate: {_shared('lr', students)}.",
        f"Search budget: {search}.",
    ]
    readers = [arm.title for arm in arms if arm.method.network_type.reads_conversations]
    if readers:
        lines.append(f"{', '.join(readers)} {_neighbours(experiment)}")
    return lines


def _neighbours(experiment: Experiment) -> str:
    """What a network that reads conversations sees of a sample's neighbours."""
    split = experiment.dataset.split(experiment.settings.evaluation.split)
    if split.recordings() is None:
        return "reads a sample among the others of its conversation, but there are no neighbours: each sample is its own conversation."
    text = "reads a sample among the others of its conversation, those after it too, all with the same part missing."
    if all(frames.shape[1] == 1 for frames in split.frames.values()):
        return text
    if set(split.frame_ids) == set(split.frames):
        return (
            f"{text} A share of missing frames is dropped by recording: a dropped frame is dropped in all samples that hold it. Bursts and "
            "late starts are each sample's own."
        )
    return (
        f"{text} The data do not number their frames: where samples overlap, it can see a frame that one sample has lost in a "
        "neighbour that holds it too."
    )


def _epochs_stated(arms: Sequence[Arm], part: DatasetPlan) -> str:
    """How long each arm trains, and by which rule."""
    trained = [with_epochs(arm, part.epochs.get(arm.name, arm.stage.epochs)) for arm in arms]
    students = _shared("epochs", [arm for arm in trained if arm.name != TEACHER])
    teachers = "".join(f"; the teacher: {arm.stage.epochs}" for arm in trained if arm.name == TEACHER)
    if part.budget is None:
        return f"Epochs: {students}{teachers}."
    rule = (
        f"Where the plan does not name them, a method's first budget is doubled, its schedule laid over the whole, until its validation "
        f"score gains less than {part.budget.gain:g} points (seed {part.settings.seeds[0]} decides; at most {part.budget.doublings} "
        "doublings)."
    )
    if any(part.chooses(arm.name) for arm in arms):
        return f"Epochs: not all are chosen yet. {rule}"
    return f"Epochs: {students}{teachers}. {rule}"


def _shared(key: str, arms: Sequence[Arm]) -> str:
    values = [getattr(arm.stage, key) for arm in arms]
    common = max(set(values), key=values.count) if values else None
    others = [f"{arm.title} {value:g}" for arm, value in zip(arms, values, strict=True) if value != common]
    return f"{common:g} for every method" + (f" but {', '.join(others)}" if others else "") if values else "none"


def _collect(
    out: Path,
    plan: ComparePlan,
    jobs: Sequence[Job],
    experiments: Mapping[str, Experiment],
    failures: list[Failure],
    reporter: Reporter,
) -> Comparison:
    """Results and costs of all that is done, the failures, and the report."""
    tables = []
    plan = _with_budgets(out, plan)
    write_text(out / PLAN, plan.to_yaml())
    for name, experiment in experiments.items():
        _write_facts(out, name, experiment, plan)
        done = [job for job in jobs if job.dataset == name and job.done]
        for job in done:
            check_tested(job.folder)
        parts = [read_table(job.folder / "results.csv") for job in done]
        table = pd.concat([*parts, references(experiment)], ignore_index=True)
        write_table(out / name / run_folder.RESULTS, table)
        costs = pd.DataFrame([_cost(job) for job in done], columns=["method", "seed", *_COSTS])
        write_csv(out / name / "costs.csv", costs)
        tables.append(table.assign(dataset=name))
    rows = [(f.job.dataset, f.job.arm, f.job.seed, f.error) for f in failures]
    failed = pd.DataFrame(rows, columns=["dataset", "method", "seed", "error"])
    (out / FAILURES).unlink(missing_ok=True)
    if rows:
        write_csv(out / FAILURES, failed)
    with reporter.busy("writing the report"):
        comparison_page.write_comparison(out, reported=kept_reported(out))
    return Comparison(out, pd.concat(tables, ignore_index=True), failures)


_COSTS = ["parameters", "epochs", "train_seconds", "peak_memory_bytes"]


def _cost(job: Job) -> dict[str, Any]:
    path = job.folder / COST
    advice = "delete it, and the run's cost is left out"
    cost: dict[str, Any] = read_json(path, advice) if path.is_file() else {}
    with refusing(path, f"damaged; {advice}"):
        if cost:
            check_digest(cost, path, advice)
        return {"method": job.arm, "seed": job.seed, **{key: cost.get(key, np.nan) for key in _COSTS}}
