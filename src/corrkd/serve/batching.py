"""Requests that arrive within a few milliseconds of each other go through the network together."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Generic, TypeVar

Q = TypeVar("Q")
A = TypeVar("A")


class Batcher(Generic[Q, A]):
    """Gathers questions of many callers, answers them in a thread of its own, and gives each caller its answers.

    While one batch is answered the next gathers, so under load batches fill without waiting.

    Args:
        answer: N questions -> N answers, in order; called in one thread.
        wait: seconds for which a question waits for others.
        most: questions in a batch; one caller's are never divided, so a batch may be larger by those of the last.
        on_batch: called with the size of each batch.
    """

    def __init__(
        self,
        answer: Callable[[Sequence[Q]], Sequence[A]],
        *,
        wait: float = 0.004,
        most: int = 64,
        on_batch: Callable[[int], None] | None = None,
    ) -> None:
        self._answer, self._wait, self._most, self._on_batch = answer, wait, most, on_batch
        self._asked: asyncio.Queue[tuple[Sequence[Q], asyncio.Future[Sequence[A]]]] = asyncio.Queue()
        self._thread = ThreadPoolExecutor(1, "batcher")
        self._worker: asyncio.Task[None] | None = None

    async def ask(self, questions: Sequence[Q]) -> Sequence[A]:
        """The answers to one caller's questions. Raises what `answer` raises for them, whoever else asked."""
        if self._worker is None:
            self._worker = asyncio.create_task(self._work())
        future: asyncio.Future[Sequence[A]] = asyncio.get_running_loop().create_future()
        self._asked.put_nowait((questions, future))
        return await future

    async def close(self, patience: float = 30.0) -> None:
        """Answers what was asked, as far as that takes no more than so many seconds, and stops."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(patience):
                await self._asked.join()
        if self._worker is not None:
            self._worker.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._worker
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def _work(self) -> None:
        while True:
            callers = [await self._asked.get()]
            await self._gather(callers)
            try:
                await self._serve(callers)
            finally:
                for _ in callers:
                    self._asked.task_done()

    async def _gather(self, callers: list[tuple[Sequence[Q], asyncio.Future[Sequence[A]]]]) -> None:
        """Takes others along until the batch is full or the time is over."""
        end = asyncio.get_running_loop().time() + self._wait
        while sum(len(questions) for questions, _ in callers) < self._most:
            try:
                async with asyncio.timeout_at(end):
                    callers.append(await self._asked.get())
            except TimeoutError:
                return

    async def _serve(self, callers: Sequence[tuple[Sequence[Q], asyncio.Future[Sequence[A]]]]) -> None:
        loop, together = asyncio.get_running_loop(), [q for questions, _ in callers for q in questions]
        if self._on_batch:
            self._on_batch(len(together))
        try:
            answers = await loop.run_in_executor(self._thread, self._answer, together)
        except Exception as error:
            if len(callers) > 1:  # one caller's trouble is not the others'
                for caller in callers:
                    await self._serve([caller])
            elif not callers[0][1].done():
                callers[0][1].set_exception(error)
            return
        start = 0
        for questions, future in callers:
            if not future.done():  # a caller that went away
                future.set_result(answers[start : start + len(questions)])
            start += len(questions)
