"""The audit trail in the store: read, exported, checkpointed and verified. Only transactions append to it."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from sqlalchemy import insert, select
from sqlalchemy.ext.asyncio import AsyncConnection

from offboard_worker.core.chain import GENESIS, AuditRecord, Checkpoint, sign, verify_chain, verify_checkpoints
from offboard_worker.errors import AuditBroken
from offboard_worker.store.database import Store, rfc3339
from offboard_worker.store.schema import audit, checkpoints, counters

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey


def _record(row: Any) -> AuditRecord:
    """Read one row. Raises AuditBroken where its detail is not what we write."""
    try:
        detail = json.loads(row.detail)
    except ValueError:
        detail = None
    if not isinstance(detail, dict):
        raise AuditBroken(f"audit record {row.seq} was altered: its detail can't be read")
    return AuditRecord(row.seq, row.at, row.what, row.who, row.subject, detail, row.previous, row.hash)


async def records(conn: AsyncConnection, after: int = 0, subject: str | None = None) -> AsyncIterator[AuditRecord]:
    """Yield the records in order, in pages, so that memory stays flat."""
    while True:
        query = select(audit).where(audit.c.seq > after).order_by(audit.c.seq).limit(2000)
        if subject is not None:
            query = query.where(audit.c.subject == subject)
        rows = (await conn.execute(query)).all()
        for row in rows:
            yield _record(row)
        if len(rows) < 2000:
            return
        after = rows[-1].seq


async def signed(conn: AsyncConnection) -> list[Checkpoint]:
    rows = await conn.execute(select(checkpoints).order_by(checkpoints.c.seq))
    return [Checkpoint(row.seq, row.hash, row.at, row.key, row.signature) for row in rows]


async def checkpoint(store: Store, key: Ed25519PrivateKey) -> Checkpoint | None:
    """Sign the chain's head and keep the checkpoint; None if this head has one already. Raises AuditBroken."""
    async with store.write() as tx:
        head = (await tx.conn.execute(select(audit).order_by(audit.c.seq.desc()).limit(1))).first()
        there = (head.seq, head.hash) if head else (0, GENESIS)
        if there != tx.audit_head:
            raise AuditBroken(f"the audit ends at record {there[0]}, which is not the last that was written")
        if head is None:
            return None
        made = sign(head.seq, head.hash, rfc3339(tx.now), key)
        same = select(checkpoints.c.seq).where(checkpoints.c.seq == made.seq, checkpoints.c.key == made.key)
        if (await tx.conn.execute(same)).first():
            return None
        await tx.conn.execute(
            insert(checkpoints).values(seq=made.seq, key=made.key, hash=made.hash, at=made.at, signature=made.signature)
        )
        return made


async def verify(
    store: Store, keys: Mapping[str, Ed25519PublicKey], elsewhere: Sequence[Checkpoint] = ()
) -> tuple[int, int]:
    """Verify the whole chain and its checkpoints on the live store; return both counts. Raises AuditBroken.

    `elsewhere` are checkpoints that went off the box: they show what a rewrite of this store hides.
    """
    hashes: dict[int, str] = {}
    async with store.read() as conn:
        marks = [*await signed(conn), *elsewhere]
        marked = {mark.seq for mark in marks}
        last, batch = None, []
        async for record in records(conn):
            batch.append(record)
        for record in verify_chain(batch):
            last = record
            if record.seq in marked:
                hashes[record.seq] = record.hash
        head = (await conn.execute(select(counters).where(counters.c.name == "audit"))).first()
    count = last.seq if last else 0
    if head is None or (count, last.hash if last else head.text) != (head.value, head.text):
        raise AuditBroken(f"the audit has {count} records, and its head says {head.value if head else 'nothing'}")
    return count, verify_checkpoints(marks, hashes, keys)
