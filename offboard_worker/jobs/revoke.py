"""One run of one connector's part of a case: its claim, its beginning, its end, and what follows from that.

Running it twice, or again after it was killed at any point, ends in the same true state. The work itself is part.py's.
"""

from __future__ import annotations

import asyncio
import logging
from datetime import timedelta

from offboard_worker.core.case import State, Step, TargetState
from offboard_worker.core.person import Person
from offboard_worker.errors import (
    Fatal,
    NeedsHuman,
    OffboardError,
    Retryable,
    StoreUnavailable,
)
from offboard_worker.jobs.context import JobContext
from offboard_worker.jobs.part import Part, Trouble, wanted
from offboard_worker.store import cases, credentials
from offboard_worker.store.cases import CaseRow, TargetRow
from offboard_worker.store.database import Transaction
from offboard_worker.store.people import Directory
from offboard_worker.store.schema import pauses

log = logging.getLogger(__name__)

DEATHS = 12
"""Runs after which a part whose process died once more is not begun again by itself."""


async def run(ctx: JobContext, case_id: str, instance: str, *, next_try: float | None) -> None:
    """Do one connector's part of one case. Raises what stopped it, once what could be done is on record.

    `next_try` is after how many seconds the queue would run it again; None says that it won't by itself: then the part
    is marked as failed. StoreUnavailable leaves the part as running: the reconciler finds it.
    """
    async with ctx.claims.hold(f"{case_id}:{instance}") as ours:
        if not ours:
            return  # another worker is on it; if that one dies, the reconciler finds the work again
        begun = await _begin(ctx, case_id, instance)
        if begun is None:
            return
        case, target, person = begun
        trouble = Trouble()
        try:
            async with asyncio.timeout(ctx.settings.timeout.total_seconds()), ctx.connector(instance) as connector:
                await Part(ctx, connector, case, target.action, person, trouble).work()
        except StoreUnavailable:
            raise
        except TimeoutError:
            trouble.note(_too_long(instance, ctx.settings.timeout))
        except OffboardError as error:
            trouble.stop(error)
        except Exception as error:
            log.error("%s failed with %s in case %s", instance, type(error).__name__, case_id)
            trouble.stop(_bug(instance, error))
        await _end(ctx, case_id, target, trouble, next_try)
    for cause in (trouble.refused, trouble.stopped, trouble.retry):
        if cause is not None and not isinstance(cause, NeedsHuman):  # a task is open: no later run does it
            raise cause


def _too_long(instance: str, limit: timedelta) -> Retryable:
    return Retryable(
        f"{instance}: not done within jobs.timeout ({limit.total_seconds():g} s)",
        advice="What was done is on record, and the rest is tried again. Raise jobs.timeout if this comes often.",
        connector=instance,
    )


def _bug(instance: str, error: Exception) -> Fatal:
    """The text of a foreign exception may hold anything, a token too: only its type goes on."""
    return Fatal(
        f"{instance}: the connector failed with {type(error).__name__}",
        advice="This is a bug in the connector: report it with the worker's log.",
        connector=instance,
    )


async def _begin(ctx: JobContext, case_id: str, instance: str) -> tuple[CaseRow, TargetRow, Person] | None:
    """Mark the part as running; None where there is nothing to do (any more)."""
    async with ctx.store.write() as tx:
        case = await cases.one(tx.conn, case_id)
        target = await cases.target(tx.conn, case_id, instance)
        if case is None or target is None or target.state is TargetState.DONE:
            return None
        person = (await Directory.of_ids(tx.conn, [case.person_id])).by_id[case.person_id].person()
        if not wanted(case, person, target.action):
            return None
        if target.state is TargetState.RUNNING and target.runs >= DEATHS:
            await _give_up(tx, target)
            return None
        if case.state in (State.ATTENTION, State.VERIFIED):  # re-run from rq-dashboard: back to work by itself
            case = await cases.move(tx, case, Step.RETRY, "worker", f"{instance} runs again")
        await cases.set_target(
            tx,
            case_id,
            instance,
            state=TargetState.RUNNING.value,
            started_at=tx.now,
            runs=target.runs + 1,
            next_attempt_at=None,
        )
        tx.record("target.started", "worker", case_id, {"connector": instance, "action": target.action.value})
    return case, target, person


async def _give_up(tx: Transaction, target: TargetRow) -> None:
    """Leave a part to a person whose runs never came to their end: each would kill its process again."""
    await cases.set_target(
        tx,
        target.case_id,
        target.connector,
        state=TargetState.FAILED.value,
        error=f"{target.connector}: {target.runs} runs began, and the last one's process died",
        advice="Read the worker's log for what killed it (memory?), then run `offboard case retry`.",
    )
    tx.record("target.ended", "worker", target.case_id, {"connector": target.connector, "state": "failed"})
    await cases.settle(tx, target.case_id, "worker")


async def _end(ctx: JobContext, case_id: str, ran: TargetRow, trouble: Trouble, next_try: float | None) -> None:
    """Record how the part ended, and let the case take the step that this calls for."""
    error, instance = trouble.worst, ran.connector
    async with ctx.store.write() as tx:
        state, again = _verdict(trouble, next_try, tx.now)
        now = await cases.target(tx.conn, case_id, instance)
        if now is not None and (now.action is not ran.action or now.state is TargetState.PENDING):
            state = now.state  # other work was asked for meanwhile: it is to be done yet, and the reconciler queues it
        else:
            await cases.set_target(
                tx,
                case_id,
                instance,
                state=state.value,
                finished_at=tx.now if state is TargetState.DONE else None,
                next_attempt_at=again,
                error=error.message if error else "",
                advice=error.advice if error else "",
            )
        tx.record(
            "target.ended",
            "worker",
            case_id,
            {"connector": instance, "state": state.value, "error": error.message if error else ""},
        )
        if isinstance(trouble.stopped, NeedsHuman):
            await credentials.open_task(tx, case_id, "", instance, trouble.stopped.message, trouble.stopped.advice)
        await _pause(tx, instance, trouble)
        await cases.settle(tx, case_id, "worker")


def _verdict(trouble: Trouble, next_try: float | None, now: float) -> tuple[TargetState, float | None]:
    if trouble.refused is not None:
        return TargetState.PAUSED, None
    if trouble.stopped is not None and not isinstance(trouble.stopped, NeedsHuman):
        return TargetState.FAILED, None
    if trouble.retry is None:
        return TargetState.DONE, None
    if next_try is None:
        return TargetState.FAILED, None
    # The queue keeps the appointment; the store's is a little later, for when the queue has lost it.
    return TargetState.RETRYING, now + max(trouble.retry.retry_after or 0, next_try) + 15


async def _pause(tx: Transaction, instance: str, trouble: Trouble) -> None:
    """Keep, or take back, that our own credential for a system is refused."""
    refused = trouble.refused
    have = (await tx.conn.execute(pauses.select().where(pauses.c.connector == instance))).first()
    if refused is not None and have is None:
        await tx.conn.execute(
            pauses.insert().values(connector=instance, error=refused.message, advice=refused.advice, since=tx.now)
        )
        tx.record("connector.paused", "worker", instance, {"error": refused.message})
    elif have is not None and trouble.worst is None:
        await tx.conn.execute(pauses.delete().where(pauses.c.connector == instance))
        tx.record("connector.resumed", "worker", instance, {})
