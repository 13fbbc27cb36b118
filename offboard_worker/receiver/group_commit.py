"""Concurrent items share one commit, and one push after it.

While one commit is under way, whatever arrives gathers into the next. A batch that fails because of one item is tried
again item by item, so that one poisonous item can't hurt its neighbours. Whoever waits may go away: the item stays.
This file knows no database, no HTTP and no meaning.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any, Generic, TypeVar

from offboard_worker.errors import StoreUnavailable

Item = TypeVar("Item")
Result = TypeVar("Result")

CAP = 256
"""Items in one commit at most."""
GATHER = 0.003
"""Seconds that a commit waits for those who were just answered, if there were several: a third as many commits."""
SEVERAL = 8
WAITING = 8192
"""Items that may wait: beyond that the store is not keeping up, and the sender had better come back."""


class GroupCommit(Generic[Item, Result]):
    """Turns many `submit` calls into few `commit` calls, one at a time.

    `commit` makes a whole batch durable or nothing of it. `follow` runs after it, beside the next commit, and the items
    are answered when it is done. `divisible` says whether an error may be the fault of a single item.
    """

    def __init__(
        self,
        commit: Callable[[Sequence[Item]], Awaitable[Result]],
        follow: Callable[[Result], Awaitable[None]],
        divisible: Callable[[BaseException], bool],
        *,
        cap: int = CAP,
        waiting: int = WAITING,
    ) -> None:
        self._commit = commit
        self._follow = follow
        self._divisible = divisible
        self._cap = cap
        self._limit = waiting
        self._waiting: deque[tuple[Item, asyncio.Future[Result]]] = deque()
        self._runner: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._closing = False

    async def submit(self, item: Item) -> Result:
        """Make one item durable with those that arrive beside it. Raises what `commit` raises for it.

        Cancelling the caller doesn't take the item back. Raises StoreUnavailable while closing, or with too many waiting.
        """
        if self._closing:
            raise StoreUnavailable("the receiver is stopping", advice="Send it again: another one takes it.")
        if len(self._waiting) >= self._limit:
            raise StoreUnavailable(f"{self._limit} deliveries wait for the store already")
        future: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        self._waiting.append((item, future))
        if self._runner is None:
            self._runner = self._spawn(self._run())
        return await asyncio.shield(future)

    async def close(self) -> None:
        """Take nothing more, and return once everything that was taken has its answer."""
        self._closing = True
        while self._tasks:
            await asyncio.wait(set(self._tasks))

    async def _run(self) -> None:
        several = False
        try:
            while self._waiting:
                if several and len(self._waiting) < self._cap:
                    await asyncio.sleep(GATHER)
                batch = [self._waiting.popleft() for _ in range(min(self._cap, len(self._waiting)))]
                await self._take(batch)
                several = len(batch) >= SEVERAL
        finally:
            self._runner = None
            while self._waiting:  # only where this task itself was cancelled
                _fail([self._waiting.popleft()[1]], StoreUnavailable("the receiver was stopped"))

    async def _take(self, batch: list[tuple[Item, asyncio.Future[Result]]]) -> None:
        futures = [future for _, future in batch]
        try:
            result = await self._commit([item for item, _ in batch])
        except Exception as error:
            if len(batch) > 1 and self._divisible(error):
                for one in batch:
                    await self._take([one])
            else:
                _fail(futures, error)
        except BaseException:
            _fail(futures, StoreUnavailable("the receiver was stopped"))
            raise
        else:
            self._spawn(self._finish(result, futures))

    async def _finish(self, result: Result, futures: Sequence[asyncio.Future[Result]]) -> None:
        """Whatever happens to the follow-up, the items are durable: their answer is the same."""
        try:
            await self._follow(result)
        finally:
            for future in futures:
                if not future.done():
                    future.set_result(result)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


def _fail(futures: Sequence[asyncio.Future[Result]], error: Exception) -> None:
    for future in futures:
        if not future.done():
            future.set_exception(error)
            future.exception()  # whoever waited may be gone: that is no unhandled error


class Shared(Generic[Result]):
    """One call at a time of something that brings everything up to date: who asks meanwhile shares the next call."""

    def __init__(self, call: Callable[[], Awaitable[Result]]) -> None:
        self._call = call
        self._current: asyncio.Task[Result] | None = None
        self._next: asyncio.Task[Result] | None = None

    def __call__(self) -> Awaitable[Result]:
        """Return an awaitable of a call that begins after this moment. Cancelling it leaves the call running."""
        if self._next is not None:  # it has not begun
            return asyncio.shield(self._next)
        if self._current is None or self._current.done():
            self._current = self._start(None)
            return asyncio.shield(self._current)
        self._next = self._start(self._current)
        return asyncio.shield(self._next)

    def _start(self, after: asyncio.Task[Result] | None) -> asyncio.Task[Result]:
        task = asyncio.get_running_loop().create_task(self._run(after))
        task.add_done_callback(_look_at)
        return task

    async def _run(self, after: asyncio.Task[Result] | None) -> Result:
        if after is not None:
            await asyncio.wait([after])
            self._current, self._next = self._next, None
        return await self._call()

    async def close(self) -> None:
        """End the calls that are under way."""
        tasks = [task for task in (self._current, self._next) if task is not None and not task.done()]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)


def _look_at(task: asyncio.Task[Any]) -> None:
    if not task.cancelled():
        task.exception()  # who asked may have stopped waiting
