"""What operators do to cases: the same idempotent steps for the CLI, the console and rq-dashboard."""

from __future__ import annotations

import logging

from sqlalchemy.ext.asyncio import AsyncConnection

from offboard_worker.core.case import FINISHED, State, Step, TargetState, can
from offboard_worker.core.credential import SETTLED, Action
from offboard_worker.core.person import Person, PersonState
from offboard_worker.errors import DenylistUnavailable, UsageError
from offboard_worker.jobs import intake
from offboard_worker.jobs.context import JobContext
from offboard_worker.jobs.events import follow_up
from offboard_worker.jobs.rulebook import Accepted
from offboard_worker.store import cases, credentials
from offboard_worker.store.cases import CaseRow
from offboard_worker.store.database import Transaction, new_id
from offboard_worker.store.people import Directory, search

log = logging.getLogger(__name__)


async def find_person(ctx: JobContext, name: str) -> Person:
    """Return the one person with this exact id, alias or e-mail address. Raises UsageError."""
    async with ctx.store.read() as conn:
        found = await search(conn, name)
    if len(found) == 1:
        return found[0]
    if not found:
        raise UsageError(
            f"nobody has the exact id, alias or e-mail address {name!r}",
            advice="Look at `offboard case list`, or add the person under people: in the configuration.",
        )
    raise UsageError(
        f"{len(found)} people have {name!r}: {', '.join(person.id for person in found)}",
        advice="Use the person's own id: nothing is done on a likeness.",
    )


async def find_case(conn: AsyncConnection, case_id: str) -> CaseRow:
    """Return a case. Raises UsageError."""
    case = await cases.one(conn, case_id)
    if case is None:
        raise UsageError(f"there is no case {case_id}", advice="See `offboard case list` for the ids.")
    return case


async def open_case(ctx: JobContext, name: str, who: str, reason: str) -> str:
    """Open a case for a person by an operator's word; return its id (the open one's, if there is one)."""
    person = await find_person(ctx, name)
    if person.protected:
        raise UsageError(
            f"{person.id} is protected (break-glass): nothing is done",
            advice="Take `protected: true` off the person in the configuration first.",
        )
    async with ctx.store.write() as tx:
        accepted = await intake.open_case(tx, person.id, who, reason or "opened by an operator", ctx.book)
        await tx.send()  # this transaction's own reads see the case only then
        case = (await cases.unfinished_of(tx.conn, [person.id]))[person.id]
    await _hand_over(ctx, accepted)
    return case.id


async def _hand_over(ctx: JobContext, accepted: Accepted) -> None:
    """Push, confirm and queue. What Redis can't take now is on record: the schedule and the reconciler do it."""
    try:
        await follow_up(ctx, accepted)
    except DenylistUnavailable as error:
        log.warning("on record, and pending until Redis is back: %s", error)


async def approve(ctx: JobContext, case_id: str, who: str) -> CaseRow:
    """Let a held case go on to revocation."""
    async with ctx.store.write() as tx:
        case = await find_case(tx.conn, case_id)
        if not can(case.state, Step.APPROVE):
            raise UsageError(f"case {case_id} is {case.state.value}: only a held case waits for an approval")
        case = await cases.move(tx, case, Step.APPROVE, who, "approved", approved_by=who)
    await _hand_over(ctx, Accepted(cases=[case_id]))
    return case


async def retry(ctx: JobContext, case_id: str, who: str) -> list[str]:
    """Run what did not end well once more; return the connectors that run. Raises UsageError if nothing is to be done."""
    async with ctx.store.write() as tx:
        case = await find_case(tx.conn, case_id)
        again = await _unsettled(tx, case)
        if not again:
            raise UsageError(
                f"case {case_id} is {case.state.value}, and nothing in it is unfinished",
                advice="Open tasks for a person are attested with `offboard case attest`.",
            )
        if case.state in (State.ATTENTION, State.VERIFIED):
            await cases.move(tx, case, Step.RETRY, who, "retried by an operator")
        elif case.state is not State.REVOKING and case.state not in FINISHED:
            raise UsageError(f"case {case_id} is {case.state.value}: it can't be retried")
        for name in again:
            await cases.set_target(
                tx, case_id, name, state=TargetState.PENDING.value, next_attempt_at=None, error="", advice=""
            )
        tx.record("case.retried", who, case_id, {"connectors": again})
    await _hand_over(ctx, Accepted(cases=[case_id]))
    return again


async def _unsettled(tx: Transaction, case: CaseRow) -> list[str]:
    """The connectors whose part did not finish, or that left a credential behind that is not settled."""
    parts = await cases.targets_of(tx.conn, case.id)
    if case.state in FINISHED:  # a finished case owes nothing but to restore
        parts = [part for part in parts if part.action is Action.RESTORE]
    unfinished = {part.connector for part in parts if part.state is not TargetState.DONE}
    held = await credentials.held_by_case(tx.conn, case.id)
    unsettled = {one.credential.connector for one in held if one.strength not in SETTLED}
    return sorted(unfinished | (unsettled & {part.connector for part in parts}))


async def cancel(ctx: JobContext, case_id: str, who: str, reason: str, *, reinstate: bool) -> CaseRow:
    """Stop a case. With `reinstate` the person is back: new tokens pass, and what we disabled is restored."""
    async with ctx.store.write() as tx:
        case = await find_case(tx.conn, case_id)
        if reinstate:
            person = (await Directory.of_ids(tx.conn, [case.person_id])).by_id[case.person_id]
            if person.state is not PersonState.DEPARTED:
                raise UsageError(
                    f"{person.id} works here: there is nobody to reinstate",
                    advice="`offboard case retry` restores what a reinstatement left undone.",
                )
            accepted = await intake.reinstate(tx, case.person_id, who, reason or "a mistake", ctx.book)
        elif can(case.state, Step.CANCEL):
            await cases.move(tx, case, Step.CANCEL, who, reason)
            accepted = Accepted()
        else:
            raise UsageError(f"case {case_id} is {case.state.value}: there is nothing left to cancel")
        case = await find_case(tx.conn, case_id)
    await _hand_over(ctx, accepted)
    return case


async def attest(ctx: JobContext, task_id: str, who: str, note: str) -> CaseRow:
    """Take a person's word that a task is done: the credential's evidence becomes `attested`."""
    async with ctx.store.write() as tx:
        task = await credentials.attest(tx, task_id, who, note)
        if task is None:
            raise UsageError(f"there is no open task {task_id}", advice="See `offboard case show CASE`.")
        await credentials.attest_evidence(tx, new_id("e"), task["case_id"], task["credential_id"], who, note)
        await cases.settle(tx, task["case_id"], who)
        return await find_case(tx.conn, task["case_id"])
