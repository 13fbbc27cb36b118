"""One real Valkey per test, and replicas that end with it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
from redis.asyncio import Redis

from offboard_worker.denylist.connection import open_client
from offboard_worker.denylist.embedded import EmbeddedValkey
from offboard_worker.denylist.facts import Fact, RedisNames
from offboard_worker.denylist.replica import Replica
from tests.denylist.memory_log import MemoryLog

NAMES = RedisNames()
LEASE = 0.6
StartReplica = Callable[..., Awaitable[Replica]]


async def until(condition: Callable[[], bool], timeout: float = 5.0) -> float:
    """Wait until something is so and return the seconds that it took; fail where it doesn't come to be."""
    started = time.monotonic()
    while not condition():
        assert time.monotonic() - started < timeout, "it did not come to be in time"
        await asyncio.sleep(0.001)
    return time.monotonic() - started


@pytest.fixture
async def valkey(tmp_path: Path) -> AsyncIterator[EmbeddedValkey]:
    async with EmbeddedValkey(tmp_path / "valkey") as server:
        yield server


@pytest.fixture
async def redis(valkey: EmbeddedValkey) -> AsyncIterator[Redis]:
    client = open_client(valkey.url, 2.0)
    yield client
    await client.aclose()


@pytest.fixture
def log() -> MemoryLog:
    return MemoryLog()


@pytest.fixture
async def replica(valkey: EmbeddedValkey) -> AsyncIterator[StartReplica]:
    """Starts replicas: `await replica("a", on_facts=…)`."""
    started: list[Replica] = []

    async def start(name: str, on_facts: Callable[..., None] = lambda facts: None, heartbeat: float = 0.05) -> Replica:
        one = Replica(valkey.url, NAMES, name, lease=LEASE, heartbeat=heartbeat, on_facts=on_facts)
        started.append(one)
        await one.start()
        return one

    yield start
    for one in started:
        await one.close()


def leaver(number: int) -> Fact:
    """The fact that an invented person is denied."""
    return Fact(f"person|p-{number}", denied=True)
