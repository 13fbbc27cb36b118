"""A toy system for the tests of jobs: it can lie, fail, hang, be slow, want people, and refuse us.

`Vault` is the system as it really is, with a log of every call; `Toy` is its connector; `Office` is one installation of
the job layer around it, on a real store and a real Valkey.
"""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any, ClassVar, Self

from redis.asyncio import Redis
from sqlalchemy import select

from offboard_worker.config import JobSettings, PolicySettings
from offboard_worker.connector import Connector, ConnectorConfig, Standing
from offboard_worker.core.case import State
from offboard_worker.core.credential import (
    Ability,
    Credential,
    CredentialKind,
    CredentialState,
    Evidence,
    Outcome,
    Strength,
)
from offboard_worker.core.event import EventKind, IdentityEvent
from offboard_worker.core.person import Person, Subject
from offboard_worker.core.policy import Rules
from offboard_worker.denylist.connection import open_client
from offboard_worker.denylist.facts import RedisNames
from offboard_worker.denylist.projection import Projection
from offboard_worker.errors import NeedsHuman, Retryable
from offboard_worker.jobs import intake, revoke
from offboard_worker.jobs.claims import Claims
from offboard_worker.jobs.context import JobContext
from offboard_worker.jobs.intake import Arrival
from offboard_worker.jobs.rulebook import Rulebook, SourceFacts
from offboard_worker.store import cases, credentials
from offboard_worker.store.cases import CaseRow, TargetRow
from offboard_worker.store.database import Store
from offboard_worker.store.denials import StoredLog
from offboard_worker.store.inbox import Received
from offboard_worker.store.people import search
from offboard_worker.store.schema import audit

KEY, SESSION, ROLE = CredentialKind.ACCESS_KEY, CredentialKind.SESSION, CredentialKind.ROLE
ADA = "00uADA"


@dataclass
class Thing:
    """One credential as the vault has it."""

    kind: CredentialKind
    id: str
    owner: str = ADA
    state: CredentialState = CredentialState.ACTIVE
    note: str = "as it was"


Fault = Callable[[], Any] | BaseException


@dataclass
class Vault:
    """The system itself. `faults[verb, id]` are raised (or called) one by one, each instead of the verb's work."""

    things: dict[str, Thing] = field(default_factory=dict)
    calls: list[tuple[str, str]] = field(default_factory=list)
    faults: dict[tuple[str, str], list[Fault]] = field(default_factory=lambda: defaultdict(list))
    always: dict[tuple[str, str], BaseException] = field(default_factory=dict)
    lies: set[str] = field(default_factory=set)  # says yes and does nothing
    late: dict[str, int] = field(default_factory=dict)  # reads back as before for so many reads
    delay: float = 0.0
    flying: int = 0
    most_flying: int = 0
    find_fails_after: int | None = None
    find_error: BaseException = field(default_factory=lambda: Retryable("the list broke off"))
    after: dict[tuple[str, str], Fault] = field(default_factory=dict)  # raised once the verb has had its effect
    knows: set[str] = field(default_factory=lambda: {ADA})

    def add(self, kind: CredentialKind, *ids: str, owner: str = ADA) -> None:
        for id_ in ids:
            self.things[id_] = Thing(kind, id_, owner)

    def acted(self) -> list[str]:
        return [id_ for verb, id_ in self.calls if verb in ("disable", "delete", "restore")]

    def alive(self, owner: str = ADA) -> set[str]:
        return {t.id for t in self.things.values() if t.owner == owner and t.state is CredentialState.ACTIVE}

    async def call(self, verb: str, id_: str) -> None:
        self.calls.append((verb, id_))
        self.flying += 1
        self.most_flying = max(self.most_flying, self.flying)
        try:
            if self.delay:
                await asyncio.sleep(self.delay)
            if (verb, id_) in self.always:
                raise self.always[verb, id_]
            waiting = self.faults[verb, id_]
            if waiting:
                await _strike(waiting.pop(0))
        finally:
            self.flying -= 1


async def _strike(fault: Fault) -> None:
    if isinstance(fault, BaseException):
        raise fault
    result = fault()
    if asyncio.iscoroutine(result):
        await result


