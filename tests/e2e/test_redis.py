"""Redis emptied, hanging or dead: nothing accepted is lost, and nobody who was revoked passes the proxy."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from tests.e2e.conftest import Town
from tests.e2e.system import System, until

pytestmark = [pytest.mark.e2e, pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(300)]
OKTA_WAITS = 3.0
LEASE = 2.0


@asynccontextmanager
async def watched(system: System, token: str) -> AsyncIterator[list[int]]:
    """Call both replicas again and again with a revoked token, and collect every answer."""
    seen: list[int] = []

    async def knock() -> None:
        while True:
            seen.extend(await system.calls(token))
            await asyncio.sleep(0.02)

    task = asyncio.create_task(knock())
    try:
        yield seen
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def serving(system: System, token: str) -> None:
    async def serve() -> bool:
        return await system.calls(token) == [200, 200]

    await until("both replicas serve somebody who works here", serve)


async def test_flushall_in_the_middle_of_a_case_lets_nobody_in_and_loses_nothing(system: System, town: Town) -> None:
    gone, leaving, faults = town.somebody(), town.somebody(rich=True), town.world.okta.faults
    tokens = {who.person: await system.token(who.person) for who in (gone, leaving, town.neighbour)}
    await serving(system, tokens["grace"])
    assert await system.okta(gone) in (200, 204)
    await system.verified(gone)
    facts = await system.inst.cli("denylist", "list")
    faults.hang(f"POST /api/v1/users/{leaving.okta_id}/lifecycle/suspend", 3, performed=True)
    assert await system.okta(leaving) in (200, 204)

    async def hangs() -> bool:
        return faults.prepared == 0

    await until("the case is in its middle", hangs)
    (scheduler,) = system.processes("scheduler")
    async with watched(system, tokens[gone.person]) as answers, watched(system, tokens[leaving.person]) as others:
        scheduler.suspend()  # or it would push so soon that no lease runs out
        try:
            await system.redis("FLUSHALL")

            async def not_ready() -> bool:
                return await system.ready() == [503, 503]

            await until("the replicas say that they are not ready", not_ready, within=10, every=0.05)
            assert await system.calls(tokens["grace"]) == [503, 503]
        finally:
            scheduler.resume()
        await serving(system, tokens["grace"])
        assert await system.ready() == [200, 200]
        assert await system.calls(tokens[gone.person]) == [401, 401]
        case = await system.verified(leaving, within=90)
    assert set(answers) | set(others) <= {401, 503}
    assert 503 in answers
    assert case["person"] == leaving.person
    now = {fact["key"]: fact for fact in await system.inst.cli("denylist", "list")}
    assert all(now[fact["key"]] == fact for fact in facts), "a denial was changed"


async def test_a_delivery_while_redis_hangs_is_accepted_in_time_and_contained_once_it_is_back(
    system: System, town: Town
) -> None:
    who = town.somebody()
    token, neighbours = await system.token(who.person), await system.token(town.neighbour.person)
    await serving(system, neighbours)
    (valkey,) = system.processes("valkey")
    os.kill(valkey.pid, signal.SIGSTOP)
    try:
        begun = time.monotonic()
        assert await system.okta(who) in (200, 204)
        assert time.monotonic() - begun < OKTA_WAITS
        await asyncio.sleep(max(0.0, begun + LEASE - time.monotonic()))
        assert set(await system.calls(token) + await system.calls(neighbours)) == {503}
        assert await system.ready() == [503, 503]
    finally:
        os.kill(valkey.pid, signal.SIGCONT)
    async with watched(system, token) as answers:
        await serving(system, neighbours)
        assert await system.calls(token) == [401, 401]
        await system.verified(who, within=90)
    assert set(answers) <= {401, 503}


async def test_a_delivery_while_redis_is_dead_is_accepted_in_time_and_contained_once_it_is_back(
    system: System, town: Town
) -> None:
    who = town.somebody()
    token, neighbours = await system.token(who.person), await system.token(town.neighbour.person)
    await serving(system, neighbours)
    dead = system.kill("valkey")
    begun = time.monotonic()
    assert await system.okta(who) in (200, 204)
    assert time.monotonic() - begun < OKTA_WAITS
    await system.back("valkey", dead)
    await serving(system, neighbours)

    async def refused() -> bool:
        return await system.calls(token) == [401, 401]

    await until("the leaver is refused", refused, within=10)
    await system.verified(who, within=90)
