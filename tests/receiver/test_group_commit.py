"""Group commit: what concurrent items share, and what they never share."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from offboard_worker.errors import StoreUnavailable
from offboard_worker.receiver.group_commit import GroupCommit, Shared


class Ledger:
    """A commit that keeps what it got. Items below 0 are poison; in `outages` the store is away at that call."""

    def __init__(self, outages: frozenset[int] = frozenset()) -> None:
        self.outages = outages
        self.batches: list[list[int]] = []
        self.durable: list[int] = []
        self.followed: list[tuple[int, ...]] = []
        self.calls = 0
        self.busy = False

    async def commit(self, items: Sequence[int]) -> tuple[int, ...]:
        assert not self.busy, "two commits at once"
        self.busy, call = True, self.calls
        self.calls += 1
        await asyncio.sleep(0)
        self.busy = False
        if call in self.outages:
            raise StoreUnavailable("away")
        if any(item < 0 for item in items):
            raise ValueError("poison")
        self.batches.append(list(items))
        self.durable += items
        return tuple(items)

    async def follow(self, result: tuple[int, ...]) -> None:
        await asyncio.sleep(0)
        self.followed.append(result)

    def group(self, **options: int) -> GroupCommit[int, tuple[int, ...]]:
        return GroupCommit(self.commit, self.follow, lambda error: isinstance(error, ValueError), **options)


async def test_what_arrives_during_a_commit_shares_the_next() -> None:
    ledger = Ledger()
    group = ledger.group()
    await asyncio.gather(*(group.submit(n) for n in range(50)))
    assert len(ledger.batches) <= 2
    assert ledger.durable == list(range(50))


async def test_no_batch_is_larger_than_the_cap() -> None:
    ledger = Ledger()
    group = ledger.group(cap=7)
    await asyncio.gather(*(group.submit(n) for n in range(50)))
    assert max(map(len, ledger.batches)) == 7


async def test_poison_fails_alone() -> None:
    ledger = Ledger()
    group = ledger.group()
    results = await asyncio.gather(*(group.submit(n) for n in (1, -2, 3, 4)), return_exceptions=True)
    assert [type(result) for result in results] == [tuple, ValueError, tuple, tuple]
    assert ledger.durable == [1, 3, 4]


async def test_an_outage_fails_the_batch_without_trying_each() -> None:
    ledger = Ledger(frozenset({0}))
    group = ledger.group()
    results = await asyncio.gather(*(group.submit(n) for n in (1, 2, 3)), return_exceptions=True)
    assert [type(result) for result in results] == [StoreUnavailable] * 3
    assert ledger.calls == 1


async def test_a_cancelled_caller_does_not_take_the_item_back() -> None:
    ledger = Ledger()
    group = ledger.group()
    task = asyncio.create_task(group.submit(1))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await group.close()
    assert ledger.durable == [1]
    assert ledger.followed == [(1,)]


async def test_a_follow_up_that_fails_changes_no_answer() -> None:
    ledger = Ledger()

    async def follow(result: tuple[int, ...]) -> None:
        raise RuntimeError("a bug")

    group = GroupCommit(ledger.commit, follow, lambda error: False)
    seen: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _loop, context: seen.append(context))
    assert await group.submit(1) == (1,)
    await group.close()


async def test_nothing_is_taken_while_closing_and_what_waits_is_finished() -> None:
    ledger = Ledger()
    group = ledger.group(cap=1)
    tasks = [asyncio.create_task(group.submit(n)) for n in range(5)]
    await asyncio.sleep(0)
    closing = asyncio.create_task(group.close())
    await asyncio.sleep(0)
    with pytest.raises(StoreUnavailable):
        await group.submit(9)
    await closing
    assert [task.result() for task in tasks] == [(n,) for n in range(5)]


async def test_too_many_that_wait_are_sent_away_at_once() -> None:
    ledger = Ledger()
    group = ledger.group(waiting=3)
    results = await asyncio.gather(*(group.submit(n) for n in range(5)), return_exceptions=True)
    assert [isinstance(result, StoreUnavailable) for result in results] == [False] * 3 + [True] * 2


@settings(max_examples=60, deadline=None)
@given(
    waves=st.lists(st.lists(st.tuples(st.booleans(), st.integers(0, 3)), max_size=8), max_size=6),
    outages=st.frozensets(st.integers(0, 12), max_size=4),
    cap=st.integers(1, 5),
)
def test_an_item_is_answered_exactly_when_it_is_durable(
    waves: list[list[tuple[bool, int]]], outages: frozenset[int], cap: int
) -> None:
    """Whatever mix of poison, outages and impatient callers: success means durable, failure means not, nothing twice."""

    async def run() -> None:
        ledger = Ledger(outages)
        group = ledger.group(cap=cap)
        tasks: dict[int, asyncio.Task[tuple[int, ...]]] = {}
        cancelled: set[int] = set()
        number = 0
        for wave in waves:
            for poison, patience in wave:
                number += 1
                item = -number if poison else number
                tasks[item] = asyncio.create_task(group.submit(item))
                if patience == 0:
                    await asyncio.sleep(0)
                    cancelled.add(item)
                    tasks[item].cancel()
            for _ in range(len(wave) % 3):
                await asyncio.sleep(0)
        results = await asyncio.gather(*tasks.values(), return_exceptions=True)
        await group.close()
        assert len(ledger.durable) == len(set(ledger.durable))
        assert sorted(n for followed in ledger.followed for n in followed) == sorted(ledger.durable)
        assert all(len(batch) <= cap for batch in ledger.batches)
        for item, result in zip(tasks, results, strict=True):
            if isinstance(result, tuple):
                assert item in result
                assert item in ledger.durable
            elif item not in cancelled:
                assert item not in ledger.durable
            if item < 0:
                assert item not in ledger.durable
            elif item in cancelled and not outages:
                assert item in ledger.durable, "an impatient caller lost its delivery"

    asyncio.run(run())


async def test_a_shared_call_begins_after_everyone_who_shares_it_asked() -> None:
    state, seen = 0, []

    async def look() -> int:
        found = state
        await asyncio.sleep(0.005)
        seen.append(found)
        return found

    shared = Shared(look)

    async def ask() -> None:
        nonlocal state
        state += 1
        mine = state
        assert await shared() >= mine

    async def wave() -> None:
        for _ in range(10):
            await asyncio.gather(*(ask() for _ in range(5)))

    await asyncio.gather(*(wave() for _ in range(5)))
    assert len(seen) < 60, "250 asked"


async def test_a_shared_call_that_fails_fails_for_all_and_the_next_is_made() -> None:
    calls = 0

    async def call() -> int:
        nonlocal calls
        calls += 1
        await asyncio.sleep(0)
        if calls == 1:
            raise ValueError("once")
        return calls

    shared = Shared(call)
    first = [asyncio.ensure_future(shared()) for _ in range(2)]
    results = await asyncio.gather(*first, return_exceptions=True)
    assert isinstance(results[0], ValueError)
    assert results[1] == 2 or isinstance(results[1], ValueError)
    assert await shared() >= 2
