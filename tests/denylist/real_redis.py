"""A real Valkey with the controls of model_redis.py, so that test_bounds.py can drive its Lua by the same machine."""

from __future__ import annotations

import asyncio
import itertools
from typing import Any

from offboard_worker.denylist.connection import open_client
from offboard_worker.denylist.facts import Fact
from offboard_worker.denylist.redis_copy import Reading, RedisCopy, Snapshot
from offboard_worker.errors import DenylistUnavailable
from tests.denylist.conftest import NAMES


class RealRedis:
    """A real Valkey that obeys the machine as the model does: its Lua is what is under test."""

    def __init__(self, url: str, loop: asyncio.AbstractEventLoop) -> None:
        self._client = open_client(url, 5.0)
        self._copy = RedisCopy(self._client, NAMES)
        self._loop = loop
        self._failovers = itertools.count(1)
        self.up = True
        self.flush()

    def __getattr__(self, name: str) -> Any:
        if not self.up:
            return self._away
        return getattr(self._copy, name)

    async def _away(self, *_: object, **__: object) -> None:
        raise DenylistUnavailable("Redis is away")

    def run(self, work: Any) -> Any:
        return self._loop.run_until_complete(work)

    def save(self) -> dict[str, bytes]:
        keys = (NAMES.meta, NAMES.facts, NAMES.log, NAMES.replicas)
        return {key: self.run(self._client.dump(key)) for key in keys}

    def failover(self, earlier: dict[str, bytes | None]) -> None:
        for key, value in earlier.items():
            if value is None:
                self.run(self._client.delete(key))
            else:
                self.run(self._client.restore(key, 0, value, replace=True))
        self.restart()

    def restart(self) -> None:
        """Another server than the one that meta names: seen from the scripts the same as a restart or failover."""
        if self.run(self._client.exists(NAMES.meta)):
            self.run(self._client.hset(NAMES.meta, "server", f"other-{next(self._failovers)}"))

    def flush(self) -> None:
        self.run(self._client.flushall())

    def lose_facts(self) -> None:
        self.run(self._client.delete(NAMES.facts))

    def trim(self) -> None:
        self.run(self._client.xtrim(NAMES.log, maxlen=1, approximate=False))

    def step_wall(self, seconds: float) -> None:
        """A real server's clock is left alone."""

    def look(self) -> Reading:
        reading: Reading = self.run(self._copy.read())
        return reading

    def facts(self) -> list[Fact]:
        snapshot: Snapshot | None = self.run(self._copy.snapshot())
        assert snapshot is not None
        return list(snapshot.facts)

    def close(self) -> None:
        self.run(self._client.aclose())
