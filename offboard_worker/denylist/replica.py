"""One proxy's replica of the denylist: follows Redis, keeps the lease, and tells the proxy what changed.

Two clients: one blocks in XREAD (no socket timeout, but a watchdog around each read), the other sends heartbeats with
tight timeouts. Neither retries; a failed try is followed by the next one. All decisions are replica_state.py's. This
file must not know the store, HTTP or tokens.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import time
from collections.abc import Callable, Sequence

from offboard_worker.denylist.connection import Connect, connect_to
from offboard_worker.denylist.facts import Fact, RedisNames, TokenIdentity
from offboard_worker.denylist.redis_copy import RedisCopy, StreamEntry
from offboard_worker.denylist.replica_state import ReplicaState, lease_clock
from offboard_worker.errors import DenylistUnavailable

_log = logging.getLogger(__name__)

BLOCK = 1.0
WATCHDOG = 1.5
"""Seconds beyond BLOCK after which a blocking read is given up: the connection is dead without saying so."""
LOAD_TIMEOUT = 60.0
PAUSE = 0.05
"""Seconds between tries while Redis is away or has nothing to believe."""
PRUNE_EVERY = 60.0
PRUNE_GRACE = 300.0


class Replica:
    """The denylist as one proxy process knows it: `fresh`, `denied(identity)`, and `on_facts` for what to cut."""

    def __init__(
        self,
        connect: Connect | str,
        names: RedisNames,
        replica_id: str,
        lease: float = 2.0,
        heartbeat: float = 0.25,
        monotonic: Callable[[], float] = lease_clock,
        wall: Callable[[], float] = time.time,
        on_facts: Callable[[Sequence[Fact]], None] = lambda facts: None,
    ) -> None:
        """`connect` is a URL or makes clients; `lease` and `heartbeat` are seconds.

        `on_facts` runs in the turn of the loop in which facts were applied. If it raises, the replica stops for good:
        a proxy that could not cut must not serve.
        """
        connect = connect_to(connect) if isinstance(connect, str) else connect
        # A process of its own for each line on Redis's list: two under one name would hide one another from `confirm`.
        self.name = f"{replica_id}/{secrets.token_hex(4)}"
        self._state = ReplicaState(lease)
        self._heartbeat, self._monotonic, self._wall, self._on_facts = heartbeat, monotonic, wall, on_facts
        self._follower, self._beater = connect(None), connect(max(0.1, 2 * heartbeat))
        self._stream, self._pulse = RedisCopy(self._follower, names), RedisCopy(self._beater, names)
        self._beat_due = asyncio.Event()
        self._reading: asyncio.Task[list[StreamEntry]] | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._last_trouble = ""

    # --- what the proxy asks --------------------------------------------------------------------------------------

    @property
    def fresh(self) -> bool:
        """Whether requests may be decided by this replica now. To be asked at each admission, after each await."""
        return self._state.lease_left(self._monotonic()) > 0

    @property
    def lease_left(self) -> float:
        """Seconds until the lease runs out, 0 if it has."""
        return self._state.lease_left(self._monotonic())

    @property
    def stale_for(self) -> float:
        """Seconds since the lease ran out, 0 while it holds, infinity where there never was one."""
        return self._state.stale_for(self._monotonic())

    @property
    def applied(self) -> int:
        """The seq of the last entry that is known here."""
        return self._state.position.seq

    @property
    def log_id(self) -> str:
        """The id of the log that is followed, empty before the first load."""
        return self._state.position.log_id

    @property
    def facts(self) -> int:
        """How many facts are held."""
        return len(self._state.facts)

    def denied(self, identity: TokenIdentity) -> Fact | None:
        """Return the fact that makes a token dead, None if there is none. Says nothing about `fresh`."""
        return self._state.denied(identity, self._wall())

    # --- its life -------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Begin to follow. Returns at once: `wait_ready` waits for the first lease."""
        if self._tasks:
            raise RuntimeError("this replica was started before")
        parts = {"follow": self._follow(), "heartbeat": self._beats(), "prune": self._prune()}
        self._tasks = [asyncio.create_task(run, name=f"denylist-{what}") for what, run in parts.items()]
        for task in self._tasks:
            task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        """A part that ends by itself has failed in a way nobody foresaw: serve no more."""
        if not task.cancelled() and not self._state.closed:
            self._state.close()
            _log.critical("the denylist replica stopped: this proxy serves no more", exc_info=task.exception())

    async def wait_ready(self, timeout: float) -> None:
        """Wait until the replica is fresh. Raises DenylistUnavailable after `timeout` seconds."""
        until = self._monotonic() + timeout
        while not self.fresh:
            if self._monotonic() >= until:
                raise DenylistUnavailable(
                    f"no lease on the denylist after {timeout:g} s: {self._last_trouble or 'empty'}"
                )
            await asyncio.sleep(0.005)

    async def close(self) -> None:
        """Serve no more, take the name off Redis's list, and end every task and connection."""
        self._state.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        # If Redis is away the name stays on the list; writers then wait for the lease, as after a crash.
        with contextlib.suppress(DenylistUnavailable):
            await self._pulse.leave(self.name)
        await self._follower.aclose()
        await self._beater.aclose()

    # --- following ------------------------------------------------------------------------------------------------

    async def _follow(self) -> None:
        while not self._state.closed:
            try:
                if not self._state.must_load:
                    self._take(await self._read())
                elif not await self._load():
                    await asyncio.sleep(PAUSE)
            except (DenylistUnavailable, TimeoutError) as error:
                self._trouble(error)
                await self._follower.connection_pool.disconnect()
                await asyncio.sleep(PAUSE)

    async def _read(self) -> list[StreamEntry]:
        reading = asyncio.create_task(self._stream.entries(self._state.position.seq, BLOCK))
        self._reading = reading
        try:
            done, _ = await asyncio.wait({reading}, timeout=BLOCK + WATCHDOG)
            if not done:
                raise TimeoutError("the denial stream's connection is dead")
            return [] if reading.cancelled() else reading.result()
        finally:
            self._reading = None
            reading.cancel()

    async def _load(self) -> bool:
        async with asyncio.timeout(LOAD_TIMEOUT):
            snapshot = await self._stream.snapshot()
        if snapshot is None:
            return False
        changed = self._state.load(snapshot)
        if changed:
            self._on_facts(changed)
        _log.info("denylist loaded: %d facts at seq %d", len(self._state.facts), self.applied)
        self._beat_due.set()
        return True

    def _take(self, entries: list[StreamEntry]) -> None:
        if not entries:
            return
        facts = self._state.apply(entries)
        if facts:
            self._on_facts(facts)
        self._beat_due.set()

    # --- heartbeats -----------------------------------------------------------------------------------------------

    async def _beats(self) -> None:
        # Not `while True`: up to Python 3.11 `asyncio.wait_for`, which redis-py uses, can swallow a cancellation.
        while not self._state.closed:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._heartbeat):
                    await self._beat_due.wait()
            self._beat_due.clear()
            beat = self._state.beat(self._monotonic())
            try:
                stands = await self._pulse.beat(self.name, beat.position, beat.lease, beat.number)
            except DenylistUnavailable as error:
                self._trouble(error)
                continue
            self._state.answered(beat, stands)
            self._kick()

    def _kick(self) -> None:
        """End a blocking read that is of no use: a load is due, or Redis has entries that it doesn't deliver."""
        waiting = self._state.waiting_since()
        stuck = waiting is not None and self._monotonic() - waiting > self._heartbeat
        if self._reading is not None and (self._state.must_load or stuck):
            self._reading.cancel()

    async def _prune(self) -> None:
        while not self._state.closed:
            await asyncio.sleep(PRUNE_EVERY)
            self._state.facts.drop_expired(self._wall() - PRUNE_GRACE)

    def _trouble(self, error: Exception) -> None:
        if str(error) != self._last_trouble:
            _log.warning("denylist: %s", error)
        self._last_trouble = str(error)
