"""Batching requests that arrive within a few milliseconds, and splitting large requests."""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import itertools
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Generic, TypeVar

Q = TypeVar("Q")
A = TypeVar("A")


class Full(Exception):  # noqa: N818
    """Raised when the queue is full."""


@dataclass(eq=False)
class _Caller(Generic[Q, A]):
    questions: Sequence[Q]
    costs: Sequence[float]
    future: asyncio.Future[list[A]]
    begun: int = 0  # number of questions that have been put into a batch
    answers: list[A] = field(default_factory=list)


class Batcher(Generic[Q, A]):
    """A queue that collects the questions of many callers and answers them in batches in a separate
    thread.

    While one batch is answered the next one fills, so that batches are full under load. All callers
    get an equal share of the time (self-clocked fair queueing, Golestani, 1994), and the questions
    of a caller may be divided among batches. Each question has a tag: its cost plus the tag of the
    caller's previous question, or, for a first question, the tag of the question started last. The
    question with the lowest tag is next. Questions that have not started when their caller leaves
    are discarded.

    Args:
        answer: N questions -> N answers, in order; always called in the same thread.
        wait: time that a question waits for others, in seconds.
        most: largest number of questions in a batch.
        cost: function that returns the cost of a question; default: 1 for each.
        slice_cost: largest cost of a batch with more than one question.
        queue_cost: largest total cost of questions that wait or are being answered.
        on_batch: called with the size of each batch.
    """

    def __init__(
        self,
        answer: Callable[[Sequence[Q]], Sequence[A]],
        *,
        wait: float = 0.004,
        most: int = 64,
        cost: Callable[[Q], float] = lambda question: 1.0,
        slice_cost: float = float("inf"),
        queue_cost: float = float("inf"),
        on_batch: Callable[[int], None] | None = None,
    ) -> None:
        self._answer, self._wait, self._most, self._on_batch = answer, wait, most, on_batch
        self._cost, self._slice_cost, self._queue_cost = cost, slice_cost, queue_cost
        self._callers: set[_Caller[Q, A]] = set()
        # callers with questions that have not started
        self._heap: list[tuple[float, int, _Caller[Q, A]]] = []
        self._numbers = itertools.count()  # order of arrival, which decides between equal tags
        self._clock = 0.0  # tag of the question that was started last
        self._arrived = asyncio.Event()
        self._stopped: Exception | None = None
        self._thread = ThreadPoolExecutor(1, "batcher")
        self._worker: asyncio.Task[None] | None = None

    async def ask(self, questions: Sequence[Q]) -> Sequence[A]:
        """Return the answers to a caller's questions, in order.

        Raises:
            Full: if the queue is full.
            Exception: the error of `answer` for these questions, or the error passed to `stop`.
        """
        if self._stopped is not None:
            raise self._stopped
        if not questions:
            return []
        caller: _Caller[Q, A] = _Caller(
            questions, list(map(self._cost, questions)), asyncio.get_running_loop().create_future()
        )
        if sum(sum(other.costs) for other in (*self._callers, caller)) > self._queue_cost:
            raise Full
        if self._worker is None:
            self._worker = asyncio.create_task(self._work())
        self._callers.add(caller)
        self._push(caller, self._clock)
        self._arrived.set()
        try:
            return await caller.future
        finally:
            self._callers.discard(caller)

    def stop(self, error: Exception) -> None:
        """Raise this error for all present and future callers. The current batch still runs."""
        self._stopped = error
        for caller in self._callers:
            if not caller.future.done():
                caller.future.set_exception(error)

    async def close(self, patience: float = 30.0) -> None:
        """Answer waiting questions for at most `patience` seconds, then end."""
        if self._callers:
            await asyncio.wait([caller.future for caller in self._callers], timeout=patience)
        if self._worker is not None:
            self._worker.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._worker
        self._thread.shutdown(wait=False, cancel_futures=True)

    def join(self) -> None:
        """Wait for the current batch, after `close`."""
        self._thread.shutdown(wait=True)

    def _push(self, caller: _Caller[Q, A], tag: float) -> None:
        heapq.heappush(self._heap, (tag + caller.costs[caller.begun], next(self._numbers), caller))

    async def _work(self) -> None:
        while True:
            while not self._heap:
                self._arrived.clear()
                await self._arrived.wait()
            await self._gather()
            if batch := self._next_batch():
                await self._serve(batch)

    async def _gather(self) -> None:
        """Wait until a batch is full, for at most `wait` seconds."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._wait):
                while (
                    sum(len(caller.questions) - caller.begun for _, _, caller in self._heap)
                    < self._most
                ):
                    self._arrived.clear()
                    await self._arrived.wait()

    def _next_batch(self) -> list[tuple[_Caller[Q, A], Q]]:
        batch: list[tuple[_Caller[Q, A], Q]] = []
        cost = 0.0
        while self._heap and len(batch) < self._most:
            tag, _, caller = self._heap[0]
            if not caller.future.done():
                cost += caller.costs[caller.begun]
                if batch and cost > self._slice_cost:
                    break
                batch.append((caller, caller.questions[caller.begun]))
                caller.begun += 1
                self._clock = tag
            heapq.heappop(self._heap)
            if caller.begun < len(caller.questions) and not caller.future.done():
                self._push(caller, tag)
        return batch

    async def _serve(self, batch: Sequence[tuple[_Caller[Q, A], Q]]) -> None:
        loop, questions = asyncio.get_running_loop(), [question for _, question in batch]
        if self._on_batch:
            self._on_batch(len(batch))
        try:
            answers = await loop.run_in_executor(self._thread, self._answer, questions)
        except Exception as error:
            callers = list(dict.fromkeys(caller for caller, _ in batch))
            if len(callers) > 1:  # an error of one caller does not affect the others
                for caller in callers:
                    await self._serve([pair for pair in batch if pair[0] is caller])
            elif not callers[0].future.done():
                callers[0].future.set_exception(error)
            return
        for (caller, _), answer in zip(batch, answers, strict=True):
            caller.answers.append(answer)  # in order, because batches are
            if len(caller.answers) == len(caller.questions) and not caller.future.done():
                caller.future.set_result(caller.answers)
