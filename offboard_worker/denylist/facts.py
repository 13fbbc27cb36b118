"""Deny facts: what they are keyed by, what they mean, and how they are written down. No I/O.

A fact is keyed by what a *verified* token says, never by the token's bytes: the same claims verify under other
spellings (ECDSA n-s, base64 padding, a second signature). A fact's value is absolute, never a delta, so that applying
an entry twice is harmless.

| kind     | key parts     | a token is dead when                                            |
|----------|---------------|-----------------------------------------------------------------|
| `person` | our person id | the fact is denied, or the token's generation < `before`         |
| `sub`    | iss, sub      | the fact is denied, or the token was issued at or before `before`|
| `sid`    | iss, sid      | as `sub`                                                         |
| `email`  | address       | as `sub`                                                         |
| `jti`    | iss, jti      | the fact is denied (until `expires_at`)                          |
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from typing import Protocol
from urllib.parse import quote

from offboard_worker.core.person import normal_email

Key = str
"""A fact's key: `kind|part|part`, each part percent-encoded, so that no two different facts share one."""


class FactKind(StrEnum):
    PERSON = "person"
    SUBJECT = "sub"
    SESSION = "sid"
    EMAIL = "email"
    TOKEN = "jti"  # noqa: S105 - the claim's name


_PLAIN = re.compile(r"[A-Za-z0-9_.~@:-]*").fullmatch


def _key(kind: FactKind, *parts: str) -> Key:
    return "|".join((kind, *[part if _PLAIN(part) else _encoded(part) for part in parts]))


@lru_cache(maxsize=256)  # an issuer's address comes with every subject
def _encoded(part: str) -> str:
    return quote(part, safe="@.:-")


def person_key(person_id: str) -> Key:
    return _key(FactKind.PERSON, person_id)


def subject_key(iss: str, sub: str) -> Key:
    return _key(FactKind.SUBJECT, iss, sub)


def session_key(iss: str, sid: str) -> Key:
    return _key(FactKind.SESSION, iss, sid)


def email_key(address: str) -> Key:
    return _key(FactKind.EMAIL, normal_email(address))


def token_key(iss: str, jti: str) -> Key:
    return _key(FactKind.TOKEN, iss, jti)


def kind_of(key: Key) -> FactKind:
    """Return the kind of a key. Raises ValueError if it isn't one."""
    return FactKind(key.partition("|")[0])


@dataclass(frozen=True, slots=True)
class Fact:
    """One fact. `before` is a generation for `person` and Unix seconds for all others; `expires_at` Unix seconds."""

    key: Key
    denied: bool
    before: int = 0
    expires_at: int | None = None

    def wire(self) -> str:
        """The value beside the key in Redis: `1:1764000000:` or `0:3:`, with an expiry behind the last colon."""
        return f"{int(self.denied)}:{self.before}:{'' if self.expires_at is None else self.expires_at}"

    @classmethod
    def from_wire(cls, key: Key, value: str) -> Fact:
        """Read `wire` back. Raises ValueError."""
        denied, before, expires = value.split(":")
        return cls(key, denied == "1", int(before), int(expires) if expires else None)


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry of the denial log: everything that one decision denied or lifted, atomically. `at` is Unix seconds."""

    seq: int
    facts: tuple[Fact, ...]
    at: float

    def wire(self) -> str:
        """One JSON array: `[at, [[key, value], …]]`."""
        return json.dumps([self.at, [[fact.key, fact.wire()] for fact in self.facts]], separators=(",", ":"))

    @classmethod
    def from_wire(cls, seq: int, text: str) -> Entry:
        """Read `wire` back. Raises ValueError."""
        at, facts = json.loads(text)
        return cls(seq, tuple(Fact.from_wire(key, value) for key, value in facts), float(at))


@dataclass(frozen=True, slots=True)
class TokenIdentity:
    """Every identity that a verified token carries: what the denylist is asked about.

    `person` is set on tokens that we issued, with their `generation`. `keys` are the other facts' keys (sub, sid,
    email, jti). `issued_at` is Unix seconds, None where the token has no `iat`: then any issued-before time kills it.
    """

    keys: tuple[Key, ...]
    issued_at: int | None
    person: Key | None = None
    generation: int = 0

    def all_keys(self) -> tuple[Key, ...]:
        return self.keys if self.person is None else (self.person, *self.keys)


def kills(fact: Fact, identity: TokenIdentity, now: float) -> bool:
    """Say whether one fact makes a token dead. The fact's key must be one of the identity's."""
    if fact.expires_at is not None and fact.expires_at <= now:
        return False
    if fact.denied:
        return True
    if fact.key == identity.person:
        return identity.generation < fact.before
    if not fact.before:
        return False
    return identity.issued_at is None or identity.issued_at <= fact.before


def first_killer(facts: Mapping[Key, Fact], identity: TokenIdentity, now: float) -> Fact | None:
    """Return the first fact that makes the token dead, or None if nothing does."""
    for key in identity.all_keys():
        fact = facts.get(key)
        if fact is not None and kills(fact, identity, now):
            return fact
    return None


def compact(entries: Iterable[Entry], now: float) -> dict[Key, Fact]:
    """Fold a log, oldest first, into the current facts, without what has expired."""
    facts: dict[Key, Fact] = {}
    for entry in entries:
        facts.update((fact.key, fact) for fact in entry.facts)
    return {key: fact for key, fact in facts.items() if fact.expires_at is None or fact.expires_at > now}


class DenialLog(Protocol):
    """What the projection needs of the store: the truth of which Redis holds a copy."""

    async def log_id(self) -> str:
        """The log's random id: another id means another log, never to be mixed."""

    async def head(self) -> int:
        """The seq of the last committed entry, 0 for an empty log."""

    async def since(self, seq: int, limit: int) -> Sequence[Entry]:
        """Entries after `seq`, in order, without a gap, at most `limit`."""

    async def facts(self) -> tuple[int, Sequence[Fact]]:
        """The compacted facts and the seq they stand at, read in one transaction."""


@dataclass(frozen=True, slots=True)
class RedisNames:
    """The keys in Redis, all under one hash tag, so that one Lua call may touch them all on a cluster."""

    prefix: str = "offboard"

    @property
    def meta(self) -> str:
        """Hash: `id` (the log's), `build` (random, of this projection), `seq` (applied), `count` (of the facts), and
        `since` (ms by Redis's clock: when this projection was built, or `server` was last seen to change)."""
        return f"{{{self.prefix}}}:deny:meta"

    @property
    def facts(self) -> str:
        """Hash: fact key → `Fact.wire()`."""
        return f"{{{self.prefix}}}:deny:facts"

    @property
    def log(self) -> str:
        """Stream: entry id `<seq>-0`, field `e` → `Entry.wire()`, field `id` → `<the log's id>~<build>`."""
        return f"{{{self.prefix}}}:deny:log"

    @property
    def replicas(self) -> str:
        """Hash: replica id → `applied seq:lease ms:last heartbeat (Redis ms):its number`."""
        return f"{{{self.prefix}}}:deny:replicas"

    @property
    def issued(self) -> str:
        """Hash: `person id|jti` → JSON of an access token that we issued (never the token)."""
        return f"{{{self.prefix}}}:tokens:issued"

    @property
    def issued_expiry(self) -> str:
        """Sorted set: `person id|jti` scored by expiry (Unix seconds)."""
        return f"{{{self.prefix}}}:tokens:expiry"
