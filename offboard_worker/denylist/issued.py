"""What the proxy issued, listed in Redis until it expires. Never the tokens themselves: they can't be used from here.

Losing this list loses the listing alone: a leaver's tokens die by their person's generation, listed or not.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from redis.asyncio import Redis

from offboard_worker.denylist.facts import RedisNames


@dataclass(frozen=True, slots=True)
class IssuedToken:
    """One access token that we issued. Times are Unix seconds."""

    person: str
    jti: str
    issuer: str
    roles: tuple[str, ...]
    generation: int
    issued_at: int
    expires_at: int

    @classmethod
    def from_claims(cls, claims: Mapping[str, Any]) -> IssuedToken:
        return cls(
            person=claims["sub"],
            jti=claims["jti"],
            issuer=claims["iss"],
            roles=tuple(claims["roles"]),
            generation=claims["gen"],
            issued_at=claims["iat"],
            expires_at=claims["exp"],
        )


class IssuedTokens:
    """The list. Every method raises redis.exceptions.RedisError when Redis does not answer."""

    def __init__(self, redis: Redis, names: RedisNames) -> None:
        self._redis = redis
        self._names = names

    async def record(self, claims: Mapping[str, Any]) -> IssuedToken:
        """Note one token by the claims that `mint` returned."""
        token = IssuedToken.from_claims(claims)
        field = _field(token.person, token.jti)
        value = json.dumps([token.person, token.jti, token.issuer, token.roles, token.generation, token.issued_at])
        async with self._redis.pipeline(transaction=True) as pipe:
            pipe.hset(self._names.issued, field, value)
            pipe.zadd(self._names.issued_expiry, {field: token.expires_at})
            await pipe.execute()
        return token

    async def list(self, person_id: str | None = None, *, now: float = 0) -> list[IssuedToken]:
        """Return what is listed and expires after `now` (Unix seconds), soonest expiry first."""
        if person_id is None:
            pairs = [pair async for pair in self._redis.hscan_iter(self._names.issued, count=1000)]
        else:  # a quoted id holds no glob characters
            match = f"{quote(person_id, safe='')}|*"
            pairs = [pair async for pair in self._redis.hscan_iter(self._names.issued, match=match, count=1000)]
        unique: dict[bytes | str, bytes | str] = dict(pairs)  # a scan may give a field twice
        if not unique:
            return []
        fields = [field.decode() if isinstance(field, bytes) else field for field in unique]
        scores = await self._redis.zmscore(self._names.issued_expiry, fields)
        found = [
            _read(value, int(score))
            for value, score in zip(unique.values(), scores, strict=True)
            if score is not None and score > now
        ]
        return sorted(found, key=lambda token: (token.expires_at, token.jti))

    async def prune(self, now: float) -> int:
        """Forget what has expired by `now` (Unix seconds); return how many that were."""
        pruned = 0
        while fields := await self._redis.zrangebyscore(self._names.issued_expiry, "-inf", now, start=0, num=1000):
            async with self._redis.pipeline(transaction=True) as pipe:
                pipe.hdel(self._names.issued, *fields)
                pipe.zrem(self._names.issued_expiry, *fields)
                await pipe.execute()
            pruned += len(fields)
        return pruned


def _field(person: str, jti: str) -> str:
    return f"{quote(person, safe='')}|{quote(jti, safe='')}"


def _read(value: bytes | str, expires_at: int) -> IssuedToken:
    person, jti, issuer, roles, generation, issued_at = json.loads(value)
    return IssuedToken(person, jti, issuer, tuple(roles), generation, issued_at, expires_at)
