"""The denial log: rows with a gapless `seq`, appended in the transaction that records why. Implements `DenialLog`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from sqlalchemy import select

from offboard_worker.denylist.facts import (
    Entry,
    Fact,
    Key,
    email_key,
    person_key,
    subject_key,
    token_key,
)
from offboard_worker.errors import StoreUnavailable
from offboard_worker.store.database import Store, Transaction
from offboard_worker.store.direct import Lookup, Row, look_up
from offboard_worker.store.people import Known
from offboard_worker.store.schema import counters, denial_facts, denials

FACTS = Lookup(denial_facts, ("key",), ("key", "denied", "before", "expires_at"))


def keys_of(known: Known, issuers: dict[str, tuple[str, ...]], named: Iterable[tuple[str, str]] = ()) -> list[Key]:
    """Every key but the person's own under which this person's tokens may show themselves.

    `issuers` maps a system's namespace to the token issuers whose subjects are its ids and logins. `named` are further
    (system, alias) pairs that an event calls them by, though the names are recorded for somebody else.
    """
    names = sorted({*known.ids, *named}) if named else sorted(known.ids)
    keys = [subject_key(iss, alias) for (system, alias) in names for iss in issuers.get(system, ())]
    keys += [email_key(address) for address in sorted(known.emails)]
    keys += [
        subject_key(iss, address)
        for address in sorted(known.emails)
        for iss in sorted({iss for many in issuers.values() for iss in many})
    ]
    return list(dict.fromkeys(keys))


async def current(tx: Transaction, keys: Iterable[Key]) -> dict[Key, Fact]:
    """The current facts of these keys, as committed before this transaction."""
    (rows,) = await look_up(tx.conn, [(FACTS, [(key,) for key in set(keys)])])
    return as_facts(rows)


def as_facts(rows: Iterable[Row]) -> dict[Key, Fact]:
    """Read the rows of a FACTS look-up."""
    return {key: Fact(key, bool(denied), before, expires_at) for key, denied, before, expires_at in rows}


def deny(known: Known, keys: Sequence[Key], old: dict[Key, Fact], now: int) -> list[Fact]:
    """Facts that refuse every token of a person from now on. The person's generation must have been raised before."""
    return [Fact(person_key(known.id), True, known.generation), *(_aged(k, True, old, now) for k in keys)]


def cut(known: Known, keys: Sequence[Key], old: dict[Key, Fact], until: int) -> list[Fact]:
    """Facts that kill what was issued at or before `until`, and leave a denial that stands as it is."""
    mine = old.get(person_key(known.id))
    person = Fact(person_key(known.id), mine.denied if mine else False, known.generation)
    return [person, *(_aged(k, old[k].denied if k in old else person.denied, old, until) for k in keys)]


def lift(known: Known, keys: Sequence[Key], old: dict[Key, Fact], now: int) -> list[Fact]:
    """Facts that welcome new tokens, while all that were issued until now stay dead."""
    return [Fact(person_key(known.id), False, known.generation), *(_aged(k, False, old, now) for k in keys)]


def _aged(key: Key, denied: bool, old: dict[Key, Fact], before: int) -> Fact:
    """A fact whose issued-before time never goes back, even if the clock does."""
    return Fact(key, denied, max(before, old[key].before if key in old else 0))


def deny_token(iss: str, jti: str, expires_at: int) -> Fact:
    """The fact that refuses one token until it expires."""
    return Fact(token_key(iss, jti), True, 0, expires_at)


class StoredLog:
    """The denial log as the projection reads it."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def log_id(self) -> str:
        return (await self._counter())[1]

    async def head(self) -> int:
        return (await self._counter())[0]

    async def since(self, seq: int, limit: int) -> Sequence[Entry]:
        """As the interface says. What other processes committed behind our own entries, they push themselves."""
        if ours := self._store.just_committed(seq, limit):
            return ours
        query = select(denials.c.seq, denials.c.facts).where(denials.c.seq > seq).order_by(denials.c.seq).limit(limit)
        async with self._store.read() as conn:
            return [Entry.from_wire(row.seq, row.facts) for row in await conn.execute(query)]

    async def facts(self) -> tuple[int, Sequence[Fact]]:
        async with self._store.read() as conn:
            head = (await conn.execute(select(counters.c.value).where(counters.c.name == "denials"))).scalar_one()
            rows = await conn.execute(select(denial_facts))
            return head, [Fact(row.key, bool(row.denied), row.before, row.expires_at) for row in rows]

    async def _counter(self) -> tuple[int, str]:
        async with self._store.read() as conn:
            query = select(counters.c.value, counters.c.text).where(counters.c.name == "denials")
            row = (await conn.execute(query)).first()
        if row is None:
            raise StoreUnavailable("the store has no denial log: its migration did not finish")
        return row.value, row.text


async def listed(store: Store, *, all_entries: bool = False) -> list[dict[str, Any]]:
    """What `offboard denylist list` shows: the current facts, or with `all_entries` the whole log."""
    async with store.read() as conn:
        if all_entries:
            rows = await conn.execute(select(denials).order_by(denials.c.seq))
            return [
                {
                    "seq": r.seq,
                    "at": r.at,
                    "effect": r.effect,
                    "person": r.person_id,
                    "case": r.case_id,
                    "who": r.who,
                    "reason": r.reason,
                    "facts": [
                        {"key": f.key, "denied": f.denied, "before": f.before, "expires_at": f.expires_at}
                        for f in Entry.from_wire(r.seq, r.facts).facts
                    ],
                }
                for r in rows
            ]
        return [
            {"key": r.key, "denied": bool(r.denied), "before": r.before, "expires_at": r.expires_at, "seq": r.seq}
            for r in await conn.execute(select(denial_facts).order_by(denial_facts.c.seq, denial_facts.c.key))
        ]
