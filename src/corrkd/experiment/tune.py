"""A search over a method's hyper-parameters: Optuna, on the validation split alone, the same number of trials for every method."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import yaml
from joblib import Parallel, delayed

from corrkd.csv_files import write_csv
from corrkd.errors import CorrKDError
from corrkd.experiment import run_folder
from corrkd.experiment.arm import TEACHER, Arm, laid_over, resolve
from corrkd.experiment.memory import keep_freed_memory
from corrkd.experiment.prepare import Experiment, prepare
from corrkd.experiment.processes import end_with_parent, make_fabric
from corrkd.experiment.progress import Reporter
from corrkd.experiment.seed import train_arms
from corrkd.files import make_folder, write_text
from corrkd.networks.saved import recorded
from corrkd.parsing import LARGEST_YAML, read_text, refusing, yaml_with_digest
from corrkd.settings import ArmSettings, Settings
from corrkd.training.loop import VALID, derived_seed

TUNED = "tuned.yaml"
TRIALS = "trials.csv"
Change = dict[str, Any]


@dataclass(frozen=True)
class Range:
    """What is tried for one key: from `low` to `high`, on a log scale where `log`."""

    low: float
    high: float
    log: bool = False


@dataclass(frozen=True)
class Search:
    """What a search found: the changes with the best validation score by method, and every trial."""

    best: dict[str, Change]
    trials: pd.DataFrame


def space(arm: Arm) -> dict[str, Range]:
    """What is searched of a method, by dotted key: learning rate, dropout, and the weights that the method names in `search`."""
    out = {"stage.lr": Range(arm.stage.lr / 4, arm.stage.lr * 4, log=True)}
    structure = arm.network.model_dump()
    if "dropout" in structure:
        out["network.dropout"] = Range(0.0, 0.4)
    elif "dropout" in structure.get("network", {}):
        out["network.network.dropout"] = Range(0.0, 0.4)
    return {**out, **{key: Range(low, high, log=True) for key, (low, high) in arm.method.search.items()}}


def tune(
    settings: Settings,
    methods: Mapping[str, ArmSettings],
    out: str | Path,
    *,
    trials: int = 8,
    jobs: int = 1,
    reporter: Reporter | None = None,
) -> Search:
    """Searches each method's hyper-parameters by the validation score by which its epoch is chosen.

    The first trial of every method is its defaults. The test split is not read. Stopped and started again, it goes on.

    Args:
        settings: data, epochs and seeds (a trial's score is the mean over them).
        methods: arms by name, with what is fixed.
        out: folder of the search.
        trials: of each method.
        jobs: methods at once, a process each.
        reporter: where progress is said; default: nowhere.

    Raises:
        CorrKDError: for anything wrong with settings, data or the folder; where Optuna is not installed.
    """
    try:
        import optuna  # noqa: F401
    except ImportError:
        raise CorrKDError("tuning needs Optuna: pip install 'corrkd[tune]'") from None
    out, reporter = Path(out), reporter or Reporter(quiet=True)
    settings = run_folder.with_whole_paths(_on_validation(settings))
    with run_folder.locked(out):
        _begin(out, settings)
        experiment = prepare(settings, methods)  # what is wrong is said before anything is trained
        if any(arm.method.needs_teacher for arm in experiment.arms):
            with reporter.busy("training the teacher"):
                _train(experiment, resolve(TEACHER, ArmSettings(), settings), out / TEACHER, None)
        quiet = reporter.quiet
        workers = min(jobs, len(methods))
        search = _search if workers == 1 else _search_apart
        found = Parallel(n_jobs=workers)(
            delayed(search)(settings, name, changes, out, trials, quiet) for name, changes in methods.items()
        )
        table = pd.concat([rows for _, rows in found], ignore_index=True)
        best = {name: change for name, (change, _) in zip(methods, found, strict=True)}
        write_csv(out / TRIALS, table)
        said = f"{trials} trials a method by Optuna on the validation split of {experiment.dataset.name}, the first its defaults"
        tree = {"search": said, "methods": {n: _whole(methods[n], change) for n, change in best.items()}}
        write_text(out / TUNED, yaml.safe_dump(tree, sort_keys=False, allow_unicode=True))
    return Search(best, table)


def _on_validation(settings: Settings) -> Settings:
    evaluation = settings.evaluation.model_copy(update={"split": "valid"})
    return settings.model_copy(update={"evaluation": evaluation, "jobs": 1})


def _begin(out: Path, settings: Settings) -> None:
    path = out / run_folder.SETTINGS
    text = yaml_with_digest(settings.to_yaml())
    if path.is_file():
        if read_text(path, LARGEST_YAML) != text:
            raise CorrKDError(f"{out}: holds a search with other settings; choose another folder")
        return
    inside = [p.name for p in out.iterdir() if p.name != ".lock"]
    if inside:
        raise CorrKDError(f"{out}: holds other files and no search; choose another folder")
    write_text(path, text)


def _search(
    settings: Settings, name: str, fixed: ArmSettings, out: Path, trials: int, quiet: bool
) -> tuple[Change, pd.DataFrame]:
    """One method's trials, in their order; the best change, and a row for each."""
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    reporter = Reporter(quiet=quiet, plain=True)
    experiment = prepare(settings, {name: fixed})
    ranges = space(experiment.arms[0])
    make_folder(out / name)
    journal = out / name / "journal.log"
    with refusing(journal, f"damaged; delete {out / name} to search again"):
        storage = JournalStorage(JournalFileBackend(str(journal)))
        study = optuna.create_study(study_name=name, storage=storage, direction="maximize", load_if_exists=True)
    while (number := _next(study, trials)) is not None:
        # A sampler of its own for each trial: what it draws does not depend on where a search was stopped.
        study.sampler = optuna.samplers.TPESampler(seed=derived_seed(name, number) % 2**32, n_startup_trials=4)
        trial = study.trials[number] if number < len(study.trials) else _asked(study, ranges, number)
        change = nested(trial.params)
        arm = resolve(name, laid_over(fixed, ArmSettings.model_validate(change)), settings)
        score = _train(experiment, arm, out / name / f"trial-{number}", out)
        study.tell(number, score)
        reporter.say(f"{name}  trial {number + 1}/{trials}: {100 * score:.2f}  {trial.params or 'defaults'}")
    done = study.trials[:trials]
    rows = [{"method": name, "trial": t.number, "score": t.value, "changes": _line(t.params)} for t in done]
    best = max(done, key=lambda t: -math.inf if t.value is None else t.value)
    return nested(best.params), pd.DataFrame(rows)


def _search_apart(*given: Any) -> tuple[Change, pd.DataFrame]:
    """`_search` in a worker's process, which ends with the one that started it."""
    end_with_parent()
    return _search(*given)


def _next(study: Any, trials: int) -> int | None:
    """The first trial that was begun and not told, else the next one; None where all are done."""
    open_ = [t.number for t in study.trials if not t.state.is_finished()]
    number = open_[0] if open_ else len(study.trials)
    return number if number < trials else None


def _asked(study: Any, ranges: Mapping[str, Range], number: int) -> Any:
    """A new trial. The first is left as it is: the defaults."""
    trial = study.ask()
    if number:
        for key, tried in ranges.items():
            trial.suggest_float(key, tried.low, tried.high, log=tried.log)
    return trial


def _train(experiment: Experiment, arm: Arm, folder: Path, out: Path | None) -> float:
    """Trains an arm with every seed and gives its mean validation score."""
    settings, scores = experiment.settings, []
    torch.set_num_threads(settings.threads)
    keep_freed_memory()
    fabric = make_fabric(settings)
    for seed in settings.seeds:
        taught_in = None if out is None else out / TEACHER / f"seed-{seed}"
        place = folder / f"seed-{seed}"
        quiet = Reporter(quiet=True)
        teaching = out is None  # a teacher that is searched itself teaches nobody
        train_arms(experiment.at(seed), [arm], seed, place, fabric, quiet, taught_in=taught_in, teaching=teaching)
        scores.append(float(recorded(place / arm.name, VALID)))
    return sum(scores) / len(scores)


def nested(params: Mapping[str, Any]) -> Change:
    """{"stage.lr": 1} -> {"stage": {"lr": 1}}."""
    out: Change = {}
    for key, value in params.items():
        place = out
        *parents, last = key.split(".")
        for parent in parents:
            place = place.setdefault(parent, {})
        place[last] = float(f"{value:.4g}")
    return out


def _whole(fixed: ArmSettings, change: Change) -> Change:
    return laid_over(fixed, ArmSettings.model_validate(change)).model_dump(mode="json", exclude_unset=True)


def _line(params: Mapping[str, float]) -> str:
    return " ".join(f"{key}={value:.4g}" for key, value in params.items()) or "defaults"


def table_text(search: Search) -> str:
    """Defaults and best score of each method, as plain text."""
    lines = [f"{'method':<20}{'defaults':>10}{'best':>10}  changes"]
    for method, rows in search.trials.groupby("method", sort=False):
        best = rows.sort_values("score", ascending=False, kind="stable").to_dict("records")[0]
        lines.append(f"{method:<20}{100 * rows['score'].iloc[0]:>10.2f}{100 * best['score']:>10.2f}  {best['changes']}")
    return "\n".join(lines)


def named(names: Sequence[str]) -> dict[str, ArmSettings]:
    """Arms with nothing changed."""
    return {name: ArmSettings() for name in names}
