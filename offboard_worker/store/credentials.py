"""Credentials as they were found, the evidence of what was done to them, and tasks for a person.

A credential is recorded, and bound to its case, before any vendor is asked to change it: a worker that dies between
the vendor's call and our record leaves a row behind that the next run reads back.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import insert, select, tuple_, update
from sqlalchemy.ext.asyncio import AsyncConnection

from offboard_worker.core.credential import (
    Action,
    Credential,
    CredentialKind,
    CredentialState,
    Evidence,
    Strength,
)
from offboard_worker.store.database import Transaction, dumps, new_id
from offboard_worker.store.schema import case_credentials, credentials, evidence, tasks


@dataclass(frozen=True, slots=True)
class Held:
    """A credential of a case, with what we know of it."""

    row_id: str
    credential: Credential
    state_before: CredentialState
    disabled_by_us: bool
    strength: Strength | None


def _seconds(at: datetime | None) -> float | None:
    return None if at is None else at.timestamp()


def _moment(at: float | None) -> datetime | None:
    return None if at is None else datetime.fromtimestamp(at, UTC)


def _credential(row: Any) -> Credential:
    return Credential(
        connector=row.connector,
        kind=CredentialKind(row.kind),
        id=row.vendor_id,
        owner=row.owner,
        scope=row.scope,
        label=row.label,
        state=CredentialState(row.state),
        created_at=_moment(row.created_at),
        last_used_at=_moment(row.last_used_at),
        expires_at=_moment(row.expires_at),
        snapshot=json.loads(row.snapshot),
    )


def _name(credential: Credential) -> tuple[str, str, str, str]:
    return credential.connector, credential.kind.value, credential.scope, credential.id


_NAME = (credentials.c.connector, credentials.c.kind, credentials.c.scope, credentials.c.vendor_id)


async def keep_found(
    tx: Transaction, case_id: str, person_id: str, found: Sequence[Credential]
) -> dict[tuple[str, str, str, str], str]:
    """Record what was found for a case and return row ids by exact name.

    A snapshot and a state from before our first change are never overwritten by what a later run finds.
    """
    names = list({_name(credential) for credential in found})
    known: dict[tuple[str, str, str, str], str] = {}
    for start in range(0, len(names), 200):
        query = select(credentials.c.id, *_NAME).where(tuple_(*_NAME).in_(names[start : start + 200]))
        known.update({tuple(row[1:]): row[0] for row in await tx.conn.execute(query)})
    new = {_name(c): c for c in found if _name(c) not in known}
    if new:
        rows = [_new_row(credential, person_id, tx.now) for credential in new.values()]
        await tx.conn.execute(insert(credentials), rows)
        known.update({name: row["id"] for name, row in zip(new, rows, strict=True)})
    bound = set(
        (
            await tx.conn.execute(select(case_credentials.c.credential_id).where(case_credentials.c.case_id == case_id))
        ).scalars()
    )
    for credential in found:
        if _name(credential) not in new:
            row_id = known[_name(credential)]
            changes = _seen_again(credential, person_id, tx.now, refresh=row_id not in bound)
            await tx.conn.execute(update(credentials).where(credentials.c.id == row_id).values(**changes))
    binding = [
        {
            "case_id": case_id,
            "credential_id": known[name],
            "state_before": credential.state.value,
            "disabled_by_us": False,
        }
        for name, credential in {_name(c): c for c in found}.items()
        if known[name] not in bound
    ]
    if binding:
        await tx.conn.execute(insert(case_credentials), binding)
        tx.record(
            "credentials.found",
            "worker",
            case_id,
            {"connector": found[0].connector, "credentials": [c.ref for c in new.values()], "count": len(found)},
        )
    return known


def _seen_again(credential: Credential, person_id: str, now: float, *, refresh: bool) -> dict[str, Any]:
    """What another look changes. `refresh`: this case has not bound it yet, so that an active one is as it was before us."""
    changes: dict[str, Any] = {
        "last_seen_at": now,
        "state": credential.state.value,
        "last_used_at": _seconds(credential.last_used_at),
        "owner": credential.owner,
        "person_id": person_id,
    }
    if refresh and credential.state is CredentialState.ACTIVE:
        changes["snapshot"] = dumps(dict(credential.snapshot))
    return changes


def _new_row(credential: Credential, person_id: str, now: float) -> dict[str, Any]:
    return {
        "id": new_id("k"),
        "connector": credential.connector,
        "kind": credential.kind.value,
        "scope": credential.scope,
        "vendor_id": credential.id,
        "owner": credential.owner,
        "person_id": person_id,
        "label": credential.label,
        "state": credential.state.value,
        "snapshot": dumps(dict(credential.snapshot)),
        "created_at": _seconds(credential.created_at),
        "last_used_at": _seconds(credential.last_used_at),
        "expires_at": _seconds(credential.expires_at),
        "first_seen_at": now,
        "last_seen_at": now,
    }


async def held_by_case(conn: AsyncConnection, case_id: str, connector: str | None = None) -> list[Held]:
    """Every credential of a case, with the strength of its latest evidence."""
    query = (
        select(
            credentials,
            case_credentials.c.state_before,
            case_credentials.c.disabled_by_us,
            evidence.c.strength,
        )
        .join(case_credentials, case_credentials.c.credential_id == credentials.c.id)
        .outerjoin(
            evidence,
            (evidence.c.credential_id == credentials.c.id) & (evidence.c.case_id == case_id) & evidence.c.latest,
        )
        .where(case_credentials.c.case_id == case_id)
        .order_by(credentials.c.connector, credentials.c.first_seen_at, credentials.c.id)
    )
    if connector is not None:
        query = query.where(credentials.c.connector == connector)
    return [
        Held(
            row.id,
            _credential(row),
            CredentialState(row.state_before),
            bool(row.disabled_by_us),
            Strength(row.strength) if row.strength else None,
        )
        for row in await conn.execute(query)
    ]


async def keep_evidence(tx: Transaction, case_id: str, row_id: str, proof: Evidence) -> None:
    """Append one piece of evidence: it becomes the credential's latest, and nothing is overwritten."""
    await tx.conn.execute(
        update(evidence)
        .where(evidence.c.case_id == case_id, evidence.c.credential_id == row_id, evidence.c.latest)
        .values(latest=False)
    )
    await tx.conn.execute(
        insert(evidence).values(
            id=new_id("e"),
            case_id=case_id,
            credential_id=row_id,
            action=proof.action.value,
            strength=proof.strength.value,
            state=proof.state.value,
            requested_at=proof.requested_at.timestamp(),
            acknowledged_at=_seconds(proof.acknowledged_at),
            verified_at=_seconds(proof.verified_at),
            attempts=proof.attempts,
            method=proof.method,
            error=proof.error,
            advice=proof.advice,
            residual_until=_seconds(proof.residual_until),
            residual_note=proof.residual_note,
            latest=True,
        )
    )
    await tx.conn.execute(update(credentials).where(credentials.c.id == row_id).values(state=proof.state.value))
    if proof.action is Action.DISABLE and proof.acknowledged_at is not None:
        await tx.conn.execute(
            update(case_credentials)
            .where(case_credentials.c.case_id == case_id, case_credentials.c.credential_id == row_id)
            .values(disabled_by_us=case_credentials.c.state_before == CredentialState.ACTIVE.value)
        )
    tx.record(
        f"credential.{proof.action.value}",
        "worker",
        proof.credential.ref,
        {
            "case": case_id,
            "strength": proof.strength.value,
            "state": proof.state.value,
            "attempts": proof.attempts,
            "method": proof.method,
            "error": proof.error,
        },
    )


