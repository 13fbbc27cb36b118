"""The queue: ids in JSON, one job for one part of a case, minutes of retry, and the dead-letter."""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
import time
import zlib
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
from rq import SimpleWorker
from rq.job import JobStatus
from rq.serializers import JSONSerializer

from offboard_worker import worker
from offboard_worker.config import JobSettings
from offboard_worker.denylist.connection import open_blocking_client
from offboard_worker.errors import DenylistUnavailable, Fatal, Retryable
from offboard_worker.jobs import queue as queue_module
from offboard_worker.jobs.queue import CONTAIN, QUEUES, REVOKE, Queues, event_job_id, next_try, target_job_id

pytestmark = pytest.mark.integration
SETTINGS = JobSettings(retry_intervals=(timedelta(seconds=30), timedelta(seconds=90)))


@pytest.fixture
def queues(queues: Queues) -> Queues:
    return Queues(queues.redis, SETTINGS)


def everything_in(redis: Any) -> Iterator[bytes]:
    """Every name and value that Redis holds, as bytes; compressed ones opened."""
    for key in redis.scan_iter():
        yield key
        match redis.type(key):
            case b"hash":
                for name, value in redis.hgetall(key).items():
                    yield name
                    yield _opened(value)
            case b"list":
                yield from redis.lrange(key, 0, -1)
            case b"set":
                yield from redis.smembers(key)
            case b"zset":
                yield from redis.zrange(key, 0, -1)
            case b"string":
                yield redis.get(key) or b""


def _opened(value: bytes) -> bytes:
    try:
        return zlib.decompress(value)
    except zlib.error:
        return value


def run_jobs(queues: Queues) -> None:
    """Run what is queued, in this process."""
    found = SimpleWorker([queues.queue(name) for name in QUEUES], connection=queues.redis, serializer=JSONSerializer)
    found.work(burst=True, logging_level="CRITICAL")


