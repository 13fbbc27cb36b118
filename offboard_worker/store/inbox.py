"""The inbox: raw deliveries as they came, and one row for each thing that they said."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from operator import attrgetter
from typing import Any

from sqlalchemy import select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from offboard_worker.core.event import EventKind, IdentityEvent
from offboard_worker.core.person import Subject
from offboard_worker.store.database import Transaction, dumps, new_id
from offboard_worker.store.direct import Insert, Lookup, look_up
from offboard_worker.store.schema import deliveries, events

# What authenticates may be in a header of any name, since sources let their configuration name it.
_HARMLESS = re.compile(
    "accept|accept-encoding|cache-control|connection|content-(encoding|length|type)|date|expect|host|te|traceparent"
    "|transfer-encoding|user-agent|via|x-amz-sns-[a-z-]+|x-forwarded-(for|host|proto)|x-request-id"
)
_DELIVERIES, _EVENTS = Insert(deliveries), Insert(events)
SEEN = Lookup(events, ("source", "key"), ("source", "key"))


@dataclass(frozen=True, slots=True)
class Received:
    """One delivery as it is kept. `received_at` is Unix seconds."""

    source: str
    method: str
    headers: Mapping[str, str]
    body: bytes
    received_at: float


@dataclass(frozen=True, slots=True)
class EventRow:
    """One statement as it is kept. `statement` is JSON and enough to act on it again."""

    id: str
    delivery_id: str
    source: str
    key: str
    kind: str
    vendor_type: str
    statement: str
    received_at: float
    occurred_at: float | None
    person_id: str | None
    case_id: str | None
    effect: str
    reason: str
    pending: bool
    attempts: int = 0
    next_attempt_at: float | None = None
    error: str = ""


def keepable(headers: Mapping[str, str]) -> dict[str, str]:
    """The headers without the values of any that may authenticate the sender: those are secrets."""
    return {name: "••••" if authenticates(name.lower()) else value for name, value in headers.items()}


@lru_cache(maxsize=1024)
def authenticates(name: str) -> bool:
    """Say whether a header of this lower-case name may hold a secret."""
    return _HARMLESS.fullmatch(name) is None


def as_json(event: IdentityEvent) -> str:
    """Write an identity event down, so that a job can act on it later."""
    subject = event.subject
    return dumps(
        {
            "source": event.source,
            "key": event.key,
            "kind": event.kind.value,
            "subject": {
                "system": subject.system,
                "id": subject.id,
                "emails": subject.emails,
                "logins": subject.logins,
                "name": subject.name,
            },
            "occurred_at": event.occurred_at.timestamp(),
            "vendor_type": event.vendor_type,
            "detail": dict(event.detail),
        }
    )


def from_json(text: str) -> IdentityEvent:
    """Read `as_json` back."""
    raw: dict[str, Any] = json.loads(text)
    subject = raw["subject"]
    return IdentityEvent(
        source=raw["source"],
        key=raw["key"],
        kind=EventKind(raw["kind"]),
        subject=Subject(
            subject["system"], subject["id"], tuple(subject["emails"]), tuple(subject["logins"]), subject["name"]
        ),
        occurred_at=datetime.fromtimestamp(raw["occurred_at"], UTC),
        vendor_type=raw["vendor_type"],
        detail=raw["detail"],
    )


async def keep_deliveries(tx: Transaction, received: Sequence[Received]) -> list[str]:
    """Insert raw deliveries and return their ids, in order."""
    ids = defer_deliveries(tx, received)
    await tx.send()
    return ids


def defer_deliveries(tx: Transaction, received: Sequence[Received]) -> list[str]:
    """As `keep_deliveries`, at the transaction's next `send`."""
    rows = [
        (new_id("d"), one.source, one.received_at, one.method, json.dumps(keepable(one.headers)), one.body)
        for one in received
    ]
    tx.defer(_DELIVERIES, rows)
    return [row[0] for row in rows]


async def seen(tx: Transaction, keys: Iterable[tuple[str, str]]) -> set[tuple[str, str]]:
    """Return which (source, key) pairs are already in the inbox."""
    (found,) = await look_up(tx.conn, [(SEEN, list(set(keys)))])
    return {(source, key) for source, key in found}


async def keep_events(tx: Transaction, rows: Sequence[EventRow]) -> None:
    defer_events(tx, rows)
    await tx.send()


def defer_events(tx: Transaction, rows: Sequence[EventRow]) -> None:
    """As `keep_events`, at the transaction's next `send`."""
    tx.defer(_EVENTS, [_in_order(row) for row in rows])


_in_order = attrgetter(*_EVENTS.names)


async def pending(conn: AsyncConnection, now: float, limit: int = 500) -> list[EventRow]:
    """Events that wait for a job (a re-read or a chore) and whose time has come, oldest first."""
    query = (
        select(events)
        .where(events.c.pending, (events.c.next_attempt_at.is_(None)) | (events.c.next_attempt_at <= now))
        .order_by(events.c.received_at)
        .limit(limit)
    )
    return [EventRow(**row._mapping) for row in await conn.execute(query)]


async def event(conn: AsyncConnection, event_id: str) -> EventRow | None:
    row = (await conn.execute(select(events).where(events.c.id == event_id))).first()
    return None if row is None else EventRow(**row._mapping)


async def settle(tx: Transaction, event_id: str, **values: Any) -> None:
    """Overwrite what became of an event."""
    await tx.conn.execute(update(events).where(events.c.id == event_id).values(**values))


async def events_of_case(conn: AsyncConnection, case_id: str) -> list[EventRow]:
    query = select(events).where(events.c.case_id == case_id).order_by(events.c.received_at)
    return [EventRow(**row._mapping) for row in await conn.execute(query)]
