"""Ways in which a recording may break the process that reads it; each replaces
`clip_worker.work`.
"""

from __future__ import annotations

import json
import os
import time

import numpy as np

from corrkd.serve import clip_worker
from corrkd.serve.clip_worker import ARRAYS, RESULT, Task

GO = "go"  # a file beside the folders of recordings


def hang(task: Task) -> None:
    os.setsid()
    time.sleep(1000)


def start_another(task: Task) -> None:
    """Start a child process."""
    os.setsid()
    child = os.fork()
    if child == 0:
        time.sleep(1000)
    (task.body.parents[1] / "pid").write_text(str(child))
    time.sleep(1000)


def abort(task: Task) -> None:
    os.abort()


def burn(task: Task) -> None:
    clip_worker._limit(task)
    while True:
        pass


def fill_memory(task: Task) -> None:
    clip_worker._write_arrays = lambda *_: [np.empty(1 << 23) for _ in range(1000)]  # type: ignore[assignment]
    clip_worker.work(task)


def write_too_much(task: Task) -> None:
    clip_worker._limit(task)
    (task.body.parent / RESULT).write_bytes(b" " * (clip_worker.LARGEST_OUTPUT + 1))


def lie(task: Task) -> None:
    (task.body.parent / RESULT).write_text(json.dumps({"seconds": -1}))


def send_objects(task: Task) -> None:
    """Write arrays that only pickle could read."""
    (task.body.parent / RESULT).write_text("{}")
    np.savez(task.body.parent / ARRAYS, sample_audio=np.array([{}], object))


def wait_for_go(task: Task) -> None:
    while not (task.body.parents[1] / GO).exists():
        time.sleep(0.01)
    clip_worker.work(task)