@pytest.fixture
def revoke(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Make the job that RQ calls by its name do what the test says: an exception to raise, or nothing."""
    script: list[Any] = []
    seen: list[Any] = []

    async def run(_ctx: object, case: str, connector: str, *, next_try: float | None) -> None:
        seen.append((case, connector, next_try))
        if script:
            raise script.pop(0)

    def run_job(job: Any) -> Any:
        return asyncio.run(job(None, None))

    monkeypatch.setattr(worker, "_run", run_job)
    monkeypatch.setattr("offboard_worker.jobs.revoke.run", run)
    return [script, seen]


def test_nothing_in_redis_is_pickled_and_arguments_are_ids_alone(queues: Queues) -> None:
    queues.submit(["c-1"], ["v-1"])
    queues.enqueue_targets([("c-1", "okta")])
    values = list(everything_in(queues.redis))
    assert not [value for value in values if value.startswith(b"\x80")], "a pickle"
    data = [json.loads(value) for value in values if value.startswith(b'["offboard_worker.worker.')]
    assert sorted(data) == [
        ["offboard_worker.worker.dispatch", None, [["c-1"]], {}],
        ["offboard_worker.worker.event", None, ["v-1"], {}],
        ["offboard_worker.worker.revoke", None, ["c-1", "okta"], {}],
    ]


def test_job_ids_are_stable(queues: Queues) -> None:
    assert target_job_id("c-1", "aws-prod") == "revoke-c-1-aws-prod"
    assert target_job_id("c-1", "odd name/x") == "revoke-c-1-odd_name_x"
    assert event_job_id("v-1") == "event-v-1"
    queues.enqueue_targets([("c-1", "okta")])
    assert queues.queue(REVOKE).job_ids == ["revoke-c-1-okta"]


def test_queuing_the_same_work_twice_leaves_one_job(queues: Queues) -> None:
    assert queues.enqueue_targets([("c-1", "okta"), ("c-1", "aws"), ("c-1", "okta")]) == 2
    assert queues.enqueue_targets([("c-1", "okta")]) == 0
    assert queues.enqueue_event("v-1")
    assert not queues.enqueue_event("v-1")
    assert queues.queue(REVOKE).count == 2
    assert queues.queue(CONTAIN).count == 1


def test_containment_comes_before_revocation_and_revocation_before_upkeep() -> None:
    assert QUEUES == ("contain", "revoke", "maintain")


def test_a_failing_job_waits_its_minutes(queues: Queues, revoke: list[Any]) -> None:
    script, seen = revoke
    script.append(Retryable("busy"))
    queues.enqueue_targets([("c-1", "okta")])
    run_jobs(queues)
    assert seen == [("c-1", "okta", 30.0)]
    job = queues.job("revoke-c-1-okta")
    assert job is not None
    assert job.get_status() is JobStatus.SCHEDULED
    assert 25 <= _due_in(queues, job.id) <= 31
    assert not queues.enqueue_targets([("c-1", "okta")])  # it is on its way already


def test_a_vendors_retry_after_makes_the_wait_longer(queues: Queues, revoke: list[Any]) -> None:
    script, _ = revoke
    script.append(Retryable("busy", retry_after=300))
    queues.enqueue_targets([("c-1", "okta")])
    run_jobs(queues)
    assert 290 <= _due_in(queues, "revoke-c-1-okta") <= 301


def test_a_short_retry_after_never_makes_the_wait_shorter(queues: Queues, revoke: list[Any]) -> None:
    script, _ = revoke
    script.append(Retryable("busy", retry_after=2))
    queues.enqueue_targets([("c-1", "okta")])
    run_jobs(queues)
    assert 25 <= _due_in(queues, "revoke-c-1-okta") <= 31


def _due_in(queues: Queues, job_id: str) -> float:
    due = queues.redis.zscore(queues.queue(REVOKE).scheduled_job_registry.key, job_id)
    assert due is not None
    return float(due) - time.time()


def test_a_job_without_tries_left_is_in_the_dead_letter_and_can_be_run_again(queues: Queues, revoke: list[Any]) -> None:
    script, seen = revoke
    script += [Retryable("busy")] * 3
    queues.enqueue_targets([("c-1", "okta")])
    for _ in range(3):
        run_jobs(queues)
        for job_id in queues.queue(REVOKE).scheduled_job_registry.get_job_ids():
            queues.queue(REVOKE).scheduled_job_registry.remove(job_id)
            job = queues.job(job_id)
            assert job is not None
            queues.queue(REVOKE).enqueue_job(job)
    assert [next_try for *_, next_try in seen] == [30.0, 90.0, None]
    assert queues.failed() == [(REVOKE, "revoke-c-1-okta")]
    assert not queues.alive("revoke-c-1-okta")
    queues.queue(REVOKE).failed_job_registry.requeue("revoke-c-1-okta")  # what rq-dashboard does
    run_jobs(queues)
    assert len(seen) == 4
    assert queues.failed() == []


def test_queuing_what_has_failed_takes_it_out_of_the_dead_letter(queues: Queues, revoke: list[Any]) -> None:
    script, seen = revoke
    queues = Queues(queues.redis, JobSettings(retry_intervals=()))
    script.append(Fatal("no"))
    queues.enqueue_targets([("c-1", "okta")])
    run_jobs(queues)
    assert queues.failed() == [(REVOKE, "revoke-c-1-okta")]
    assert queues.enqueue_targets([("c-1", "okta")]) == 1
    assert queues.failed() == []
    run_jobs(queues)
    assert len(seen) == 2


def test_a_finished_job_can_be_queued_again(queues: Queues, revoke: list[Any]) -> None:
    for times in (1, 2):
        assert queues.enqueue_targets([("c-1", "okta")]) == 1
        run_jobs(queues)
        assert len(revoke[1]) == times


def test_what_stands_behind_an_error_never_reaches_redis(queues: Queues, monkeypatch: pytest.MonkeyPatch) -> None:
    """RQ keeps a failed job's traceback: a foreign exception's text may hold a token."""

    class Broken:
        def open(self) -> Any:
            try:
                raise ValueError("Authorization: Bearer sekret-token")
            except ValueError as error:
                raise Retryable("the vendor broke off", connector="okta") from error

    monkeypatch.setattr(worker, "_app", Broken())
    queues = Queues(queues.redis, JobSettings(retry_intervals=()))
    queues.enqueue_targets([("c-1", "okta")])
    run_jobs(queues)
    assert queues.failed()
    values = b"\n".join(_unpacked(value) for value in everything_in(queues.redis))
    assert b"sekret" not in values


def _unpacked(value: bytes) -> bytes:
    try:
        return value + zlib.decompress(base64.b64decode(value, validate=True))
    except (zlib.error, binascii.Error, ValueError):
        return value


def test_a_redis_that_is_away_is_said_in_our_words() -> None:
    client = open_blocking_client("redis://127.0.0.1:1/0", 0.2)
    with pytest.raises(DenylistUnavailable):
        Queues(client, SETTINGS).submit(["c-1"], [])
    client.close()


def test_somebody_outside_a_job_has_no_next_try() -> None:
    assert next_try(None) is None
    queue_module.wait_longer(None, 10)  # nothing to make longer
