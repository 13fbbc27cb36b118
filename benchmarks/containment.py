"""From an identity event to the refusal at two proxy replicas under load: `python -m benchmarks.containment [--json]`.

Real processes: Valkey, receiver, two proxies, on SQLite with full durability; an upstream and a steady load in
processes of their own. Each leaver holds a stream open through each replica. Their authenticated Okta hook is sent; the
clock runs from its first byte until a replica has cut the stream: from then on it refuses them. The very next call after
the hook's answer must be refused by each replica. No worker runs: revocation by jobs is another benchmark's.

Baselines of the same run: what the case itself recorded, and when somebody who asks Redis every 250 ms, instead of
following its stream, would have known.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import os
import signal
import socket
import sqlite3
import tempfile
import time
import uuid
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, cast

import yaml

from benchmarks.processes import command, offboard, percentile

SECRET = "benchmark-secret"
WARM_UP = 20
TARGET_P50, TARGET_P99 = 5.0, 20.0
POLL = 0.25


# -- the upstream and the load: processes of their own ---------------------------------------------------------------


class Upstream(asyncio.Protocol):
    """Answers every request at once; `/v1/stream` gets its first chunk and stays open."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.buffer = b""

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        while b"\r\n\r\n" in self.buffer:
            head, _, self.buffer = self.buffer.partition(b"\r\n\r\n")
            if b" /v1/stream " in head:
                self.transport.write(
                    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
                    b"9\r\ndata: 0\n\n\r\n"
                )
            else:
                self.transport.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 2\r\n\r\nok")


