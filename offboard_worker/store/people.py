"""People in the store: looked up by exact names only, in bulk."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncConnection

from offboard_worker.core.person import Person, PersonState, normal_email
from offboard_worker.store.database import Transaction, new_id
from offboard_worker.store.direct import Insert, Lookup, Query, Row, look_up
from offboard_worker.store.schema import aliases, emails, people, standings

T = TypeVar("T")

_PEOPLE, _ALIASES, _EMAILS = Insert(people), Insert(aliases), Insert(emails)
_STANDINGS = Insert(standings, ("person_id", "source"))
BY_ALIAS = Lookup(aliases, ("system", "alias"), ("person_id",))
BY_EMAIL = Lookup(emails, ("email",), ("person_id",))
_PEOPLE_AGAIN = Insert(people, ("id",))
_OF_PERSON = (
    Lookup(people, ("id",), ("id", "name", "state", "generation", "protected", "created_at")),
    Lookup(aliases, ("person_id",), ("person_id", "system", "alias", "login")),
    Lookup(emails, ("person_id",), ("person_id", "email")),
    Lookup(standings, ("person_id",), ("person_id", "source", "gone", "occurred_at")),
)
"""All that is known of a person, in one visit to the database."""

OPERATOR = "operator"
"""The standing that an operator's own case takes, beside those of the sources."""


@dataclass(slots=True)
class Standing:
    """The last thing one source said about a person."""

    gone: bool
    occurred_at: float


@dataclass(slots=True)
class Known:
    """A person as read inside a transaction, with every name that is recorded for them. Mutable: written by `save`."""

    id: str
    name: str = ""
    state: PersonState = PersonState.ACTIVE
    generation: int = 0
    protected: bool = False
    ids: dict[tuple[str, str], bool] = field(default_factory=dict)  # (system, alias) → is a login
    emails: set[str] = field(default_factory=set)
    standings: dict[str, Standing] = field(default_factory=dict)
    created_at: float = 0.0
    is_new: bool = False
    new_ids: dict[tuple[str, str], str] = field(default_factory=dict)  # → basis
    new_emails: set[str] = field(default_factory=set)

    def person(self) -> Person:
        """The frozen form that connectors and policy see."""
        by_system: dict[str, list[str]] = defaultdict(list)
        for (system, alias), _login in sorted(self.ids.items(), key=lambda item: item[1]):
            by_system[system].append(alias)
        return Person(
            id=self.id,
            name=self.name,
            aliases={system: tuple(names) for system, names in by_system.items()},
            emails=tuple(sorted(self.emails)),
            state=self.state,
            generation=self.generation,
            protected=self.protected,
        )

    def learn(self, system: str, alias: str, basis: str, *, login: bool = False) -> bool:
        """Add a name; return whether it is news."""
        if (system, alias) in self.ids:
            return False
        self.ids[system, alias] = login
        self.new_ids[system, alias] = basis
        return True

    def learn_email(self, address: str) -> bool:
        address = normal_email(address)
        if not address or address in self.emails:
            return False
        self.emails.add(address)
        self.new_emails.add(address)
        return True

    @property
    def gone(self) -> bool:
        return any(standing.gone for standing in self.standings.values())


