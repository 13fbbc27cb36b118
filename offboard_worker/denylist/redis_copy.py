"""Redis's copy of the denial log, as typed calls: one method per script of lua.py.

Everything that Redis says or fails to say is turned into our own types and DenylistUnavailable here, so that the logic
on top (projection, confirmation, replica) can be driven against an in-process model of the same calls.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Protocol, cast

from redis.asyncio import Redis
from redis.exceptions import RedisError

from offboard_worker.denylist import lua
from offboard_worker.denylist.facts import Entry, Fact, FactKind, Key, RedisNames
from offboard_worker.errors import DenylistUnavailable

STAGED_LIFETIME = 600
"""Seconds after which the staged facts of a rebuild that died disappear."""

_FOREIGN = "Something else writes to the denylist's keys: give this installation its own redis.prefix."


@dataclass(frozen=True, slots=True)
class Position:
    """Where a copy of the log stands. `history` is `<log id>~<build>`, empty where there is no copy."""

    history: str
    seq: int

    @property
    def log_id(self) -> str:
        return self.history.rpartition("~")[0]


@dataclass(frozen=True, slots=True)
class ReplicaReport:
    """What one replica last wrote. `lease` is in seconds, 0 if it held none; `at_ms` is Redis's clock."""

    applied: int
    lease: float
    at_ms: int
    raw: str

    @classmethod
    def parse(cls, raw: str) -> ReplicaReport:
        applied, lease_ms, at_ms, _number = raw.split(":")
        return cls(int(applied), int(lease_ms) / 1000, int(at_ms), raw)


@dataclass(frozen=True, slots=True)
class Reading:
    """One atomic look at Redis. `intact` is False where the copy is missing or damaged; times are Redis's, in ms.

    `lineage` changes whenever heartbeats may have been forgotten: a rebuild, a restart, a failover.
    """

    position: Position
    intact: bool
    since_ms: int
    now_ms: int
    server: str
    facts: int
    replicas: Mapping[str, ReplicaReport]

    @property
    def lineage(self) -> tuple[str, str, int]:
        return (self.position.history, self.server, self.since_ms)


@dataclass(frozen=True, slots=True)
class Answer:
    """What a push or flip did. `damaged` asks for a rebuild; a plain refusal only says where Redis really stands."""

    accepted: bool
    position: Position
    damaged: bool = False


@dataclass(frozen=True, slots=True)
class StreamEntry:
    """An entry as it came out of the stream, with the history that it belongs to."""

    history: str
    entry: Entry


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The facts exactly as they stand at a position."""

    position: Position
    facts: Sequence[Fact]


class Copy(Protocol):
    """The calls that projection and confirmation are made of. Every one may raise DenylistUnavailable."""

    async def read(self, *, wait_replicas: int = 0, wait_seconds: float = 1.0) -> Reading: ...

    async def push(self, position: Position, entries: Sequence[Entry], keep: int) -> Answer: ...

    async def stage(self, token: str, facts: Sequence[Fact]) -> None: ...

    async def flip(self, found: Position, token: str, log_id: str, seq: int, count: int) -> Answer: ...

    async def forget(self, replica: str, raw: str) -> None: ...

    async def prune(self, before: float) -> int: ...


@asynccontextmanager
async def _ours(doing: str) -> AsyncIterator[None]:
    try:
        yield
    except (RedisError, OSError, TimeoutError) as error:
        raise DenylistUnavailable(f"Redis failed while {doing}: {type(error).__name__}: {error}") from error
    except ValueError as error:
        raise DenylistUnavailable(f"what Redis holds can't be read while {doing}", advice=_FOREIGN) from error


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def _pairs(flat: Sequence[Any]) -> list[tuple[str, str]]:
    texts = [_text(item) for item in flat]
    return list(zip(texts[::2], texts[1::2], strict=True))


def stream_entry(stream_id: Any, fields: Mapping[str, str]) -> StreamEntry:
    """Read one stream entry. Raises DenylistUnavailable if it isn't ours."""
    try:
        seq = int(_text(stream_id).partition("-")[0])
        return StreamEntry(fields["id"], Entry.from_wire(seq, fields["e"]))
    except (KeyError, ValueError) as error:
        raise DenylistUnavailable(
            f"entry {_text(stream_id)} of the denial stream can't be read",
            advice=_FOREIGN,
        ) from error