class ToyConfig(ConnectorConfig):
    """Nothing of its own."""


class Toy(Connector[ToyConfig]):
    """The vault's connector. Roles can't be read back, sessions can't be restored or deleted."""

    name: ClassVar[str] = "toy"
    title: ClassVar[str] = "Toy vault"
    Config: ClassVar[type[ConnectorConfig]] = ToyConfig
    kinds: ClassVar[Mapping[CredentialKind, Ability]] = {
        KEY: Ability(reversible=True, read_back=True, permission="keys:write"),
        SESSION: Ability(
            reversible=False,
            read_back=True,
            permission="sessions:write",
            deletable=False,
            residual=timedelta(hours=1),
            residual_note="tokens that the session handed out",
        ),
        ROLE: Ability(reversible=True, read_back=False, permission="roles:write"),
    }
    stages: ClassVar[tuple[tuple[CredentialKind, ...], ...]] = ((KEY,), (SESSION, ROLE))

    def __init__(self, instance: str, config: ToyConfig, vault: Vault) -> None:
        super().__init__(instance, config)
        self.vault = vault

    @classmethod
    @asynccontextmanager
    async def open(cls, instance: str, config: ToyConfig) -> AsyncIterator[Self]:
        yield cls(instance, config, Vault())

    async def check(self) -> Standing:
        return Standing("toy")

    async def identify(self, person: Person) -> tuple[str, ...]:
        await self.vault.call("identify", person.id)
        return tuple(one for one in person.aliases.get(self.system, ()) if one in self.vault.knows)

    async def inventory(self) -> AsyncIterator[Credential]:
        for thing in self.vault.things.values():
            yield self._credential(thing)

    async def find(self, person: Person) -> AsyncIterator[Credential]:
        await self.vault.call("find", person.id)
        mine = set(person.aliases.get(self.system, ()))
        found = [thing for thing in self.vault.things.values() if thing.owner in mine]
        for number, thing in enumerate(found):
            if number == self.vault.find_fails_after:
                raise self.vault.find_error
            yield self._credential(thing)

    async def disable(self, credential: Credential) -> Outcome:
        return await self._change("disable", credential, CredentialState.DISABLED)

    async def delete(self, credential: Credential) -> Outcome:
        return await self._change("delete", credential, CredentialState.GONE)

    async def restore(self, credential: Credential) -> Outcome:
        if not self.kinds[credential.kind].reversible:
            raise NeedsHuman(f"{credential.id} can't be restored", advice="Let them sign in again.")
        return await self._change("restore", credential, CredentialState.ACTIVE)

    async def state(self, credential: Credential) -> CredentialState:
        await self.vault.call("state", credential.id)
        if not self.kinds[credential.kind].read_back:
            return CredentialState.UNKNOWN
        thing = self.vault.things.get(credential.id)
        if self.vault.late.get(credential.id, 0) > 0:
            self.vault.late[credential.id] -= 1
            return credential.state
        return CredentialState.GONE if thing is None else thing.state

    async def _change(self, verb: str, credential: Credential, state: CredentialState) -> Outcome:
        await self.vault.call(verb, credential.id)
        thing = self.vault.things.get(credential.id)
        if thing is None:
            return Outcome.ALREADY
        already = thing.state is state
        if credential.id not in self.vault.lies:
            thing.state, thing.note = state, f"{verb}d"
            if state is CredentialState.GONE:
                del self.vault.things[credential.id]
        if (verb, credential.id) in self.vault.after:
            await _strike(self.vault.after.pop((verb, credential.id)))
        return Outcome.ALREADY if already else Outcome.DONE

    def _credential(self, thing: Thing) -> Credential:
        return Credential(
            self.instance, thing.kind, thing.id, thing.owner, state=thing.state, snapshot={"note": thing.note}
        )


QUICK = JobSettings(attempts=3, max_wait=timedelta(milliseconds=20))
BOOK = Rulebook(
    rules=Rules(revoke_on=("account-disabled",), max_leavers=25),
    window=timedelta(hours=1),
    skew=timedelta(seconds=5),
    connectors={"toy": "okta"},
    sources={"okta-main": SourceFacts("okta")},
)


