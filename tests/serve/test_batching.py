from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from corrkd.serve.batching import Batcher


def doubled(numbers: Sequence[int]) -> list[int]:
    if any(number < 0 for number in numbers):
        raise ValueError(f"below zero among {len(numbers)}")
    return [2 * number for number in numbers]


@given(
    st.lists(st.lists(st.integers(-2, 9), max_size=4), max_size=12), st.integers(1, 6), st.sampled_from([0.0, 0.002])
)
@settings(deadline=None, max_examples=40)
def test_each_caller_gets_its_own(asked: list[list[int]], most: int, wait: float) -> None:
    """In order, whoever else asks; a caller whose questions cannot be answered is told so, and no one else."""
    sizes: list[int] = []

    async def all_at_once() -> list[Sequence[int] | BaseException]:
        batcher = Batcher(doubled, wait=wait, most=most, on_batch=sizes.append)
        found = await asyncio.gather(*(batcher.ask(numbers) for numbers in asked), return_exceptions=True)
        await batcher.close()
        return found

    for numbers, found in zip(asked, asyncio.run(all_at_once()), strict=True):
        if any(number < 0 for number in numbers):
            assert isinstance(found, ValueError)
            assert str(found) == f"below zero among {len(numbers)}"
        else:
            assert list(found) == [2 * number for number in numbers]  # type: ignore[arg-type]
    assert all(size <= most - 1 + 4 for size in sizes)


def test_what_arrives_together_goes_together_and_a_full_batch_does_not_wait() -> None:
    sizes: list[int] = []

    async def ask() -> None:
        batcher = Batcher(doubled, wait=3600.0, most=4, on_batch=sizes.append)  # a batch that waits does not end
        async with asyncio.timeout(60):
            await asyncio.gather(*(batcher.ask([number]) for number in range(8)))
        await batcher.close()

    asyncio.run(ask())
    assert sizes == [4, 4]


def test_others_gather_while_a_batch_is_answered() -> None:
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


def test_closing_answers_what_was_asked() -> None:
    async def ask() -> list[Sequence[int]]:
        batcher = Batcher(doubled, wait=0.01)
        tasks = [asyncio.create_task(batcher.ask([number])) for number in range(20)]
        await asyncio.sleep(0)
        await batcher.close()
        assert all(task.done() for task in tasks)
        return [task.result() for task in tasks]

    assert asyncio.run(ask()) == [[2 * number] for number in range(20)]


def test_closing_waits_no_longer_than_it_may() -> None:
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


def test_a_caller_that_went_away_harms_no_one() -> None:
    async def ask() -> None:
        batcher = Batcher(doubled, wait=0.02)
        leaving, staying = asyncio.create_task(batcher.ask([1])), asyncio.create_task(batcher.ask([2]))
        await asyncio.sleep(0)
        leaving.cancel()
        assert await staying == [4]
        with pytest.raises(asyncio.CancelledError):
            await leaving
        await batcher.close()

    asyncio.run(ask())
