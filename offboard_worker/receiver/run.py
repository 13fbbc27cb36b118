"""The receiver's process: wires the receiver to the store, the denylist and the queue, and runs until SIGTERM."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Callable
from datetime import UTC, datetime

from offboard_worker.app import App, Opened
from offboard_worker.core.event import EventKind, IdentityEvent
from offboard_worker.core.person import Subject
from offboard_worker.errors import DenylistUnavailable
from offboard_worker.event_loop import settle_memory
from offboard_worker.jobs.containment import ContainmentRecorder
from offboard_worker.jobs.intake import Arrival, accept
from offboard_worker.jobs.rulebook import Accepted
from offboard_worker.receiver.server import Receiver
from offboard_worker.store.inbox import Received
from offboard_worker.store.wal import short_log

REDIS_TIMEOUT = 0.5
"""Seconds: a sender waits 3 to 10 s in all, and what Redis didn't take is pushed by the scheduler."""


async def run_receiver(app: App, ready: Callable[[dict[str, str]], None], stop: asyncio.Event | None = None) -> None:
    """Serve until SIGTERM, SIGINT or `stop`; then finish what was accepted."""
    stop = stop or asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    with short_log(app.config.store_url):
        await _run(app, ready, stop)


async def _run(app: App, ready: Callable[[dict[str, str]], None], stop: asyncio.Event) -> None:
    async with app.open(redis_timeout=REDIS_TIMEOUT) as opened:
        recorder = ContainmentRecorder(opened.store, opened.projection)
        await warm_up(opened)
        settle_memory()
        await recorder.start()
        try:
            async with receiver_of(opened, recorder) as receiver:
                ready({"receiver": receiver.url, "metrics": receiver.metrics_url})
                await stop.wait()
        finally:
            await recorder.close()


class _Undone(Exception):
    """Ends the rehearsal's transaction without a commit."""


async def warm_up(opened: Opened) -> None:
    """Rehearse one leaver's delivery and undo it: the first real one must not pay for statements and connections."""
    subject = Subject(system="rehearsal", id="rehearsal", emails=("rehearsal@example.invalid",))
    event = IdentityEvent("rehearsal", "rehearsal", EventKind.ACCOUNT_DISABLED, subject, datetime.now(UTC))
    arrival = Arrival(Received("rehearsal", "POST", {}, b"", opened.store.clock()), (event,))
    with contextlib.suppress(_Undone):
        async with opened.store.write() as tx:
            await accept(tx, [arrival], opened.app.book)
            await tx.flush()
            raise _Undone
    with contextlib.suppress(DenylistUnavailable):  # the scheduler pushes once Redis is there
        await opened.projection.push()
    await asyncio.to_thread(lambda: opened.queues)


def receiver_of(opened: Opened, recorder: ContainmentRecorder) -> Receiver:
    """Build the receiver over an application's connections."""

    async def enqueue(accepted: Accepted) -> None:
        await asyncio.to_thread(opened.queues.submit, accepted.cases, accepted.pending)

    async def troubles() -> list[str]:
        try:
            await opened.projection.status()
        except DenylistUnavailable as error:
            return [error.message]
        return []

    return Receiver(
        opened.app.config.receiver,
        store=opened.store,
        sources=opened.app.sources,
        book=opened.app.book,
        push=opened.projection.push,
        enqueue=enqueue,
        contained=recorder.nudge,
        ready=troubles,
    )