class Office:
    """The job layer around one vault; `offboard` opens Ada's case, `work` runs the toy's part of it."""

    def __init__(self, store: Store, redis: Redis, *, connectors: Sequence[str] = ("toy",)) -> None:
        self.store = store
        self.redis = redis
        self.vaults = {name: Vault() for name in connectors}
        self.vault = self.vaults[connectors[0]]
        self.config = ToyConfig(type="toy", concurrency=4, timeout=5)
        self.submitted: list[str] = []
        self.removed: set[str] = set()
        self.number = 0
        self.ctx = JobContext(
            store=store,
            projection=Projection(redis, StoredLog(store), RedisNames("t"), lease=0.2),
            claims=Claims(redis, "t"),
            book=replace(BOOK, connectors=dict.fromkeys(connectors, "okta")),
            settings=QUICK,
            policy=PolicySettings(),
            open_connector=self._open,
            sources={},
            submit=self._submit,
        )

    def change(self, **changes: Any) -> None:
        self.ctx = replace(self.ctx, **changes)

    @asynccontextmanager
    async def _open(self, name: str) -> AsyncIterator[Connector[Any]]:
        from offboard_worker.errors import ConfigError

        if name in self.removed:
            raise ConfigError(f"connector {name} is not configured", advice="Put it back.")
        yield Toy(name, self.config.model_copy(update={"system": "okta"}), self.vaults[name])

    async def _submit(self, case_ids: list[str]) -> None:
        self.submitted += case_ids

    async def hears(self, kind: EventKind, okta_id: str = ADA) -> None:
        """An identity provider says something about somebody, by its id."""
        self.number += 1
        at = datetime.fromtimestamp(self.store.clock() + self.number, UTC)
        event = IdentityEvent("okta-main", f"k{self.number}", kind, Subject("okta", okta_id, name="Ada"), at, "v")
        async with self.store.write() as tx:
            received = Received("okta-main", "POST", {}, b"{}", self.store.clock() + self.number)
            await intake.accept(tx, [Arrival(received, (event,))], self.ctx.book)

    async def offboard(self, okta_id: str = ADA) -> CaseRow:
        await self.hears(EventKind.ACCOUNT_DISABLED, okta_id)
        return await self.case(okta_id)

    async def person(self, okta_id: str = ADA) -> Person:
        async with self.store.read() as conn:
            (found,) = await search(conn, okta_id)
        return found

    async def case(self, okta_id: str = ADA) -> CaseRow:
        person = await self.person(okta_id)
        async with self.store.read() as conn:
            found = await cases.latest_of(conn, person.id)
        assert found is not None
        return found

    async def work(self, case: CaseRow, connector: str = "toy", next_try: float | None = None) -> CaseRow:
        """Run one part and return the case as it is then."""
        await revoke.run(self.ctx, case.id, connector, next_try=next_try)
        return await self.case()

    async def target(self, case: CaseRow, connector: str = "toy") -> TargetRow:
        async with self.store.read() as conn:
            found = await cases.target(conn, case.id, connector)
        assert found is not None
        return found

    async def evidence(self, case: CaseRow, *, latest: bool = True) -> list[Evidence]:
        async with self.store.read() as conn:
            return await credentials.evidence_of_case(conn, case.id, latest=latest)

    async def strengths(self, case: CaseRow) -> dict[str, Strength]:
        return {proof.credential.id: proof.strength for proof in await self.evidence(case)}

    async def tasks(self, case: CaseRow) -> list[dict[str, Any]]:
        async with self.store.read() as conn:
            return await credentials.tasks_of(conn, case.id)

    async def audited(self) -> Counter[str]:
        async with self.store.read() as conn:
            return Counter((await conn.execute(select(audit.c.what))).scalars())

    async def pretend(self, case: CaseRow, state: State) -> None:
        """Put a case into a state without its history."""
        async with self.store.write() as tx:
            await cases.set_case(tx, case.id, state=state.value)


@asynccontextmanager
async def office(store: Store, url: str, **settings: Any) -> AsyncIterator[Office]:
    redis = open_client(url, 2.0)
    try:
        yield Office(store, redis, **settings)
    finally:
        await redis.aclose()
