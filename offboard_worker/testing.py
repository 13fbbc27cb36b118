"""The contract that every connector keeps, as tests: shipped for authors of connectors outside this repository.

Subclass `ConnectorContract` in a test module, give it the five fixtures below, and pytest runs the rest. It knows no
vendor: what is really alive it learns from `credentials_alive`, which must not ask the connector but read the (simulated)
system itself. Needs pytest and pytest-asyncio with `asyncio_mode = "auto"`.

    class TestWidgets(ConnectorContract):
        @pytest.fixture
        async def connector(self, widgets): ...
"""

from __future__ import annotations

import socket
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, ClassVar, NoReturn

import pytest
from pydantic import BaseModel

from offboard_worker.connector import Connector
from offboard_worker.core.credential import Action, Credential, CredentialKind, CredentialState, Outcome
from offboard_worker.core.person import Person
from offboard_worker.errors import NeedsHuman
from offboard_worker.secret import Secret

Key = tuple[CredentialKind, str]
"""What tells one credential of a person from another: its kind and exact vendor id."""

CredentialsAlive = Callable[[Person], Awaitable[frozenset[Key]]]

POWERLESS = frozenset({CredentialState.DISABLED, CredentialState.GONE})


def key_of(credential: Credential) -> Key:
    """The form in which `credentials_alive` names a credential."""
    return credential.kind, credential.id


