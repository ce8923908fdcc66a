"""A grid of runs, a process each: through joblib on this machine, or on a Ray cluster. What is done is not done again."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from threading import Event, Thread
from typing import Literal

from joblib import Parallel, delayed, parallel_config
from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.table import Table

from corrkd.errors import CorrKDError
from corrkd.escape import terminal_text
from corrkd.experiment.arm import TEACHER
from corrkd.experiment.job import PROGRESS
from corrkd.experiment.progress import Reporter
from corrkd.files import make_folder, open_no_link

Backend = Literal["joblib", "ray"]
LOG = "log.txt"


@dataclass(frozen=True)
class Job:
    """One run: `arm` with `seed` on `dataset`, in the comparison's folder `out`. `leads`: it chooses the budget of the other seeds."""

    out: Path
    dataset: str
    arm: str
    seed: int
    leads: bool = False

    @property
    def folder(self) -> Path:
        """Where everything of it lies."""
        return self.out / self.dataset / f"seed-{self.seed}" / self.arm

    @property
    def done(self) -> bool:
        """results.csv is written last."""
        return (self.folder / "results.csv").is_file()

    @property
    def progress(self) -> str | None:
        """How far it is, as "self-mm 3/16"; None where it does not run."""
        try:
            with (self.folder / PROGRESS).open("rb") as file:
                return file.read(200).decode("utf-8").strip() or None
        except (OSError, UnicodeDecodeError):
            return None


@dataclass(frozen=True)
class Failure:
    """A run that ended without results, and its last line."""

    job: Job
    error: str


def run_grid(
    jobs: Sequence[Job],
    *,
    at_once: int,
    reporter: Reporter,
    backend: Backend = "joblib",
    address: str | None = None,
    after_leading: Callable[[], None] = lambda: None,
) -> list[Failure]:
    """Runs what is left of the jobs: the teachers first, and of either those that lead. A run that fails is reported and stops no other.

    Args:
        jobs: the whole grid.
        at_once: how many at a time on this machine; a cluster takes what it has room for, up to so many.
        reporter: where the state is said.
        backend: "joblib", or "ray" for a cluster whose machines share the folder.
        address: of the cluster; None: a Ray of this machine's own.
        after_leading: called when jobs that lead have ended, before others of theirs begin.

    Raises:
        CorrKDError: where Ray is asked for and not installed, or cannot be reached.
    """
    for job in jobs:
        (job.folder / PROGRESS).unlink(missing_ok=True)  # of a comparison that was killed
    failures: list[Failure] = []
    with _backend(backend, address), watched(jobs, failures, reporter):
        for phase in ((True, True), (True, False), (False, True), (False, False)):
            left = [job for job in jobs if (job.arm == TEACHER, job.leads) == phase and not job.done]
            if left:
                errors = Parallel(n_jobs=max(1, min(at_once, len(left))))(delayed(run_apart)(job) for job in left)
                failures += [Failure(job, error) for job, error in zip(left, errors, strict=True) if error]
                if left[0].leads:
                    after_leading()
    return failures


def run_apart(job: Job) -> str | None:
    """The job in a process of its own, whose output goes to its log; the last line where it fails."""
    make_folder(job.folder)
    command = [sys.executable, "-m", "corrkd.experiment.job", str(job.out), job.dataset, job.arm, str(job.seed)]
    with open_no_link(job.folder / LOG) as log:
        code = subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, check=False).returncode
    if code == 0:
        return None
    lines = (job.folder / LOG).read_text("utf-8", "replace").split("\n")
    said = next((line for line in reversed(lines) if line.strip()), "")
    return said.removeprefix("error: ") if said.startswith("error: ") else f"ended with code {code}; {said}".strip("; ")


@contextmanager
def _backend(name: Backend, address: str | None) -> Iterator[None]:
    if name == "joblib":
        with parallel_config(backend="threading"):  # a thread only waits for its process
            yield
        return
    try:
        import ray

        register_ray = import_module("ray.util.joblib").register_ray
    except ImportError:
        raise CorrKDError("--backend ray needs Ray: pip install 'corrkd[cluster]'") from None
    try:
        ray.init(address=address, log_to_driver=False, include_dashboard=False)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise CorrKDError(f"--address {address}: no Ray cluster there: {' '.join(str(error).split())}") from None
    register_ray()
    try:
        with parallel_config(backend="ray"):
            yield
    finally:
        ray.shutdown()


@contextmanager
def watched(jobs: Sequence[Job], failures: Sequence[Failure], reporter: Reporter) -> Iterator[None]:
    """While the grid runs: a live table on a terminal, elsewhere a line for each run that ends."""
    if reporter.quiet:
        yield
        return
    console = Console(stderr=True)
    if console.is_terminal and not reporter.plain:
        live = Live(console=console, get_renderable=lambda: state_table(jobs, failures), refresh_per_second=2)
        with live:
            yield
        return
    known = {job for job in jobs if job.done}
    follow, stop = partial(_say_ended, jobs, known, reporter), Event()
    thread = Thread(target=_every, args=(stop, 1.0, follow), daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        follow()


def state_table(jobs: Sequence[Job], failures: Sequence[Failure] = ()) -> Table:
    """What is done, running, failed and left, a row for each dataset and arm."""
    table = Table("dataset", "method", "done", "running", "failed", "left", box=None, header_style="bold")
    failed = {failure.job for failure in failures}
    total = {"done": 0, "failed": 0, "left": 0}
    for dataset, arm in dict.fromkeys((job.dataset, job.arm) for job in jobs):
        mine = [job for job in jobs if (job.dataset, job.arm) == (dataset, arm)]
        states = [_state(job, failed) for job in mine]
        counts = {state: states.count(state) for state in total}
        running = ", ".join(s for s in states if s not in total)
        for state, count in counts.items():
            total[state] += count
        row = (str(counts["done"]), running, str(counts["failed"] or ""), str(counts["left"] or ""))
        style = "green" if counts["done"] == len(mine) else "red" if counts["failed"] else ""
        table.add_row(*(escape(terminal_text(text)) for text in (dataset, arm, *row)), style=style)
    table.add_row("", f"all {len(jobs)}", str(total["done"]), "", str(total["failed"] or ""), str(total["left"]))
    return table


def _state(job: Job, failed: set[Job]) -> str:
    if job.done:
        return "done"
    if job in failed:
        return "failed"
    progress = job.progress
    return f"seed {job.seed}: {progress.split()[-1]}" if progress else "left"


def _say_ended(jobs: Sequence[Job], known: set[Job], reporter: Reporter) -> None:
    for job in jobs:
        if job not in known and job.done:
            known.add(job)
            reporter.say(f"{len(known)}/{len(jobs)}  {job.dataset}  {job.arm}  seed {job.seed}")


def _every(stop: Event, seconds: float, call: Callable[[], None]) -> None:
    while not stop.wait(seconds):
        call()
