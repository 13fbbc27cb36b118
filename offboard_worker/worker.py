"""The worker: an entry point that runs jobs. RQ forks one process per job, so a crashed SDK takes one job with it.

What RQ calls by name stands here: `dispatch`, `event`, `revoke` and the recurring duties. Each builds what it needs from
the configuration, does one thing of `jobs/`, and ends. SDKs are imported in the parent, before any fork.
"""

from __future__ import annotations

import asyncio
import logging
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar

from redis.exceptions import RedisError
from rq import Queue, Worker, get_current_job
from rq.job import Job
from rq.serializers import JSONSerializer

from offboard_worker import config as configuration
from offboard_worker.app import App, Opened
from offboard_worker.denylist.connection import open_blocking_client
from offboard_worker.denylist.embedded import die_with_parent
from offboard_worker.errors import ConnectorError, OffboardError
from offboard_worker.jobs import events
from offboard_worker.jobs import revoke as revocation
from offboard_worker.jobs.context import JobContext
from offboard_worker.jobs.duties import checkpoint_audit, close_verified, prune_expired, queue_due_deletes
from offboard_worker.jobs.own_job import OwnJob
from offboard_worker.jobs.queue import HEARTBEAT, QUEUES, next_try, wait_longer

T = TypeVar("T")
log = logging.getLogger(__name__)
CONFIG_VARIABLE = "OFFBOARD_CONFIG"
"""Names the configuration file for jobs that something else than `offboard worker` runs."""

_app: App | None = None


def use(app: App) -> None:
    """Make jobs of this process, and of those forked from it, use this application."""
    global _app
    _app = app


def _configured() -> App:
    if _app is None:
        use(App(configuration.load(Path(os.environ.get(CONFIG_VARIABLE, "config.yaml")))))
    assert _app is not None  # noqa: S101 - set by the line above
    return _app


def _run(job: Callable[[Opened, JobContext], Awaitable[T]]) -> T:
    """Run one job's coroutine in a loop of its own, with connections of its own."""

    async def whole() -> T:
        async with _configured().open() as opened:
            return await job(opened, opened.job_context())

    try:
        return asyncio.run(whole())
    except OffboardError as error:
        # RQ keeps the whole traceback in Redis: a foreign exception that stands behind ours may hold anything.
        raise error from None


def dispatch(case_ids: list[str]) -> int:
    """Queue one job per connector for each of these cases."""

    async def job(opened: Opened, ctx: JobContext) -> int:
        from offboard_worker.store import cases

        async with ctx.store.read() as conn:
            ready = await cases.unfinished_targets(conn, ctx.store.clock(), case_ids)
        pairs = [(part.case_id, part.connector) for part in ready]
        return await asyncio.to_thread(opened.queues.enqueue_targets, pairs)

    return _run(job)


def revoke(case_id: str, connector: str) -> None:
    """Do one connector's part of one case."""
    current = get_current_job()
    try:
        _run(lambda _opened, ctx: revocation.run(ctx, case_id, connector, next_try=next_try(current)))
    except ConnectorError as error:
        retry_after = getattr(error, "retry_after", None)
        if retry_after:
            wait_longer(current, retry_after)
        raise


def event(event_id: str) -> None:
    """Do the re-read or chore that one event waits for."""
    _run(lambda _opened, ctx: events.run(ctx, event_id))


def catch_up(source: str) -> int:
    """Poll what a lost webhook of one source would have said."""
    return _run(lambda _opened, ctx: events.catch_up(ctx, source))


def upkeep(source: str) -> int:
    """Do what one source must do again and again to go on hearing anything."""
    return _run(lambda _opened, ctx: events.upkeep(ctx, source))


def roster(source: str) -> int:
    """Learn everybody's ids from one source's directory."""
    return _run(lambda _opened, ctx: events.learn_roster(ctx, source))


def checkpoint() -> None:
    """Sign the audit chain's head and put the checkpoint where it belongs."""
    _run(
        lambda opened, ctx: checkpoint_audit(
            ctx.store, opened.app.config.audit_key, opened.app.config.audit.checkpoints
        )
    )


def prune() -> None:
    """Drop what has expired from Redis."""
    _run(lambda opened, ctx: prune_expired(ctx, opened.issued))


def deletes() -> int:
    """Queue the deletes whose grace period is over."""
    return _run(lambda _opened, ctx: queue_due_deletes(ctx))


