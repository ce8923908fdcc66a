from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from corrkd.serve.batching import Batcher, Full


def doubled(numbers: Sequence[int]) -> list[int]:
    if any(number < 0 for number in numbers):
        raise ValueError("below zero")
    return [2 * number for number in numbers]


@given(
    st.lists(st.lists(st.integers(-2, 9), max_size=4), max_size=12),
    st.integers(1, 6),
    st.sampled_from([0.0, 0.002]),
)
@settings(deadline=None, max_examples=40)
def test_each_caller_gets_its_own_result(requests: list[list[int]], most: int, wait: float) -> None:
    """Results keep their order, and a failing request fails no other."""
    sizes: list[int] = []

    async def all_at_once() -> list[Sequence[int] | BaseException]:
        batcher = Batcher(doubled, wait=wait, most=most, on_batch=sizes.append)
        results = await asyncio.gather(
            *(batcher.ask(numbers) for numbers in requests), return_exceptions=True
        )
        await batcher.close()
        return results

    for numbers, result in zip(requests, asyncio.run(all_at_once()), strict=True):
        if any(number < 0 for number in numbers):
            assert isinstance(result, ValueError)
        else:
            assert list(result) == [2 * number for number in numbers]  # type: ignore[arg-type]
    assert all(size <= most for size in sizes)


def test_concurrent_requests_are_batched_and_full_batches_do_not_wait() -> None:
    sizes: list[int] = []

    async def ask() -> None:
        batcher = Batcher(
            doubled, wait=3600.0, most=4, on_batch=sizes.append
        )  # a batch that waits does not end
        async with asyncio.timeout(60):
            await asyncio.gather(*(batcher.ask([number]) for number in range(8)))
        await batcher.close()

    asyncio.run(ask())
    assert sizes == [4, 4]


def test_requests_queue_while_a_batch_is_computed() -> None:
    sizes: list[int] = []
    go = threading.Event()

    def slowly(numbers: Sequence[int]) -> list[int]:
        go.wait(30)
        return doubled(numbers)

    async def ask() -> None:
        batcher = Batcher(slowly, wait=0.0, most=64, on_batch=sizes.append)
        first = asyncio.create_task(batcher.ask([1]))
        while not sizes:
            await asyncio.sleep(0.001)
        others = [asyncio.create_task(batcher.ask([number])) for number in range(5)]
        await asyncio.sleep(0.01)
        go.set()
        assert await first == [2]
        assert [await other for other in others] == [[0], [2], [4], [6], [8]]
        await batcher.close()

    asyncio.run(ask())
    assert sizes == [1, 5]


def test_closing_answers_pending_requests() -> None:
    async def ask() -> list[Sequence[int]]:
        batcher = Batcher(doubled, wait=0.01)
        tasks = [asyncio.create_task(batcher.ask([number])) for number in range(20)]
        await asyncio.sleep(0)
        await batcher.close()
        assert all(task.done() for task in tasks)
        return [task.result() for task in tasks]

    assert asyncio.run(ask()) == [[2 * number] for number in range(20)]


def test_closing_waits_no_longer_than_its_patience() -> None:
    go = threading.Event()

    def stuck(numbers: Sequence[int]) -> list[int]:
        go.wait(60)
        return doubled(numbers)

    async def ask() -> bool:
        batcher = Batcher(stuck, wait=0.0)
        task = asyncio.create_task(batcher.ask([1]))
        await asyncio.sleep(0.05)
        async with asyncio.timeout(30):
            await batcher.close(patience=0.05)
        done = task.done()
        task.cancel()
        go.set()
        return done

    assert not asyncio.run(ask())


def test_a_cancelled_caller_does_not_affect_others() -> None:
    async def ask() -> None:
        batcher = Batcher(doubled, wait=0.02)
        leaving, staying = (
            asyncio.create_task(batcher.ask([1])),
            asyncio.create_task(batcher.ask([2])),
        )
        await asyncio.sleep(0)
        leaving.cancel()
        assert await staying == [4]
        with pytest.raises(asyncio.CancelledError):
            await leaving
        await batcher.close()

    asyncio.run(ask())


