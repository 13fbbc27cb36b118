"""Recurring duties are queued when they are due, in JSON."""

from __future__ import annotations

import json
import time
import zlib
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from offboard_worker import worker
from offboard_worker.app import App
from offboard_worker.config import loads
from offboard_worker.jobs.queue import MAINTAIN, Queues
from offboard_worker.jobs.schedule import Duty, Schedule
from offboard_worker.scheduler import duties

pytestmark = pytest.mark.integration


def test_a_duty_is_queued_at_once_and_then_at_its_interval(queues: Queues) -> None:
    schedule = Schedule(queues, [Duty(worker.prune, timedelta(seconds=1)), Duty(worker.close, timedelta(hours=1))])
    assert schedule.tick() == 2
    assert schedule.tick() == 0
    time.sleep(1.1)
    assert schedule.tick() == 1
    assert queues.queue(MAINTAIN).count == 3


def test_a_duty_is_a_name_and_its_arguments_in_json(queues: Queues) -> None:
    Schedule(queues, [Duty(worker.catch_up, timedelta(minutes=10), ("okta-main",))]).tick()
    (job,) = queues.queue(MAINTAIN).jobs
    raw: Any = queues.redis.hget(job.key, "data")
    data = json.loads(zlib.decompress(raw))
    assert data == ["offboard_worker.worker.catch_up", None, ["okta-main"], {}]


def test_every_source_is_caught_up_with_kept_alive_and_asked_who_is_there() -> None:
    config = loads("sources: {okta-main: {type: okta, secret: 'abcdefgh-12345678'}}", "c", Path("."), {})
    found = {(duty.function.__name__, *duty.args) for duty in duties(App(config))}
    assert {("catch_up", "okta-main"), ("upkeep", "okta-main"), ("roster", "okta-main")} <= found
    assert {("checkpoint",), ("prune",), ("deletes",), ("close",)} <= found