def close() -> int:
    """Close verified cases that nothing is left to do for."""
    return _run(lambda _opened, ctx: close_verified(ctx))


def preload(app: App) -> None:
    """Import what jobs will need, before any fork."""
    for kind, _settings in app.connectors.values():
        kind.preload()
    _ = app.sources, app.book


class JobWorker(Worker):
    """RQ's forking worker, quiet about jobs' arguments and quick to notice a killed job."""

    def __init__(self, app: App, name: str) -> None:
        connection = open_blocking_client(app.config.redis_url, None)
        queues = [Queue(queue, connection=connection, serializer=JSONSerializer, job_class=OwnJob) for queue in QUEUES]
        super().__init__(
            queues,
            name=name,
            connection=connection,
            serializer=JSONSerializer,
            job_class=OwnJob,
            job_monitoring_interval=HEARTBEAT,
            worker_ttl=60,
            maintenance_interval=30,  # RQ's scheduler is taken over then, if the worker that ran it was killed
        )

    def setup_work_horse_signals(self) -> None:
        """Let a job end with its worker: whoever kills the worker must not leave a job that nobody watches."""
        super().setup_work_horse_signals()  # type: ignore[no-untyped-call]
        die_with_parent(signal.SIGKILL)

    def handle_exception(self, job: Job, *exc_info: Any) -> None:
        """Say an expected trouble (a busy vendor, a refused credential) in one line, where RQ prints a traceback."""
        error = exc_info[1]
        if isinstance(error, OffboardError):
            log.warning("job %s: %s", job.id, error.message, extra={"advice": error.advice})
        else:
            super().handle_exception(job, *exc_info)


STOP_WITHIN = 6.5
"""Seconds that SIGTERM gives running jobs. One that takes longer is killed, and found again by the reconciler."""


class Pool:
    """The worker processes of one machine: kept at their number until stopped."""

    def __init__(self, app: App, count: int) -> None:
        self._app = app
        self._count = count
        self._context = multiprocessing.get_context("fork")
        self._processes: dict[int, multiprocessing.process.BaseProcess] = {}
        self._stopping = False

    def run(self, ready: Callable[[], None]) -> None:
        """Run until SIGTERM or SIGINT."""
        preload(self._app)
        signal.signal(signal.SIGTERM, self._stop)
        signal.signal(signal.SIGINT, self._stop)
        for number in range(self._count):
            self._start(number)
        ready()
        while not self._stopping:
            time.sleep(0.2)
            for number, process in list(self._processes.items()):
                if not process.is_alive() and not self._stopping:
                    log.warning("worker %d ended with %s: started again", number, process.exitcode)
                    time.sleep(0.5)
                    self._start(number)
        self._end()

    def _start(self, number: int) -> None:
        process = self._context.Process(target=self._work, args=(number,), daemon=False)
        process.start()
        self._processes[number] = process

    def _work(self, number: int) -> None:
        """One worker process, until SIGTERM: it then finishes its job."""
        for signum in (signal.SIGTERM, signal.SIGINT):
            signal.signal(signum, signal.SIG_DFL)  # the pool's own would swallow it until RQ has set its
        die_with_parent()
        if self._stopping:
            return
        os.register_at_fork(after_in_child=die_with_parent)  # RQ's scheduler too
        use(self._app)
        try:
            worker = JobWorker(self._app, f"{os.uname().nodename}-{os.getpid()}-{number}")
            worker.work(with_scheduler=number == 0, logging_level="WARNING")
        except (RedisError, OSError) as error:
            log.warning("worker %d lost Redis: %s", number, type(error).__name__)
            sys.exit(1)

    def _stop(self, _number: int, _frame: FrameType | None) -> None:
        self._stopping = True

    def _end(self) -> None:
        for process in self._processes.values():
            if process.pid and process.is_alive():
                os.kill(process.pid, signal.SIGTERM)
        deadline = time.monotonic() + STOP_WITHIN
        for process in self._processes.values():
            process.join(max(0.0, deadline - time.monotonic()))
        for process in self._processes.values():
            if process.is_alive():
                process.kill()
                process.join(1)


def run_worker(app: App, ready: Callable[[], None] = lambda: None) -> None:
    """Run this machine's workers until SIGTERM."""
    Pool(app, app.config.jobs.workers).run(ready)
