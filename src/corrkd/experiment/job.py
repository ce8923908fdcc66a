"""One run: an arm trained with one seed on one dataset, then tested. Results already in its folder
are not computed again.
"""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import pandas as pd
import torch

from corrkd.csv_files import read_csv
from corrkd.errors import CorrKDError
from corrkd.experiment.arm import Arm, resolve, teachers_of
from corrkd.experiment.budget import BudgetRule, choose_budget, read_budget, with_epochs
from corrkd.experiment.calibrate import swept_samples
from corrkd.experiment.experiment import Experiment
from corrkd.experiment.plan import DatasetPlan, arms_of
from corrkd.experiment.processes import (
    is_first_process,
    keep_freed_memory,
    make_fabric,
    peak_memory,
    reset_peak_memory,
)
from corrkd.experiment.progress import Reporter, Task
from corrkd.experiment.stages import (
    RESULTS,
    Training,
    device_name,
    evaluate_arm,
    stack_size,
    train_all,
    train_arm,
    trainings,
    write_tested,
)
from corrkd.files import make_folder, open_no_link, write_text
from corrkd.networks.saved import load_network, recorded
from corrkd.parsing import json_text, refusing, with_digest
from corrkd.settings import ResampleSettings
from corrkd.training.fabric import Fabric

COST, LOG, PROGRESS = "cost.json", "log.txt", "progress"
Key = tuple[str, str, int]


@dataclass(frozen=True, eq=False)
class Job:
    """An arm with one seed on one dataset.

    Attributes:
        dataset: folder of the dataset.
        dataset_plan: the plan of the dataset.
        arm, seed: name of the arm, and the seed.
        evaluate: whether to test the arm after training.
        teachers: folder of the dataset in an earlier run with the teachers; default: teachers are
            trained by jobs of this run.
    """

    dataset: Path
    dataset_plan: DatasetPlan
    arm: str
    seed: int
    evaluate: bool = True
    teachers: Path | None = None

    @property
    def key(self) -> Key:
        """Key that identifies it in a plan."""
        return self.dataset.name, self.arm, self.seed

    @property
    def folder(self) -> Path:
        """Folder of all its files."""
        return arm_folder(self.dataset, self.arm, self.seed)

    @property
    def done(self) -> bool:
        """Whether it is finished: results.csv is written last in a test, the cost in a training."""
        return (self.folder / (RESULTS if self.evaluate else COST)).is_file()

    @property
    def interrupted(self) -> bool:
        """Whether its training was started and not finished."""
        return any(self.folder.rglob(f"{self.arm}.ckpt"))

    @property
    def chooses_budget(self) -> bool:
        """Whether it chooses the number of epochs of the arm's other seeds."""
        return (
            self.dataset_plan.chooses(self.arm) and self.seed == self.dataset_plan.settings.seeds[0]
        )

    @cached_property
    def needs(self) -> tuple[Key, ...]:
        """Keys of the jobs that must be done first: the teacher's, and the one that chooses the
        number of epochs.
        """
        name, dataset_plan = self.dataset.name, self.dataset_plan
        taught_by = teachers_of(
            [resolve(self.arm, dataset_plan.arms[self.arm], dataset_plan.settings)],
            dataset_plan.settings,
        )
        teacher = (
            []
            if self.teachers is not None
            else [(name, teacher, self.seed) for teacher in taught_by]
        )
        first = dataset_plan.settings.seeds[0]
        leading = (
            [(name, self.arm, first)]
            if dataset_plan.chooses(self.arm) and self.seed != first
            else []
        )
        return (*teacher, *leading)

    def trainings(self, experiment: Experiment) -> list[Training]:
        """Return its trainings, with the number of epochs in the plan."""
        arms = arms_of(self.dataset_plan)
        arm = next(arm for arm in arms if arm.name == self.arm)
        return trainings(
            with_epochs(arm, self.dataset_plan.epochs.get(arm.name, arm.training.epochs)),
            self.folder,
            experiment=experiment.at(self.seed),
            seed=self.seed,
            taught_in=self.taught_in(arm),
            teaching=self.teaching(arms),
        )

    def taught_in(self, arm: Arm) -> Path | None:
        """Return the folder of the teachers of its resolved arm; None if it has no teacher."""
        if arm.taught_by is None:
            return None
        return arm_folder(self.teachers or self.dataset, arm.taught_by, self.seed)

    def teaching(self, arms: Sequence[Arm]) -> bool:
        """Return whether it trains a committee of teachers for the resolved arms of the plan."""
        return self.teachers is None and self.arm in teachers_of(arms, self.dataset_plan.settings)

    @property
    def progress(self) -> str | None:
        """Its progress, such as "self-mm 3/16"; None if it is not running."""
        try:
            with (self.folder / PROGRESS).open("rb") as file:
                return file.read(200).decode("utf-8").strip() or None
        except (OSError, UnicodeDecodeError):
            return None


