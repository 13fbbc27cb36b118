"""One connector's part of one case: find, disable, read back (and later delete, or restore).

It does for all connectors what none of them does: retries, records, evidence. Running it twice, or again after it was
killed at any point, ends in the same true state: everything found is recorded before the vendor is asked to change
anything, and what a later run doesn't find again is still read back.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from offboard_worker.connector import Connector, ConnectorConfig
from offboard_worker.core.case import State, Step, TargetState
from offboard_worker.core.credential import (
    SETTLED,
    Ability,
    Action,
    Credential,
    CredentialState,
    Evidence,
    Outcome,
    Strength,
    strength_of,
)
from offboard_worker.core.person import Person, PersonState
from offboard_worker.errors import AccessRefused, ConnectorError, Fatal, NeedsHuman, Retryable
from offboard_worker.jobs.context import JobContext
from offboard_worker.jobs.intake import learn_aliases
from offboard_worker.jobs.persist import Attempts, Persistence
from offboard_worker.store import cases, credentials
from offboard_worker.store.cases import CaseRow, TargetRow
from offboard_worker.store.credentials import Held
from offboard_worker.store.database import Transaction
from offboard_worker.store.people import Directory
from offboard_worker.store.schema import pauses

READ_BACK_TRIES = 5
"""How often a credential that still reads as active is read again: vendors are eventually consistent."""


@dataclass(slots=True)
class Trouble:
    """The worst that happened to a part of a case; decides whether and when it runs again."""

    retry: Retryable | None = None
    refused: AccessRefused | None = None
    errors: list[ConnectorError] = field(default_factory=list)

    def note(self, error: ConnectorError) -> None:
        match error:
            case AccessRefused():
                self.refused = error
            case Retryable():
                if self.retry is None or (error.retry_after or 0) > (self.retry.retry_after or 0):
                    self.retry = error
            case _:
                self.errors.append(error)


async def run(ctx: JobContext, case_id: str, instance: str, *, next_try: float | None) -> None:
    """Do one connector's part of one case. Raises Retryable or AccessRefused once what could be done is on record.

    `next_try` is after how many seconds the queue would run it again; None says that it won't by itself: then the part
    is marked as failed.
    """
    async with ctx.claims.hold(f"{case_id}:{instance}") as ours:
        if not ours:
            return  # another worker is on it; if that one dies, the reconciler finds the work again
        begun = await _begin(ctx, case_id, instance)
        if begun is None:
            return
        case, target, person = begun
        trouble = Trouble()
        try:
            async with ctx.connector(instance) as connector:
                part = Part(ctx, connector, case, target.action, person, trouble)
                await part.work()
        except ConnectorError as error:
            trouble.note(error)
        await _end(ctx, case_id, instance, trouble, next_try)
    if trouble.refused is not None:
        raise trouble.refused
    if trouble.retry is not None:
        raise trouble.retry


async def _begin(ctx: JobContext, case_id: str, instance: str) -> tuple[CaseRow, TargetRow, Person] | None:
    """Mark the part as running; None where there is nothing to do (any more)."""
    async with ctx.store.write() as tx:
        case = await cases.one(tx.conn, case_id)
        target = await cases.target(tx.conn, case_id, instance)
        if case is None or target is None or target.state is TargetState.DONE:
            return None
        if case.state is State.ATTENTION:  # re-run from rq-dashboard: the case goes back to work by itself
            case = await cases.move(tx, case, Step.RETRY, "worker", f"{instance} runs again")
        working = (
            {State.REVOKING, State.VERIFIED}
            if target.action is not Action.RESTORE
            else {State.REINSTATED, State.CLOSED}
        )
        if case.state not in working:
            return None
        person = (await Directory.of_ids(tx.conn, [case.person_id])).by_id[case.person_id].person()
        if target.action is not Action.RESTORE and person.state is not PersonState.DEPARTED:
            return None  # back again: nothing is taken from somebody who works here
        await cases.set_target(
            tx,
            case_id,
            instance,
            state=TargetState.RUNNING.value,
            started_at=tx.now,
            runs=target.runs + 1,
            next_attempt_at=None,
        )
        tx.record("target.started", "worker", case_id, {"connector": instance, "action": target.action.value})
    return case, target, person


async def _end(ctx: JobContext, case_id: str, instance: str, trouble: Trouble, next_try: float | None) -> None:
    """Record how the part ended, and let the case take the step that this calls for."""
    error = trouble.refused or trouble.retry or (trouble.errors[0] if trouble.errors else None)
    async with ctx.store.write() as tx:
        state, again = _verdict(trouble, next_try, tx.now)
        await cases.set_target(
            tx,
            case_id,
            instance,
            state=state.value,
            finished_at=tx.now if state is TargetState.DONE else None,
            next_attempt_at=again,
            error=error.message if error else "",
            advice=error.advice if error else "",
        )
        tx.record(
            "target.ended",
            "worker",
            case_id,
            {"connector": instance, "state": state.value, "error": error.message if error else ""},
        )
        await _pause(tx, instance, trouble.refused)
        await cases.settle(tx, case_id, "worker")


def _verdict(trouble: Trouble, next_try: float | None, now: float) -> tuple[TargetState, float | None]:
    if trouble.refused is not None:
        return TargetState.PAUSED, None
    if trouble.retry is None:
        return TargetState.DONE, None
    if next_try is None:
        return TargetState.FAILED, None
    # The queue keeps the appointment; the store's is a little later, for when the queue has lost it.
    return TargetState.RETRYING, now + max(trouble.retry.retry_after or 0, next_try) + 15


async def _pause(tx: Transaction, instance: str, refused: AccessRefused | None) -> None:
    """Keep, or take back, that our own credential for a system is refused."""
    have = (await tx.conn.execute(pauses.select().where(pauses.c.connector == instance))).first()
    if refused is not None and have is None:
        await tx.conn.execute(
            pauses.insert().values(connector=instance, error=refused.message, advice=refused.advice, since=tx.now)
        )
        tx.record("connector.paused", "worker", instance, {"error": refused.message})
    elif refused is None and have is not None:
        await tx.conn.execute(pauses.delete().where(pauses.c.connector == instance))
        tx.record("connector.resumed", "worker", instance, {})


class Part:
    """One run over one connector's credentials of one case."""

    def __init__(
        self,
        ctx: JobContext,
        connector: Connector[ConnectorConfig],
        case: CaseRow,
        action: Action,
        person: Person,
        trouble: Trouble,
    ) -> None:
        self.ctx = ctx
        self.connector = connector
        self.case = case
        self.action = action
        self.person = person
        self.trouble = trouble
        self.persist = Persistence(ctx.settings, connector.config.timeout * 2)
        self._slots = asyncio.Semaphore(connector.config.concurrency)

    async def work(self) -> None:
        if self.action is Action.DISABLE:
            await self._identify()
            await self._find()
        held = [one for one in await self._held() if self._concerns(one)]
        for stage in self._stages():
            await asyncio.gather(*(self._settle(one) for one in held if one.credential.kind in stage))

    def _stages(self) -> Sequence[Sequence[object]]:
        """Restoring goes backwards: what gives power comes last."""
        stages = self.connector.stages
        return tuple(reversed(stages)) if self.action is Action.RESTORE else stages

    def _concerns(self, held: Held) -> bool:
        match self.action:
            case Action.DISABLE:
                return held.strength not in SETTLED or held.credential.state is CredentialState.ACTIVE
            case Action.RESTORE:
                return held.disabled_by_us
            case Action.DELETE:
                ability = self.connector.kinds[held.credential.kind]
                return ability.deletable and held.credential.state is not CredentialState.GONE

    async def _identify(self) -> None:
        """Learn the person's ids in this system for good: after a deletion no vendor tells whose they were."""
        name = self.connector.instance
        ids = await self.persist(lambda: self.connector.identify(self.person), f"{name}: identify", name)
        async with self.ctx.store.write() as tx:
            seq = await learn_aliases(
                tx, self.person.id, self.connector.system, ids, f"connector:{name}", self.ctx.book
            )
            self.person = (await Directory.of_ids(tx.conn, [self.person.id])).by_id[self.person.id].person()
        if seq is not None:
            await self.ctx.projection.push()

    async def _find(self) -> None:
        """Record everything that is found before anything is changed. What was found before an error counts too."""
        found: list[Credential] = []

        async def everything() -> None:
            found.clear()
            async for credential in self.connector.find(self.person):
                found.append(credential)

        name = self.connector.instance
        try:
            await self.persist(everything, f"{name}: find", name)
        except ConnectorError as error:
            self.trouble.note(error)
            if not isinstance(error, Retryable | AccessRefused):  # an incomplete list must never end as done
                self.trouble.note(Retryable(error.message, advice=error.advice, connector=name))
        if found:
            async with self.ctx.store.write() as tx:
                await credentials.keep_found(tx, self.case.id, self.person.id, found)

    async def _held(self) -> list[Held]:
        async with self.ctx.store.read() as conn:
            return await credentials.held_by_case(conn, self.case.id, self.connector.instance)

    async def _settle(self, held: Held) -> None:
        """Act on one credential, read it back, and put the evidence on record."""
        async with self._slots:
            proof, error = await self._prove(held.credential)
        async with self.ctx.store.write() as tx:
            await credentials.keep_evidence(tx, self.case.id, held.row_id, proof)
            if isinstance(error, NeedsHuman):
                await credentials.open_task(
                    tx, self.case.id, held.row_id, self.connector.instance, error.message, error.advice
                )
            elif proof.strength in SETTLED:
                await credentials.close_tasks(tx, self.case.id, [held.row_id], "worker", "read back")
        if error is not None:
            self.trouble.note(error)

    async def _prove(self, credential: Credential) -> tuple[Evidence, ConnectorError | None]:
        """Do the action and believe only the read-back."""
        ability = self.connector.kinds[credential.kind]
        requested, attempts = self.ctx.now(), Attempts()
        try:
            await self._act(credential, attempts)
            acknowledged = self.ctx.now()
            state = await self._read_back(credential, ability)
        except ConnectorError as error:
            return self._failed(credential, error, requested, attempts), error
        strength = strength_of(state, ability, self.action)
        proof = Evidence(
            credential=credential,
            action=self.action,
            strength=strength,
            state=state,
            requested_at=requested,
            acknowledged_at=acknowledged,
            verified_at=self.ctx.now() if strength is Strength.VERIFIED else None,
            attempts=attempts.count,
            method=_method(self.connector, credential, state, ability),
            error="" if strength in SETTLED else _disbelief(credential, state),
            advice="" if strength in SETTLED else "Look at it in the vendor's console, then retry the case.",
            residual_until=_residual(ability, acknowledged) if self.action is Action.DISABLE else None,
            residual_note=ability.residual_note if self.action is Action.DISABLE else "",
        )
        return proof, None

    async def _act(self, credential: Credential, attempts: Attempts) -> Outcome:
        verb = {
            Action.DISABLE: self.connector.disable,
            Action.DELETE: self.connector.delete,
            Action.RESTORE: self.connector.restore,
        }[self.action]
        what = f"{credential.ref}: {self.action.value}"
        return await self.persist(lambda: verb(credential), what, self.connector.instance, attempts)

    async def _read_back(self, credential: Credential, ability: Ability) -> CredentialState:
        """Read the state; a credential that hasn't changed yet is read again for a few seconds."""
        what = f"{credential.ref}: read back"
        unchanged = CredentialState.ACTIVE if self.action is not Action.RESTORE else CredentialState.DISABLED
        wait, state = 0.2, CredentialState.UNKNOWN
        for _ in range(READ_BACK_TRIES):
            state = await self.persist(lambda: self.connector.state(credential), what, self.connector.instance)
            if state is not unchanged:
                break
            await asyncio.sleep(min(wait, self.ctx.settings.max_wait.total_seconds()))
            wait *= 2
        return state

    def _failed(
        self, credential: Credential, error: ConnectorError, requested: datetime, attempts: Attempts
    ) -> Evidence:
        refused = isinstance(error, Fatal)
        return Evidence(
            credential=credential,
            action=self.action,
            strength=Strength.FAILED if refused else Strength.UNKNOWN,
            state=credential.state if refused else CredentialState.UNKNOWN,
            requested_at=requested,
            attempts=max(attempts.count, 1),
            error=error.message,
            advice=error.advice,
        )


def _method(
    connector: Connector[ConnectorConfig], credential: Credential, state: CredentialState, ability: Ability
) -> str:
    if state is CredentialState.UNKNOWN and not ability.read_back:
        return f"{connector.title} acknowledged the call and offers no read-back"
    return f"{connector.title} read back {credential.kind.value} {credential.id} as {state.value}"


def _disbelief(credential: Credential, state: CredentialState) -> str:
    return f"the vendor accepted the call, and reads {credential.kind.value} {credential.id} back as {state.value}"


def _residual(ability: Ability, since: datetime) -> datetime | None:
    return since + ability.residual if ability.residual > timedelta(0) else None
