"""The scheduler: an entry point with three beats. Every second the denial log is pushed, every few seconds the
reconciler looks for lost work, and RQ's cron queues the recurring duties.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
from collections.abc import Awaitable, Callable
from datetime import timedelta

from redis.exceptions import RedisError

from offboard_worker import worker
from offboard_worker.app import App, Opened
from offboard_worker.errors import OffboardError
from offboard_worker.jobs.containment import record_containment
from offboard_worker.jobs.reconcile import reconcile
from offboard_worker.jobs.schedule import Duty, Schedule

log = logging.getLogger(__name__)
STOP_WITHIN = 5.0
"""Seconds that SIGTERM gives a beat that is under way."""


def duties(app: App) -> list[Duty]:
    """What recurs, and how often."""
    common = [
        Duty(worker.checkpoint, app.config.audit.checkpoint_every),
        Duty(worker.prune, timedelta(minutes=1)),
        Duty(worker.deletes, timedelta(minutes=5)),
        Duty(worker.close, timedelta(minutes=5)),
    ]
    for name in app.sources:
        common.append(Duty(worker.catch_up, timedelta(minutes=10), (name,)))
        common.append(Duty(worker.upkeep, timedelta(hours=3), (name,)))
        common.append(Duty(worker.roster, timedelta(hours=6), (name,)))
    return common


class Scheduler:
    """The three beats over one application's connections."""

    def __init__(self, opened: Opened) -> None:
        self._opened = opened
        self._schedule = Schedule(opened.queues, duties(opened.app))

    async def run(self, stop: asyncio.Event) -> None:
        """Beat until `stop`. Trouble is logged once per change, and never stops a beat."""
        jobs = self._opened.app.config.jobs
        await asyncio.gather(
            self._beat(stop, "push", jobs.push_every.total_seconds(), self._push),
            self._beat(stop, "reconcile", jobs.reconcile_every.total_seconds(), self._reconcile),
            self._beat(stop, "schedule", 1.0, self._tick),
        )

    async def _push(self) -> None:
        await self._opened.projection.push()
        await record_containment(self._opened.store, self._opened.projection)

    async def _reconcile(self) -> None:
        found = await reconcile(self._opened.store, self._opened.queues, self._opened.claims)
        if found.targets or found.events:
            log.info("queued again: %d parts of cases, %d events", found.targets, found.events)

    async def _tick(self) -> None:
        await asyncio.to_thread(self._schedule.tick)

    async def _beat(self, stop: asyncio.Event, name: str, every: float, work: Callable[[], Awaitable[None]]) -> None:
        trouble = ""
        while not stop.is_set():
            try:
                await work()
                if trouble:
                    log.info("%s works again", name)
                trouble = ""
            except (OffboardError, RedisError, OSError) as error:
                if str(error) != trouble:
                    log.warning("%s: %s", name, error)
                trouble = str(error)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(every):
                    await stop.wait()


async def run_scheduler(app: App, ready: Callable[[], None] = lambda: None) -> None:
    """Run until SIGTERM."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    async with app.open() as opened:
        beats = asyncio.create_task(Scheduler(opened).run(stop), name="scheduler")
        ready()
        done = asyncio.create_task(stop.wait())
        await asyncio.wait({beats, done}, return_when=asyncio.FIRST_COMPLETED)
        done.cancel()
        # A beat ends by itself: a cancellation within a Redis call may come out as one more Redis error.
        await asyncio.wait({beats}, timeout=STOP_WITHIN)
        if beats.cancel():
            await asyncio.wait({beats}, timeout=1.0)
        elif not beats.cancelled():
            beats.result()  # a beat that broke ends the process: whoever runs it starts it again
