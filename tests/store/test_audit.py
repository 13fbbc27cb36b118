"""Edits made directly in the database are found: by the chain, by its head, and by checkpoints."""

from __future__ import annotations

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from sqlalchemy import select

from offboard_worker.core.chain import fingerprint, verify_chain, verify_checkpoints
from offboard_worker.errors import AuditBroken
from offboard_worker.store import audit
from offboard_worker.store.database import Store
from tests.conftest import Clock

KEY = Ed25519PrivateKey.from_private_bytes(b"1" * 32)
KEYS = {fingerprint(KEY.public_key()): KEY.public_key()}


async def write(store: Store, count: int = 5) -> None:
    for number in range(count):
        async with store.write() as tx:
            tx.record("case.opened", "okta", f"c-{number}", {"number": number, "name": "Zoë", "at": 1.5, "none": None})


async def forge(store: Store, *statements: str) -> None:
    async with store.engine.begin() as conn:
        for statement in statements:
            await conn.exec_driver_sql(statement)


async def test_an_untouched_audit_verifies(store: Store) -> None:
    await write(store)
    await audit.checkpoint(store, KEY)
    assert await audit.verify(store, KEYS) == (5, 1)


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE audit SET who = 'someone else' WHERE seq = 3",
        "UPDATE audit SET at = '2020-01-01T00:00:00.000000Z' WHERE seq = 1",
        "UPDATE audit SET detail = '{}' WHERE seq = 5",
        "UPDATE audit SET detail = 'not JSON' WHERE seq = 2",
        "UPDATE audit SET detail = '[1]' WHERE seq = 2",
        "UPDATE audit SET detail = '{\"n\":99999999999999999999}' WHERE seq = 2",
        "UPDATE audit SET hash = previous WHERE seq = 5",
        "DELETE FROM audit WHERE seq = 1",
        "DELETE FROM audit WHERE seq = 3",
        "DELETE FROM audit WHERE seq = 5",
        "DELETE FROM audit",
        "UPDATE audit SET seq = 6 WHERE seq = 5",
        "UPDATE counters SET value = 4 WHERE name = 'audit'",
        "UPDATE counters SET text = 'x' WHERE name = 'audit'",
        "DELETE FROM counters WHERE name = 'audit'",
    ],
)
async def test_an_edit_in_the_database_is_found(store: Store, statement: str) -> None:
    await write(store)
    await forge(store, statement)
    with pytest.raises(AuditBroken) as broken:
        await audit.verify(store, KEYS)
    assert "incident" in broken.value.advice


CUT = (
    "DELETE FROM audit WHERE seq > 3",
    "UPDATE counters SET value = 3, text = (SELECT hash FROM audit WHERE seq = 3) WHERE name = 'audit'",
)


async def test_a_tail_that_was_cut_off_cleanly_is_shown_by_a_checkpoint(store: Store) -> None:
    await write(store)
    mark = await audit.checkpoint(store, KEY)
    assert mark is not None
    await forge(store, *CUT)
    with pytest.raises(AuditBroken, match="the tail was cut off"):
        await audit.verify(store, KEYS)
    await forge(store, "DELETE FROM checkpoints")
    assert await audit.verify(store, KEYS) == (3, 0)  # nothing in this store shows it any more
    with pytest.raises(AuditBroken, match="the tail was cut off"):
        await audit.verify(store, KEYS, [mark])  # what went off the box does


async def test_a_head_is_signed_once(store: Store, clock: Clock) -> None:
    assert await audit.checkpoint(store, KEY) is None  # nothing to vouch for
    await write(store, 2)
    first = await audit.checkpoint(store, KEY)
    assert first is not None
    assert first.seq == 2
    clock.go(60)
    assert await audit.checkpoint(store, KEY) is None
    await write(store, 1)
    second = await audit.checkpoint(store, KEY)
    assert second is not None
    assert second.seq == 3
    assert await audit.verify(store, KEYS) == (3, 2)


@pytest.mark.parametrize(
    "statement", ["DELETE FROM audit WHERE seq = 5", "DELETE FROM audit", "UPDATE audit SET hash = 'x' WHERE seq = 5"]
)
async def test_a_chain_whose_end_was_touched_is_never_signed(store: Store, statement: str) -> None:
    await write(store)
    await forge(store, statement)
    with pytest.raises(AuditBroken):
        await audit.checkpoint(store, KEY)


async def test_an_export_verifies_without_the_store(store: Store) -> None:
    await write(store)
    await audit.checkpoint(store, KEY)
    async with store.read() as conn:
        records = [record async for record in audit.records(conn)]
        marks = await audit.signed(conn)
    assert [record.seq for record in verify_chain(records)] == [1, 2, 3, 4, 5]
    assert verify_checkpoints(marks, {record.seq: record.hash for record in records}, KEYS) == 1


async def test_records_are_read_from_anywhere_and_by_subject(store: Store) -> None:
    await write(store)
    async with store.read() as conn:
        assert [record.seq async for record in audit.records(conn, after=3)] == [4, 5]
        assert [record.seq async for record in audit.records(conn, subject="c-1")] == [2]


async def test_records_are_read_in_pages_without_losing_any(store: Store) -> None:
    async with store.write() as tx:
        for number in range(4001):
            tx.record("many", "test", "even" if number % 2 else "odd")
    async with store.read() as conn:
        assert len([record async for record in audit.records(conn)]) == 4001
        assert len([record async for record in audit.records(conn, subject="odd")]) == 2001


async def test_the_audit_keeps_what_it_was_told(store: Store) -> None:
    await write(store, 1)
    async with store.read() as conn:
        (record,) = [record async for record in audit.records(conn)]
        assert (await conn.execute(select(1))).scalar_one() == 1
    assert record.detail == {"number": 0, "name": "Zoë", "at": 1.5, "none": None}
    assert record.at.endswith("Z")
