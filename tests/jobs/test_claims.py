"""At most one job works on one part of a case at a time, and a dead worker's work is free again soon."""

from __future__ import annotations

import asyncio

import pytest

from offboard_worker.denylist.connection import open_client
from offboard_worker.jobs.claims import Claims
from tests.jobs.toy import Office

pytestmark = pytest.mark.integration


async def test_a_claim_is_one_jobs_at_a_time_and_free_afterwards(office: Office) -> None:
    claims = Claims(office.redis, "t")
    async with claims.hold("x") as first:
        assert first
        assert await claims.held("x")
        async with claims.hold("x") as second:
            assert not second
        assert await claims.held("x"), "who was refused must not free it"
        async with claims.hold("y") as other:
            assert other
    assert not await claims.held("x")


async def test_a_claim_outlives_its_time_while_its_owner_lives(office: Office) -> None:
    claims = Claims(office.redis, "t", ttl=0.3)
    async with claims.hold("x"):
        await asyncio.sleep(0.6)
        assert await claims.held("x")


async def test_a_dead_owners_claim_ends_by_itself(office: Office) -> None:
    await office.redis.set("t:claim:x", "dead", px=100)
    claims = Claims(office.redis, "t")
    async with claims.hold("x") as ours:
        assert not ours
    await asyncio.sleep(0.15)
    async with claims.hold("x") as ours:
        assert ours


async def test_a_claim_that_somebody_else_has_by_now_is_not_freed(office: Office) -> None:
    claims = Claims(office.redis, "t")
    async with claims.hold("x"):
        await office.redis.set("t:claim:x", "another")
    assert await office.redis.get("t:claim:x") in (b"another", "another")


async def test_without_redis_the_work_is_done_all_the_same(office: Office) -> None:
    away = open_client("redis://127.0.0.1:1/0", 0.2)
    claims = Claims(away, "t")
    async with claims.hold("x") as ours:
        assert ours
    assert await claims.held("x"), "nobody can tell: nobody's work is taken for dead"
    await away.aclose()
