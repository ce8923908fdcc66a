"""Processes that work for another one."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, wait
from threading import Thread
from typing import Any, TypeVar

T = TypeVar("T")

KILLED = "its process was killed; it may have run out of memory"


def end_with_parent() -> None:
    """Ends this process soon after the one that started it: a run that was killed writes no more."""
    Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(0.2)
    os._exit(1)


def in_processes(tasks: Sequence[T], work: Callable[[T], str], num_workers: int) -> Iterator[tuple[int, str]]:
    """Do tasks in processes of their own, and yield the index of each with what `work` returned, as they end.

    When a worker is killed, nobody can tell by which of the tasks under way: each of them is tried again alone, and yields `KILLED` where
    that kills a worker too.

    Args:
        tasks: that can be pickled.
        work: a function at the top of a module.
        num_workers: how many tasks at a time.
    """
    from joblib.externals.loky import get_reusable_executor

    def executor() -> Any:  # a new one, where the last was broken
        return get_reusable_executor(max_workers=num_workers, initializer=end_with_parent)

    waiting, suspects = list(range(len(tasks)))[::-1], list[int]()
    running: dict[Any, int] = {}
    try:
        while waiting or suspects or running:
            alone = bool(suspects)
            source = suspects or waiting
            while source and len(running) < (1 if alone else num_workers):
                index = source.pop()
                running[executor().submit(work, tasks[index])] = index
            broken = []
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                index = running.pop(future)
                try:
                    result = future.result()
                except BrokenExecutor:
                    broken.append(index)
                    continue
                yield index, result
            if broken:
                broken += running.values()
                running.clear()
                if len(broken) == 1:
                    yield broken[0], KILLED
                else:
                    suspects += sorted(broken, reverse=True)
    finally:
        executor().shutdown(wait=True, kill_workers=True)
