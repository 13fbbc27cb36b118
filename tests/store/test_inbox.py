"""Deliveries are kept as they came, without what authenticates them, and each statement counts once."""

from __future__ import annotations

import json
from datetime import UTC, datetime

import pytest
from sqlalchemy import select

from offboard_worker.core.event import EventKind, IdentityEvent
from offboard_worker.core.person import Subject
from offboard_worker.store import inbox
from offboard_worker.store.database import Store
from offboard_worker.store.inbox import EventRow, Received
from offboard_worker.store.schema import deliveries

BODY = b'{"a": "\xc3\xa4"}\x00\xff'


def row(number: int, **changes: object) -> EventRow:
    values: dict[str, object] = {
        "id": f"v-{number}",
        "delivery_id": "d-1",
        "source": "okta-main",
        "key": f"key-{number}",
        "kind": "account-disabled",
        "vendor_type": "user.lifecycle.deactivate",
        "statement": "{}",
        "received_at": float(number),
        "occurred_at": None,
        "person_id": None,
        "case_id": None,
        "effect": "record",
        "reason": "",
        "pending": False,
        **changes,
    }
    return EventRow(**values)  # type: ignore[arg-type]


async def test_a_delivery_is_kept_byte_for_byte(store: Store) -> None:
    async with store.write() as tx:
        ids = await inbox.keep_deliveries(
            tx, [Received("okta-main", "POST", {"content-type": "x"}, BODY, 5.25), Received("o", "GET", {}, b"", 6.0)]
        )
    async with store.read() as conn:
        rows = {r.id: r for r in await conn.execute(select(deliveries))}
    assert list(map(str, ids)) == [ids[0], ids[1]]
    assert (rows[ids[0]].body, rows[ids[0]].received_at, rows[ids[0]].source) == (BODY, 5.25, "okta-main")
    assert json.loads(rows[ids[0]].headers) == {"content-type": "x"}


@pytest.mark.parametrize(
    "name",
    [
        "authorization",
        "Authorization",
        "proxy-authorization",
        "x-api-key",
        "X-ApiKey",
        "cookie",
        "x-hub-signature-256",
        "x-goog-channel-token",
        "x-okta-verification-challenge",
        "x-leavers",  # a name that the configuration chose: no list of suspicious words has it
    ],
)
async def test_a_header_that_authenticates_is_not_kept(store: Store, name: str) -> None:
    async with store.write() as tx:
        await inbox.keep_deliveries(tx, [Received("s", "POST", {name: "hunter2", "user-agent": "Okta"}, b"", 1.0)])
    async with store.read() as conn:
        kept = (await conn.execute(select(deliveries.c.headers))).scalar_one()
    assert "hunter2" not in kept
    assert json.loads(kept) == {name: "••••", "user-agent": "Okta"}


async def test_statements_that_are_known_are_told_apart_by_source_and_key(store: Store) -> None:
    async with store.write() as tx:
        await inbox.keep_events(tx, [row(1), row(2)])
        asked = [("okta-main", "key-1"), ("okta-main", "key-9"), ("other", "key-1"), ("okta-main", "key-1")]
        assert await inbox.seen(tx, asked) == {("okta-main", "key-1")}
        assert await inbox.seen(tx, []) == set()
        many = [("okta-main", f"key-{n}") for n in range(2000)]
        assert await inbox.seen(tx, many) == {("okta-main", "key-1"), ("okta-main", "key-2")}


async def test_what_waits_for_a_job_is_found_when_its_time_has_come(store: Store) -> None:
    async with store.write() as tx:
        rows = [row(1), row(3, pending=True), row(2, pending=True), row(4, pending=True, next_attempt_at=100.0)]
        await inbox.keep_events(tx, rows)
    async with store.read() as conn:
        assert [r.key for r in await inbox.pending(conn, 50.0)] == ["key-2", "key-3"]
        assert [r.key for r in await inbox.pending(conn, 100.0)] == ["key-2", "key-3", "key-4"]
    async with store.write() as tx:
        await inbox.settle(tx, "v-2", pending=False, effect="offboard", case_id="c-1")
    async with store.read() as conn:
        assert [r.key for r in await inbox.pending(conn, 50.0)] == ["key-3"]
        settled = await inbox.event(conn, "v-2")
        assert settled is not None
        assert (settled.pending, settled.effect) == (False, "offboard")
        assert [r.id for r in await inbox.events_of_case(conn, "c-1")] == ["v-2"]
        assert await inbox.event(conn, "v-9") is None


def test_an_event_can_be_read_back_as_it_was() -> None:
    event = IdentityEvent(
        "okta-main",
        "k",
        EventKind.ACCOUNT_DISABLED,
        Subject("okta", "00u1", ("ada@example.com",), ("ada",), "Ada Löwe"),
        datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC),
        "user.lifecycle.deactivate",
        {"a": "b"},
    )
    assert inbox.from_json(inbox.as_json(event)) == event