def arm_folder(dataset: Path, arm: str, seed: int) -> Path:
    """Return the folder of an arm and seed in a dataset's folder."""
    return dataset / f"seed-{seed}" / arm


def attempt(job: Job, experiment: Experiment, reporter: Reporter | None = None) -> str | None:
    """Carry out a job and return its error message, or None. The traceback of an unexpected error
    is written to the log of the job.

    Args:
        job: job to carry out.
        experiment: experiment on the dataset.
        reporter: receives the progress; default: a file in the job's folder, read by the waiting
            process.
    """
    try:
        make_folder(job.folder)
        carry_out(job, experiment, reporter or FileReporter(job.folder / PROGRESS))
    except CorrKDError as error:
        return " ".join(str(error).split())
    except Exception as error:  # one method's error must not stop the other jobs
        with open_no_link(job.folder / LOG, os.O_WRONLY | os.O_CREAT | os.O_APPEND) as log:
            log.write(traceback.format_exc().encode(errors="replace"))
        return f"{type(error).__name__}: {' '.join(str(error).split())} (see {job.folder / LOG})"
    finally:
        (job.folder / PROGRESS).unlink(missing_ok=True)
    return None


def carry_out_together(jobs: Sequence[Job], experiment: Experiment, reporter: Reporter) -> None:
    """Carry out unfinished jobs of one arm as a stack, if the settings allow it. `carry_out` then
    has nothing left to do for them.

    An error stops the whole stack. Each job is then carried out alone, so that only some may fail.
    """
    left = [job for job in jobs if not job.done and not job.dataset_plan.chooses(job.arm)]
    if len(left) < 2 or left[0].dataset_plan.settings.data.resample != ResampleSettings():
        return
    settings = left[0].dataset_plan.settings
    torch.set_num_threads(settings.threads)
    fabric = make_fabric(settings)
    resumed = {job: job.interrupted for job in left}
    keep_freed_memory()
    reset_peak_memory(fabric.device)
    try:
        count = stack_size(left[0].trainings(experiment)[0], fabric)
        if count == 1:
            return
        every = [training for job in left for training in job.trainings(experiment)]
        for training in every:
            make_folder(training.folder)
        train_all(every, fabric, reporter)
        for job in left:
            _train(job, experiment, fabric, reporter, resumed=resumed[job])
        tested = [job for job in left if job.evaluate]
        for first in range(0, len(tested), count):
            _test(tested[first : first + count], experiment, reporter)
    except Exception as error:  # each job is then carried out alone
        reporter.say(
            f"{left[0].arm}: not at once, but one by one: "
            f"{' '.join(str(error).split()) or type(error).__name__}"
        )


def carry_out(job: Job, experiment: Experiment, reporter: Reporter) -> None:
    """Train and test an arm. Raises CorrKDError if that is not possible."""
    torch.set_num_threads(job.dataset_plan.settings.threads)
    keep_freed_memory()
    fabric = make_fabric(job.dataset_plan.settings)
    reset_peak_memory(fabric.device)
    experiment = experiment.at(job.seed)
    _train(job, experiment, fabric, reporter, resumed=job.interrupted)
    if is_first_process() and job.evaluate and not job.done:
        _test([job], experiment, reporter)


