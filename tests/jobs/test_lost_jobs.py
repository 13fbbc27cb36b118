"""What the queue says of jobs whose worker, or whose scheduler, was killed; and claims that Redis loses."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest
from redis import Redis
from rq.job import Job, JobStatus

from offboard_worker.config import JobSettings
from offboard_worker.denylist.connection import open_blocking_client, open_client
from offboard_worker.denylist.embedded import EmbeddedValkey
from offboard_worker.jobs.claims import Claims
from offboard_worker.jobs.queue import REVOKE, Queues, target_job_id

pytestmark = pytest.mark.integration
LONG_AGO = datetime.now(UTC) - timedelta(minutes=1)
ID = target_job_id("c-1", "okta")


@pytest.fixture
def redis(valkey: EmbeddedValkey) -> Iterator[Redis]:
    client = open_blocking_client(valkey.url, 2.0)
    yield client
    client.close()


@pytest.fixture
def queues(redis: Redis) -> Queues:
    found = Queues(redis, JobSettings())
    assert found.enqueue_targets([("c-1", "okta")]) == 1
    return found


def job_of(queues: Queues, **changes: datetime) -> Job:
    """The queued job, with times of its life changed."""
    job = queues.job(ID)
    assert job is not None
    for name, value in changes.items():
        setattr(job, name, value)
    job.save()
    return job


async def test_a_job_that_waits_in_its_queue_is_alive_however_long_it_waits(queues: Queues) -> None:
    job_of(queues, enqueued_at=LONG_AGO)
    assert queues.alive(ID)
    assert queues.enqueue_targets([("c-1", "okta")]) == 0


async def test_a_job_that_a_killed_worker_had_taken_out_of_the_queue_is_lost(queues: Queues, redis: Redis) -> None:
    redis.delete(queues.queue(REVOKE).key)
    assert queues.alive(ID), "it may have been taken just now"
    job_of(queues, enqueued_at=LONG_AGO)
    assert not queues.alive(ID)


async def test_a_started_job_that_never_took_its_claim_is_lost(queues: Queues, redis: Redis) -> None:
    redis.delete(queues.queue(REVOKE).key)
    job_of(queues, started_at=datetime.now(UTC)).set_status(JobStatus.STARTED)
    assert queues.alive(ID), "it may be starting"
    job_of(queues, started_at=LONG_AGO)
    assert not queues.alive(ID)


async def test_a_retry_that_nobody_queued_when_it_was_due_is_lost(queues: Queues, redis: Redis) -> None:
    redis.delete(queues.queue(REVOKE).key)
    job = job_of(queues)
    job.set_status(JobStatus.SCHEDULED)
    registry = queues.queue(REVOKE).scheduled_job_registry
    registry.schedule(job, datetime.now(UTC) + timedelta(minutes=5))
    assert queues.alive(ID)
    registry.schedule(job, LONG_AGO)
    assert not queues.alive(ID)


async def test_a_job_that_redis_lost_is_lost(queues: Queues, redis: Redis) -> None:
    redis.flushall()
    assert not queues.alive(ID)


async def test_a_claim_that_redis_lost_is_taken_again_unless_somebody_else_has_it(valkey: EmbeddedValkey) -> None:
    redis = open_client(valkey.url, 2.0)
    first, second = (Claims(redis, "test", ttl=0.6) for _ in range(2))
    try:
        async with first.hold("work") as ours:
            assert ours
            await redis.flushall()
            await asyncio.sleep(0.2)
            assert await second.held("work")
            await redis.delete("test:claim:work")
            async with second.hold("work") as theirs:
                assert theirs
                mine = await redis.get("test:claim:work")
                await asyncio.sleep(0.2)
                assert await redis.get("test:claim:work") == mine
        assert not await second.held("work")
    finally:
        await redis.aclose()
