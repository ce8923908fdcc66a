"""Running jobs in this process, or in workers on this machine or a Ray cluster. A job starts when
the jobs that it needs are done.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from threading import Event, Thread

from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.table import Table

from corrkd.errors import CorrKDError
from corrkd.escape import terminal_text
from corrkd.experiment.experiment import Experiment, prepare
from corrkd.experiment.job import LOG, PROGRESS, Job, attempt, carry_out_together
from corrkd.experiment.processes import world_size
from corrkd.experiment.progress import Countdown, Reporter
from corrkd.experiment.settings import Settings
from corrkd.files import make_folder, open_no_link
from corrkd.workers import Backend, Submit, each_done, workers


@dataclass(frozen=True)
class Failure:
    """A job that ended without results, and its error message."""

    job: Job
    error: str


def run_jobs(
    jobs: Sequence[Job],
    experiments: Mapping[str, Experiment],
    *,
    at_once: int,
    reporter: Reporter,
    backend: Backend = "joblib",
    address: str | None = None,
) -> list[Failure]:
    """Carry out the unfinished jobs and return the failures. A failed job stops only the jobs that
    need it.

    Args:
        jobs: all jobs of a plan.
        experiments: by dataset, for jobs in this process.
        at_once: number of jobs at a time. With 1 on this machine, jobs run one after the other in
            this process.
        reporter: receives the progress.
        backend: "joblib" for worker processes on this machine, or "ray" for a cluster of machines
            with a shared folder.
        address: address of the cluster; None: a local Ray instance.

    Raises:
        CorrKDError: if Ray is requested but not installed or not reachable.
    """
    for job in jobs:
        (job.folder / PROGRESS).unlink(missing_ok=True)  # left by a killed run
    if backend == "joblib" and (at_once == 1 or world_size() > 1):
        return _one_by_one(jobs, experiments, reporter)
    failures: list[Failure] = []
    with (
        workers(work, at_once, backend=backend, address=address) as submit,
        watched(jobs, failures, reporter),
    ):
        _schedule(jobs, submit, at_once, failures)
    return failures


def ordered(jobs: Sequence[Job]) -> list[Job]:
    """Return the jobs, each after those that it needs: teachers first, and within an arm the job
    that chooses the number of epochs.
    """
    teachers = {needed[:2] for job in jobs for needed in job.needs if needed[1] != job.arm}
    return sorted(jobs, key=lambda job: (job.key[:2] not in teachers, not job.chooses_budget))


def _one_by_one(
    jobs: Sequence[Job], experiments: Mapping[str, Experiment], reporter: Reporter
) -> list[Failure]:
    failures: list[Failure] = []
    begun: set[tuple[Path, str]] = set()
    ended = sum(job.done for job in jobs)
    countdown = Countdown(len(jobs), ended)
    for job in ordered(jobs):
        if job.done:
            continue
        if (job.dataset, job.arm) not in begun:
            begun.add((job.dataset, job.arm))
            alike = [
                other for other in jobs if (other.dataset, other.arm) == (job.dataset, job.arm)
            ]
            carry_out_together(
                [other for other in alike if not _unmet(other, failures)],
                experiments[job.dataset.name],
                reporter,
            )
        error = _unmet(job, failures) or attempt(job, experiments[job.dataset.name], reporter)
        if error is not None:
            failures.append(Failure(job, error))
        ended = sum(other.done for other in jobs) + len(failures)
        if left := countdown.left(ended):
            reporter.say(f"runs: {ended}/{len(jobs)}  {left}")
    return failures


def _unmet(job: Job, failures: Sequence[Failure]) -> str | None:
    """Return why a job cannot be done, if a job that it needs has failed; else None."""
    failed = {failure.job.key: failure for failure in failures}
    for key in job.needs:
        if key in failed:
            return (
                f"not begun: {key[1]} with seed {key[2]}, which it needs, has failed "
                f"({failed[key].error})"
            )
    return None


def _schedule(
    jobs: Sequence[Job], submit: Submit[Job, str | None], at_once: int, failures: list[Failure]
) -> None:
    """Submit each job once the jobs that it needs are done, and collect failures."""

    def begun(job: Job) -> Future[str | None]:
        if (error := _unmet(job, failures)) is None:
            return submit(job)
        ended: Future[str | None] = Future()
        ended.set_result(error)
        return ended

    def can_begin(job: Job, undone: Sequence[Job]) -> bool:
        return {other.key for other in undone}.isdisjoint(job.needs)

    waiting = [job for job in ordered(jobs) if not job.done]
    for index, error in each_done(waiting, begun, at_once, can_begin):
        if error is not None:
            failures.append(Failure(waiting[index], error))


def work(job: Job) -> str | None:
    """Carry out a job in a worker and return its error message, or None. The worker's output is
    written to the log of the job.
    """
    try:
        make_folder(job.folder)
        with _output_to(job.folder / LOG):
            return attempt(job, _experiment(job.dataset_plan.settings.model_dump_json()))
    except CorrKDError as error:
        return " ".join(str(error).split())


@lru_cache(maxsize=1)
def _experiment(settings: str) -> Experiment:
    """Return the experiment with these settings, cached in the worker."""
    return prepare(Settings.model_validate_json(settings))


@contextmanager
def _output_to(path: Path) -> Iterator[None]:
    """Redirect the output of this process and its libraries to a file."""
    sys.stdout.flush()
    with open_no_link(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND) as log:
        before = [os.dup(descriptor) for descriptor in (1, 2)]
        for descriptor in (1, 2):
            os.dup2(log.fileno(), descriptor)
        try:
            yield
        finally:
            for descriptor, saved in zip((1, 2), before, strict=True):
                (sys.stdout if descriptor == 1 else sys.stderr).flush()
                os.dup2(saved, descriptor)
                os.close(saved)


@contextmanager
def watched(jobs: Sequence[Job], failures: Sequence[Failure], reporter: Reporter) -> Iterator[None]:
    """Show jobs while they run: a live table on a terminal, else a line for each finished job."""
    if reporter.quiet:
        yield
        return
    announced = {job for job in jobs if job.done}
    countdown = Countdown(len(jobs), len(announced))
    if reporter.draws:
        live = Live(
            console=Console(stderr=True),
            get_renderable=lambda: state_table(jobs, failures, countdown),
            refresh_per_second=2,
        )
        with live:
            yield
        return
    follow, stop = partial(_say_ended, jobs, announced, reporter, countdown), Event()
    thread = Thread(target=_every, args=(stop, 1.0, follow), daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        follow()


def state_table(
    jobs: Sequence[Job], failures: Sequence[Failure] = (), countdown: Countdown | None = None
) -> Table:
    """Return a table of the jobs done, running, failed and left: a row per dataset and arm, and a
    row with totals and the time left.
    """
    table = Table(
        "dataset", "arm", "done", "running", "failed", "left", box=None, header_style="bold"
    )
    failed = {failure.job for failure in failures}
    total = {"done": 0, "failed": 0, "left": 0}
    for dataset, arm in dict.fromkeys((job.dataset.name, job.arm) for job in jobs):
        mine = [job for job in jobs if (job.dataset.name, job.arm) == (dataset, arm)]
        states = [_state(job, failed) for job in mine]
        counts = {state: states.count(state) for state in total}
        running = ", ".join(s for s in states if s not in total)
        for state, count in counts.items():
            total[state] += count
        row = (str(counts["done"]), running, str(counts["failed"] or ""), str(counts["left"] or ""))
        style = "green" if counts["done"] == len(mine) else "red" if counts["failed"] else ""
        table.add_row(*(escape(terminal_text(text)) for text in (dataset, arm, *row)), style=style)
    table.add_row(
        "",
        f"all {len(jobs)}",
        str(total["done"]),
        "" if countdown is None else countdown.left(total["done"] + total["failed"]),
        str(total["failed"] or ""),
        str(total["left"]),
    )
    return table


def _state(job: Job, failed: set[Job]) -> str:
    if job.done:
        return "done"
    if job in failed:
        return "failed"
    progress = job.progress
    return f"seed {job.seed}: {progress.split()[-1]}" if progress else "left"


def _say_ended(
    jobs: Sequence[Job], announced: set[Job], reporter: Reporter, countdown: Countdown
) -> None:
    for job in jobs:
        if job not in announced and job.done:
            announced.add(job)
            words = [
                f"{len(announced)}/{len(jobs)}  {job.dataset.name}  {job.arm}  seed {job.seed}",
                countdown.left(len(announced)),
            ]
            reporter.say("  ".join(filter(None, words)))


def _every(stop: Event, seconds: float, call: Callable[[], None]) -> None:
    while not stop.wait(seconds):
        call()
