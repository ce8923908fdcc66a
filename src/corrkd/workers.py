"""Running tasks in worker processes, which are reused on this machine or run on a Ray cluster."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Future, wait
from contextlib import contextmanager
from threading import Thread
from typing import Any, Literal, TypeVar, get_args

import psutil

from corrkd.errors import CorrKDError

T = TypeVar("T")
R = TypeVar("R")

Backend = Literal["joblib", "ray"]
Work = Callable[[T], R]
"""Module-level function that runs a task and returns the result; both can be pickled."""
Submit = Callable[[T], "Future[R]"]

KILLED = "its process was killed; it may have run out of memory"


class Lost(str):
    """The error line of a task without a result."""


# An idle worker then ends and frees the dataset or models that it holds.
IDLE_SECONDS = 600
RETRIES = 1  # of a task after its worker on a cluster was lost


def end_with_parent() -> None:
    """End this process soon after its parent, so that a killed run stops writing."""
    Thread(target=_end_with, args=(psutil.Process(os.getppid()),), daemon=True).start()


def _end_with(parent: psutil.Process) -> None:
    # On POSIX an orphan gets another parent, even if the old one is a zombie. On Windows the parent
    # id stays, but a new process may reuse it.
    while os.getppid() == parent.pid and parent.is_running():
        time.sleep(0.2)
    os._exit(1)


@contextmanager
def workers(
    work: Work[T, R],
    num_workers: int,
    *,
    backend: Backend = "joblib",
    address: str | None = None,
    gpus: float = 0,
) -> Iterator[Submit[T, R]]:
    """Yield a function that submits a task to a worker and returns its future.

    Args:
        work: function that runs a task.
        num_workers: number of processes on this machine. On a cluster, Ray starts one for each
            submitted task.
        backend: "joblib" for processes on this machine, "ray" for a cluster of machines that share
            the folders in the tasks.
        address: address of the cluster; None for a local Ray on this machine.
        gpus: number of GPUs that a task on a cluster needs.

    Raises:
        CorrKDError: if Ray is needed and not installed, or the cluster cannot be reached.
    """
    if backend == "ray":
        with _ray(work, address, gpus) as submit:
            yield submit
        return
    from joblib.externals.loky import get_reusable_executor

    def executor() -> Any:  # a new one if the last is broken
        return get_reusable_executor(
            max_workers=num_workers, timeout=IDLE_SECONDS, initializer=end_with_parent
        )

    try:
        yield lambda task: executor().submit(work, task)
    finally:
        executor().shutdown(wait=True, kill_workers=True)


@contextmanager
def _ray(work: Work[T, R], address: str | None, gpus: float) -> Iterator[Submit[T, R]]:
    try:
        import ray
    except ImportError:
        raise CorrKDError("--backend ray needs Ray: pip install 'corrkd[cluster]'") from None
    try:
        ray.init(address=address, log_to_driver=False, include_dashboard=False)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise CorrKDError(
            f"--address {address}: no Ray cluster there: {' '.join(str(error).split())}"
        ) from None
    try:
        remote = ray.remote(max_retries=RETRIES, num_gpus=gpus)(work)
        yield lambda task: remote.remote(task).future()
    finally:
        ray.shutdown()


def check_backend(name: str) -> Backend:
    """Return the backend with this name. Raises CorrKDError if the name is unknown."""
    for backend in get_args(Backend):
        if name == backend:
            return backend
    raise CorrKDError(f"--backend {name!r}: expected {' or '.join(get_args(Backend))}")


def each_done(
    tasks: Sequence[T],
    submit: Submit[T, R],
    num_workers: int,
    can_begin: Callable[[T, Sequence[T]], bool] = lambda task, undone: True,
) -> Iterator[tuple[int, R | Lost]]:
    """Submit tasks to workers and yield (index, result) of each task as it ends. The result of a
    failed task is a `Lost` error line.

    When a worker on this machine is killed, the task to blame is unknown. Each running task is then
    run again alone, before all others, and is lost as `KILLED` if its worker is killed again.

    Args:
        tasks: tasks in the order in which they start.
        submit: from `workers`.
        num_workers: number of tasks that run at a time.
        can_begin: (task, all tasks that are not done) -> whether the task can start.
    """
    waiting, suspects = list(range(len(tasks))), list[int]()
    running: dict[Future[R], int] = {}
    alone = False
    while waiting or suspects or running:
        alone = bool(suspects) or (alone and bool(running))
        undone = [tasks[index] for index in (*waiting, *suspects, *running.values())]
        source = suspects or waiting
        ready = suspects or [index for index in waiting if can_begin(tasks[index], undone)]
        for index in ready[: max(0, (1 if alone else num_workers) - len(running))]:
            source.remove(index)
            running[submit(tasks[index])] = index
        broken = []
        ended = wait(running, return_when=FIRST_COMPLETED).done
        for future in [f for f in running if f in ended]:  # in the order in which they started
            index = running.pop(future)
            result: R | Lost
            try:
                result = future.result()
            except BrokenExecutor:
                broken.append(index)
                continue
            except Exception as failure:  # from the cluster, or a result that cannot be pickled
                result = Lost(_line_of(failure))
            yield index, result
        if broken:
            broken += running.values()
            running.clear()
            if len(broken) == 1:
                yield broken[0], Lost(KILLED)
            else:
                suspects += broken


def _line_of(failure: Exception) -> str:
    """Return the error line of a failure outside the task, such as a lost worker on a cluster."""
    kind = type(failure)
    if kind.__module__.startswith("ray.") and kind.__name__ in (
        "WorkerCrashedError",
        "OutOfMemoryError",
    ):
        return KILLED
    return f"{type(failure).__name__}: {' '.join(str(failure).split())[:300]}"
