"""Tasks in processes: all are done, and one that kills its process stops no other."""

from __future__ import annotations

import os
import signal

from corrkd.workers import KILLED, in_processes


def doubled_or_killed(number: int) -> str:
    if number == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return str(2 * number)


def test_a_killed_worker_stops_no_other_task() -> None:
    results = dict(in_processes(range(6), doubled_or_killed, 2))
    assert results == {i: KILLED if i == 3 else str(2 * i) for i in range(6)}
