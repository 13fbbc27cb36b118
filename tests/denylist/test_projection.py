"""Pushing the denial log into a real Valkey: exact, whatever happens to Redis and whoever else pushes."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest
from redis.asyncio import Redis

from offboard_worker.denylist import projection as module
from offboard_worker.denylist.embedded import EmbeddedValkey
from offboard_worker.denylist.facts import Entry, Fact, token_key
from offboard_worker.denylist.projection import Projection
from offboard_worker.denylist.redis_copy import Position, RedisCopy
from offboard_worker.errors import DenylistUnavailable
from tests.denylist.conftest import LEASE, NAMES, leaver
from tests.denylist.memory_log import MemoryLog

pytestmark = pytest.mark.integration


async def held(redis: Redis) -> dict[str, str]:
    found: Any = await redis.hgetall(NAMES.facts)
    return {key.decode(): value.decode() for key, value in found.items()}


async def streamed(redis: Redis) -> list[int]:
    found: Any = await redis.xrange(NAMES.log)
    return [int(entry_id.split(b"-")[0]) for entry_id, _ in found]


async def test_a_push_brings_everything_and_a_second_one_changes_nothing(redis: Redis, log: MemoryLog) -> None:
    log.append(leaver(1))
    log.append(leaver(2), Fact("person|p-1", denied=False, before=4))
    projection = Projection(redis, log)
    assert await projection.push() == 2
    assert await held(redis) == {"person|p-1": "0:4:", "person|p-2": "1:0:"}
    before = await redis.dump(NAMES.facts), await redis.dump(NAMES.log)
    assert await projection.push() == 2
    assert before == (await redis.dump(NAMES.facts), await redis.dump(NAMES.log))
    log.append(leaver(3))
    assert await projection.push() == 3
    assert await streamed(redis) == [3]
    status = await projection.status()
    assert (status.log_id, status.seq, status.facts, status.intact) == ("log-1", 3, 3, True)


async def test_one_entry_is_one_round_trip(redis: Redis, log: MemoryLog) -> None:
    projection = Projection(redis, log)
    await projection.push()
    log.append(leaver(1))
    calls = (await redis.info("commandstats"))["cmdstat_evalsha"]["calls"]
    await projection.push()
    assert (await redis.info("commandstats"))["cmdstat_evalsha"]["calls"] == calls + 1 + 1  # the first is NOSCRIPT
    log.append(leaver(2))
    await projection.push()
    assert (await redis.info("commandstats"))["cmdstat_evalsha"]["calls"] == calls + 3


async def test_redis_refuses_a_gap_an_overlap_and_another_history(redis: Redis, log: MemoryLog) -> None:
    log.append(leaver(1))
    await Projection(redis, log).push()
    copy = RedisCopy(redis, NAMES)
    stands = (await copy.read()).position
    two, three = Entry(2, (leaver(2),), 0.0), Entry(3, (leaver(3),), 0.0)
    for position, entry in [
        (Position(stands.history, 2), three),
        (Position(stands.history, 0), Entry(1, (leaver(9),), 0.0)),
        (Position("log-2~x", 1), two),
    ]:
        answer = await copy.push(position, [entry], keep=10)
        assert not answer.accepted
        assert answer.position == stands
    with pytest.raises(ValueError, match="gap"):
        await copy.push(stands, [two, Entry(4, (), 0.0)], keep=10)
    assert await held(redis) == {"person|p-1": "1:0:"}


async def test_pushers_that_race_leave_one_exact_copy(redis: Redis, log: MemoryLog) -> None:
    pushers = [Projection(redis, log) for _ in range(4)]

    async def work(number: int) -> None:
        for step in range(25):
            seq = log.append(leaver(number * 100 + step))
            assert await pushers[number].push() >= seq

    await asyncio.gather(*(work(number) for number in range(4)))
    assert len(await held(redis)) == 100
    assert (await streamed(redis))[-50:] == list(range(51, 101))


async def test_an_empty_redis_is_rebuilt_whole(redis: Redis, log: MemoryLog, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "STAGE_BATCH", 7)
    projection = Projection(redis, log)
    for number in range(50):
        log.append(leaver(number))
        await projection.push()
    await redis.flushall()
    assert await projection.push() == 50
    assert len(await held(redis)) == 50
    assert await redis.ttl(NAMES.facts) == -1  # the staged key's expiry must not come along
    assert sorted(await redis.keys("*")) == [key.encode() for key in sorted([NAMES.facts, NAMES.meta])]


@pytest.mark.parametrize("harm", ["facts gone", "one fact gone", "meta gone", "stream ahead"])
async def test_a_damaged_copy_is_rebuilt(redis: Redis, log: MemoryLog, harm: str) -> None:
    projection = Projection(redis, log)
    await projection.push()
    for number in range(3):
        log.append(leaver(number))
        await projection.push()
    match harm:
        case "facts gone":
            await redis.delete(NAMES.facts)
        case "one fact gone":
            await redis.hdel(NAMES.facts, "person|p-1")
        case "meta gone":
            await redis.delete(NAMES.meta)
        case "stream ahead":
            await redis.xadd(NAMES.log, {"x": "y"}, id="99-0")
            log.append(leaver(3))
    await projection.push()
    assert await held(redis) == {entry.facts[0].key: "1:0:" for entry in log.entries}
    assert (await projection.status()).intact


async def test_another_log_and_a_restored_store_replace_what_redis_holds(redis: Redis, log: MemoryLog) -> None:
    for number in range(3):
        log.append(leaver(number))
    projection = Projection(redis, log)
    await projection.push()
    old = (await RedisCopy(redis, NAMES).read()).position
    log.restore(1)
    assert await projection.push() == 1
    assert await held(redis) == {"person|p-0": "1:0:"}
    assert (await RedisCopy(redis, NAMES).read()).position.history != old.history
    other = MemoryLog("log-2")
    other.append(leaver(7))
    assert await Projection(redis, other).push() == 1
    assert await held(redis) == {"person|p-7": "1:0:"}


async def test_a_rebuild_gives_way_to_one_that_was_faster(redis: Redis, log: MemoryLog) -> None:
    log.append(leaver(1))
    slow, fast = Projection(redis, log), Projection(redis, log)

    class Interrupted(RedisCopy):
        async def stage(self, token: str, facts: Sequence[Fact]) -> None:
            await super().stage(token, facts)
            log.append(leaver(2))
            assert await fast.push() == 2

    slow = Projection(None, log, copy=Interrupted(redis, NAMES))
    assert await slow.push() == 2
    assert set(await held(redis)) == {"person|p-1", "person|p-2"}


async def test_a_fact_lost_between_staging_and_flip_is_not_believed(redis: Redis, log: MemoryLog) -> None:
    log.append(leaver(1), leaver(2))
    copy = RedisCopy(redis, NAMES)
    await copy.stage("t", [leaver(1)])
    answer = await copy.flip(Position("", 0), "t", "log-1", 1, 2)
    assert not answer.accepted
    assert answer.damaged
    assert not (await copy.read()).intact


async def test_only_tokens_that_expired_for_certain_are_pruned(redis: Redis, log: MemoryLog) -> None:
    now = float((await redis.time())[0])
    old, near = token_key("us", "old"), token_key("us", "near")
    log.append(Fact(old, True, expires_at=int(now - 1000)), Fact(near, True, expires_at=int(now - 10)), leaver(1))
    projection = Projection(redis, log)
    await RedisCopy(redis, NAMES).flip(Position("", 0), "t", "log-1", 0, 0)
    await projection.push()
    assert await projection.prune(now + 1e9) == 1  # a clock that is years ahead drops nothing before its time
    assert set(await held(redis)) == {near, "person|p-1"}
    assert (await projection.status()).intact


async def test_without_redis_a_push_says_what_to_do(valkey: EmbeddedValkey, redis: Redis, log: MemoryLog) -> None:
    await valkey.kill()
    with pytest.raises(DenylistUnavailable) as caught:
        await Projection(redis, log, lease=LEASE).push()
    assert "Redis" in caught.value.advice


async def test_a_push_that_must_wait_for_a_missing_redis_replica_does_not_count(redis: Redis, log: MemoryLog) -> None:
    log.append(leaver(1))
    with pytest.raises(DenylistUnavailable, match="0 of 1 Redis replicas"):
        await Projection(redis, log, wait_replicas=1).push()