class ConnectorContract:
    """The facts that hold for every connector. Each test gets its own fixtures, so give it a fresh world.

    One promise of `Connector.find` needs a vendor that refuses a single list, which no fixture here can ask for: that
    everything else is yielded before the error is raised, the account or the permissions first. Show it in a test of
    your own, for each list; `offboard_worker.connector.side_by_side` keeps it for lists that are read at once.
    """

    may_need_human: ClassVar[frozenset[tuple[Action, CredentialKind]]] = frozenset()
    """Where NeedsHuman is right for this configuration, beyond what the abilities say (not deletable, not reversible)."""

    @pytest.fixture
    def connector(self) -> Connector[Any]:
        """An opened connector on a fresh world."""
        raise NotImplementedError("the subclass gives the fixture `connector`")

    @pytest.fixture
    def leaver(self) -> Person:
        """Somebody who holds at least one credential of each kind that the connector declares."""
        raise NotImplementedError("the subclass gives the fixture `leaver`")

    @pytest.fixture
    def bystander(self) -> Person:
        """Somebody else in the same system, with credentials, who stays."""
        raise NotImplementedError("the subclass gives the fixture `bystander`")

    @pytest.fixture
    def stranger(self) -> Person:
        """Somebody whom the system does not know, and who looks as much like the leaver as can be."""
        raise NotImplementedError("the subclass gives the fixture `stranger`")

    @pytest.fixture
    def credentials_alive(self) -> CredentialsAlive:
        """Read from the system itself which credentials of a person still let them in.

        Leave out what can be neither listed nor read back (an acknowledged kind), unless the simulator knows it.
        """
        raise NotImplementedError("the subclass gives the fixture `credentials_alive`")

    # What it declares

    def test_every_kind_is_in_exactly_one_stage(self, connector: Connector[Any]) -> None:
        staged = Counter(kind for stage in connector.stages for kind in stage)
        assert dict(staged) == dict.fromkeys(connector.kinds, 1)

    def test_every_kind_names_its_permission_and_explains_its_residual(self, connector: Connector[Any]) -> None:
        for kind, ability in connector.kinds.items():
            assert ability.permission, f"{kind} names no permission"
            assert bool(ability.residual) <= bool(ability.residual_note), f"{kind} has a residual and no note on it"

    async def test_construction_touches_no_network(
        self, connector: Connector[Any], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def refuse(*args: object, **kwargs: object) -> NoReturn:
            raise AssertionError("the network was touched before the first verb")

        monkeypatch.setattr(socket.socket, "connect", refuse)
        monkeypatch.setattr(socket.socket, "connect_ex", refuse)
        monkeypatch.setattr(socket, "getaddrinfo", refuse)
        kind = type(connector)
        kind(connector.instance, connector.config)
        async with kind.open(connector.instance, connector.config) as opened:
            assert opened.instance == connector.instance

    def test_no_secret_is_in_its_repr(self, connector: Connector[Any]) -> None:
        shown = f"{connector!r} {connector} {connector.config!r} {connector.config}"
        for secret in secrets_of(connector.config):
            assert secret not in shown

    async def test_our_own_access_is_complete(self, connector: Connector[Any]) -> None:
        standing = await connector.check()
        assert standing.ok, f"missing: {standing.missing}"
        assert standing.identity

    # Whom it finds

    async def test_the_leaver_is_identified_by_an_exact_id(self, connector: Connector[Any], leaver: Person) -> None:
        ids = await connector.identify(leaver)
        assert ids
        assert len(set(ids)) == len(ids)

    async def test_a_stranger_has_nothing_here(self, connector: Connector[Any], stranger: Person) -> None:
        assert await found(connector, stranger) == []

    async def test_find_yields_each_living_credential_of_the_leaver_once(
        self, connector: Connector[Any], leaver: Person, credentials_alive: CredentialsAlive
    ) -> None:
        mine = await found(connector, leaver)
        keys = [key_of(credential) for credential in mine]
        assert {credential.kind for credential in mine} == set(connector.kinds), "the leaver should hold every kind"
        assert len(keys) == len(set(keys)), "a credential was found twice"
        assert await credentials_alive(leaver) <= set(keys)

    async def test_what_is_found_is_bound_to_exact_ids(
        self, connector: Connector[Any], leaver: Person, bystander: Person
    ) -> None:
        mine, theirs = await found(connector, leaver), await found(connector, bystander)
        for credential in mine:
            assert credential.connector == connector.instance
            assert credential.kind in connector.kinds
            assert credential.id
            assert credential.owner
        assert not {c.ref for c in mine} & {c.ref for c in theirs}
        assert not {c.owner for c in mine} & {c.owner for c in theirs}

    async def test_the_inventory_holds_everything_that_find_yields(
        self, connector: Connector[Any], leaver: Person, bystander: Person
    ) -> None:
        everything = {(c.ref, c.owner) async for c in connector.inventory()}
        for person in (leaver, bystander):
            assert {(c.ref, c.owner) for c in await found(connector, person)} <= everything

    async def test_credentials_carry_no_secret(self, connector: Connector[Any], leaver: Person) -> None:
        shown = repr(await found(connector, leaver))
        for secret in secrets_of(connector.config):
            assert secret not in shown

    # What it does

    async def test_a_disabled_credential_reads_back_as_powerless(
        self, connector: Connector[Any], leaver: Person, credentials_alive: CredentialsAlive
    ) -> None:
        for credential in await in_stages(connector, leaver):
            if await self._attempt(connector, Action.DISABLE, credential) is None:
                continue
            self._expect_powerless(connector, credential, await connector.state(credential))
            assert key_of(credential) not in await credentials_alive(leaver), f"{credential.ref} still lets them in"

    async def test_disabling_and_deleting_twice_is_harmless(self, connector: Connector[Any], leaver: Person) -> None:
        for credential in await in_stages(connector, leaver):
            for action in (Action.DISABLE, Action.DISABLE, Action.DELETE, Action.DELETE):
                outcome = await self._attempt(connector, action, credential)
                assert outcome in (Outcome.DONE, Outcome.ALREADY, None)

    async def test_a_deleted_credential_reads_back_as_gone(
        self, connector: Connector[Any], leaver: Person, credentials_alive: CredentialsAlive
    ) -> None:
        for credential in await in_stages(connector, leaver):
            await self._attempt(connector, Action.DISABLE, credential)
            if await self._attempt(connector, Action.DELETE, credential) is None:
                continue
            state = await connector.state(credential)
            self._expect_powerless(connector, credential, state)
            assert state is not CredentialState.DISABLED, f"{credential.ref} was deleted and is still there"
            assert key_of(credential) not in await credentials_alive(leaver)

    async def test_restoring_undoes_disabling_or_asks_for_a_person(
        self, connector: Connector[Any], leaver: Person
    ) -> None:
        for credential in await in_stages(connector, leaver):
            if await self._attempt(connector, Action.DISABLE, credential) is None:
                continue
            if await self._attempt(connector, Action.RESTORE, credential) is not None:
                expected = (CredentialState.ACTIVE,) if connector.kinds[credential.kind].read_back else CredentialState
                assert await connector.state(credential) in expected

    async def test_nothing_of_a_bystander_is_touched(
        self, connector: Connector[Any], leaver: Person, bystander: Person, credentials_alive: CredentialsAlive
    ) -> None:
        alive = await credentials_alive(bystander)
        before = await snapshot(connector, bystander)
        assert before, "the bystander should hold something"
        for credential in await in_stages(connector, leaver):
            for action in (Action.DISABLE, Action.DELETE):
                await self._attempt(connector, action, credential)
        assert await credentials_alive(bystander) == alive
        assert await snapshot(connector, bystander) == before

    async def test_a_credential_that_never_was_is_gone_or_unknown(
        self, connector: Connector[Any], leaver: Person
    ) -> None:
        for real in await found(connector, leaver):
            # The ending is hexadecimal, so that what should be a UUID still has the form of one.
            never = Credential(
                connector.instance, real.kind, f"{real.id[:-4]}0e0e", f"{real.owner[:-4]}0e0e", real.scope
            )
            assert await connector.state(never) in (CredentialState.GONE, CredentialState.UNKNOWN)

    async def _attempt(self, connector: Connector[Any], action: Action, credential: Credential) -> Outcome | None:
        """Do one verb; None where it rightly asks for a person."""
        try:
            return await getattr(connector, action.value)(credential)  # type: ignore[no-any-return]
        except NeedsHuman as asked:
            task = asked
        ability = connector.kinds[credential.kind]
        allowed = (action, credential.kind) in self.may_need_human
        allowed |= action is Action.DELETE and not ability.deletable
        allowed |= action is Action.RESTORE and not ability.reversible
        assert allowed, f"{action} of a {credential.kind} asks for a person: {task}"
        assert task.advice
        return None

    def _expect_powerless(self, connector: Connector[Any], credential: Credential, state: CredentialState) -> None:
        ability = connector.kinds[credential.kind]
        allowed = POWERLESS if ability.read_back else POWERLESS | {CredentialState.UNKNOWN}
        assert state in allowed, f"{credential.ref} is {state} after the vendor accepted the call"


async def found(connector: Connector[Any], person: Person) -> list[Credential]:
    """Everything that `find` yields, once identified as a job does it: the ids are recorded first."""
    ids = await connector.identify(person)
    known = Person(person.id, person.name, {**person.aliases, connector.system: ids}, person.emails) if ids else person
    return [credential async for credential in connector.find(known)]


async def in_stages(connector: Connector[Any], person: Person) -> list[Credential]:
    """Everything that `find` yields, in the order in which a job ends it."""
    order = [kind for stage in connector.stages for kind in stage]
    return sorted(await found(connector, person), key=lambda credential: order.index(credential.kind))


async def snapshot(connector: Connector[Any], person: Person) -> dict[str, CredentialState]:
    """The state of each credential that the inventory ascribes to a person, by reference."""
    owners = {credential.owner for credential in await found(connector, person)}
    return {c.ref: c.state async for c in connector.inventory() if c.owner in owners}


def secrets_of(config: BaseModel) -> Iterator[str]:
    """Every secret value in a configuration, at any depth: no output may hold one."""
    for name in type(config).model_fields:
        yield from _secrets_in(getattr(config, name))


def _secrets_in(value: object) -> Iterator[str]:
    if isinstance(value, Secret):
        yield value.reveal()
    elif isinstance(value, BaseModel):
        yield from secrets_of(value)
    elif isinstance(value, dict):
        for item in value.values():
            yield from _secrets_in(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _secrets_in(item)