class Directory:
    """The people whom one transaction deals with: read in bulk by name, changed in memory, saved in bulk."""

    def __init__(self) -> None:
        self.by_id: dict[str, Known] = {}
        self._by_alias: dict[tuple[str, str], str] = {}
        self._by_email: dict[str, set[str]] = defaultdict(set)
        self.besides: list[Row] = []

    @classmethod
    async def of_names(
        cls, conn: AsyncConnection, names: Iterable[tuple[str, str]], addresses: Iterable[str]
    ) -> Directory:
        """Read everybody who has one of these (system, alias) pairs or one of these addresses."""
        return await cls.of_found(conn, await look_up(conn, cls.names(names, addresses)))

    @staticmethod
    def names(names: Iterable[tuple[str, str]], addresses: Iterable[str]) -> list[tuple[Lookup | Query, Sequence[Row]]]:
        """The look-ups whose answers `of_found` wants."""
        mail = {normal_email(address) for address in addresses if address}
        return [(BY_ALIAS, list(set(names))), (BY_EMAIL, [(address,) for address in mail])]

    @classmethod
    async def of_found(
        cls, conn: AsyncConnection, found: Iterable[Sequence[Row]], also: Lookup | None = None
    ) -> Directory:
        return await cls.of_ids(conn, {row[0] for rows in found for row in rows}, also)

    @classmethod
    async def of_ids(cls, conn: AsyncConnection, ids: Iterable[str], also: Lookup | None = None) -> Directory:
        """Read these people; the answers to `also`, asked by person id in the same visit, are in `besides`."""
        directory = cls()
        for chunk in _chunks(list(set(ids)), 800):
            keys = [(person_id,) for person_id in chunk]
            looks = _OF_PERSON if also is None else (*_OF_PERSON, also)
            them, names, mail, said, *besides = await look_up(conn, [(look, keys) for look in looks])
            directory.besides += [row for rows in besides for row in rows]
            for person_id, name, state, generation, protected, created_at in them:
                directory.by_id[person_id] = Known(
                    person_id, name, PersonState(state), generation, bool(protected), created_at=created_at
                )
            for person_id, system, alias, login in names:
                directory.by_id[person_id].ids[system, alias] = bool(login)
                directory._by_alias[system, alias] = person_id
            for person_id, address in mail:
                directory.by_id[person_id].emails.add(address)
                directory._by_email[address].add(person_id)
            for person_id, source, gone, occurred_at in said:
                directory.by_id[person_id].standings[source] = Standing(bool(gone), occurred_at)
        return directory

    def find(
        self, names: Sequence[tuple[str, str]], addresses: Iterable[str] = (), *, has_id: bool = True
    ) -> Known | None:
        """Return the person with the first of these names, else the only one with one of these addresses.

        `names` has the primary id first, if `has_id`. A login that came with an id identifies only somebody without
        another primary id in that system: logins are given to the next person, ids are not.
        """
        for position, name in enumerate(names):
            known = self.by_id.get(self._by_alias.get(name, ""))
            if known is None:
                continue
            others = any(system == name[0] and not login for (system, _), login in known.ids.items())
            if position == 0 or not others or not has_id:
                return known
        owners = {owner for address in addresses for owner in self._by_email.get(normal_email(address), ())}
        if len(owners) != 1:
            return None
        known = self.by_id[owners.pop()]
        system = names[0][0] if names else ""
        another = any(theirs == system and not login for (theirs, _), login in known.ids.items())
        return (
            None if another and has_id else known
        )  # an address that came with another id of the same system was handed on

    def owner(self, system: str, alias: str) -> Known | None:
        """Return whose a name is, among those who were read."""
        return self.by_id.get(self._by_alias.get((system, alias), ""))

    def add(self, name: str = "", person_id: str | None = None, *, protected: bool = False) -> Known:
        """Add somebody whom we did not know."""
        known = Known(person_id or new_id("p"), name, protected=protected, is_new=True)
        self.by_id[known.id] = known
        return known

    def learn(self, known: Known, system: str, alias: str, basis: str, *, login: bool = False) -> bool:
        """Record a name for a person unless it is already somebody's; return whether it is news for them."""
        owner = self._by_alias.get((system, alias))
        if owner is not None and owner != known.id:
            return False
        self._by_alias[system, alias] = known.id
        return known.learn(system, alias, basis, login=login)

    def learn_email(self, known: Known, address: str) -> bool:
        self._by_email[normal_email(address)].add(known.id)
        return known.learn_email(address)

    async def save(self, tx: Transaction) -> None:
        """Write what changed: new people and names are inserted, states and standings overwritten."""
        self.defer(tx)
        await tx.send()

    def defer(self, tx: Transaction) -> None:
        """As `save`, at the transaction's next `send`."""
        everybody = self.by_id.values()
        tx.defer(_PEOPLE_AGAIN, [_row(known, known.created_at) for known in everybody if not known.is_new])
        tx.defer(_PEOPLE, [_row(known, tx.now) for known in everybody if known.is_new])
        tx.defer(
            _ALIASES,
            [
                (system, alias, known.id, known.ids[system, alias], basis, tx.now)
                for known in everybody
                for (system, alias), basis in known.new_ids.items()
            ],
        )
        tx.defer(_EMAILS, [(address, known.id, tx.now) for known in everybody for address in known.new_emails])
        tx.defer(
            _STANDINGS,
            [(known.id, source, s.gone, s.occurred_at) for known in everybody for source, s in known.standings.items()],
        )
        for known in everybody:
            known.is_new, known.new_ids, known.new_emails = False, {}, set()


def _row(known: Known, now: float) -> Row:
    return (known.id, known.name, known.state.value, known.generation, known.protected, now)


def _chunks(items: Sequence[T], size: int) -> Iterable[Sequence[T]]:
    return (items[start : start + size] for start in range(0, len(items), size))


async def search(conn: AsyncConnection, name: str) -> list[Person]:
    """Return the people whom an operator may mean: exact id, alias or e-mail address. Never a likeness."""
    ids = set((await conn.execute(select(people.c.id).where(people.c.id == name))).scalars())
    if not ids:
        ids |= set((await conn.execute(select(aliases.c.person_id).where(aliases.c.alias == name))).scalars())
        ids |= set(
            (await conn.execute(select(emails.c.person_id).where(emails.c.email == normal_email(name)))).scalars()
        )
    directory = await Directory.of_ids(conn, ids)
    return [known.person() for known in directory.by_id.values()]


async def configured(tx: Transaction, settings: Mapping[str, Any]) -> int:
    """Bring the people named in the configuration into the store; return how many are new.

    `settings` maps our person id to a PersonSettings. Names are added, never taken away: what was learned is kept.
    """
    names = [
        (system, alias)
        for entry in settings.values()
        for system, ids in entry.aliases.items()
        for alias in ([ids] if isinstance(ids, str) else ids)
    ]
    addresses = [address for entry in settings.values() for address in entry.emails]
    directory = await Directory.of_names(tx.conn, names, addresses)
    directory.by_id.update((await Directory.of_ids(tx.conn, settings)).by_id)
    added = 0
    for person_id, entry in settings.items():
        known = directory.by_id.get(person_id)
        if known is None:
            known = directory.add(entry.name, person_id, protected=entry.protected)
            tx.record("person.added", "config", person_id, {"protected": entry.protected})
            added += 1
        known.name, known.protected = entry.name or known.name, entry.protected
        for system, ids in entry.aliases.items():
            for alias in [ids] if isinstance(ids, str) else ids:
                directory.learn(known, system, alias, "configuration")
                owner = directory.owner(system, alias)
                if entry.protected and owner is not None and not owner.protected:
                    # Somebody whom a source named before the configuration did: protection is for them, not for a word.
                    owner.protected = True
                    tx.record("person.protected", "config", owner.id, {"as": person_id, "system": system, "id": alias})
        for address in entry.emails:
            directory.learn_email(known, address)
    await directory.save(tx)
    return added
