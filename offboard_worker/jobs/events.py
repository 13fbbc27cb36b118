"""Jobs about events: the re-read that an `account-changed` event asks for, a source's chores, and its catch-up."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from dataclasses import replace
from functools import partial
from typing import TypeVar

from sqlalchemy import select
from tenacity import AsyncRetrying, retry_if_exception, stop_after_attempt, wait_random_exponential

from offboard_worker.core.event import IdentityEvent
from offboard_worker.core.person import Subject
from offboard_worker.errors import ConfigError, DeliveryError, SourceUnavailable
from offboard_worker.jobs import intake
from offboard_worker.jobs.containment import record_containment
from offboard_worker.jobs.context import JobContext
from offboard_worker.jobs.intake import Arrival
from offboard_worker.jobs.rulebook import Accepted
from offboard_worker.sources.source import CATCH_UP, Chore, Learned
from offboard_worker.store import inbox
from offboard_worker.store.database import new_id, upsert
from offboard_worker.store.inbox import EventRow, Received
from offboard_worker.store.people import Directory
from offboard_worker.store.schema import cursors

T = TypeVar("T")

BACKOFF = (5.0, 15.0, 60.0, 300.0)
"""Seconds until the reconciler looks at an event again whose source could not be asked."""


async def run(ctx: JobContext, event_id: str) -> None:
    """Do what one pending event waits for. Raises SourceUnavailable to be run again; done twice is harmless."""
    async with ctx.claims.hold(f"event:{event_id}") as ours:
        if not ours:
            return
        async with ctx.store.read() as conn:
            row = await inbox.event(conn, event_id)
        if row is None or not row.pending:
            return
        try:
            accepted = await _chore(ctx, row) if row.kind == "chore" else await _confirm(ctx, row)
        except SourceUnavailable as error:
            await _again(ctx, row, error)
            raise
        except (ConfigError, DeliveryError) as error:  # no later try will say anything else
            async with ctx.store.write() as tx:
                await inbox.settle(tx, row.id, pending=False, error=error.message, reason=error.advice)
                tx.record("event.failed", f"source:{row.source}", row.id, {"error": error.message})
            raise
        await follow_up(ctx, accepted)


async def follow_up(ctx: JobContext, accepted: Accepted) -> None:
    """Push, confirm and queue what a transaction led to."""
    if accepted.denial_seq:
        await record_containment(ctx.store, ctx.projection) if accepted.contained else await ctx.projection.push()
    if accepted.cases:
        await ctx.submit(accepted.cases)


async def _confirm(ctx: JobContext, row: EventRow) -> Accepted:
    event = inbox.from_json(row.statement)
    source = ctx.sources.get(row.source)
    if source is None:
        raise SourceUnavailable(
            f"event {row.id} came from source {row.source}, which is not configured any more",
            advice=f"Put sources.{row.source} back until its events are confirmed.",
        )
    verdict = await _patiently(ctx, lambda: source.confirm(event))
    async with ctx.store.write() as tx:
        current = await inbox.event(tx.conn, row.id)
        if current is None or not current.pending:
            return Accepted()
        return await intake.accept_confirmed(tx, row, verdict, ctx.book)


async def _chore(ctx: JobContext, row: EventRow) -> Accepted:
    body = json.loads(row.statement)
    source = ctx.sources.get(row.source)
    if source is None:
        raise SourceUnavailable(f"chore {row.id} belongs to source {row.source}, which is not configured any more")
    if body["name"] == CATCH_UP:
        found = await catch_up(ctx, row.source)
        done = f"caught up: {found} events"
    else:
        done = await _patiently(ctx, lambda: source.perform(Chore(row.key, body["name"], body["argument"])))
    async with ctx.store.write() as tx:
        await inbox.settle(tx, row.id, pending=False, reason=done, error="")
        tx.record("source.chore", f"source:{row.source}", row.id, {"chore": body["name"], "done": done})
    return Accepted()


async def _patiently(ctx: JobContext, call: Callable[[], Awaitable[T]]) -> T:
    """Ask a source again for a few seconds: a leaver may be waiting for the answer."""
    longest = ctx.settings.max_wait.total_seconds()

    def soon(error: BaseException) -> bool:
        return isinstance(error, SourceUnavailable) and (error.retry_after or 0) <= longest

    result: T
    async for attempt in AsyncRetrying(
        stop=stop_after_attempt(ctx.settings.attempts),
        wait=wait_random_exponential(multiplier=0.25, max=longest),
        retry=retry_if_exception(soon),
        reraise=True,
    ):
        with attempt:
            result = await call()
    return result


async def _again(ctx: JobContext, row: EventRow, error: SourceUnavailable) -> None:
    wait = max(error.retry_after or 0, BACKOFF[min(row.attempts, len(BACKOFF) - 1)])
    async with ctx.store.write() as tx:
        await inbox.settle(tx, row.id, attempts=row.attempts + 1, next_attempt_at=tx.now + wait, error=error.message)


async def catch_up(ctx: JobContext, name: str) -> int:
    """Poll what a lost webhook would have said, from where the last poll ended. Returns the number of new events."""
    source = ctx.sources[name]
    async with ctx.store.read() as conn:
        cursor = (await conn.execute(select(cursors.c.cursor).where(cursors.c.source == name))).scalar()
    statements, after = await source.catch_up(cursor)
    if after == (cursor or "") and not statements:
        return 0
    events = [statement for statement in statements if isinstance(statement, IdentityEvent)]
    async with ctx.store.write() as tx:
        received = Received(name, "POLL", {}, b"", tx.now)
        accepted = await intake.accept(tx, [Arrival(received, tuple(statements))], ctx.book)
        await upsert(tx.conn, cursors, [{"source": name, "cursor": after, "at": tx.now}], keys=("source",))
        if events:
            tx.record("source.caught-up", f"source:{name}", name, {"events": accepted.events})
    await follow_up(ctx, accepted)
    return accepted.events


async def upkeep(ctx: JobContext, name: str) -> int:
    """Do what a source must do again and again to go on hearing anything (renew a subscription). Returns how many."""
    source = ctx.sources[name]
    done = 0
    for chore in source.upkeep():
        said = await _patiently(ctx, partial(source.perform, chore))
        async with ctx.store.write() as tx:
            tx.record("source.chore", f"source:{name}", name, {"chore": chore.name, "done": said})
        done += 1
    return done


async def learn_roster(ctx: JobContext, name: str) -> int:
    """Record everybody whom a directory knows: the id → login map that outlives a deletion."""
    batch: list[Learned] = []
    count = 0
    async for subject in ctx.sources[name].roster():
        batch.append(Learned(f"roster:{subject.system}:{subject.id}", subject))
        if len(batch) >= 500:
            count += await _learn(ctx, name, batch)
            batch = []
    return count + (await _learn(ctx, name, batch) if batch else 0)


async def _learn(ctx: JobContext, name: str, batch: list[Learned]) -> int:
    """Keep what is news: a directory of thousands that says the same every hour leaves no trace."""
    async with ctx.store.read() as conn:
        names = [(s.system, alias) for s in (one.subject for one in batch) for alias in _names(s)]
        known = await Directory.of_names(conn, names, ())
    statements = tuple(
        replace(one, key=f"{one.key}:{new_id('r')}", vendor_type="roster")
        for one in batch
        if not all(known.find([(one.subject.system, alias)]) for alias in _names(one.subject))
    )
    if not statements:
        return 0
    async with ctx.store.write() as tx:
        received = Received(name, "ROSTER", {}, b"", tx.now)
        return (await intake.accept(tx, [Arrival(received, statements)], ctx.book)).events


def _names(subject: Subject) -> tuple[str, ...]:
    return (*((subject.id,) if subject.id else ()), *subject.logins)
