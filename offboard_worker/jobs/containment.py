"""From a committed denial to the refusal at every replica, measured and put on record."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Sequence

from offboard_worker.denylist.projection import Projection
from offboard_worker.errors import DenylistUnavailable, StoreUnavailable
from offboard_worker.store import cases
from offboard_worker.store.cases import CaseRow
from offboard_worker.store.database import Store, dumps

log = logging.getLogger(__name__)


async def record_containment(store: Store, projection: Projection, *, timeout: float | None = None) -> int:
    """Push what is committed, wait until every live replica refuses, and write the measured times on the cases.

    Returns how many cases were recorded. Raises DenylistUnavailable where Redis is away: the cases keep saying that
    containment is pending, and the reconciler calls this again.
    """
    async with store.read() as conn:
        waiting = await cases.uncontained(conn)
    if not waiting:
        return 0
    last = max(case.denial_seq or 0 for case in waiting)
    await projection.push(last)
    pushed = store.clock()
    confirmation = await projection.confirm(last, timeout)
    await _keep(store, waiting, pushed, store.clock(), {name: str(how) for name, how in confirmation.replicas.items()})
    return len(waiting)


async def _keep(
    store: Store, waiting: Sequence[CaseRow], pushed: float, refused: float, replicas: dict[str, str]
) -> None:
    async with store.write() as tx:
        still = {case.id for case in await cases.uncontained(tx.conn)}  # another process may have measured it too
        for case in waiting:
            if case.id not in still:
                continue
            await cases.set_case(tx, case.id, pushed_at=pushed, refused_at=refused, refused_by=dumps(replicas))
            tx.record(
                "case.refused-everywhere",
                "denylist",
                case.id,
                {
                    "seq": case.denial_seq or 0,
                    "milliseconds": round((refused - case.accepted_at) * 1000, 2),
                    "replicas": replicas,
                },
            )


class ContainmentRecorder:
    """A background task that records containment whenever it is nudged; several nudges share one run."""

    def __init__(self, store: Store, projection: Projection) -> None:
        self._store = store
        self._projection = projection
        self._wanted = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._closing = False

    def nudge(self) -> None:
        """Say that there is something to record."""
        self._wanted.set()

    async def start(self) -> None:
        self._task = asyncio.create_task(self._run(), name="containment recorder")

    async def close(self) -> None:
        """Record what is waiting, if that is quick, and end."""
        if self._task is None:
            return
        self._closing = True  # a cancellation within a Redis call may come out as one more Redis error
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task
        with contextlib.suppress(DenylistUnavailable, StoreUnavailable, TimeoutError):
            async with asyncio.timeout(3):
                await record_containment(self._store, self._projection)

    async def _run(self) -> None:
        while not self._closing:
            await self._wanted.wait()
            self._wanted.clear()
            try:
                await record_containment(self._store, self._projection)
            except (DenylistUnavailable, StoreUnavailable) as error:
                log.warning("containment is pending: %s", error, extra={"advice": error.advice})
