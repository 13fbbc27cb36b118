"""Brings Redis's copy of the denial log up to the store, and says when an entry is in force everywhere.

Anybody who commits an entry may push, and so may several at once: every push names the position that it continues, and
Redis refuses it if it stands elsewhere. This file never writes the store and knows nothing of proxies beyond their
heartbeats. The atomic steps are in lua.py, the proof behind `confirm` in confirmation.py.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass

from redis.asyncio import Redis

from offboard_worker.denylist.confirmation import Confirmation, Confirming, InForce, Watch
from offboard_worker.denylist.facts import DenialLog, RedisNames
from offboard_worker.denylist.redis_copy import Copy, Position, Reading, RedisCopy, ReplicaReport
from offboard_worker.errors import DenylistUnavailable

_log = logging.getLogger(__name__)

BATCH = 200
"""Entries per Lua call: small enough not to hold up other clients of Redis."""
STAGE_BATCH = 1000
ROUNDS = 1000
PRUNE_GRACE = 300.0
"""Seconds an expired token's fact is kept: clocks differ, and one that is dropped early lets the token through."""
DEAD_LEASES = 30
"""A replica that was silent for so many leases is taken off the list."""
POLL_FIRST = 0.001
POLL_LONGEST = 0.02


@dataclass(frozen=True, slots=True)
class Status:
    """Where Redis stands. `since` is Unix seconds by Redis's clock: from then on its list of replicas is complete."""

    log_id: str
    seq: int
    since: float
    facts: int
    intact: bool


