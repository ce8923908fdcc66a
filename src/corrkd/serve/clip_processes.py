"""Reading recordings of clients, each in a separate process that is ended if it exceeds its limits
or the client leaves.
"""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import os
import signal
from collections.abc import AsyncIterator
from dataclasses import dataclass
from multiprocessing import connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import anyio
import numpy as np
import numpy.typing as npt
from pydantic import ValidationError

from corrkd.data.readers.containers import unpacked_npz
from corrkd.errors import CorrKDError
from corrkd.media.face_outline import NUM_OUTLINE_POINTS
from corrkd.media.features import FeatureSettings
from corrkd.parsing import read_text
from corrkd.serve.access import Refused
from corrkd.serve.clip_worker import ARRAYS, LARGEST_OUTPUT, RESULT, SAMPLE, ClipResult, Task, work
from corrkd.serve.limits import ClipLimits

Array = npt.NDArray[np.generic]

PIXELS = 4096 * 2304  # largest picture, in pixels: 4K
# Imported before processes are forked, so that they start in milliseconds.
PRELOAD = (
    "corrkd.serve.clip_worker",
    "av",
    "scipy.fft",
    "sklearn.feature_extraction.text",
    "threadpoolctl",
)
FORKS = "forkserver" in multiprocessing.get_all_start_methods()  # not on Windows
# A fork server starts the processes: it has neither threads nor the memory of the service.
CONTEXT: Any = multiprocessing.get_context("forkserver" if FORKS else "spawn")


@dataclass(frozen=True)
class ReadClip:
    """The result of reading a recording.

    Attributes:
        result: result of the process.
        sample: raw features, as input of `Predictor.predict`.
        drawn: arrays for the page: "loudness", "faces" and "faces_present".
    """

    result: ClipResult
    sample: dict[str, Array]
    drawn: dict[str, Array]


class ClipProcesses:
    """Processes that extract features of recordings.

    Args:
        settings: which features to extract.
        limits: limits of recordings.

    Attributes:
        limits: limits of recordings.
    """

    def __init__(self, settings: FeatureSettings, limits: ClipLimits) -> None:
        seconds, pixels = (
            min(limits.seconds, settings.longest_seconds),
            min(PIXELS, settings.most_pixels),
        )
        self._settings = settings.model_copy(
            update={"longest_seconds": seconds, "most_pixels": pixels}
        )
        self.limits = limits
        self._turn = asyncio.Semaphore(limits.processes)
        self._waiting = 0
        self._under_way: set[anyio.CancelScope] = set()
        self._stopped: Refused | None = None

    def start(self) -> None:
        """Start to import the modules of the processes in the background, on systems with fork."""
        if FORKS:
            from multiprocessing import forkserver

            CONTEXT.set_forkserver_preload(list(PRELOAD))
            forkserver.ensure_running()

    def stop(self, error: Refused) -> None:
        """End all processes and raise this error for their clients and all later ones."""
        self._stopped = error
        for scope in self._under_way:
            scope.cancel()

    async def read(self, body: Path, content_type: str, *, details: bool) -> ReadClip:
        """Return the features of a recording.

        Args:
            body: file with the body of a request, in a separate folder to which other files are
                written.
            content_type: content type of the body.
            details: whether to return the data for the page too.

        Raises:
            Refused: if the recording cannot be read or exceeds a limit, too many are waiting, or
                the service is stopping.
        """
        if self._stopped is not None:
            raise self._stopped
        with anyio.CancelScope() as scope:
            self._under_way.add(scope)
            try:
                async with self._my_turn():
                    await self._run(self._task(body, content_type, details=details))
                    return await anyio.to_thread.run_sync(_read_result, body.parent)
            finally:
                self._under_way.discard(scope)
        assert self._stopped is not None  # only `stop` cancels the scope
        raise self._stopped

    @contextlib.asynccontextmanager
    async def _my_turn(self) -> AsyncIterator[None]:
        most = self.limits.waiting * self.limits.processes
        if self._turn.locked() and self._waiting >= most:
            raise Refused(503, f"{most} recordings are waiting; try again in a second")
        self._waiting += 1
        try:
            await self._turn.acquire()
        finally:
            self._waiting -= 1
        try:
            yield
        finally:
            self._turn.release()

    def _task(self, body: Path, content_type: str, *, details: bool) -> Task:
        limits = self.limits
        cpu_seconds = max(1, round(limits.work_seconds))
        return Task(body, content_type, self._settings, details, limits.memory, cpu_seconds)

    async def _run(self, task: Task) -> None:
        """Run a task in a process. Raises Refused if it does not finish."""
        process, seconds = (
            CONTEXT.Process(target=work, args=(task,), daemon=True),
            self.limits.work_seconds,
        )
        too_long = Refused(
            422,
            f"the recording could not be read within {seconds:g} seconds; cut it, or start the "
            f"service with more --clip-work-seconds",
        )
        try:
            await anyio.to_thread.run_sync(process.start)
            with anyio.move_on_after(seconds) as time:
                await _end_of(process)
            if time.cancelled_caught or _used_its_time(process):
                raise too_long
            if process.exitcode != 0:
                raise Refused(
                    422,
                    "reading the recording crashed the process; convert the recording, or cut it",
                )
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.to_thread.run_sync(_end, process)


async def _end_of(process: BaseProcess) -> None:
    # In a thread, because the event loop on Windows cannot wait for a process.
    await anyio.to_thread.run_sync(connection.wait, [process.sentinel], abandon_on_cancel=True)


def _used_its_time(process: BaseProcess) -> bool:
    """Return whether the system ended the process because it exceeded its CPU time."""
    return hasattr(signal, "SIGXCPU") and process.exitcode == -signal.SIGXCPU


def _end(process: BaseProcess) -> None:
    """End a process and its child processes."""
    if process.pid is None:  # it was not started
        return
    if process.is_alive():
        if hasattr(os, "killpg"):  # not on Windows, where it has no child processes
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        process.kill()
    process.join()
    process.close()


def _read_result(folder: Path) -> ReadClip:
    """Return the result of a process, which is untrusted: a malicious file may have taken over the
    process. Raises Refused if the result is an error or invalid.
    """
    try:
        result = ClipResult.model_validate_json(read_text(folder / RESULT, LARGEST_OUTPUT))
        if result.error:
            raise Refused(422, result.error)
        arrays = unpacked_npz(folder / ARRAYS, "the recording", most=LARGEST_OUTPUT)
    except (CorrKDError, ValidationError):
        raise Refused(422, "the recording cannot be read; convert it") from None
    sample = {
        key.removeprefix(SAMPLE): array for key, array in arrays.items() if key.startswith(SAMPLE)
    }
    return ReadClip(
        result, sample, {key: array for key, array in arrays.items() if _is_drawn(key, array)}
    )


def _is_drawn(key: str, array: Array) -> bool:
    shape, kind = array.shape, array.dtype
    if key == "loudness":
        return kind == np.float32 and len(shape) == 1 and bool(np.isfinite(array).all())
    if key == "faces":
        return kind == np.int16 and shape[1:] == (NUM_OUTLINE_POINTS, 2)
    return key == "faces_present" and kind == np.bool_ and len(shape) == 1
