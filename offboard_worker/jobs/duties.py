"""Recurring duties: audit checkpoints, pruning, due deletes, closing what is done. Each may run twice without harm."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)
from sqlalchemy import select

from offboard_worker.core.case import State, Step, TargetState
from offboard_worker.core.chain import Checkpoint
from offboard_worker.core.credential import Action
from offboard_worker.core.person import PersonState
from offboard_worker.denylist.issued import IssuedTokens
from offboard_worker.errors import ConfigError
from offboard_worker.jobs.context import JobContext
from offboard_worker.store import audit, cases
from offboard_worker.store.database import Store, Transaction
from offboard_worker.store.schema import cases as cases_table
from offboard_worker.store.schema import people


def audit_key(path: Path) -> Ed25519PrivateKey:
    """Read the audit's signing key, or make one (mode 0600) with its public half beside it. Raises ConfigError."""
    if path.exists():
        try:
            key = load_pem_private_key(path.read_bytes(), None)
        except ValueError as error:
            raise ConfigError(f"{path} is not a PEM private key without a password") from error
        if not isinstance(key, Ed25519PrivateKey):
            raise ConfigError(f"{path} is not an Ed25519 key", advice="Make one: openssl genpkey -algorithm ed25519")
        return key
    path.parent.mkdir(parents=True, exist_ok=True)
    key = Ed25519PrivateKey.generate()
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return audit_key(path)  # another process made it just now
    with os.fdopen(descriptor, "wb") as file:
        file.write(private)
    public = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    path.with_suffix(".pub.pem").write_bytes(public)
    return key


async def checkpoint_audit(store: Store, key_path: Path, folder: Path | None) -> Checkpoint | None:
    """Sign the chain's head; the checkpoint goes into the store and, where configured, off the box."""
    made = await audit.checkpoint(store, audit_key(key_path))
    if made is not None and folder is not None:
        await asyncio.to_thread(_append, folder, json.dumps(made.export(), sort_keys=True))
    return made


def _append(folder: Path, line: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "checkpoints.jsonl").open("a", encoding="utf-8") as file:
        file.write(line + "\n")
        file.flush()
        os.fsync(file.fileno())


async def prune_expired(ctx: JobContext, issued: IssuedTokens) -> None:
    """Drop expired facts from the projection, and expired tokens from the list of issued ones."""
    await ctx.projection.prune(ctx.store.clock())
    await issued.prune(ctx.store.clock())


async def queue_due_deletes(ctx: JobContext) -> int:
    """Give cases whose grace period is over the work of deleting, if the person is still gone."""
    async with ctx.store.write() as tx:
        query = (
            select(cases_table.c.id)
            .join(people, people.c.id == cases_table.c.person_id)
            .where(
                cases_table.c.state == State.VERIFIED.value,
                cases_table.c.delete_due_at <= tx.now,
                people.c.state == PersonState.DEPARTED.value,
            )
            .limit(200)
        )
        due = list((await tx.conn.execute(query)).scalars())
        for case_id in due:
            await _start_deleting(tx, case_id)
    if due:
        await ctx.submit(due)
    return len(due)


async def _start_deleting(tx: Transaction, case_id: str) -> None:
    for part in await cases.targets_of(tx.conn, case_id):
        await cases.set_target(tx, case_id, part.connector, action=Action.DELETE.value, state=TargetState.PENDING.value)
    case = await cases.one(tx.conn, case_id)
    if case is not None:  # back to work: what can't be deleted must be seen before the case closes
        reason = "the grace period is over, the person is still gone: delete"
        await cases.move(tx, case, Step.RETRY, "schedule", reason, delete_due_at=None)


async def close_verified(ctx: JobContext) -> int:
    """Close verified cases that have no delete ahead and no work under way; plan the delete of the others."""
    closed = 0
    async with ctx.store.write() as tx:
        for case in await cases.many(tx.conn, states=[State.VERIFIED], limit=5000):
            parts = await cases.targets_of(tx.conn, case.id)
            if any(part.state is not TargetState.DONE for part in parts):
                continue
            deleted = all(part.action is Action.DELETE for part in parts)
            after = ctx.policy.delete_after
            if after is not None and not deleted:
                if case.delete_due_at is None:
                    await cases.set_case(tx, case.id, delete_due_at=tx.now + after.total_seconds())
                continue
            if tx.now - case.updated_at >= ctx.policy.close_after.total_seconds():
                await cases.move(tx, case, Step.CLOSE, "schedule", "verified, and nothing is left to do")
                closed += 1
    return closed