class RedisCopy:
    """The real thing: scripts by SHA (loaded again by itself after a restart)."""

    def __init__(self, redis: Redis, names: RedisNames) -> None:
        self._redis = redis
        self._names = names
        self._scripts = {
            text: redis.register_script(text)
            for text in (
                *(lua.READ, lua.PUSH, lua.STAGE, lua.FLIP, lua.BEAT),
                *(lua.SNAPSHOT, lua.SNAPSHOT_END, lua.PRUNE, lua.FORGET),
            )
        }

    async def _run(
        self, script: str, keys: Sequence[str], args: Sequence[str | int], client: Redis | None = None
    ) -> Any:
        return await cast("Awaitable[Any]", self._scripts[script](keys=list(keys), args=list(args), client=client))

    async def read(self, *, wait_replicas: int = 0, wait_seconds: float = 1.0) -> Reading:
        """Look at everything at once; with `wait_replicas`, only after so many Redis replicas hold all of it."""
        keys = (self._names.meta, self._names.facts, self._names.replicas)
        async with _ours("reading the denylist's state"):
            if not wait_replicas:
                return self._reading(await self._run(lua.READ, keys, ["0"]))
            # WAIT covers what *its own connection* wrote last: on any other one it returns at once, and proves nothing.
            async with self._redis.client() as one:
                reading = self._reading(await self._run(lua.READ, keys, ["1"], one))
                reached = int(await one.wait(wait_replicas, int(wait_seconds * 1000)))
        if reached < wait_replicas:
            raise DenylistUnavailable(
                f"{reached} of {wait_replicas} Redis replicas hold the denial after {wait_seconds:g} s",
                advice="Check Redis's replicas (INFO replication) or lower redis.wait_replicas.",
            )
        return reading

    @staticmethod
    def _reading(raw: Any) -> Reading:
        history, seq, intact, since, now, server, facts, replicas = raw
        return Reading(
            position=Position(_text(history), int(seq)),
            intact=bool(intact),
            since_ms=int(since),
            now_ms=int(now),
            server=_text(server),
            facts=int(facts),
            replicas={name: ReplicaReport.parse(value) for name, value in _pairs(replicas)},
        )

    async def push(self, position: Position, entries: Sequence[Entry], keep: int) -> Answer:
        """Append consecutive entries behind `position` in one step, or nothing at all."""
        if [entry.seq for entry in entries] != list(range(position.seq + 1, position.seq + 1 + len(entries))):
            raise ValueError(f"entries do not continue {position.seq} without a gap")
        keys = (self._names.meta, self._names.facts, self._names.log)
        args: list[str | int] = [position.history, position.seq, keep, *(entry.wire() for entry in entries)]
        async with _ours("pushing denials"):
            return _answer(await self._run(lua.PUSH, keys, args))

    async def stage(self, token: str, facts: Sequence[Fact]) -> None:
        """Write facts beside the live ones, under a key of their own."""
        pairs = [text for fact in facts for text in (fact.key, fact.wire())]
        async with _ours("rebuilding the denylist"):
            await self._run(lua.STAGE, (self._staged(token),), [STAGED_LIFETIME, *pairs])

    async def flip(self, found: Position, token: str, log_id: str, seq: int, count: int) -> Answer:
        """Make the staged facts the live ones, if Redis is still as it was `found` and none of them was lost."""
        keys = (self._names.meta, self._names.facts, self._names.log, self._staged(token), self._names.replicas)
        async with _ours("rebuilding the denylist"):
            return _answer(await self._run(lua.FLIP, keys, [found.history, found.seq, log_id, token, seq, count]))

    def _staged(self, token: str) -> str:
        return f"{self._names.facts}:{token}"

    async def forget(self, replica: str, raw: str) -> None:
        """Take a replica off the list, unless it has spoken since it said `raw`."""
        async with _ours("forgetting a proxy replica"):
            await self._run(lua.FORGET, (self._names.replicas,), [replica, raw])

    async def leave(self, replica: str) -> None:
        """Take a replica off the list that holds no lease any more."""
        async with _ours("taking leave of Redis"):
            await self._redis.hdel(self._names.replicas, replica)

    async def prune(self, before: float) -> int:
        """Remove `jti` facts that expired before a Unix time; return how many."""
        gone, cursor = 0, 0
        async with _ours("pruning expired tokens"):
            while True:
                cursor, page = await self._scan(cursor, match=f"{FactKind.TOKEN.value}|*")
                dead = [(key, value) for key, value in page.items() if _expired(key, value, before)]
                if dead:
                    flat = [text for pair in dead for text in pair]
                    gone += int(await self._run(lua.PRUNE, (self._names.meta, self._names.facts), flat))
                if not cursor:
                    return gone

    async def _scan(self, cursor: int, match: str | None = None) -> tuple[int, dict[str, str]]:
        found = await cast(
            "Awaitable[tuple[int, dict[Any, Any]]]",
            self._redis.hscan(self._names.facts, cursor=cursor, match=match, count=2000),
        )
        return int(found[0]), {_text(key): _text(value) for key, value in found[1].items()}

    async def beat(self, replica: str, position: Position, lease: float, number: int) -> Position:
        """Report what a replica has applied; return where Redis stands (an empty history: nothing to believe)."""
        keys = (self._names.meta, self._names.facts, self._names.replicas)
        async with _ours("sending a heartbeat"):
            args: list[str | int] = [replica, position.history, position.seq, round(lease * 1000), number]
            history, seq = await self._run(lua.BEAT, keys, args)
        return Position(_text(history), int(seq))

    async def entries(self, after: int, block: float | None) -> list[StreamEntry]:
        """Return the entries after a seq, waiting up to `block` seconds for the first (None: not at all).

        The client must have no socket timeout below that.
        """
        milliseconds = None if block is None else max(1, int(block * 1000))
        async with _ours("following the denial stream"):
            found: Any = await cast(
                "Awaitable[Any]",
                self._redis.xread({self._names.log: f"{after}-0"}, count=500, block=milliseconds),
            )
        return [
            stream_entry(stream_id, {_text(name): _text(value) for name, value in fields.items()})
            for _, stream in found or ()
            for stream_id, fields in stream
        ]

    async def snapshot(self, at_once: int = 5000) -> Snapshot | None:
        """Read all facts exactly as of one position, or None where Redis has nothing to believe just now.

        Up to `at_once` facts come in one step; more of them in pages, mended by the entries that came meanwhile. None is
        also returned where the stream no longer holds those, or where pages were lost: the caller tries again.
        """
        async with _ours("loading the denylist"):
            history, seq, count, flat, server = await self._run(
                lua.SNAPSHOT, (self._names.meta, self._names.facts), [at_once]
            )
            start = Position(_text(history), int(seq))
            if not start.history:
                return None
            if int(count) <= at_once:
                return Snapshot(start, [Fact.from_wire(key, value) for key, value in _pairs(flat)])
            return await self._paged(start, server)

    async def _paged(self, start: Position, server: Any) -> Snapshot | None:
        facts: dict[Key, Fact] = {}
        cursor = 0
        while True:
            cursor, page = await self._scan(cursor)
            facts.update((key, Fact.from_wire(key, value)) for key, value in page.items())
            if not cursor:
                break
        keys = (self._names.meta, self._names.facts, self._names.log)
        history, seq, count, raw, ended_on = await self._run(lua.SNAPSHOT_END, keys, [f"{start.seq + 1}-0"])
        end = Position(_text(history), int(seq))
        # A cursor means nothing on another server, and a client reconnects without a word.
        if end.history != start.history or end.seq < start.seq or ended_on != server:
            return None
        # A fact's value is absolute: whatever the scan saw of these entries, applying them in order makes it exact.
        meanwhile = [stream_entry(stream_id, dict(_pairs(fields))) for stream_id, fields in raw]
        if [item.entry.seq for item in meanwhile] != list(range(start.seq + 1, end.seq + 1)):
            return None
        facts.update((fact.key, fact) for item in meanwhile for fact in item.entry.facts)
        if len(facts) < int(count):
            return None
        return Snapshot(end, list(facts.values()))


def _answer(raw: Any) -> Answer:
    code, history, seq = raw
    return Answer(int(code) == 1, Position(_text(history), int(seq)), damaged=int(code) < 0)


def _expired(key: Key, value: str, before: float) -> bool:
    fact = Fact.from_wire(key, value)
    return fact.expires_at is not None and fact.expires_at <= before
