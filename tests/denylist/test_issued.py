"""The list of issued tokens in a real Valkey."""

from __future__ import annotations

from typing import Any

import pytest
from redis.asyncio import Redis

from offboard_worker.denylist.facts import RedisNames
from offboard_worker.denylist.issued import IssuedToken, IssuedTokens

pytestmark = pytest.mark.integration


def claims(person: str, jti: str, exp: int) -> dict[str, Any]:
    return {"iss": "i", "sub": person, "jti": jti, "roles": ["r"], "gen": 2, "iat": 100, "exp": exp, "aud": "a"}


async def test_what_was_issued_is_listed_by_person_until_it_expires(redis: Redis) -> None:
    issued = IssuedTokens(redis, RedisNames())
    for person, jti, exp in [("ada", "1", 300), ("ada", "2", 200), ("ada|x", "3", 300), ("a*", "4", 300)]:
        await issued.record(claims(person, jti, exp))
    assert await issued.list("ada") == [
        IssuedToken("ada", "2", "i", ("r",), 2, 100, 200),
        IssuedToken("ada", "1", "i", ("r",), 2, 100, 300),
    ]
    assert [token.jti for token in await issued.list("ada", now=200)] == ["1"]
    assert [token.jti for token in await issued.list("a*")] == ["4"]
    assert {token.jti for token in await issued.list()} == {"1", "2", "3", "4"}
    assert await issued.list("nobody") == []


async def test_pruning_forgets_what_has_expired_and_nothing_else(redis: Redis) -> None:
    issued = IssuedTokens(redis, RedisNames())
    for number in range(1500):
        await issued.record(claims("ada", str(number), 200))
    await issued.record(claims("ada", "stays", 201))
    assert await issued.prune(200) == 1500
    assert [token.jti for token in await issued.list()] == ["stays"]
    assert await redis.zcard(RedisNames().issued_expiry) == 1
