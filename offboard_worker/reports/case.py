"""One case, or a list of them, as plain values that JSON, the terminal and (later) the console show alike."""

from __future__ import annotations

import json
from typing import Any

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncConnection

from offboard_worker.core.credential import Evidence
from offboard_worker.store import cases, credentials, inbox
from offboard_worker.store.cases import CaseRow, summary
from offboard_worker.store.database import rfc3339
from offboard_worker.store.schema import people


def _time(at: float | None) -> str | None:
    return None if at is None else rfc3339(at)


async def listed(conn: AsyncConnection, rows: list[CaseRow]) -> list[dict[str, Any]]:
    """The cases of a list, each with its person's name and the number that matters."""
    ids = {case.person_id for case in rows}
    found = await conn.execute(select(people.c.id, people.c.name).where(people.c.id.in_(ids)))
    names = {row.id: row.name for row in found}
    return [{**_head(case, names.get(case.person_id, "")), "summary": await _summary(conn, case.id)} for case in rows]


async def described(conn: AsyncConnection, case: CaseRow) -> dict[str, Any]:
    """Everything about one case."""
    name = (await conn.execute(select(people.c.name).where(people.c.id == case.person_id))).scalar() or ""
    return {
        **_head(case, name),
        "summary": await _summary(conn, case.id),
        "events": [_event(row) for row in await inbox.events_of_case(conn, case.id)],
        "targets": [
            {
                "connector": part.connector,
                "state": part.state.value,
                "action": part.action.value,
                "runs": part.runs,
                "started_at": _time(part.started_at),
                "finished_at": _time(part.finished_at),
                "next_attempt_at": _time(part.next_attempt_at),
                "error": part.error,
                "advice": part.advice,
            }
            for part in await cases.targets_of(conn, case.id)
        ],
        "credentials": [evidence_row(proof) for proof in await credentials.evidence_of_case(conn, case.id)],
        "tasks": [
            {
                "id": task["id"],
                "connector": task["connector"],
                "title": task["title"],
                "advice": task["advice"],
                "opened_at": _time(task["opened_at"]),
                "done_at": _time(task["done_at"]),
                "done_by": task["done_by"],
                "note": task["note"],
            }
            for task in await credentials.tasks_of(conn, case.id)
        ],
    }


async def _summary(conn: AsyncConnection, case_id: str) -> str:
    return summary(await cases.strengths_of(conn, case_id), await cases.open_tasks_of(conn, case_id))


def _head(case: CaseRow, name: str) -> dict[str, Any]:
    return {
        "id": case.id,
        "person": case.person_id,
        "name": name,
        "state": case.state.value,
        "reason": case.reason,
        "opened_by": case.opened_by,
        "accepted_at": _time(case.accepted_at),
        "opened_at": _time(case.opened_at),
        "denial_seq": case.denial_seq,
        "pushed_at": _time(case.pushed_at),
        "refused_at": _time(case.refused_at),
        "refused_after_ms": case.refused_after_ms,
        "refused_by": json.loads(case.refused_by),
        "approved_by": case.approved_by,
        "updated_at": _time(case.updated_at),
        "finished_at": _time(case.finished_at),
        "delete_due_at": _time(case.delete_due_at),
    }


def _event(row: inbox.EventRow) -> dict[str, Any]:
    return {
        "id": row.id,
        "source": row.source,
        "key": row.key,
        "kind": row.kind,
        "type": row.vendor_type,
        "received_at": _time(row.received_at),
        "occurred_at": _time(row.occurred_at),
        "effect": row.effect,
        "reason": row.reason,
    }


def evidence_row(proof: Evidence) -> dict[str, Any]:
    """One credential's latest evidence: an auditor's row."""

    def moment(at: Any) -> str | None:
        return None if at is None else _time(at.timestamp())

    credential = proof.credential
    return {
        "connector": credential.connector,
        "kind": credential.kind.value,
        "id": credential.id,
        "scope": credential.scope,
        "owner": credential.owner,
        "label": credential.label,
        "action": proof.action.value,
        "strength": proof.strength.value,
        "state": proof.state.value,
        "requested_at": moment(proof.requested_at),
        "acknowledged_at": moment(proof.acknowledged_at),
        "verified_at": moment(proof.verified_at),
        "attempts": proof.attempts,
        "method": proof.method,
        "error": proof.error,
        "advice": proof.advice,
        "residual_until": moment(proof.residual_until),
        "residual_note": proof.residual_note,
        "last_used_at": moment(credential.last_used_at),
    }
