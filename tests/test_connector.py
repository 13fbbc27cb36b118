"""Reads side by side: nothing that could be read is lost to what couldn't, and an error is never lost either."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from offboard_worker.connector import drained, foremost, side_by_side
from offboard_worker.errors import AccessRefused, Fatal, Retryable

REFUSED, BUSY, BROKEN = AccessRefused("no permission"), Retryable("busy"), Fatal("broken")


async def read(*items: str, error: BaseException | None = None, after: float = 0.0) -> AsyncIterator[str]:
    await asyncio.sleep(after)
    for item in items:
        yield item
    if error is not None:
        raise error


async def test_everything_is_yielded_in_the_order_of_the_reads_whichever_answers_first() -> None:
    slow, quick = read("account", after=0.02), read("role", "group")
    assert await drained(side_by_side(slow, quick)) == (["account", "role", "group"], None)


async def test_what_could_be_read_is_yielded_before_the_error_is_raised() -> None:
    reads = read("account"), read("first page", error=REFUSED), read("role")
    assert await drained(side_by_side(*reads)) == (["account", "first page", "role"], REFUSED)


async def test_the_first_read_is_yielded_while_a_later_one_still_runs() -> None:
    reads = side_by_side(read("account"), read("role", after=60))
    assert await asyncio.wait_for(anext(reads), 5) == "account"


async def test_reads_run_at_the_same_time() -> None:
    met = asyncio.Barrier(3)

    async def meeting() -> AsyncIterator[str]:
        yield str(await asyncio.wait_for(met.wait(), 5))

    items, error = await drained(side_by_side(meeting(), meeting(), meeting()))
    assert (sorted(items), error) == (["0", "1", "2"], None)


async def test_nothing_runs_on_when_the_caller_gives_up() -> None:
    ended = asyncio.Event()

    async def endless() -> AsyncIterator[str]:
        try:
            await asyncio.sleep(3600)
            yield "never"
        finally:
            ended.set()

    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await drained(side_by_side(endless()))
    assert ended.is_set()


async def test_an_error_from_before_is_raised_after_everything_and_without_any_read() -> None:
    assert await drained(side_by_side(read("account"), unread=BUSY)) == (["account"], BUSY)
    nothing: AsyncIterator[str] = side_by_side(unread=BUSY)
    assert await drained(nothing) == ([], BUSY)


async def test_a_bug_in_one_read_costs_the_others_nothing() -> None:
    bug = KeyError("id")
    assert await drained(side_by_side(read(error=bug), read("role"))) == (["role"], bug)


LONG, SHORT = Retryable("busy", retry_after=60), Retryable("busy", retry_after=2)


@pytest.mark.parametrize(
    ("errors", "raised"),
    [
        ((), None),
        ((None, None), None),
        ((None, REFUSED), REFUSED),
        ((REFUSED, BUSY), BUSY),  # so that the job comes back by itself: the refusal is still there then
        ((BUSY, SHORT, LONG, REFUSED), LONG),
        ((BROKEN, REFUSED), REFUSED),
        ((KeyError("id"), BROKEN, BUSY), BUSY),
        ((BROKEN, Fatal("another")), BROKEN),
    ],
)
def test_of_several_errors_the_one_that_brings_the_job_back_is_raised(
    errors: tuple[Exception | None, ...], raised: Exception | None
) -> None:
    assert foremost(*errors) is raised
