"""settings -> data -> teacher -> student and control -> evaluation -> run folder. `run` does it whole; `resume` goes on with it."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from joblib import Parallel, delayed

from corrkd.errors import CorrKDError
from corrkd.experiment import run_folder
from corrkd.experiment.memory import keep_freed_memory
from corrkd.experiment.prepare import SYNTHETIC, Experiment, prepare
from corrkd.experiment.processes import end_with_parent, is_first_process, make_fabric, world_size
from corrkd.experiment.progress import Reporter
from corrkd.experiment.references import references
from corrkd.experiment.seed import check_tested, evaluate_seed, read_table, train_seed, write_table
from corrkd.files import file_names, remove_parts
from corrkd.report.page import write_report
from corrkd.settings import Settings, load_settings


@dataclass(frozen=True)
class Run:
    """What a run left.

    Attributes:
        folder: the run folder.
        results: tidy rows: dataset, method, seed (empty for floor and ceiling), condition, draw, metric, value; empty before an evaluation.
    """

    folder: Path
    results: pd.DataFrame

    def average(self, metric: str = "weighted_f1") -> pd.Series[float]:
        """A metric's mean over the missing subsets ("Avg."), averaged over seeds, by method."""
        rows = self.results[(self.results["condition"] == "average") & (self.results["metric"] == metric)]
        return rows.groupby("method")["value"].mean()


def run(
    settings: Settings | Mapping[str, Any] | str = SYNTHETIC,
    out: str | Path | None = None,
    *,
    overwrite: bool = False,
    evaluate: bool = True,
    reporter: Reporter | None = None,
) -> Run:
    """Trains teacher, student and control for every seed, tests them under every missing condition and writes the report.

    Args:
        settings: from `load_settings`, nested keys and values, or a preset's name.
        out: the run folder; default: runs/<dataset's name>, as `corrkd.files.file_names` makes a folder's name of it.
        overwrite: replace a run that is there.
        evaluate: whether to test, too.
        reporter: where progress is said; default: nowhere.

    Raises:
        CorrKDError: for anything wrong with settings, data or the folder.
    """
    if isinstance(settings, str):
        settings = load_settings(preset=settings)
    elif not isinstance(settings, Settings):
        settings = load_settings(**settings)
    if settings.jobs > 1 and world_size() > 1:
        raise CorrKDError("settings: jobs > 1 does not go with several processes of one training; set jobs to 1")
    reporter = _speaker(reporter)
    with reporter.busy(f"reading {settings.data.path}"):
        experiment = prepare(settings)
    folder = (
        Path(out) if out is not None else Path("runs") / file_names([experiment.dataset.name])[experiment.dataset.name]
    )
    if is_first_process():
        run_folder.check(folder, overwrite=overwrite)  # before anything is made there
    with _writing(folder):
        if is_first_process():
            run_folder.begin(folder, settings, overwrite=overwrite)
        return _carry_out(experiment, folder, evaluate, reporter)


def resume(folder: str | Path, *, evaluate: bool = True, reporter: Reporter | None = None) -> Run:
    """Goes on with a run that was stopped, wherever that was, to the same bits as one never stopped.

    Raises:
        CorrKDError: where the folder holds no run, or the data has changed.
    """
    folder = Path(folder)
    settings = run_folder.settings_of(folder, unchanged=True)
    reporter = _speaker(reporter)
    with _writing(folder):
        with reporter.busy(f"reading {settings.data.path}"):
            experiment = prepare(settings)
        return _carry_out(experiment, folder, evaluate, reporter)


def _carry_out(experiment: Experiment, folder: Path, evaluate: bool, reporter: Reporter) -> Run:
    settings = experiment.settings
    if is_first_process():
        remove_parts(folder)
        first = experiment.at(settings.seeds[0])
        run_folder.write_facts(folder, first.facts())
        for note in first.notes():
            reporter.say(f"note: {note}")
    if settings.jobs > 1 and len(settings.seeds) > 1:
        quiet = reporter.quiet
        Parallel(n_jobs=min(settings.jobs, len(settings.seeds)))(
            delayed(_seed_process)(settings, seed, folder, evaluate, quiet) for seed in settings.seeds
        )
    else:
        _seeds(experiment, folder, evaluate, reporter)
    if not evaluate or not is_first_process():
        return Run(folder, pd.DataFrame())
    for seed in settings.seeds:
        check_tested(_seed_folder(folder, seed))
    parts = [read_table(_seed_folder(folder, seed) / "results.csv") for seed in settings.seeds]
    table = pd.concat([*parts, references(experiment)], ignore_index=True)
    write_table(folder / run_folder.RESULTS, table)
    with reporter.busy("writing the report"):
        write_report(folder)
    return Run(folder, table)


def _seeds(experiment: Experiment, folder: Path, evaluate: bool, reporter: Reporter) -> None:
    torch.set_num_threads(experiment.settings.threads)
    keep_freed_memory()
    fabric = make_fabric(experiment.settings)
    for seed in experiment.settings.seeds:
        train_seed(experiment.at(seed), seed, _seed_folder(folder, seed), fabric, reporter)
    # The test split is touched when nothing is left to be trained.
    if evaluate and fabric.is_global_zero:
        for seed in experiment.settings.seeds:
            evaluate_seed(experiment.at(seed), seed, _seed_folder(folder, seed), reporter)
    fabric.barrier()


def _seed_process(settings: Settings, seed: int, folder: Path, evaluate: bool, quiet: bool) -> None:
    end_with_parent()
    one = settings.model_copy(update={"seeds": (seed,)})
    _seeds(prepare(one), folder, evaluate, Reporter(quiet=quiet, plain=True))


def _seed_folder(folder: Path, seed: int) -> Path:
    return folder / f"seed-{seed}"


def _speaker(reporter: Reporter | None) -> Reporter:
    """Of several processes only the first speaks."""
    return reporter if reporter and is_first_process() else Reporter(quiet=True)


def _writing(folder: Path) -> Any:
    return run_folder.locked(folder) if is_first_process() else nullcontext()
