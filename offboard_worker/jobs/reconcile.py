"""The reconciler: whatever the store says is unfinished and the queue has lost is found again and queued.

It runs every few seconds beside the schedule. Redis may have been flushed, a worker killed, a push lost: the store
knows. Nothing here decides anything new.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from offboard_worker.core.case import TargetState
from offboard_worker.jobs.claims import Claims
from offboard_worker.jobs.queue import Queues, event_job_id, target_job_id
from offboard_worker.store import cases, inbox
from offboard_worker.store.cases import TargetRow
from offboard_worker.store.database import Store
from offboard_worker.store.inbox import EventRow

GRACE = 2.0
"""Seconds that a running part may be without a claim before its worker is taken for dead."""


@dataclass(frozen=True, slots=True)
class Reconciled:
    """How much was queued again."""

    targets: int = 0
    events: int = 0


async def reconcile(store: Store, queues: Queues, claims: Claims) -> Reconciled:
    """Queue what is unfinished and not on its way. Raises DenylistUnavailable or StoreUnavailable."""
    now = store.clock()
    async with store.read() as conn:
        unfinished = await cases.unfinished_targets(conn, now)
        waiting = await inbox.pending(conn, now)
    lost = [part for part in unfinished if await _is_lost(part, queues, claims, now)]
    events = [row for row in waiting if await _event_is_lost(row, queues, claims)]
    return await asyncio.to_thread(_queue, queues, lost, events)


def _queue(queues: Queues, lost: list[TargetRow], events: list[EventRow]) -> Reconciled:
    for part in lost:
        queues.forget(target_job_id(part.case_id, part.connector))
    for row in events:
        queues.forget(event_job_id(row.id))
    return Reconciled(
        targets=queues.enqueue_targets((part.case_id, part.connector) for part in lost),
        events=sum(queues.enqueue_event(row.id) for row in events),
    )


async def _is_lost(part: TargetRow, queues: Queues, claims: Claims, now: float) -> bool:
    if part.state is TargetState.RUNNING and now - (part.started_at or 0) < GRACE:
        return False
    if await claims.held(f"{part.case_id}:{part.connector}"):
        return False
    return not await asyncio.to_thread(queues.alive, target_job_id(part.case_id, part.connector))


async def _event_is_lost(row: EventRow, queues: Queues, claims: Claims) -> bool:
    if await claims.held(f"event:{row.id}"):
        return False
    return not await asyncio.to_thread(queues.alive, event_job_id(row.id))
