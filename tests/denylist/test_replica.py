"""Replicas on a real Valkey: what they refuse, how soon, and when they must not serve."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

import pytest
from redis.asyncio import Redis

from offboard_worker.denylist.confirmation import InForce
from offboard_worker.denylist.embedded import EmbeddedValkey
from offboard_worker.denylist.facts import Fact, TokenIdentity
from offboard_worker.denylist.projection import Projection
from offboard_worker.denylist.redis_copy import RedisCopy
from offboard_worker.errors import DenylistUnavailable
from tests.denylist.conftest import LEASE, NAMES, StartReplica, leaver, until
from tests.denylist.memory_log import MemoryLog

pytestmark = pytest.mark.integration


def token_of(number: int) -> TokenIdentity:
    return TokenIdentity((), 0, f"person|p-{number}", 0)


@pytest.fixture
async def projection(redis: Redis, log: MemoryLog) -> Projection:
    log.append(leaver(0))
    made = Projection(redis, log, lease=LEASE)
    await made.push()
    return made


async def test_a_replica_knows_the_past_and_follows_within_milliseconds(
    projection: Projection, log: MemoryLog, replica: StartReplica
) -> None:
    seen: list[Fact] = []
    one = await replica("a", seen.extend)
    assert not one.fresh
    await one.wait_ready(5)
    assert one.denied(token_of(0)) == leaver(0)
    assert seen == [leaver(0)]
    took = []
    for number in range(1, 30):
        assert one.denied(token_of(number)) is None
        seq = log.append(leaver(number))
        started = time.perf_counter()
        await projection.push()
        await until(lambda seq=seq: one.applied == seq)  # type: ignore[misc]
        took.append(time.perf_counter() - started)
        assert one.denied(token_of(number)) == leaver(number) == seen[-1]
    assert sorted(took)[len(took) // 2] < 0.05
    assert one.log_id == "log-1"


async def test_redis_without_a_projection_makes_nobody_ready(
    redis: Redis, log: MemoryLog, replica: StartReplica
) -> None:
    one = await replica("a")
    with pytest.raises(DenylistUnavailable):
        await one.wait_ready(0.5)
    await Projection(redis, log).push()
    await one.wait_ready(5)


async def test_flushall_takes_the_lease_and_never_a_denial(
    projection: Projection, redis: Redis, log: MemoryLog, replica: StartReplica
) -> None:
    one = await replica("a")
    await one.wait_ready(5)
    await redis.flushall()
    assert await until(lambda: not one.fresh) <= LEASE + 0.2
    assert one.denied(token_of(0))
    log.append(leaver(1))
    await projection.push()
    await until(lambda: one.fresh)
    assert one.denied(token_of(0))
    assert one.denied(token_of(1))


async def test_a_redis_that_hangs_lets_the_lease_run_out(
    projection: Projection, valkey: EmbeddedValkey, replica: StartReplica
) -> None:
    one = await replica("a")
    await one.wait_ready(5)
    valkey.pause()
    assert await until(lambda: not one.fresh) <= LEASE + 0.1
    valkey.resume()
    await until(lambda: one.fresh)
    assert one.denied(token_of(0))


async def test_a_restarted_redis_is_followed_again(
    projection: Projection, valkey: EmbeddedValkey, log: MemoryLog, replica: StartReplica
) -> None:
    one = await replica("a")
    await one.wait_ready(5)
    await valkey.stop()
    log.append(leaver(1))
    with pytest.raises(DenylistUnavailable):
        await projection.push()
    await until(lambda: not one.fresh)
    await valkey.start()
    await projection.push()
    await until(lambda: one.fresh and one.applied == 2)
    assert one.denied(token_of(0))
    assert one.denied(token_of(1))


async def test_a_failover_that_lost_entries_is_mended_by_the_next_push(
    projection: Projection, redis: Redis, log: MemoryLog, replica: StartReplica
) -> None:
    old = {key: await redis.dump(key) for key in (NAMES.meta, NAMES.facts)}
    one = await replica("a")
    await one.wait_ready(5)
    for number in (1, 2):
        log.append(leaver(number))
        await projection.push()
    await until(lambda: one.applied == 3)
    for key, value in old.items():
        await redis.restore(key, 0, value, replace=True)  # type: ignore[arg-type]
    await redis.delete(NAMES.log)
    two = await replica("b")
    await until(lambda: two.fresh)
    assert two.applied == 1
    assert one.applied == 3  # ahead of Redis, and right to stay there
    log.append(leaver(3))
    assert await projection.push() == 4
    await until(lambda: one.applied == two.applied == 4)
    for number in range(4):
        assert one.denied(token_of(number))
        assert two.denied(token_of(number))


async def test_a_trimmed_stream_makes_a_stopped_replica_load_anew(
    redis: Redis, log: MemoryLog, replica: StartReplica
) -> None:
    projection = Projection(redis, log, keep=1)
    await projection.push()
    one = await replica("a")
    await one.wait_ready(5)
    history = (await RedisCopy(redis, NAMES).read()).position.history
    await redis.client_kill_filter(_type="normal", skipme=True)
    for number in range(500):
        log.append(leaver(number))
    await projection.push()
    await redis.xtrim(NAMES.log, maxlen=1, approximate=False)
    await until(lambda: one.applied == 500 and one.fresh)
    assert one.facts == 500
    assert (await RedisCopy(redis, NAMES).read()).position.history == history


async def test_a_large_denylist_is_loaded_in_pages_while_entries_come(redis: Redis, log: MemoryLog) -> None:
    for number in range(4000):
        log.append(leaver(number))
    projection = Projection(redis, log)
    await projection.push()
    copy = RedisCopy(redis, NAMES)

    async def more() -> None:
        for number in range(4000, 4050):
            log.append(leaver(number), Fact(f"person|p-{number - 4000}", denied=False, before=1))
            await projection.push()

    snapshot, _ = await asyncio.gather(copy.snapshot(at_once=10), more())
    assert snapshot is not None
    facts: dict[str, Fact] = {}
    for entry in log.entries[: snapshot.position.seq]:
        facts.update((fact.key, fact) for fact in entry.facts)
    assert {fact.key: fact for fact in snapshot.facts} == facts


async def test_confirm_returns_at_once_when_live_replicas_have_it(
    projection: Projection, log: MemoryLog, replica: StartReplica
) -> None:
    one, two = await replica("a"), await replica("b")
    await asyncio.gather(one.wait_ready(5), two.wait_ready(5))
    await asyncio.sleep(LEASE * 1.1)  # since the rebuild: from now on Redis's list is a proof
    waited = []
    for number in range(1, 20):
        seq = log.append(leaver(number))
        await projection.push()
        confirmation = await projection.confirm(seq)
        assert confirmation.replicas == {one.name: InForce.APPLIED, two.name: InForce.APPLIED}
        assert one.denied(token_of(number))
        assert two.denied(token_of(number))
        waited.append(confirmation.waited)
    assert sorted(waited)[len(waited) // 2] < LEASE / 4


async def test_confirm_right_after_a_rebuild_waits_for_a_lease(
    projection: Projection, redis: Redis, log: MemoryLog, replica: StartReplica
) -> None:
    one = await replica("a")
    await one.wait_ready(5)
    await redis.flushall()
    seq = log.append(leaver(1))
    confirmation = await projection.confirm(seq)  # pushes by itself: Redis does not hold it
    assert confirmation.waited >= LEASE
    assert confirmation.replicas[one.name] == InForce.APPLIED


async def test_confirm_waits_out_the_lease_of_a_replica_that_died(
    projection: Projection, log: MemoryLog, replica: StartReplica
) -> None:
    one, two = await replica("a"), await replica("b")
    await asyncio.gather(one.wait_ready(5), two.wait_ready(5))
    await asyncio.sleep(LEASE * 1.1)
    for task in two._tasks:
        task.cancel()  # as if its machine had lost power: no farewell
    await asyncio.sleep(0.02)
    seq = log.append(leaver(1))
    await projection.push()
    confirmation = await projection.confirm(seq)
    assert not two.fresh
    assert confirmation.replicas == {one.name: InForce.APPLIED, two.name: InForce.LEASE_EXPIRED}
    seq = log.append(leaver(2))
    await projection.push()
    again = await projection.confirm(seq)  # it is known to be silent by now: nobody waits for it twice
    assert again.waited < LEASE / 2
    assert again.replicas[two.name] == InForce.LEASE_EXPIRED


async def test_confirm_gives_up_with_advice_when_redis_is_away(projection: Projection, valkey: EmbeddedValkey) -> None:
    await valkey.kill()
    with pytest.raises(DenylistUnavailable, match="entry 1 is not confirmed"):
        await projection.confirm(1, timeout=0.3)


async def test_a_replica_that_left_is_off_the_list_and_a_dead_one_follows(
    projection: Projection, redis: Redis, replica: StartReplica, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = await replica("a")
    await one.wait_ready(5)
    assert set(await projection.replicas()) == {one.name}
    await one.close()
    assert not one.fresh
    assert await projection.replicas() == {}
    await redis.hset(NAMES.replicas, "gone/1", "1:600:1764000000000:7")
    monkeypatch.setattr("offboard_worker.denylist.projection.DEAD_LEASES", 0.1)
    assert set(await projection.replicas()) == {"gone/1"}
    await asyncio.sleep(0.1)
    assert await projection.replicas() == {}
    assert await redis.hgetall(NAMES.replicas) == {}


async def test_a_proxy_that_can_not_cut_serves_no_more(
    projection: Projection, log: MemoryLog, replica: StartReplica, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(facts: Sequence[Fact]) -> None:
        if leaver(1) in facts:
            raise RuntimeError("the proxy has a bug")

    one = await replica("a", broken)
    await one.wait_ready(5)
    log.append(leaver(1))
    await projection.push()
    await until(lambda: not one.fresh, timeout=LEASE / 2)
    assert "serves no more" in caplog.text


async def test_a_heartbeat_is_refused_by_a_primary_without_its_replicas(
    projection: Projection, redis: Redis, replica: StartReplica
) -> None:
    one = await replica("a")
    await one.wait_ready(5)
    await redis.config_set("min-replicas-to-write", "1")
    assert await until(lambda: not one.fresh) <= LEASE + 0.1


async def test_an_overtaken_heartbeat_takes_nothing_back(projection: Projection, redis: Redis) -> None:
    copy = RedisCopy(redis, NAMES)
    position = (await copy.read()).position
    await copy.beat("a/1", position, 2.0, 8)
    await copy.beat("a/1", position, 0.0, 7)
    assert (await copy.read()).replicas["a/1"].lease == 2.0
