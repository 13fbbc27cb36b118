"""Cases and their targets (one per connector). Only `core.case.advance` decides a state."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from operator import attrgetter
from typing import Any

from sqlalchemy import func, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from offboard_worker.core.case import FINISHED, State, Step, TargetState, advance, conclude
from offboard_worker.core.credential import Action, Strength
from offboard_worker.store.database import Transaction
from offboard_worker.store.direct import Insert, Lookup, Query, Row, look_up
from offboard_worker.store.schema import cases, evidence, targets, tasks


@dataclass(frozen=True, slots=True)
class CaseRow:
    id: str
    person_id: str
    state: State
    reason: str
    opened_by: str
    opened_at: float
    accepted_at: float
    denial_seq: int | None = None
    pushed_at: float | None = None
    refused_at: float | None = None
    refused_by: str = "{}"
    approved_by: str = ""
    updated_at: float = 0.0
    finished_at: float | None = None
    delete_due_at: float | None = None

    @property
    def refused_after_ms(self) -> float | None:
        """Milliseconds from the delivery's arrival to its refusal at every live replica."""
        return None if self.refused_at is None else round((self.refused_at - self.accepted_at) * 1000, 2)


@dataclass(frozen=True, slots=True)
class TargetRow:
    case_id: str
    connector: str
    state: TargetState
    action: Action
    runs: int = 0
    started_at: float | None = None
    finished_at: float | None = None
    next_attempt_at: float | None = None
    error: str = ""
    advice: str = ""


def _case(row: Any) -> CaseRow:
    return CaseRow(**{**row._mapping, "state": State(row.state)})


def _target(row: Any) -> TargetRow:
    return TargetRow(**{**row._mapping, "state": TargetState(row.state), "action": Action(row.action)})


_FIELDS = tuple(one.name for one in fields(CaseRow))
OF_PEOPLE = Lookup(cases, ("person_id",), _FIELDS)


def _case_of(row: Row) -> CaseRow:
    return CaseRow(**{**dict(zip(_FIELDS, row, strict=True)), "state": State(row[_FIELDS.index("state")])})


_CASES, _TARGETS = Insert(cases), Insert(targets)
_case_values, _target_values = attrgetter(*_CASES.names), attrgetter(*_TARGETS.names)


async def insert_cases(tx: Transaction, rows: Sequence[CaseRow], parts: Sequence[TargetRow]) -> None:
    defer_cases(tx, rows, parts)
    await tx.send()


def defer_cases(tx: Transaction, rows: Sequence[CaseRow], parts: Sequence[TargetRow]) -> None:
    """As `insert_cases`, at the transaction's next `send`."""
    tx.defer(_CASES, [_case_values(row) for row in rows])
    tx.defer(_TARGETS, [_target_values(part) for part in parts])


async def unfinished_of(conn: AsyncConnection, person_ids: Iterable[str]) -> dict[str, CaseRow]:
    """The unfinished case of each of these people, by person id. There is at most one each."""
    wanted = [(person_id,) for person_id in set(person_ids)]
    (rows,) = await look_up(conn, [(OF_PEOPLE, wanted)])
    return unfinished(rows)


def unfinished(rows: Iterable[Row]) -> dict[str, CaseRow]:
    """As `unfinished_of`, from the answers to an OF_PEOPLE look-up."""
    return {case.person_id: case for case in map(_case_of, rows) if case.state not in FINISHED}


async def latest_of(conn: AsyncConnection, person_id: str) -> CaseRow | None:
    query = select(cases).where(cases.c.person_id == person_id).order_by(cases.c.opened_at.desc()).limit(1)
    row = (await conn.execute(query)).first()
    return None if row is None else _case(row)


async def one(conn: AsyncConnection, case_id: str) -> CaseRow | None:
    row = (await conn.execute(select(cases).where(cases.c.id == case_id))).first()
    return None if row is None else _case(row)


async def many(
    conn: AsyncConnection, *, states: Iterable[State] = (), person_id: str | None = None, limit: int = 500
) -> list[CaseRow]:
    """Cases, newest first."""
    query = select(cases).order_by(cases.c.opened_at.desc()).limit(limit)
    wanted = [state.value for state in states]
    if wanted:
        query = query.where(cases.c.state.in_(wanted))
    if person_id:
        query = query.where(cases.c.person_id == person_id)
    return [_case(row) for row in await conn.execute(query)]


_OPENED = "SELECT count(*) FROM (SELECT 1 FROM cases WHERE opened_at >= {} AND opened_by LIKE 'source:%' LIMIT {}) AS c"
OPENED_SINCE = Query(_OPENED.format("?", "?"), _OPENED.format("$1::float8", "$2::int8"))


async def opened_since(conn: AsyncConnection, since: float, enough: int = 2**31) -> int:
    """How many cases sources have opened since then: what the guard counts. Counting stops at `enough`."""
    ((row,),) = await look_up(conn, [(OPENED_SINCE, [(since, enough)])])
    return int(row[0])


async def targets_of(conn: AsyncConnection, case_id: str) -> list[TargetRow]:
    query = select(targets).where(targets.c.case_id == case_id).order_by(targets.c.connector)
    return [_target(row) for row in await conn.execute(query)]


async def target(conn: AsyncConnection, case_id: str, connector: str) -> TargetRow | None:
    query = select(targets).where(targets.c.case_id == case_id, targets.c.connector == connector)
    row = (await conn.execute(query)).first()
    return None if row is None else _target(row)