class Batches:
    """Record batches, and compute each when it is let through."""

    def __init__(self) -> None:
        self.seen: list[list[int]] = []
        self._go = threading.Semaphore(0)

    def __call__(self, numbers: Sequence[int]) -> list[int]:
        self.seen.append(list(numbers))
        assert self._go.acquire(timeout=30)
        return doubled(numbers)

    async def begun(self, count: int) -> None:
        """Wait until this many batches have begun."""
        async with asyncio.timeout(30):
            while len(self.seen) < count:
                await asyncio.sleep(0.001)

    def let_through(self, count: int) -> None:
        self._go.release(count)


def test_a_small_request_overtakes_large_ones() -> None:
    """It runs after the current batch, and the others still get all their results."""

    async def ask() -> list[list[int]]:
        batches = Batches()
        batcher = Batcher(batches, wait=0.0, cost=float, slice_cost=100)
        large = [asyncio.create_task(batcher.ask([100] * 5)) for _ in range(3)]
        await batches.begun(1)
        small = asyncio.create_task(batcher.ask([1]))
        await asyncio.sleep(0.01)
        batches.let_through(100)
        assert await small == [2]
        assert [await task for task in large] == [[200] * 5] * 3
        await batcher.close()
        return batches.seen

    order = asyncio.run(ask())
    assert sorted(order) == [[1]] + [[100]] * 15
    assert order.index([1]) <= 3  # after one batch of each earlier request


@given(
    st.lists(st.lists(st.integers(1, 30), min_size=1, max_size=6), min_size=1, max_size=8),
    st.integers(1, 8),
)
@settings(deadline=None, max_examples=40)
def test_batches_cost_no_more_than_a_slice_or_are_single(
    requests: list[list[int]], most: int
) -> None:
    batches = Batches()
    batches.let_through(1000)

    async def ask() -> list[Sequence[int]]:
        batcher = Batcher(batches, wait=0.0, most=most, cost=float, slice_cost=20)
        results = await asyncio.gather(*map(batcher.ask, requests))
        await batcher.close()
        return results

    assert [list(results) for results in asyncio.run(ask())] == [
        [2 * n for n in numbers] for numbers in requests
    ]
    assert all(
        len(batch) <= most and (sum(batch) <= 20 or len(batch) == 1) for batch in batches.seen
    )


def test_pending_work_of_a_cancelled_caller_is_dropped() -> None:
    async def ask() -> list[list[int]]:
        batches = Batches()
        batcher = Batcher(batches, wait=0.0, most=1)
        leaving = asyncio.create_task(batcher.ask([1, 2, 3]))
        await batches.begun(1)
        leaving.cancel()
        staying = asyncio.create_task(batcher.ask([4]))
        batches.let_through(10)
        assert await staying == [8]
        await batcher.close()
        return batches.seen

    assert asyncio.run(ask()) == [[1], [4]]


def test_the_queue_is_bounded_and_freed_by_results_and_cancellations() -> None:
    async def ask() -> None:
        batches = Batches()
        batcher = Batcher(batches, wait=0.0, most=1, cost=float, queue_cost=10)
        first, second = asyncio.create_task(batcher.ask([6])), asyncio.create_task(batcher.ask([4]))
        await batches.begun(1)
        with pytest.raises(Full):
            await batcher.ask([1])
        second.cancel()
        await asyncio.sleep(0)
        third = asyncio.create_task(batcher.ask([3]))
        batches.let_through(10)
        assert [await first, await third] == [[12], [6]]
        assert await batcher.ask([10]) == [20]
        await batcher.close()

    asyncio.run(ask())


def test_stopping_fails_waiting_and_new_requests() -> None:
    async def ask() -> list[list[int]]:
        batches = Batches()
        batcher = Batcher(batches, wait=0.0, most=1)
        waiting = [asyncio.create_task(batcher.ask([number])) for number in range(3)]
        await batches.begun(1)
        batcher.stop(RuntimeError("stopping"))
        for task in (*waiting, asyncio.create_task(batcher.ask([9]))):
            with pytest.raises(RuntimeError, match="stopping"):
                await task
        batches.let_through(10)
        await batcher.close()
        return batches.seen

    assert asyncio.run(ask()) == [[0]]
