"""Recurring work, on RQ's cron: what runs how often. The reconciler and the push have their own, faster beat."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from redis import Redis
from rq.cron import CronJob, CronScheduler
from rq.job import Job

from offboard_worker.jobs.queue import DONE_FOR, FAILED_FOR, MAINTAIN, Queues


@dataclass(frozen=True, slots=True)
class Duty:
    """One recurring duty: the function that a worker runs, its arguments and how often."""

    function: Callable[..., Any]
    every: timedelta
    args: tuple[str, ...] = ()


class _Recurring(CronJob):
    """RQ's cron job, queued with the JSON serializer: RQ's own would pickle."""

    queues: Queues

    def enqueue(self, connection: Redis) -> Job:
        return self.queues.queue(self.queue_name).enqueue(
            self.func_name, args=self.args, kwargs=self.kwargs, **self.job_options
        )


class Schedule:
    """Queues each duty when it is due. `tick` is called once a second, from a thread."""

    def __init__(self, queues: Queues, duties: list[Duty]) -> None:
        self._scheduler = CronScheduler(queues.redis, name="offboard-worker")
        for duty in duties:
            job = _Recurring(
                queue_name=MAINTAIN,
                func=duty.function,
                args=duty.args,
                interval=max(1, int(duty.every.total_seconds())),
                job_timeout=900,
                result_ttl=DONE_FOR,
                failure_ttl=FAILED_FOR,
                name=f"{duty.function.__name__} {' '.join(duty.args)}".strip(),
            )
            job.queues = queues
            self._scheduler.get_jobs().append(job)

    def tick(self) -> int:
        """Queue what is due and return how many that were. Raises redis.exceptions.RedisError."""
        return len(self._scheduler.enqueue_jobs())
