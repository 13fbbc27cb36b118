"""From a committed denial to the refusal at every replica, measured and on record."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta

import pytest

from offboard_worker.denylist.connection import open_client
from offboard_worker.denylist.embedded import EmbeddedValkey
from offboard_worker.denylist.facts import RedisNames, TokenIdentity, person_key
from offboard_worker.denylist.projection import Projection
from offboard_worker.denylist.replica import Replica
from offboard_worker.errors import DenylistUnavailable
from offboard_worker.jobs import containment
from offboard_worker.jobs.containment import ContainmentRecorder, record_containment
from offboard_worker.store.denials import StoredLog
from tests.jobs.toy import Office

pytestmark = pytest.mark.integration


@pytest.fixture
async def replica(office: Office, valkey: EmbeddedValkey) -> AsyncIterator[Replica]:
    await office.ctx.projection.push()
    replica = Replica(valkey.url, RedisNames("t"), "proxy-a", lease=0.5, heartbeat=0.05)
    await replica.start()
    await replica.wait_ready(5)
    yield replica
    await replica.close()


async def test_the_case_records_who_refuses_and_since_when(office: Office, replica: Replica) -> None:
    case = await office.offboard()
    assert case.refused_after_ms is None
    assert await record_containment(office.store, office.ctx.projection) == 1
    case = await office.case()
    assert case.pushed_at is not None
    assert case.refused_at is not None
    assert case.refused_by == f'{{"{replica.name}":"applied"}}'
    identity = TokenIdentity((), None, person=person_key(case.person_id), generation=0)
    assert replica.denied(identity) is not None


async def test_nothing_is_recorded_twice(office: Office, replica: Replica) -> None:
    """The receiver and the schedule may measure the same case at the same time: the first one's word stays."""
    await office.offboard()
    projection = Projection(office.redis, StoredLog(office.store), RedisNames("t"), lease=0.5)
    await asyncio.gather(
        record_containment(office.store, office.ctx.projection), record_containment(office.store, projection)
    )
    assert (await office.audited())["case.refused-everywhere"] == 1
    assert await record_containment(office.store, projection) == 0


async def test_without_redis_the_case_says_that_containment_is_pending(office: Office) -> None:
    await office.offboard()
    away = open_client("redis://127.0.0.1:1/0", 0.2)
    projection = Projection(away, StoredLog(office.store), RedisNames("t"))
    with pytest.raises(DenylistUnavailable):
        await record_containment(office.store, projection, timeout=0.3)
    assert (await office.case()).refused_at is None
    assert await record_containment(office.store, office.ctx.projection) == 1  # as soon as it is back
    await away.aclose()


async def test_the_recorder_records_what_it_is_nudged_for_and_what_waits_at_its_end(
    office: Office, replica: Replica
) -> None:
    recorder = ContainmentRecorder(office.store, office.ctx.projection)
    await recorder.start()
    await office.offboard()
    recorder.nudge()
    async with asyncio.timeout(5):
        while (await office.case()).refused_at is None:  # noqa: ASYNC110 - the store has no events
            await asyncio.sleep(0.01)
    await office.offboard("00uBOB")
    await recorder.close()
    assert (await office.case("00uBOB")).refused_at is not None


async def test_the_recorder_outlives_trouble(office: Office, replica: Replica, monkeypatch: pytest.MonkeyPatch) -> None:
    real, tried = containment.record_containment, asyncio.Event()

    async def fail(*_: object) -> int:
        tried.set()
        raise DenylistUnavailable("away")

    monkeypatch.setattr(containment, "record_containment", fail)
    recorder = ContainmentRecorder(office.store, office.ctx.projection)
    await recorder.start()
    await office.offboard()
    recorder.nudge()
    async with asyncio.timeout(5):
        await tried.wait()
    monkeypatch.setattr(containment, "record_containment", real)
    recorder.nudge()
    async with asyncio.timeout(5):
        while (await office.case()).refused_at is None:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    await recorder.close()


async def test_a_replica_that_died_is_waited_out(office: Office, replica: Replica) -> None:
    for task in replica._tasks:
        task.cancel()
    await asyncio.gather(*replica._tasks, return_exceptions=True)
    await office.offboard()
    begun = asyncio.get_running_loop().time()
    await record_containment(office.store, office.ctx.projection, timeout=10)
    assert asyncio.get_running_loop().time() - begun < timedelta(seconds=5).total_seconds()
    assert (await office.case()).refused_by == f'{{"{replica.name}":"lease-expired"}}'
