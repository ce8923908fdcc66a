"""Tasks in worker processes: of this machine, which are reused, or of a Ray cluster."""

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
"""A function at the top of a module: does a task and returns its result; both can be pickled."""
Submit = Callable[[T], "Future[R]"]

KILLED = "its process was killed; it may have run out of memory"


class Lost(str):
    """The line of why a task has no result."""


# after which a worker without a task ends, and with it the dataset or the models that it holds
IDLE_SECONDS = 600
RETRIES = 1  # of a task of a cluster whose worker was lost: machines come and go


def end_with_parent() -> None:
    """Ends this process soon after the one that started it: a run that was killed writes no
    more.
    """
    Thread(target=_end_with, args=(psutil.Process(os.getppid()),), daemon=True).start()


def _end_with(parent: psutil.Process) -> None:
    # POSIX gives an orphan another parent, even where the dead one stays as a zombie; Windows does
    # not, and there the number may go to a new process.
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
    """A function that hands a task to a worker.

    Args:
        work: what is done.
        num_workers: of this machine; of a cluster, Ray starts as many as tasks are handed to it.
        backend: "joblib": processes on this machine; "ray": a cluster, whose machines share the
            folders that the tasks name.
        address: of the cluster; None: a Ray of this machine's own.
        gpus: that a task of a cluster needs.

    Raises:
        CorrKDError: where Ray is asked for and not installed, or cannot be reached.
    """
    if backend == "ray":
        with _ray(work, address, gpus) as submit:
            yield submit
        return
    from joblib.externals.loky import get_reusable_executor

    def executor() -> Any:  # a new one, where the last was broken
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
    """Return a backend by its name. Raises CorrKDError where it is unknown."""
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
    """Hand tasks to workers, and yield the index of each with its result, or why there is none, as
    they end.

    When a worker of this machine is killed, nobody can tell by which of the tasks under way: each
    of them is tried again alone, before all others, and is lost as `KILLED` where that kills a
    worker too.

    Args:
        tasks: in the order in which they begin.
        submit: hands one to a worker.
        num_workers: how many tasks at a time.
        can_begin: whether a task can, given all those that are not done.
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
        for future in [
            future for future in running if future in ended
        ]:  # in the order of their start
            index = running.pop(future)
            result: R | Lost
            try:
                result = future.result()
            except BrokenExecutor:
                broken.append(index)
                continue
            except Exception as failure:  # of the cluster, or a result that cannot be sent
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
    """Return the line of what went wrong between a task and its worker; a cluster says itself which
    worker was lost.
    """
    kind = type(failure)
    if kind.__module__.startswith("ray.") and kind.__name__ in (
        "WorkerCrashedError",
        "OutOfMemoryError",
    ):
        return KILLED
    return f"{type(failure).__name__}: {' '.join(str(failure).split())[:300]}"