def _train(
    job: Job, experiment: Experiment, fabric: Fabric, reporter: Reporter, *, resumed: bool
) -> None:
    """Train the models that a job still needs, and record the cost (without time and memory if it
    was resumed).
    """
    seed, folder = job.seed, job.folder
    arms = arms_of(job.dataset_plan)
    planned = next(arm for arm in arms if arm.name == job.arm)
    taught_in = job.taught_in(planned)
    train = partial(
        train_arm,
        experiment=experiment,
        seed=seed,
        fabric=fabric,
        reporter=reporter,
        taught_in=taught_in,
    )
    train(with_epochs(planned, _epochs(job, planned, train)), folder, teaching=job.teaching(arms))
    if is_first_process() and not (folder / COST).is_file():
        write_text(folder / COST, json_text(with_digest(_cost(job, fabric.device, resumed))))


def _test(jobs: Sequence[Job], experiment: Experiment, reporter: Reporter) -> None:
    """Test the models of one arm's jobs in one pass."""
    if not jobs:
        return
    first = jobs[0]
    arm = next(arm for arm in arms_of(first.dataset_plan) if arm.name == first.arm)
    samples = swept_samples(experiment)
    seeds = ", ".join(str(job.seed) for job in jobs)
    with reporter.task(
        f"seed {seeds}  {arm.name}: evaluation", len(jobs) * sum(map(len, samples.values()))
    ) as task:
        tested = evaluate_arm(arm, experiment, samples, [job.folder for job in jobs], task.step)
        for job, of_job in zip(jobs, tested, strict=True):
            write_tested(job.folder, of_job, experiment, job.seed)


def _epochs(job: Job, arm: Arm, train: Callable[[Arm, Path], None]) -> int:
    """Return the number of epochs of an arm: from the plan, or chosen by this job or by the job of
    the first seed.
    """
    dataset_plan, folder = job.dataset_plan, job.folder
    if read_budget(folder) is not None or job.chooses_budget:
        return choose_budget(
            arm, dataset_plan.budget or BudgetRule(), job.seed, folder, train
        ).epochs
    if not dataset_plan.chooses(arm.name):
        return dataset_plan.epochs.get(arm.name, arm.training.epochs)
    first = dataset_plan.settings.seeds[0]
    budget = read_budget(arm_folder(job.dataset, job.arm, first))
    if budget is None:
        raise CorrKDError(
            f"no budget was chosen: the training with seed {first}, which chooses it, has failed"
        )
    return budget.epochs


def _cost(job: Job, device: torch.device, resumed: bool) -> dict[str, float | str | None]:
    """Return the cost of a training. Seconds, memory and device are None if it was resumed, since
    only a part would be counted.
    """
    path = job.folder / "timings.csv"  # absent if a run was killed before writing it
    with refusing(path, "damaged; delete it to go on"):
        timings = (
            read_csv(path).set_index("stage")["seconds"]
            if path.is_file()
            else pd.Series(dtype=float)
        )
    saved = load_network(job.folder / job.arm)
    return {
        "parameters": sum(p.numel() for p in saved.network.parameters()),
        "epochs": len(recorded(job.folder / job.arm, "history")),
        "train_seconds": None if resumed or job.arm not in timings else float(timings[job.arm]),
        "peak_memory_bytes": None if resumed else peak_memory(device),
        "device": None if resumed else device_name(device),
    }


class FileReporter(Reporter):
    """Reporter that writes progress as a line to a file, for the waiting process."""

    def __init__(self, path: Path) -> None:
        super().__init__(quiet=True)
        self._path = path

    @contextmanager
    def task(self, title: str, total: int, done: int = 0) -> Iterator[Task]:
        """Yield a task that writes its progress to the file."""
        yield _Line(self._path, title.split()[-1], total, done)


class _Line(Task):
    def __init__(self, path: Path, title: str, total: int, done: int) -> None:
        self._path, self._title, self._total, self._done = path, title, total, done
        self.step(0)

    def step(self, count: int = 1, note: str = "") -> None:
        self._done += count
        with open_no_link(self._path) as file:
            file.write(f"{self._title} {self._done}/{self._total}\n".encode())
