"""The work on one connector's credentials of one case: find, act, read back, put the evidence on record.

It does for all connectors what none of them does: retries, records, evidence. Everything found is recorded before the
vendor is asked to change anything, and what a later run doesn't find again is still read back. When and whether a part
runs, and what follows from how it ended, is revoke.py's.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from offboard_worker.connector import Connector, ConnectorConfig
from offboard_worker.core.case import FINISHED, State
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
from offboard_worker.errors import (
    AccessRefused,
    ConnectorError,
    DenylistUnavailable,
    Fatal,
    NeedsHuman,
    OffboardError,
    Retryable,
)
from offboard_worker.jobs.context import JobContext
from offboard_worker.jobs.intake import learn_aliases
from offboard_worker.jobs.persist import Attempts, Persistence
from offboard_worker.store import cases, credentials
from offboard_worker.store.cases import CaseRow
from offboard_worker.store.credentials import Held
from offboard_worker.store.database import Transaction
from offboard_worker.store.people import Directory

log = logging.getLogger(__name__)
ASK_AGAIN = 0.25
"""Seconds for which a run believes that its work is still wanted, before it asks the store again."""
READ_BACK_TRIES = 5
"""How often a credential that still reads as active is read again: vendors are eventually consistent."""


@dataclass(slots=True)
class Trouble:
    """The worst that happened to a part of a case; decides whether and when it runs again."""

    retry: Retryable | None = None
    refused: AccessRefused | None = None
    stopped: OffboardError | None = None  # the part as a whole went wrong: it must never end as done
    errors: list[ConnectorError] = field(default_factory=list)

    def note(self, error: ConnectorError) -> None:
        """Keep what happened to one credential."""
        match error:
            case AccessRefused():
                self.refused = error
            case Retryable():
                if self.retry is None or (error.retry_after or 0) > (self.retry.retry_after or 0):
                    self.retry = error
            case _:
                self.errors.append(error)

    def stop(self, error: OffboardError) -> None:
        """Keep what kept the part as a whole from its end."""
        if isinstance(error, AccessRefused | Retryable):
            self.note(error)
        else:
            self.stopped = error

    @property
    def worst(self) -> OffboardError | None:
        return self.refused or self.stopped or self.retry or (self.errors[0] if self.errors else None)


def wanted(case: CaseRow, person: Person, action: Action) -> bool:
    """Say whether the action may (still) be done. Nothing is taken from somebody who works here."""
    if action is Action.RESTORE:
        return case.state in FINISHED and person.state is not PersonState.DEPARTED
    return case.state in (State.REVOKING, State.ATTENTION, State.VERIFIED) and person.state is PersonState.DEPARTED


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
        self._pen = asyncio.Lock()
        self._unwritten: list[tuple[Held, Evidence, ConnectorError | None]] = []
        self._asked_at = 0.0
        self._goes_on = True

    async def work(self) -> None:
        if self.action is Action.DISABLE:
            await self._identify()
            await self._find()
        held = [one for one in await self._held() if self._concerns(one)]
        known = {kind for stage in self.connector.stages for kind in stage}
        if strange := {one.credential.kind.value for one in held if one.credential.kind not in known}:
            raise Fatal(f"{self.connector.instance}: nothing ends a {', '.join(sorted(strange))} (any more)")
        for stage in self._stages():
            ended = await asyncio.gather(
                *(self._settle(one) for one in held if one.credential.kind in stage), return_exceptions=True
            )
            for error in ended:  # only once all of the stage has ended: the client closes behind us
                if error is not None:
                    raise error

    async def _still_wanted(self) -> bool:
        """Ask the store, not too often: the person may have come back, or an operator stopped the case, meanwhile."""
        if self._goes_on and time.monotonic() - self._asked_at >= ASK_AGAIN:
            self._asked_at = time.monotonic()
            async with self.ctx.store.read() as conn:
                case = await cases.one(conn, self.case.id)
                target = await cases.target(conn, self.case.id, self.connector.instance)
                person = (await Directory.of_ids(conn, [self.person.id])).by_id[self.person.id].person()
            self._goes_on = bool(case and target and target.action is self.action and wanted(case, person, self.action))
        return self._goes_on

    def _stages(self) -> Sequence[Sequence[object]]:
        """Restoring goes backwards: what gives power comes last."""
        stages = self.connector.stages
        return tuple(reversed(stages)) if self.action is Action.RESTORE else stages

    def _concerns(self, held: Held) -> bool:
        match self.action:
            case Action.DISABLE:
                return held.strength not in SETTLED or held.credential.state is CredentialState.ACTIVE
            case Action.RESTORE:
                return held.disabled_by_us or _perhaps_ours(held)
            case Action.DELETE:
                ability = self.connector.kinds.get(held.credential.kind)
                return (ability is None or ability.deletable) and held.credential.state is not CredentialState.GONE

    async def _identify(self) -> None:
        """Learn the person's ids in this system for good: after a deletion no vendor tells whose they were."""
        name = self.connector.instance
        ids = await self.persist(lambda: self.connector.identify(self.person), f"{name}: identify", name)
        if set(ids) <= set(self.person.aliases.get(self.connector.system, ())):
            return
        async with self.ctx.store.write() as tx:
            seq = await learn_aliases(
                tx, self.person.id, self.connector.system, ids, f"connector:{name}", self.ctx.book
            )
            self.person = (await Directory.of_ids(tx.conn, [self.person.id])).by_id[self.person.id].person()
        if seq is not None:
            try:
                await self.ctx.projection.push()
            except DenylistUnavailable as error:  # the schedule pushes every second: no reason to leave the rest open
                log.warning("a further id of a leaver is not pushed yet: %s", error)

    async def _find(self) -> None:
        """Record everything that is found before anything is changed. What was found before an error counts too."""
        found: dict[tuple[object, ...], Credential] = {}

        async def everything() -> None:
            async for one in self.connector.find(self.person):
                if one.kind not in self.connector.kinds:
                    raise Fatal(f"{name}: found a {one.kind.value}, which it doesn't declare", connector=name)
                found[one.kind, one.scope, one.id] = one

        name = self.connector.instance
        try:
            await self.persist(everything, f"{name}: find", name)
        except ConnectorError as error:  # an incomplete list must never end as done
            self.trouble.stop(error)
        if found:
            async with self.ctx.store.write() as tx:
                await credentials.keep_found(tx, self.case.id, self.person.id, list(found.values()))

    async def _held(self) -> list[Held]:
        async with self.ctx.store.read() as conn:
            return await credentials.held_by_case(conn, self.case.id, self.connector.instance)

    async def _settle(self, held: Held) -> None:
        """Act on one credential, read it back, and put the evidence on record."""
        async with self._slots:
            if not await self._still_wanted():
                return
            proof, error = await self._prove(held)
        if error is not None:
            self.trouble.note(error)
        self._unwritten.append((held, proof, error))
        async with self._pen:  # what is proven while another record is written shares the next transaction
            batch, self._unwritten = self._unwritten, []
            if batch:
                async with self.ctx.store.write() as tx:
                    for one in batch:
                        await self._record(tx, *one)

    async def _record(self, tx: Transaction, held: Held, proof: Evidence, error: ConnectorError | None) -> None:
        await credentials.keep_evidence(tx, self.case.id, held.row_id, proof)
        if isinstance(error, NeedsHuman):
            await credentials.open_task(
                tx, self.case.id, held.row_id, self.connector.instance, error.message, error.advice
            )
        elif proof.strength in SETTLED:
            await credentials.close_tasks(tx, self.case.id, [held.row_id], "worker", "read back")

    async def _prove(self, held: Held) -> tuple[Evidence, ConnectorError | None]:
        """Do the action and believe only the read-back."""
        credential, ability = held.credential, self.connector.kinds[held.credential.kind]
        requested, acknowledged, attempts = self.ctx.now(), None, Attempts()
        try:
            await self._act(held, attempts)
            acknowledged = self.ctx.now()
            state = await self._read_back(credential, ability)
        except ConnectorError as error:
            return self._failed(credential, error, requested, acknowledged, attempts), error
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

    async def _act(self, held: Held, attempts: Attempts) -> Outcome:
        credential, name = held.credential, self.connector.instance
        verb = {
            Action.DISABLE: self.connector.disable,
            Action.DELETE: self.connector.delete,
            Action.RESTORE: self.connector.restore,
        }[self.action]
        what = f"{credential.ref}: {self.action.value}"
        if self.action is Action.RESTORE and not held.disabled_by_us:
            state = await self.persist(lambda: self.connector.state(credential), what, name)
            if state is CredentialState.ACTIVE:  # we never got as far as taking it away
                return Outcome.ALREADY
        return await self.persist(lambda: verb(credential), what, name, attempts)

    async def _read_back(self, credential: Credential, ability: Ability) -> CredentialState:
        """Read the state; a credential that hasn't changed yet is read again for a few seconds."""
        what, wait = f"{credential.ref}: read back", 0.2
        for attempt in range(READ_BACK_TRIES):
            if attempt:
                await asyncio.sleep(min(wait, self.ctx.settings.max_wait.total_seconds()))
                wait *= 2
            state = await self.persist(lambda: self.connector.state(credential), what, self.connector.instance)
            if strength_of(state, ability, self.action) is not Strength.FAILED:
                break
        return state

    def _failed(
        self,
        credential: Credential,
        error: ConnectorError,
        requested: datetime,
        acknowledged: datetime | None,
        attempts: Attempts,
    ) -> Evidence:
        refused = isinstance(error, Fatal)
        return Evidence(
            credential=credential,
            action=self.action,
            strength=Strength.FAILED if refused else Strength.UNKNOWN,
            state=credential.state if refused else CredentialState.UNKNOWN,
            requested_at=requested,
            acknowledged_at=acknowledged,
            attempts=max(attempts.count, 1),
            error=error.message,
            advice=error.advice,
        )


def _perhaps_ours(held: Held) -> bool:
    """Say whether we may have disabled it: a call went out, or may have, and no answer to it is on record."""
    return held.state_before is CredentialState.ACTIVE and held.strength in (None, Strength.UNKNOWN)


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
