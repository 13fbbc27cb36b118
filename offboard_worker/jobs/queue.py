"""The queue: RQ on Redis with the JSON serializer (pickle would make write access to Redis remote code execution).

Arguments are ids only, job ids are stable: one job per (case, connector), per pending event, per recurring duty. So
enqueuing twice is harmless, and re-running a failed job from rq-dashboard, the console or the CLI is the same thing.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Any, Final

from redis import Redis
from redis.exceptions import RedisError
from rq import Queue, Retry
from rq.exceptions import DuplicateJobError, NoSuchJobError
from rq.job import Job, JobStatus
from rq.registry import FailedJobRegistry
from rq.serializers import JSONSerializer

from offboard_worker.config import JobSettings
from offboard_worker.errors import DenylistUnavailable

CONTAIN: Final = "contain"
REVOKE: Final = "revoke"
MAINTAIN: Final = "maintain"
QUEUES: Final = (CONTAIN, REVOKE, MAINTAIN)
"""In the order in which workers look at them."""

_FUNCTIONS: Final = "offboard_worker.worker"
_ALIVE: Final = frozenset({JobStatus.QUEUED, JobStatus.STARTED, JobStatus.SCHEDULED, JobStatus.DEFERRED})
HEARTBEAT: Final = 5
"""Seconds after which a running job's worker says again that it lives."""
_STARTING: Final = 5
"""Seconds that a started job may take until it holds its claim."""
_OVERDUE: Final = 10
"""Seconds after which a job that its worker, or RQ's scheduler, should have moved on is taken for lost."""
DONE_FOR: Final = 300
"""Seconds for which a finished job stays to be looked at."""
FAILED_FOR: Final = 90 * 24 * 3600
"""Seconds for which a failed job waits to be re-run: the dead-letter."""


def target_job_id(case_id: str, connector: str) -> str:
    return re.sub(r"[^A-Za-z0-9_-]", "_", f"revoke-{case_id}-{connector}")


def event_job_id(event_id: str) -> str:
    return f"event-{event_id}"


class Queues:
    """The three queues, over a blocking Redis client: call from a job, a thread or a command."""

    def __init__(self, redis: Redis, settings: JobSettings) -> None:
        self.redis = redis
        self._settings = settings
        self._queues = {name: Queue(name, connection=redis, serializer=JSONSerializer) for name in QUEUES}

    def queue(self, name: str) -> Queue:
        return self._queues[name]

    def submit(self, case_ids: Sequence[str], event_ids: Sequence[str]) -> None:
        """Hand new work over: one dispatch job for all the cases, one job per event that waits.

        Raises DenylistUnavailable where Redis is away: the reconciler finds the work in the store.
        """
        try:
            if case_ids:
                self.queue(CONTAIN).enqueue(
                    f"{_FUNCTIONS}.dispatch",
                    args=(list(case_ids),),
                    job_timeout=60,
                    result_ttl=DONE_FOR,
                    failure_ttl=FAILED_FOR,
                    description=f"dispatch {len(case_ids)} cases",
                )
            for event_id in event_ids:
                self.enqueue_event(event_id)
        except (RedisError, OSError) as error:
            raise DenylistUnavailable(f"Redis can't take jobs now: {type(error).__name__}") from error

    def enqueue_event(self, event_id: str) -> bool:
        """Queue the re-read or chore of one event, unless it is queued. Returns whether it was new."""
        return self._enqueue(CONTAIN, "event", (event_id,), event_job_id(event_id), f"event {event_id}")

    def enqueue_targets(self, targets: Iterable[tuple[str, str]]) -> int:
        """Queue the job of each (case, connector), unless it is queued. Returns how many were new."""
        return sum(
            self._enqueue(REVOKE, "revoke", (case, name), target_job_id(case, name), f"{name}: case {case}")
            for case, name in targets
        )

    def _enqueue(self, queue: str, function: str, args: tuple[Any, ...], job_id: str, title: str) -> bool:
        old = self.job(job_id)
        if old is not None:
            if old.get_status() in _ALIVE:
                return False
            old.delete()
        try:
            self.queue(queue).enqueue(
                f"{_FUNCTIONS}.{function}",
                args=args,
                job_id=job_id,
                unique=True,
                job_timeout=int(self._settings.timeout.total_seconds()) + 60,  # ours comes first, and ends it cleanly
                result_ttl=DONE_FOR,
                failure_ttl=FAILED_FOR,
                retry=self._retry(),
                description=title,
            )
        except DuplicateJobError:
            return False
        return True

    def _retry(self) -> Retry | None:
        intervals = [max(1, int(interval.total_seconds())) for interval in self._settings.retry_intervals]
        return Retry(max=len(intervals), interval=intervals) if intervals else None

    def job(self, job_id: str) -> Job | None:
        try:
            return Job.fetch(job_id, connection=self.redis, serializer=JSONSerializer)
        except NoSuchJobError:
            return None

    def alive(self, job_id: str) -> bool:
        """Say whether the queue will run this job by itself. Ask for jobs that nobody holds the claim of.

        RQ's own word is not enough: a worker that was killed leaves its job `started`, or `queued` and in no queue; RQ's
        scheduler that was killed leaves it `scheduled`. RQ notices after minutes. To be wrong does no harm: a job that
        runs twice has one effect.
        """
        job = self.job(job_id)
        if job is None:
            return False
        match job.get_status():
            case JobStatus.STARTED:
                return job.started_at is None or _seconds_since(job.started_at) < _STARTING
            case JobStatus.SCHEDULED:
                due = self.redis.zscore(self.queue(job.origin).scheduled_job_registry.key, job_id)
                return due is not None and time.time() - float(due) < _OVERDUE
            case JobStatus.QUEUED:
                if job.enqueued_at is None or _seconds_since(job.enqueued_at) < _OVERDUE:
                    return True
                return self.redis.lpos(self.queue(job.origin).key, job_id) is not None
            case status:
                return status in _ALIVE

    def forget(self, job_id: str) -> None:
        """Drop a job, so that it can be queued afresh: its worker died, or an operator wants it now."""
        job = self.job(job_id)
        if job is not None:
            job.delete()

    def failed(self) -> list[tuple[str, str]]:
        """The dead-letter: (queue, job id) of all failed jobs."""
        return [
            (name, job_id)
            for name, queue in self._queues.items()
            for job_id in FailedJobRegistry(queue=queue).get_job_ids()
        ]


def _seconds_since(moment: datetime) -> float:
    return (datetime.now(UTC) - moment).total_seconds()


def wait_longer(job: Job | None, seconds: float) -> None:
    """Make the running job's next retry wait at least this long: what the vendor's Retry-After asked for."""
    if job is not None and job.retry_intervals and job.retries_left:
        job.retry_intervals = [max(interval, int(seconds + 0.999)) for interval in job.retry_intervals]
        job.save()


def next_try(job: Job | None) -> float | None:
    """After how many seconds the queue would run a failing job again; None if it won't by itself."""
    if job is None or not job.retries_left:
        return None
    return float(job.get_retry_interval())