async def evidence_of_case(conn: AsyncConnection, case_id: str, *, latest: bool = True) -> list[Evidence]:
    """The evidence of a case, in order; only each credential's latest unless told otherwise."""
    query = (
        select(evidence, credentials)
        .join(credentials, credentials.c.id == evidence.c.credential_id)
        .where(evidence.c.case_id == case_id)
        .order_by(evidence.c.requested_at)
    )
    if latest:
        query = query.where(evidence.c.latest)
    found = []
    for row in await conn.execute(query):
        values = row._mapping
        columns = {column.name: values[column] for column in credentials.c}
        found.append(_evidence(values, _credential(_Row(columns))))
    return found


class _Row:
    """Gives a joined row's columns the names that they have in their own table."""

    def __init__(self, columns: dict[str, Any]) -> None:
        self.__dict__.update(columns)


def _evidence(values: Any, credential: Credential) -> Evidence:
    e = evidence.c
    requested = _moment(values[e.requested_at])
    assert requested is not None  # noqa: S101 - the column is not nullable
    return Evidence(
        credential=credential,
        action=Action(values[e.action]),
        strength=Strength(values[e.strength]),
        state=CredentialState(values[e.state]),
        requested_at=requested,
        acknowledged_at=_moment(values[e.acknowledged_at]),
        verified_at=_moment(values[e.verified_at]),
        attempts=values[e.attempts],
        method=values[e.method],
        error=values[e.error],
        advice=values[e.advice],
        residual_until=_moment(values[e.residual_until]),
        residual_note=values[e.residual_note],
    )