async def unfinished_targets(
    conn: AsyncConnection, now: float, case_ids: Sequence[str] | None = None
) -> list[TargetRow]:
    """Work that is to be done now by the store's word, whatever the queue remembers; of these cases only, if given."""
    query = (
        select(targets)
        .join(cases, cases.c.id == targets.c.case_id)
        .where(
            targets.c.state.in_([TargetState.PENDING.value, TargetState.RUNNING.value, TargetState.RETRYING.value]),
            # A case that needs attention because of one connector still has the others to finish; a restoration is
            # owed by a finished case too.
            cases.c.state.in_([State.REVOKING, State.ATTENTION, State.REINSTATED, State.VERIFIED])
            | ((targets.c.action == Action.RESTORE) & cases.c.state.in_([State.CLOSED, State.CANCELLED])),
            (targets.c.next_attempt_at.is_(None)) | (targets.c.next_attempt_at <= now),
        )
        .order_by(cases.c.opened_at)
        .limit(2000)
    )
    if case_ids is not None:
        query = query.where(targets.c.case_id.in_(case_ids))
    return [_target(row) for row in await conn.execute(query)]


async def uncontained(conn: AsyncConnection) -> list[CaseRow]:
    """Cases whose refusal at every replica is not on record yet, oldest first."""
    query = (
        select(cases)
        .where(cases.c.denial_seq.is_not(None), cases.c.refused_at.is_(None), cases.c.state != State.CANCELLED.value)
        .order_by(cases.c.opened_at)
        .limit(2000)
    )
    return [_case(row) for row in await conn.execute(query)]


async def move(tx: Transaction, case: CaseRow, step: Step, who: str, reason: str = "", **values: Any) -> CaseRow:
    """Take one step. Raises IllegalTransition."""
    state = advance(case.state, step)
    changes: dict[str, Any] = {"state": state, "updated_at": tx.now, **values}
    if state in FINISHED:
        changes["finished_at"] = tx.now
    await tx.conn.execute(update(cases).where(cases.c.id == case.id).values(**changes))
    tx.record(f"case.{step.value}", who, case.id, {"from": case.state.value, "to": state.value, "reason": reason})
    return replace(case, **changes)


async def set_case(tx: Transaction, case_id: str, **values: Any) -> None:
    await tx.conn.execute(update(cases).where(cases.c.id == case_id).values(updated_at=tx.now, **values))


async def set_target(tx: Transaction, case_id: str, connector: str, **values: Any) -> None:
    query = update(targets).where(targets.c.case_id == case_id, targets.c.connector == connector)
    await tx.conn.execute(query.values(**values))


async def reopen_target(tx: Transaction, case_id: str, connector: str) -> None:
    """Let a connector run once more in a case, and take the case back to work if it had settled."""
    case = await one(tx.conn, case_id)
    if case is None or case.state not in (State.REVOKING, State.ATTENTION, State.VERIFIED):
        return
    if case.state is not State.REVOKING:
        await move(tx, case, Step.RETRY, "worker", f"{connector} runs again")
    await set_target(tx, case_id, connector, state=TargetState.PENDING.value, next_attempt_at=None, error="", advice="")


async def add_targets(tx: Transaction, case_id: str, connectors: Iterable[str]) -> None:
    """Give a case a target for each connector that it has none for yet."""
    have = {part.connector for part in await targets_of(tx.conn, case_id)}
    new = [TargetRow(case_id, name, TargetState.PENDING, Action.DISABLE) for name in connectors if name not in have]
    await insert_cases(tx, [], new)


async def settle(tx: Transaction, case_id: str, who: str) -> CaseRow | None:
    """Let a revoking case take the step that its targets, evidence and tasks call for, if any."""
    case = await one(tx.conn, case_id)
    if case is None or case.state not in (State.REVOKING, State.ATTENTION):
        return case
    states = [part.state for part in await targets_of(tx.conn, case_id)]
    strengths = await strengths_of(tx.conn, case_id)
    open_tasks = await open_tasks_of(tx.conn, case_id)
    step = conclude(states, strengths, open_tasks)
    if step is None or (case.state is State.ATTENTION and step is not Step.SETTLE):
        return case
    return await move(tx, case, step, who, summary(strengths, open_tasks))


async def strengths_of(conn: AsyncConnection, case_id: str) -> list[Strength]:
    """The latest evidence's strength for each credential of the case."""
    query = select(evidence.c.strength).where(evidence.c.case_id == case_id, evidence.c.latest)
    return [Strength(value) for value in (await conn.execute(query)).scalars()]


async def open_tasks_of(conn: AsyncConnection, case_id: str) -> int:
    query = select(func.count()).where(tasks.c.case_id == case_id, tasks.c.done_at.is_(None))
    return int((await conn.execute(query)).scalar_one())


def summary(strengths: Sequence[Strength], open_tasks: int) -> str:
    """The number that matters first: "41 of 42 credentials verified gone, 1 needs a person"."""
    counts: Mapping[Strength, int] = {s: strengths.count(s) for s in Strength}
    total = len(strengths)
    if not total:
        return "no credentials found" + (
            f", {open_tasks} task{'s' if open_tasks > 1 else ''} for a person" if open_tasks else ""
        )
    words = [f"{counts[Strength.VERIFIED]} of {total} credentials verified gone"]
    words += [
        f"{counts[s]} {s.value}" for s in (Strength.ACKNOWLEDGED, Strength.ATTESTED, Strength.FAILED) if counts[s]
    ]
    unknown = counts[Strength.UNKNOWN] - open_tasks
    if unknown > 0:
        words.append(f"{unknown} unknown")
    if open_tasks:
        words.append(f"{open_tasks} need{'s' if open_tasks == 1 else ''} a person")
    return ", ".join(words)