def run_upstream(pipe: Connection) -> None:
    async def serve() -> None:
        server = await asyncio.get_running_loop().create_server(Upstream, "127.0.0.1", 0)
        pipe.send(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    _run(serve())


def run_load(urls: list[str], token: str, rate: float, pipe: Connection) -> None:
    """Call the replicas in turn, `rate` times a second in all, until told to stop; then report the latencies."""

    async def load() -> None:
        clients = [[await Client.connect(url) for _ in range(8)] for url in urls]
        latencies: list[float] = []
        refused = 0
        waiting: set[asyncio.Task[None]] = set()

        async def one(client: Client) -> None:
            nonlocal refused
            begun = time.perf_counter()
            refused += await client.call("/api/v1/items", token) != 200
            latencies.append(time.perf_counter() - begun)

        begun, number = time.perf_counter(), 0
        while not pipe.poll():
            number += 1
            client = clients[number % len(urls)][(number // len(urls)) % 8]
            if not client.busy:
                task = asyncio.create_task(one(client))
                waiting.add(task)
                task.add_done_callback(waiting.discard)
            await asyncio.sleep(max(0.0, begun + number / rate - time.perf_counter()))
        await asyncio.gather(*waiting)
        seconds = time.perf_counter() - begun
        pipe.recv()
        pipe.send({"per_second": len(latencies) / seconds, "latencies": latencies, "refused": refused})

    _run(load())


def _run(main: Any) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        import uvloop

        uvloop.run(main)
    except ImportError:
        asyncio.run(main)


# -- clients ---------------------------------------------------------------------------------------------------------


def _address(url: str) -> tuple[str, int]:
    host, _, port = url.removeprefix("http://").partition(":")
    return host, int(port)


def _request(method: str, path: str, headers: dict[str, str], body: bytes = b"") -> bytes:
    lines = [f"{method} {path} HTTP/1.1", "Host: benchmark", *(f"{name}: {value}" for name, value in headers.items())]
    if body:
        lines.append(f"Content-Length: {len(body)}")
    return ("\r\n".join(lines) + "\r\n\r\n").encode() + body


class Client(asyncio.Protocol):
    """One keep-alive connection, one call at a time: only as much HTTP as the answers here need."""

    def __init__(self) -> None:
        self.buffer = b""
        self.answer: asyncio.Future[int] | None = None

    @classmethod
    async def connect(cls, url: str) -> Client:
        loop = asyncio.get_running_loop()
        _, client = await loop.create_connection(cls, *_address(url))
        return client

    @property
    def busy(self) -> bool:
        return self.answer is not None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        cast(socket.socket, transport.get_extra_info("socket")).setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        head, found, rest = self.buffer.partition(b"\r\n\r\n")
        if not found:
            return
        lower, length = head.lower(), 0
        if b"content-length:" in lower:
            length = int(lower.split(b"content-length:")[1].split(b"\r\n")[0])
        if len(rest) >= length and self.answer is not None:
            self.buffer = b""
            self.answer.set_result(int(head[9:12]))

    def connection_lost(self, _error: Exception | None) -> None:
        if self.answer is not None and not self.answer.done():
            self.answer.set_exception(ConnectionError("closed"))

    async def send(self, request: bytes) -> int:
        self.answer = asyncio.get_running_loop().create_future()
        self.transport.write(request)
        try:
            return await self.answer
        finally:
            self.answer = None

    async def call(self, path: str, token: str) -> int:
        return await self.send(_request("GET", path, {"Authorization": f"Bearer {token}"}))


class Stream(asyncio.Protocol):
    """A streaming answer held open: knows the instant at which it is cut."""

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        self.open: asyncio.Future[None] = loop.create_future()
        self.cut: asyncio.Future[float] = loop.create_future()

    def data_received(self, data: bytes) -> None:
        if self.open.done():
            return
        if not data.startswith(b"HTTP/1.1 200") and not data.startswith(b"9"):
            self.open.set_exception(RuntimeError(f"the stream was refused: {data[:200]!r}"))
        elif b"data: 0" in data:
            self.open.set_result(None)

    def connection_lost(self, _error: Exception | None) -> None:
        if not self.cut.done():
            self.cut.set_result(time.perf_counter())

    @classmethod
    async def through(cls, url: str, token: str) -> Stream:
        transport, stream = await asyncio.get_running_loop().create_connection(cls, *_address(url))
        transport.write(_request("GET", "/api/v1/stream", {"Authorization": f"Bearer {token}"}))
        async with asyncio.timeout(10):
            await stream.open
        return stream


# -- the story -------------------------------------------------------------------------------------------------------


def configuration(upstream: int, leavers: int) -> str:
    rule = {"upstream": "api", "methods": ["GET"], "paths": ["/v1/**"]}
    return yaml.safe_dump(
        {
            "receiver": {"listen": "127.0.0.1:0"},
            "proxy": {
                "listen": "127.0.0.1:0",
                "upstreams": {"api": {"url": f"http://127.0.0.1:{upstream}", "secret": "Bearer upstream-key"}},
                "roles": {"developer": {"rules": [rule]}},
            },
            "sources": {"okta-main": {"type": "okta", "secret": SECRET, "system": "okta"}},
            "guards": {"max_leavers": 1_000_000},
            "people": {"stays": {}, **{f"leaver{n}": {"aliases": {"okta": f"00uLEAVER{n}"}} for n in range(leavers)}},
        }
    )


def hook(number: int) -> bytes:
    """An Okta event hook's delivery, in Okta's real shape."""
    login = f"leaver{number}@example.com"
    target = {"id": f"00uLEAVER{number}", "type": "User", "alternateId": login, "displayName": "Robin Leaver"}
    actor = {"id": "00uADMIN", "type": "User", "alternateId": "it@example.com", "displayName": "IT"}
    event = {
        "uuid": str(uuid.uuid4()),
        "published": time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime()),
        "eventType": "user.lifecycle.deactivate",
        "version": "0",
        "displayMessage": "Deactivate Okta user",
        "severity": "INFO",
        "client": {"userAgent": {"rawUserAgent": "Mozilla/5.0", "os": "Linux"}, "ipAddress": "192.0.2.10"},
        "actor": {**actor, "detailEntry": None},
        "outcome": {"result": "SUCCESS", "reason": None},
        "target": [{**target, "detailEntry": None}],
        "transaction": {"type": "WEB", "id": "", "detail": {}},
    }
    body = json.dumps({"eventType": "com.okta.event_hook", "eventId": uuid.uuid4().hex, "data": {"events": [event]}})
    headers = {"Authorization": SECRET, "Content-Type": "application/json"}
    return _request("POST", "/webhooks/okta-main", headers, body.encode())


@dataclass
class Figures:
    """What was measured. Milliseconds, from the hook's first byte."""

    refused: list[float] = field(default_factory=list)  # at both replicas
    answered: list[float] = field(default_factory=list)
    recorded: list[float] = field(default_factory=list)  # by the case: from accepted to confirmed everywhere
    polled: list[float] = field(default_factory=list)
    passed_after_answer: int = 0
    load: dict[str, Any] = field(default_factory=dict)


class Polling:
    """Somebody who asks Redis every 250 ms how far the log is."""

    def __init__(self, url: str) -> None:
        self._url = url
        self.seen: list[tuple[float, int]] = []

    async def run(self) -> None:
        from offboard_worker.denylist.connection import open_client
        from offboard_worker.denylist.facts import RedisNames

        redis = open_client(self._url, 2.0)
        try:
            while True:
                seq = await redis.hget(RedisNames().meta, "seq")
                self.seen.append((time.perf_counter(), int(seq or 0)))
                await asyncio.sleep(POLL)
        finally:
            await redis.aclose()

    def knew(self, seq: int) -> float | None:
        return next((at for at, seen in self.seen if seen >= seq), None)


async def revoke(number: int, tokens: list[str], receiver: Client, urls: list[str], f: Figures) -> float:
    """One leaver's story; return the instant of the hook's first byte."""
    streams = [await Stream.through(url, tokens[number]) for url in urls]
    proxies = [await Client.connect(url) for url in urls]  # a refusal ends the connection
    request = hook(number)
    begun = time.perf_counter()
    status = await receiver.send(request)
    answered = time.perf_counter()
    calls = (proxy.call("/api/v1/items", tokens[number]) for proxy in proxies)
    answers = await asyncio.gather(*calls, return_exceptions=True)
    assert status in (200, 204), status
    async with asyncio.timeout(10):
        cuts = await asyncio.gather(*(stream.cut for stream in streams))
    for proxy in proxies:
        proxy.transport.close()
    # Cut in flight is as good as refused: the call was under way when the replica learned of the denial.
    f.passed_after_answer += sum(not isinstance(answer, ConnectionError) and answer != 401 for answer in answers)
    f.answered.append((answered - begun) * 1000)
    f.refused.append((max(cuts) - begun) * 1000)
    return begun


def mint_tokens(config: Path, people: list[str]) -> list[str]:
    from offboard_worker import config as configuration_
    from offboard_worker.proxy.keys import ensure_signing_key
    from offboard_worker.proxy.tokens import mint

    settings = configuration_.load(config)
    key = ensure_signing_key(settings.signing_keys)
    return [mint(key, settings.proxy, who, generation=0, roles=["developer"], now=time.time())[0] for who in people]


async def run(revocations: int, rate: float, gap: float) -> Figures:
    """Play it all and return the figures."""
    total, figures = WARM_UP + revocations, Figures()
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory(prefix="offboard-benchmark-") as name:
        folder = Path(name)
        ours, theirs = context.Pipe()
        upstream = context.Process(target=run_upstream, args=(theirs,), daemon=True)
        upstream.start()
        (folder / "config.yaml").write_text(configuration(ours.recv(), total))
        async with AsyncExitStack() as stack:
            stack.callback(upstream.terminate)
            await stack.enter_async_context(offboard(folder, "valkey"))
            tokens = mint_tokens(folder / "config.yaml", [*(f"leaver{n}" for n in range(total)), "stays"])
            await command(folder, "denylist", "push")  # the schedule's work: a proxy doesn't believe an empty Redis
            receiver = await stack.enter_async_context(offboard(folder, "receiver"))
            first = await stack.enter_async_context(offboard(folder, "proxy"))
            second = await stack.enter_async_context(
                offboard(folder, "proxy", "--listen", "127.0.0.1:0", "--metrics", "127.0.0.1:0")
            )
            urls = [str(first.said["proxy"]), str(second.said["proxy"])]
            told, ear = context.Pipe()
            load = context.Process(target=run_load, args=(urls, tokens[-1], rate, ear), daemon=True)
            load.start()
            stack.callback(load.terminate)
            polling = Polling(_redis_url(folder))
            poller = asyncio.create_task(polling.run())
            stack.callback(poller.cancel)
            client = await Client.connect(str(receiver.said["receiver"]))
            await asyncio.sleep(1.0)
            begun = []
            for number in range(total):
                at = await revoke(number, tokens, client, urls, figures)
                begun.append(at)
                await asyncio.sleep(max(0.0, at + gap - time.perf_counter()))
            await asyncio.sleep(1.0)
            told.send("stop")
            figures.load = await asyncio.to_thread(told.recv)
            _read_cases(folder, figures, begun, polling, total)
    for values in (figures.refused, figures.answered, figures.recorded, figures.polled):
        del values[: len(values) - revocations]
    return figures


def _redis_url(folder: Path) -> str:
    from offboard_worker import config as configuration_

    return configuration_.load(folder / "config.yaml").redis_url


def _read_cases(folder: Path, figures: Figures, begun: list[float], polling: Polling, total: int) -> None:
    """Take over what the cases recorded, in order of the denial log."""
    with sqlite3.connect(next((folder / "data").glob("*.db"))) as db:
        rows = db.execute("SELECT denial_seq, accepted_at, refused_at FROM cases ORDER BY denial_seq").fetchall()
    assert len(rows) == total, f"{len(rows)} cases for {total} hooks"
    for (seq, accepted, refused), at in zip(rows, begun, strict=True):
        if refused is not None:
            figures.recorded.append((refused - accepted) * 1000)
        knew = polling.knew(seq)
        if knew is not None:
            figures.polled.append((knew - at) * 1000)


def summary(figures: Figures) -> dict[str, Any]:
    def both(values: list[float]) -> dict[str, float]:
        return {"p50": round(percentile(values, 0.5), 2), "p99": round(percentile(values, 0.99), 2)}

    load = [seconds * 1000 for seconds in figures.load["latencies"]]
    refused, polled = both(figures.refused), both(figures.polled)
    return {
        "revocations": len(figures.refused),
        "refused_ms": {**refused, "min": round(min(figures.refused), 2), "max": round(max(figures.refused), 2)},
        "answered_ms": both(figures.answered),
        "recorded_by_case_ms": both(figures.recorded),
        "polling_250ms_ms": polled,
        "faster_than_polling": round(polled["p50"] / refused["p50"], 1),
        "calls_passed_after_the_answer": figures.passed_after_answer,
        "load": {"per_second": round(figures.load["per_second"], 1), "refused": figures.load["refused"], **both(load)},
        "target_ms": {"p50": TARGET_P50, "p99": TARGET_P99},
        "met": refused["p50"] <= TARGET_P50 and refused["p99"] <= TARGET_P99 and not figures.passed_after_answer,
    }


def show(found: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(
        title=f"{found['revocations']} revocations at 2 replicas, {found['load']['per_second']} calls/s beside"
    )
    for column in ("from the hook's first byte", "p50 ms", "p99 ms"):
        table.add_column(column, justify="left" if "hook" in column else "right")
    for name, key in (
        ("refused at both replicas, streams cut", "refused_ms"),
        ("hook answered (durable and pushed)", "answered_ms"),
        ("case recorded: confirmed everywhere", "recorded_by_case_ms"),
        ("if replicas polled every 250 ms", "polling_250ms_ms"),
        ("target", "target_ms"),
    ):
        table.add_row(name, f"{found[key]['p50']:g}", f"{found[key]['p99']:g}")
    table.add_row("[dim]a call of the load beside[/dim]", f"{found['load']['p50']:g}", f"{found['load']['p99']:g}")
    console = Console()
    console.print(table)
    console.print(f"{found['faster_than_polling']}x as fast as polling (p50)")
    console.print(f"calls that passed after the hook was answered: {found['calls_passed_after_the_answer']}")
    console.print("[green]target met[/green]" if found["met"] else "[red]target missed[/red]")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--revocations", type=int, default=300)
    parser.add_argument("--rate", type=float, default=300.0, help="calls per second through both replicas together")
    parser.add_argument("--gap", type=float, default=0.06, help="seconds from one revocation to the next")
    arguments = parser.parse_args()
    found = summary(asyncio.run(run(arguments.revocations, arguments.rate, arguments.gap)))
    print(json.dumps({**found, "load_average": os.getloadavg()}, indent=2)) if arguments.json else show(found)


if __name__ == "__main__":
    main()