async def open_task(tx: Transaction, case_id: str, row_id: str, connector: str, title: str, advice: str) -> None:
    """Open a task for a person, unless the same one is open already."""
    same = select(tasks.c.id).where(
        tasks.c.case_id == case_id,
        tasks.c.credential_id == row_id,
        tasks.c.connector == connector,
        tasks.c.done_at.is_(None),
    )
    if not row_id:  # about the system as a whole: it may ask for several things
        same = same.where(tasks.c.title == title)
    if (await tx.conn.execute(same)).first():
        return
    task_id = new_id("t")
    await tx.conn.execute(
        insert(tasks).values(
            id=task_id,
            case_id=case_id,
            credential_id=row_id,
            connector=connector,
            title=title,
            advice=advice,
            opened_at=tx.now,
            done_by="",
            note="",
        )
    )
    tx.record("task.opened", "worker", case_id, {"task": task_id, "connector": connector, "title": title})


async def close_tasks(tx: Transaction, case_id: str, row_ids: Iterable[str], who: str, note: str) -> None:
    """Close the open tasks about these credentials: what they asked for was read back."""
    for row_id in row_ids:
        closed = await tx.conn.execute(
            update(tasks)
            .where(tasks.c.case_id == case_id, tasks.c.credential_id == row_id, tasks.c.done_at.is_(None))
            .values(done_at=tx.now, done_by=who, note=note)
        )
        if closed.rowcount:
            tx.record("task.closed", who, case_id, {"credential": row_id, "note": note})


async def tasks_of(conn: AsyncConnection, case_id: str) -> list[dict[str, Any]]:
    query = select(tasks).where(tasks.c.case_id == case_id).order_by(tasks.c.opened_at)
    return [dict(row._mapping) for row in await conn.execute(query)]


async def attest(tx: Transaction, task_id: str, who: str, note: str) -> dict[str, Any] | None:
    """Mark a task as done by a person's word; return the task, or None if there is no such open one."""
    row = (await tx.conn.execute(select(tasks).where(tasks.c.id == task_id, tasks.c.done_at.is_(None)))).first()
    if row is None:
        return None
    await tx.conn.execute(update(tasks).where(tasks.c.id == task_id).values(done_at=tx.now, done_by=who, note=note))
    tx.record("task.attested", who, row.case_id, {"task": task_id, "note": note})
    return dict(row._mapping)


async def attest_evidence(tx: Transaction, evidence_id: str, case_id: str, row_id: str, who: str, note: str) -> None:
    """Make a person's word the latest evidence about a credential: as strong as `attested`, and no stronger."""
    about = (evidence.c.case_id == case_id) & (evidence.c.credential_id == row_id) & evidence.c.latest
    row = (await tx.conn.execute(select(evidence).where(about))).first()
    if row is None:
        return
    await tx.conn.execute(update(evidence).where(about).values(latest=False))
    values = {
        **row._mapping,
        "id": evidence_id,
        "strength": Strength.ATTESTED.value,
        "requested_at": tx.now,
        "acknowledged_at": tx.now,
        "verified_at": None,
        "method": f"attested by {who}: {note}",
        "error": "",
        "advice": "",
        "latest": True,
    }
    await tx.conn.execute(insert(evidence).values(**values))
