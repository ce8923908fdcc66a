"""Tasks in processes: a task that kills its process stops no other."""

from __future__ import annotations

import os
import signal

from corrkd.workers import KILLED, each_done, workers


def doubled_or_killed(number: int) -> str:
    if number == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return str(2 * number)


def test_a_killed_worker_stops_no_other_task() -> None:
    with workers(doubled_or_killed, 2) as submit:
        results = dict(each_done(range(6), submit, 2))
    assert results == {i: KILLED if i == 3 else str(2 * i) for i in range(6)}
