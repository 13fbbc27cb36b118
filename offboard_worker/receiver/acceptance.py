"""From a verified delivery to its answer: committed with its neighbours, contained, enqueued.

Nothing after the commit can make a delivery fail: it is durable, and the reconciler finds what was left undone. So a
push or an enqueue that fails or takes too long costs a log line and a metric, and the answer is the same.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

from offboard_worker.errors import OffboardError, StoreUnavailable
from offboard_worker.jobs.intake import Arrival, accept
from offboard_worker.jobs.rulebook import Accepted, Rulebook
from offboard_worker.receiver.group_commit import GroupCommit, Shared
from offboard_worker.receiver.metrics import Metrics
from offboard_worker.store.database import RowRefused, Store

log = logging.getLogger("offboard_worker.receiver")

PUSH_AGAIN: Final = 1.0
"""Seconds between pushes once one failed: beside the reconciler's, in case that one is away."""


class Acceptance:
    """Takes deliveries in, and sees to it that what they decided is in force."""

    def __init__(
        self,
        store: Store,
        book: Rulebook,
        metrics: Metrics,
        push: Callable[[], Awaitable[int]],
        enqueue: Callable[[Accepted], Awaitable[None]],
        contained: Callable[[], None],
        wait: float,
    ) -> None:
        """`wait` is how many seconds an answer waits for `push`, and then for `enqueue`."""
        self._store = store
        self._book = book
        self._metrics = metrics
        self._push = Shared(push)
        self._enqueue = enqueue
        self._contained = contained
        self._wait = wait
        self._committed_seq = self._pushed_seq = 0
        self._again: asyncio.Task[None] | None = None
        self._group: GroupCommit[Arrival, Accepted] = GroupCommit(self._commit, self._follow, _one_may_be_guilty)

    async def take(self, arrival: Arrival) -> None:
        """Return once the delivery is durable and what it decided was handed on. Raises StoreUnavailable."""
        await self._group.submit(arrival)

    async def close(self) -> None:
        """Finish what was taken."""
        await self._group.close()
        if self._again is not None:
            self._again.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._again
        await self._push.close()

    async def _commit(self, arrivals: Sequence[Arrival]) -> Accepted:
        started = time.perf_counter()
        async with self._store.write() as tx:
            accepted = await accept(tx, arrivals, self._book)
        self._metrics.committed(len(arrivals), accepted, time.perf_counter() - started)
        return accepted

    async def _follow(self, accepted: Accepted) -> None:
        """Contain, then enqueue. Raises nothing: the delivery is durable."""
        if accepted.denial_seq:
            await self._contain(accepted.denial_seq)
            try:
                self._contained()
            except Exception as error:
                log.error("containment can't be measured: %s", type(error).__name__)
        if accepted.alarms:
            log.error("protected people were named, nothing is done to them: %s", ", ".join(accepted.alarms))
        if not (accepted.cases or accepted.pending or accepted.contained):
            return
        try:
            async with asyncio.timeout(self._wait):
                await self._enqueue(accepted)
        except Exception as error:
            self._metrics.enqueue_failures.inc()
            log.warning("work was left to the reconciler: %s", _words(error))

    async def _contain(self, seq: int) -> None:
        """Push up to this entry of the denial log, and wait for it as long as an answer may wait."""
        self._committed_seq = max(self._committed_seq, seq)
        started = time.perf_counter()
        try:
            async with asyncio.timeout(self._wait):
                self._pushed(await self._push())
        except Exception as error:
            late = isinstance(error, TimeoutError)
            self._metrics.push_failures.labels("timeout" if late else _slug(error)).inc()
            self._metrics.pending.set(max(1, self._committed_seq - self._pushed_seq))
            log.warning("containment of denial %d is pending: %s", seq, "Redis is slow" if late else _words(error))
            if self._again is None:
                self._again = asyncio.get_running_loop().create_task(self._push_again())
        else:
            self._metrics.push.observe(time.perf_counter() - started)

    def _pushed(self, seq: int) -> None:
        self._pushed_seq = max(self._pushed_seq, seq)
        self._metrics.pending.set(max(0, self._committed_seq - seq))

    async def _push_again(self) -> None:
        """Push until it succeeds."""
        try:
            while True:
                await asyncio.sleep(PUSH_AGAIN)
                try:
                    self._pushed(await self._push())
                except Exception as error:
                    log.debug("containment is still pending: %s", _words(error))
                    continue
                self._contained()
                return
        finally:
            self._again = None


def _one_may_be_guilty(error: BaseException) -> bool:
    return isinstance(error, RowRefused) or not isinstance(error, StoreUnavailable)


def _words(error: Exception) -> str:
    """Our own errors' words hold no secret; others' may, so only their kind is told."""
    return error.message if isinstance(error, OffboardError) else type(error).__name__


def _slug(error: Exception) -> str:
    return error.reason if isinstance(error, OffboardError) else "fault"
