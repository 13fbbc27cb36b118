"""Claims: at most one job works on one part of a case at a time.

A claim is a key in Redis that its owner renews. A worker that is killed stops renewing, so its work is free again
within `ttl`. Losing a claim (FLUSHALL, failover) is harmless: all work is idempotent, a claim only saves doing it twice.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from redis.asyncio import Redis
from redis.exceptions import RedisError

# A claim that Redis lost (FLUSHALL) is taken again, unless somebody else has it by now.
_RENEW = """
local holder = redis.call('GET', KEYS[1])
if not holder or holder == ARGV[1] then return redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2]) end
return 0
"""
_FREE = "if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end return 0"


class Claims:
    """Claims under one prefix. `ttl` is how long the claim of a dead worker outlives it, in seconds."""

    def __init__(self, redis: Redis, prefix: str, ttl: float = 10.0) -> None:
        self._redis = redis
        self._prefix = prefix
        self._ttl = ttl

    def _key(self, name: str) -> str:
        return f"{self._prefix}:claim:{name}"

    @asynccontextmanager
    async def hold(self, name: str) -> AsyncIterator[bool]:
        """Yield whether the claim is ours. Where Redis is away it is: the work matters more than doing it once."""
        token = secrets.token_hex(8)
        try:
            ours = bool(await self._redis.set(self._key(name), token, nx=True, px=int(self._ttl * 1000)))
        except (RedisError, OSError):
            yield True
            return
        if not ours:
            yield False
            return
        ended = asyncio.Event()
        renewal = asyncio.create_task(self._renew(name, token, ended))
        try:
            yield True
        finally:
            ended.set()  # a cancellation within a Redis call may come out as one more Redis error
            renewal.cancel()
            with suppress(asyncio.CancelledError):
                await renewal
            with suppress(RedisError, OSError):  # it ends by itself after `ttl`
                await self._redis.eval(_FREE, 1, self._key(name), token)

    async def held(self, name: str) -> bool:
        """Say whether somebody works on it now. Where Redis is away, nobody can tell: True. Raises nothing."""
        try:
            return bool(await self._redis.exists(self._key(name)))
        except (RedisError, OSError):
            return True

    async def _renew(self, name: str, token: str, ended: asyncio.Event) -> None:
        while not ended.is_set():
            await asyncio.sleep(self._ttl / 10)
            with suppress(RedisError, OSError):
                await self._redis.eval(_RENEW, 1, self._key(name), token, str(int(self._ttl * 1000)))
