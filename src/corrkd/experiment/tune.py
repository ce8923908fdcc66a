"""Hyper-parameter search with Optuna, on the validation split only, with the same number of trials
for every arm.

A search is also a plan: each round trains one trial of every arm with all seeds, in the subfolder
`trial-N` of the dataset's folder.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from corrkd.csv_files import write_csv
from corrkd.errors import CorrKDError
from corrkd.experiment import folder
from corrkd.experiment.arm import Arm, laid_over, teachers_of
from corrkd.experiment.experiment import Experiment
from corrkd.experiment.job import Job, arm_folder
from corrkd.experiment.plan import (
    DatasetPlan,
    Plan,
    arms_of,
    dataset_name,
    read_plan,
    with_teachers,
)
from corrkd.experiment.progress import Countdown, Reporter, reporter_of
from corrkd.experiment.run import prepared
from corrkd.experiment.runner import run_jobs
from corrkd.experiment.settings import ArmSettings, Settings
from corrkd.files import PLAN, make_folder, remove_parts, write_text
from corrkd.networks.saved import recorded
from corrkd.parsing import refusing
from corrkd.training.loop import VALID, derived_seed

TUNED = "tuned.yaml"
TRIALS = "trials.csv"
Change = dict[str, Any]


@dataclass(frozen=True)
class Range:
    """Search range of one key: from `low` to `high`, on a log scale if `log`."""

    low: float
    high: float
    log: bool = False


@dataclass(frozen=True)
class Search:
    """Result of a search: the changes with the best validation score by arm, and all trials."""

    best: dict[str, Change]
    trials: pd.DataFrame


def space(arm: Arm) -> dict[str, Range]:
    """Return the search space of an arm, by dotted key: learning rate, dropout, and the keys in
    `search` of its method.

    A weight of 0 is not searched, since the arm leaves that loss out.

    Raises:
        CorrKDError: if `search` of the method names a key that the method does not have.
    """
    out = {"lr": Range(arm.training.lr / 4, arm.training.lr * 4, log=True)}
    structure = arm.network.options.model_dump()
    if "dropout" in structure:
        out["network.dropout"] = Range(0.0, 0.4)
    elif "dropout" in structure.get("network", {}):
        out["network.network.dropout"] = Range(0.0, 0.4)
    for key, (low, high) in arm.method.class_.search.items():
        value: Any = arm.to_json()
        for part in key.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
        if value is None:
            raise CorrKDError(
                f"arm {arm.name}: method {arm.method.name} has no {key}, which its `search` names"
            )
        if value:
            out[key] = Range(low, high, log=True)
    return out


def tune(
    settings: Settings,
    arms: Mapping[str, ArmSettings],
    out: str | Path,
    *,
    trials: int = 8,
    jobs: int = 1,
    progress: bool | None = None,
) -> Search:
    """Search the hyper-parameters of each arm, by the validation score that selects its epoch.

    The first trial of every arm has the default settings. The test split is not used. An
    interrupted search continues when called again. A failed trial, for example with a loss that is
    not finite, has no score.

    Args:
        settings: data, epochs and seeds (the score of a trial is the mean over seeds).
        arms: by name, with settings that are fixed.
        out: folder of the search.
        trials: number of trials of each arm.
        jobs: number of trainings at once, one process each.
        progress: whether to show progress; default: only on a terminal or in a notebook.

    Raises:
        CorrKDError: if settings, data or the folder are invalid, all trials of an arm fail, or
            Optuna is not installed.
    """
    evaluation = settings.evaluation.model_copy(update={"split": "valid"})
    settings = folder.with_whole_paths(
        settings.model_copy(update={"evaluation": evaluation, "jobs": 1})
    )
    dataset_plan = DatasetPlan(settings=settings, arms=dict(arms))
    return carry_on(
        Plan(datasets={dataset_name(settings.data): dataset_plan}, jobs=jobs, trials=trials),
        Path(out),
        reporter_of(progress),
    )


def carry_on(plan: Plan, out: Path, reporter: Reporter) -> Search:
    """Carry out the rest of a search in its folder. Raises CorrKDError as `tune` does."""
    try:
        import optuna
    except ImportError:
        raise CorrKDError("tuning needs Optuna: pip install 'corrkd[tune]'") from None
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    ((name, dataset_plan),) = plan.datasets.items()
    assert plan.trials is not None
    with folder.locked(out):
        _begin(out, plan)
        experiment = prepared(name, dataset_plan, reporter)
        make_folder(out / name)
        studies = {
            arm.name: _study(out / name, arm, dataset_plan.arms[arm.name])
            for arm in arms_of(dataset_plan)
        }
        _train_teachers(dataset_plan, out / name, experiment, plan.jobs, reporter)
        before = min(study.num_finished for study in studies.values())
        countdown = Countdown(plan.trials, before)
        for number in range(plan.trials):
            _round(number, studies, plan, out / name, experiment, reporter)
            if left := countdown.left(number + 1):
                reporter.say(f"trials: {number + 1}/{plan.trials}  {left}")
        table = pd.DataFrame([row for study in studies.values() for row in study.rows(plan.trials)])
        best = {arm: study.best(plan.trials) for arm, study in studies.items()}
        write_csv(out / TRIALS, table)
        text = (
            f"{plan.trials} trials an arm by Optuna on the validation split of "
            f"{experiment.dataset.name}, the first its defaults"
        )
        tree = {
            "search": text,
            "arms": {
                arm: _changes(arm, dataset_plan.arms[arm], change) for arm, change in best.items()
            },
        }
        write_text(out / TUNED, yaml.safe_dump(tree, sort_keys=False, allow_unicode=True))
    return Search(best, table)


def _begin(out: Path, plan: Plan) -> None:
    """Write the plan. Raises CorrKDError if the folder contains another search or other files."""
    folder.check(out, overwrite=False, continues=True)
    remove_parts(out)
    if (out / PLAN).is_file():
        before = read_plan(out, unchanged=True)
        # As text, since arms compare equal if one sets what the other leaves at its default.
        if (
            before.model_copy(update={"jobs": plan.jobs, "trials": plan.trials}).to_yaml()
            != plan.to_yaml()
        ):
            raise CorrKDError(
                f"{out}: contains a search with other settings; choose another folder"
            )
    write_text(out / PLAN, plan.to_yaml())


@dataclass(frozen=True)
class _Study:
    """Trials of one arm in their order, which `optuna` stores in a journal."""

    arm: str
    fixed: ArmSettings
    ranges: Mapping[str, Range]
    optuna: Any

    @property
    def num_finished(self) -> int:
        """Number of finished trials."""
        return sum(trial.state.is_finished() for trial in self.optuna.trials)

    def trial(self, number: int) -> Any:
        """Return trial `number`, newly created or unfinished; None if it is finished."""
        from optuna.samplers import TPESampler

        if number >= len(self.optuna.trials):
            # One sampler per trial, so that draws do not depend on where a search was interrupted.
            self.optuna.sampler = TPESampler(
                seed=derived_seed(self.arm, number) % 2**32, n_startup_trials=4
            )
            trial = self.optuna.ask()
            for key, tried in self.ranges.items() if number else ():  # the first has the defaults
                trial.suggest_float(key, tried.low, tried.high, log=tried.log)
            return trial
        trial = self.optuna.trials[number]
        return None if trial.state.is_finished() else trial

    def tell(self, number: int, score: float | None) -> None:
        """Record the score of a trial; None for a failed one."""
        from optuna.trial import TrialState

        if score is None:
            self.optuna.tell(number, state=TrialState.FAIL)
        else:
            self.optuna.tell(number, score)

    def rows(self, trials: int) -> list[dict[str, Any]]:
        """Return a row for each of the first `trials` trials."""
        return [
            {"method": self.arm, "trial": t.number, "score": t.value, "changes": _line(t.params)}
            for t in self.optuna.trials[:trials]
        ]

    def best(self, trials: int) -> Change:
        """Return the changes of the trial with the highest score. Raises CorrKDError if all trials
        have failed.
        """
        scored = [t for t in self.optuna.trials[:trials] if t.value is not None]
        if not scored:
            raise CorrKDError(f"{self.arm}: every trial has failed")
        return nested(max(scored, key=lambda t: t.value).params)


def _study(dataset: Path, arm: Arm, fixed: ArmSettings) -> _Study:
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    journal = dataset / f"{arm.name}.journal.log"
    with refusing(journal, f"damaged; delete {journal} to search again"):
        storage = JournalStorage(JournalFileBackend(str(journal)))
        study = optuna.create_study(
            study_name=arm.name, storage=storage, direction="maximize", load_if_exists=True
        )
    return _Study(arm.name, fixed, space(arm), study)


def _train_teachers(
    dataset_plan: DatasetPlan, dataset: Path, experiment: Experiment, jobs: int, reporter: Reporter
) -> None:
    """Train the teachers that the arms need, with all seeds. Raises CorrKDError if one fails."""
    teachers = teachers_of(arms_of(dataset_plan), dataset_plan.settings)
    if not teachers:
        return
    taught = dataset_plan.model_copy(
        update={"arms": with_teachers(dataset_plan.arms, dataset_plan.settings)}
    )
    trainings = [
        Job(dataset, taught, name, seed, evaluate=False)
        for name in teachers
        for seed in dataset_plan.settings.seeds
    ]
    failures = run_jobs(trainings, {dataset.name: experiment}, at_once=jobs, reporter=reporter)
    for failure in failures:
        raise CorrKDError(f"{failure.job.arm}, seed {failure.job.seed}: {failure.error}")


def _round(
    number: int,
    studies: Mapping[str, _Study],
    plan: Plan,
    dataset: Path,
    experiment: Experiment,
    reporter: Reporter,
) -> None:
    """Train one trial of every arm with all seeds, and record its score."""
    dataset_plan = plan.datasets[dataset.name]
    trials = {
        name: trial for name, study in studies.items() if (trial := study.trial(number)) is not None
    }
    changes = {
        name: ArmSettings.model_validate(nested(trial.params)) for name, trial in trials.items()
    }
    tried = dataset_plan.model_copy(
        update={
            "arms": {
                name: laid_over(name, dataset_plan.arms[name], c) for name, c in changes.items()
            }
        }
    )
    folder_of_round = dataset / f"trial-{number}"
    trainings = [
        Job(folder_of_round, tried, arm, seed, evaluate=False, teachers=dataset)
        for arm in trials
        for seed in dataset_plan.settings.seeds
    ]
    quiet = Reporter(quiet=True)
    failures = run_jobs(
        trainings, {folder_of_round.name: experiment}, at_once=plan.jobs, reporter=quiet
    )
    for name, trial in trials.items():
        score = None
        if not any(failure.job.arm == name for failure in failures):
            each = [
                recorded(arm_folder(folder_of_round, name, seed) / name, VALID)
                for seed in dataset_plan.settings.seeds
            ]
            score = sum(map(float, each)) / len(each)
        studies[name].tell(number, score)
        text = "failed" if score is None else f"{100 * score:.2f}"
        reporter.say(f"{name}  trial {number + 1}/{plan.trials}: {text}  {_line(trial.params)}")


def nested(params: Mapping[str, Any]) -> Change:
    """Return {"method": {"kl": {"weight": 1.0}}} for {"method.kl.weight": 1}, to four digits."""
    out: Change = {}
    for key, value in params.items():
        branch = out
        *parents, last = key.split(".")
        for parent in parents:
            branch = branch.setdefault(parent, {})
        branch[last] = float(f"{value:.4g}")
    return out


def _changes(arm: str, fixed: ArmSettings, change: Change) -> Change:
    return laid_over(arm, fixed, ArmSettings.model_validate(change)).model_dump(
        mode="json", exclude_unset=True
    )


def _line(params: Mapping[str, float]) -> str:
    return " ".join(f"{key}={value:.4g}" for key, value in params.items()) or "defaults"


def table_text(search: Search) -> str:
    """Return a plain-text table with the score of the defaults and the best score of each arm."""
    lines = [f"{'arm':<20}{'defaults':>10}{'best':>10}  changes"]
    for method, rows in search.trials.groupby("method", sort=False):
        best = rows.sort_values("score", ascending=False, kind="stable").to_dict("records")[0]
        lines.append(
            f"{method:<20}{100 * rows['score'].iloc[0]:>10.2f}{100 * best['score']:>10.2f}  "
            f"{best['changes']}"
        )
    return "\n".join(lines)


def named(names: Sequence[str]) -> dict[str, ArmSettings]:
    """Return arms without changes, by name."""
    return {name: ArmSettings() for name in names}