class Projection:
    """Pushes one store's denial log into one Redis. Safe to use from many tasks and processes at once."""

    def __init__(
        self,
        redis: Redis | None,
        log: DenialLog,
        names: RedisNames | None = None,
        wait_replicas: int = 0,
        lease: float = 2.0,
        *,
        keep: int = 10_000,
        copy: Copy | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`lease` is the proxies', in seconds; `keep` about how many entries the stream holds; `copy` replaces Redis."""
        if copy is None:
            if redis is None:
                raise ValueError("a Projection needs a Redis client or a copy")
            copy = RedisCopy(redis, names or RedisNames())
        self._copy = copy
        self._log = log
        self._wait_replicas = wait_replicas
        self._keep = keep
        self._clock = clock
        self._position: Position | None = None
        self._log_id = ""
        self._lock = asyncio.Lock()
        self.watch = Watch(lease)

    async def push(self, upto: int | None = None) -> int:
        """Send everything that Redis lacks and return the seq it then holds. Raises DenylistUnavailable.

        With `upto`, a push by another task of this process that already carried that entry is enough.
        """
        async with self._lock:
            if upto is not None and self._position is not None and self._position.seq >= upto:
                return self._position.seq
            try:
                position = await self._push()
            except BaseException:
                self._position = None
                raise
            self._position = position
            return position.seq

    async def _push(self) -> Position:
        """Continue from where we last left Redis: one round trip if nobody else pushed. Else look, and go on."""
        position, looked = self._position, False
        for _ in range(ROUNDS):
            if position is None:
                position, looked = await self._locate(), True
            entries = await self._log.since(position.seq, BATCH)
            if not entries:
                if looked:
                    return await self._settled(position)
                position = None
                continue
            answer = await self._copy.push(position, entries, self._keep)
            if answer.accepted:
                position, looked = answer.position, True
                if len(entries) < BATCH:
                    return await self._settled(position)
            elif answer.damaged:
                position, looked = await self._rebuild((await self._look()).position), True
            else:
                position = None
        raise DenylistUnavailable(f"Redis still stands elsewhere after {ROUNDS} pushes")

    async def _settled(self, position: Position) -> Position:
        if self._wait_replicas:
            await self._look(settle=True)
        return position

    async def _look(self, *, settle: bool = False) -> Reading:
        reading = await self._copy.read(wait_replicas=self._wait_replicas if settle else 0)
        self.watch.note(reading, self._clock())
        return reading

    async def _locate(self) -> Position:
        """Find out where Redis stands, and rebuild it where that isn't a prefix of the store's log."""
        reading = await self._look()
        # Redis is read before the store: what it holds by then has been committed, so `ahead` means another history.
        self._log_id = await self._log.log_id()
        if not reading.intact or reading.position.log_id != self._log_id:
            return await self._rebuild(reading.position)
        head = await self._log.head()
        known = max([reading.position.seq, *(report.applied for report in reading.replicas.values())])
        if known > head:
            _log.warning("Redis or a proxy is ahead of the store (%d > %d): restored? rebuilding", known, head)
            return await self._rebuild(reading.position)
        return reading.position

    async def _rebuild(self, found: Position) -> Position:
        """Write the compacted facts beside, and flip to them unless somebody else was faster; return where Redis is."""
        log_id = await self._log.log_id()
        if "~" in log_id:
            raise ValueError("a log's id must not contain ~")
        seq, current = await self._log.facts()
        facts = list({fact.key: fact for fact in current}.values())
        token = secrets.token_hex(8)
        for start in range(0, len(facts), STAGE_BATCH):
            await self._copy.stage(token, facts[start : start + STAGE_BATCH])
        answer = await self._copy.flip(found, token, log_id, seq, len(facts))
        if answer.accepted:
            _log.warning("Redis's denylist was missing or another log's: rebuilt %d facts at seq %d", len(facts), seq)
            return answer.position
        return await self._locate()

    async def prune(self, now: float) -> int:
        """Remove facts about tokens that expired minutes before `now` (Unix seconds) and return how many."""
        reading = await self._look()
        # The earlier of two clocks: if one of them is ahead, nothing is dropped before its time.
        return await self._copy.prune(min(now, reading.now_ms / 1000) - PRUNE_GRACE)

    async def confirm(self, seq: int, timeout: float | None = None) -> Confirmation:
        """Wait until every live proxy replica refuses by entry `seq`, or its lease has run out for certain.

        `timeout` is in seconds, four leases by default. Raises DenylistUnavailable if it could not be proven by then.
        """
        started = self._clock()
        deadline = started + (timeout if timeout is not None else 4 * self.watch.lease)
        confirming, pause = Confirming(seq, self.watch), POLL_FIRST
        while True:
            trouble: DenylistUnavailable | None = None
            try:
                outcome = await self._confirm_once(confirming)
                if outcome is not None:
                    return Confirmation(seq, time.time(), self._clock() - started, outcome)
            except DenylistUnavailable as error:
                trouble = error
            if self._clock() + pause >= deadline:
                raise DenylistUnavailable(
                    f"entry {seq} is not confirmed on every proxy after {self._clock() - started:.1f} s",
                    advice=trouble.advice
                    if trouble
                    else "Run `offboard denylist push` and look at the proxies' /readyz.",
                ) from trouble
            await asyncio.sleep(pause)
            pause = min(pause * 1.5, POLL_LONGEST)

    async def _confirm_once(self, confirming: Confirming) -> dict[str, InForce] | None:
        reading = await self._look()
        log_id = self._log_id or await self._log.log_id()
        if not confirming.held(reading, log_id):
            confirming.observe(reading, log_id, self._clock())
            async with self._lock:
                self._position = None
            await self.push()
            return None
        if self._wait_replicas and confirming.settled_on != reading.lineage:
            reading = await self._look(settle=True)
            confirming.settled_on = reading.lineage
        return confirming.observe(reading, log_id, self._clock())

    async def replicas(self) -> dict[str, ReplicaReport]:
        """Return what each proxy replica last reported; those that have been silent for long are taken off the list."""
        reading = await self._look()
        dead = self.watch.dead(DEAD_LEASES * self.watch.term(reading), self._clock())
        for name, raw in dead.items():
            await self._copy.forget(name, raw)
        return {name: report for name, report in reading.replicas.items() if name not in dead}

    async def status(self) -> Status:
        """Return where Redis stands, without changing it."""
        reading = await self._look()
        position = reading.position
        return Status(position.log_id, position.seq, reading.since_ms / 1000, reading.facts, reading.intact)
