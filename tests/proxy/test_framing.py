"""Odd framing never becomes a second request at the upstream. Vectors: ../shared/suites/http-raw (llhttp, h1spec, smuggler)."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from offboard_worker.proxy.keys import ensure_signing_key
from offboard_worker.proxy.server import ProxyServer
from offboard_worker.proxy.tokens import mint
from tests.proxy.conftest import KEY, World, settings
from tests.shared_material import shared

pytestmark = pytest.mark.integration
SMUGGLED = b"GET /api/v1/SMUGGLED HTTP/1.1\r\nHost: h\r\n\r\n"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


@dataclass
class RawUpstream:
    """Keeps every byte that each connection brought, answers whole requests, and reads framing most strictly."""

    connections: list[bytearray] = field(default_factory=list)
    url: str = ""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        received = bytearray()
        self.connections.append(received)
        try:
            while piece := await reader.read(65536):
                received += piece
                if complete(bytes(received)):
                    writer.write(OK)
                    await writer.drain()
        except ConnectionError:
            return
        finally:
            writer.close()

    def forget(self) -> None:
        """Forget what came so far: pooled connections go on."""
        for received in self.connections:
            received.clear()

    def requests(self) -> list[bytes]:
        """The heads of all requests that arrived, split as a strict server does."""
        return [head for received in self.connections for head in heads(bytes(received))]


def heads(received: bytes) -> list[bytes]:
    found: list[bytes] = []
    while received:
        head, end, rest = received.partition(b"\r\n\r\n")
        found.append(head)
        length = body_length(head, rest) if end else None
        if length is None:
            return found
        received = rest[length:]
    return found


def complete(received: bytes) -> bool:
    """Whether the bytes end exactly at the end of a request."""
    while received:
        head, end, rest = received.partition(b"\r\n\r\n")
        length = body_length(head, rest) if end else None
        if length is None or len(rest) < length:
            return False
        received = rest[length:]
    return True


def body_length(head: bytes, rest: bytes) -> int | None:
    fields = [line.partition(b":") for line in head.split(b"\r\n")[1:]]
    assert all(re.fullmatch(rb"[!#$%&'*+.^`|~0-9A-Za-z-]+", name) for name, _, _ in fields), head
    lengths = [value.strip() for name, _, value in fields if name.lower() == b"content-length"]
    encodings = [value.strip() for name, _, value in fields if name.lower() == b"transfer-encoding"]
    assert len(lengths) + len(encodings) <= 1, head
    if encodings:
        assert encodings == [b"chunked"], head
        match = re.match(rb"(?:([1-9a-f][0-9a-f]*)\r\n(?s:.)*?\r\n)*?0\r\n\r\n", rest)
        return match.end() if match else None
    return int(lengths[0]) if lengths else 0


@dataclass
class Range:
    """One proxy before one raw upstream."""

    proxy: ProxyServer
    upstream: RawUpstream
    token: str

    async def send(self, data: bytes, wait: float = 0.25) -> bytes:
        """Send bytes on a new connection and return what comes back until it is closed or silent for `wait` seconds."""
        host, _, port = self.proxy.url.removeprefix("http://").partition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        received = b""
        try:
            writer.write(data)
            while piece := await asyncio.wait_for(reader.read(65536), wait):
                received += piece
        except (TimeoutError, ConnectionError):
            pass
        finally:
            writer.close()
        return received

    def admitted(self, data: bytes, *, without_host: bool = False) -> bytes:
        """Give a vector our path and a good token, so that nothing but its framing can refuse it."""
        line, end, rest = data.partition(b"\r\n")
        line = re.sub(rb"^([A-Z]+) /\S*", rb"\1 /api/v1/x", line)
        host = b"" if without_host or re.search(rb"^host\s*:", rest, re.I | re.M) else b"Host: h\r\n"
        return line + end + host + b"Authorization: Bearer " + self.token.encode() + b"\r\n" + rest

    def request(self, *headers: bytes, line: bytes = b"GET /api/v1/x HTTP/1.1", body: bytes = b"") -> bytes:
        token = b"Authorization: Bearer " + self.token.encode()
        return b"\r\n".join((line, b"Host: h", token, b"Connection: close", *headers)) + b"\r\n\r\n" + body


@pytest.fixture
async def target(tmp_path: Path, world: World) -> AsyncIterator[Range]:
    upstream = RawUpstream()
    server = await asyncio.start_server(upstream.serve, "127.0.0.1", 0)
    upstream.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    configured = settings(upstream.url, head_timeout="400ms")
    keys = ensure_signing_key(tmp_path / "signing-keys")
    token, _ = mint(keys, configured, "somebody", generation=0, roles=["developer"], now=time.time())
    async with ProxyServer(configured, world.valkey.url, data_dir=tmp_path, name="raw") as proxy:
        await proxy.replica.wait_ready(5)
        yield Range(proxy, upstream, token)
    server.close()


def vectors(name: str) -> list[dict[str, Any]]:
    loaded: list[dict[str, Any]] = json.loads(shared(f"suites/http-raw/{name}.json").read_text("utf-8"))
    return loaded


async def test_what_llhttp_rejects_never_becomes_a_second_request(target: Range) -> None:
    rejected = [vector for vector in vectors("llhttp_request") if vector["error"]]
    assert len(rejected) > 50
    for vector in rejected:
        target.upstream.forget()
        data = target.admitted(vector["input"].encode("utf-8")) + b"\r\n\r\n" + SMUGGLED
        answer = await target.send(data, 0.12)
        requests = target.upstream.requests()
        assert len(requests) <= 1, (vector["name"], requests)
        assert not any(b"SMUGGLED" in request.split(b"\r\n")[0] for request in requests), vector["name"]
        if not requests:
            assert not answer.startswith(b"HTTP/1.1 2"), vector["name"]


async def test_h1spec_cases_are_answered_as_the_specification_wants(target: Range) -> None:
    for case in vectors("h1spec_cases"):
        target.upstream.forget()
        request = case["request"].encode("utf-8")
        must_fail = all(low >= 400 for low, _ in case["expectedStatus"])
        if b"\r\n\r\n" in request:
            request = target.admitted(request, without_host="Missing Host" in case["description"])
        answer = await target.send(request, 0.12)
        if case.get("expectedTimeout"):
            assert answer == b"", case["description"]
        elif must_fail:
            assert re.match(rb"HTTP/1\.[01] [45]\d\d ", answer), (case["description"], answer)
            assert target.upstream.requests() == [], case["description"]
        else:
            assert re.match(rb"HTTP/1\.[01] [1-5]\d\d ", answer), (case["description"], answer)
            assert len(target.upstream.requests()) <= 1, case["description"]


async def test_no_smuggling_gadget_gets_a_hidden_request_through(target: Range) -> None:
    """Each of the 1,703 headers stands beside a Content-Length that disagrees with it."""
    gadgets = [gadget["header"] for gadget in vectors("smuggler_gadgets")]
    assert len(gadgets) > 1000
    body = b"0\r\n\r\n" + SMUGGLED
    slots = asyncio.Semaphore(16)

    async def fire(gadget: str) -> None:
        data = target.request(
            b"Content-Length: %d" % len(body),
            gadget.encode("utf-8", "surrogateescape"),
            line=b"POST /api/v1/x HTTP/1.1",
            body=body,
        )
        async with slots:
            await target.send(data, 0.5)

    await asyncio.gather(*(fire(gadget) for gadget in gadgets))
    requests = target.upstream.requests()
    assert 0 < len(requests) <= len(gadgets), "none was harmless enough to pass: the vectors test nothing"
    print(f"{len(requests)} of {len(gadgets)} passed as plain requests")
    assert not [head for head in requests if head.startswith(b"GET")]
    for head in requests:
        names = [line.partition(b":")[0].lower().replace(b"_", b"-") for line in head.split(b"\r\n")[1:]]
        assert b"transfer-encoding" not in names, head


@pytest.mark.parametrize(
    ("line", "headers", "status"),
    [
        (b"GET /api/v1/x HTTP/1.1", [b"Transfer-Encoding: gzip, chunked"], 400),
        (b"POST /api/v1/x HTTP/1.0", [b"Transfer-Encoding: chunked"], 400),
        (b"GET /api/v1/x HTTP/1.1", [b"Authorization: Bearer other"], 400),
        (b"GET /api/v1/x HTTP/1.1", [b"Content_Length: 5"], 400),
        (b"GET /api/v1/x HTTP/1.1", [b"Connection: host"], 400),
        (b"GET /api/v1/x HTTP/1.1", [b"X: \xff\xfe"], 400),
        (b"GET /api/v1/x HTTP/1.1", [b"Connection: upgrade", b"Upgrade: h2c"], 400),
        (b"GET /api/v1/x HTTP/1.1", [b"Expect: something"], 417),
        (b"GET http://h/api/v1/x HTTP/1.1", [], 400),
        (b"GET //h/api/v1/x HTTP/1.1", [], 404),
        (b"GET /api/v1/x#y HTTP/1.1", [], 400),
        (b"GET /api/v1/%2e%2e/x HTTP/1.1", [], 400),
        (b"GET /api/v1/../../admin HTTP/1.1", [], 400),
        (b"GET /api/v1/a%2fb HTTP/1.1", [], 400),
        (b"GET /api/v1//b HTTP/1.1", [], 400),
        (b"GET /api/v1/a;b HTTP/1.1", [], 400),
        (b"CONNECT h:443 HTTP/1.1", [], 400),
        (b"OPTIONS * HTTP/1.1", [], 400),
        (b"get /api/v1/x HTTP/1.1", [], 405),
    ],
)
async def test_what_two_servers_could_read_differently_is_refused(
    target: Range, line: bytes, headers: list[bytes], status: int
) -> None:
    answer = await target.send(target.request(*headers, line=line))
    assert re.match(rb"HTTP/1\.[01] (%d|400) " % status, answer), answer
    assert target.upstream.requests() == []
    assert KEY.encode() not in answer
    assert target.token.encode() not in answer


async def test_the_exact_bytes_of_path_and_query_are_forwarded(target: Range) -> None:
    for path in (
        b"/v1/a%20b/%C3%A9/%7e~!$&'()*+,=:@",
        b"/v1/x?q=%2f..//;#"[:-1],
        b"/v1/%41?a=1&a=2&b=?/%zz",
        b"/v1/[x]|^",
    ):
        target.upstream.forget()
        answer = await target.send(target.request(line=b"GET /api" + path + b" HTTP/1.1"))
        assert answer.startswith(b"HTTP/1.1 200"), (path, answer)
        assert target.upstream.requests()[0].split(b"\r\n")[0] == b"GET " + path + b" HTTP/1.1"


async def test_a_refused_upload_gets_its_answer_before_it_is_asked_to_go_on(target: Range) -> None:
    head = b"POST /api/v1/x HTTP/1.1\r\nHost: h\r\nContent-Length: 1000000\r\nExpect: 100-continue\r\n"
    answer = await target.send(head + b"Authorization: Bearer wrong\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 401 ")
    answer = await target.send(head + b"Authorization: Bearer " + target.token.encode() + b"\r\n\r\n")
    assert answer == b"HTTP/1.1 100 Continue\r\n\r\n"


async def test_a_head_that_trickles_in_is_cut_off(target: Range) -> None:
    host, _, port = target.proxy.url.removeprefix("http://").partition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    started = time.monotonic()
    writer.write(target.request())
    first = await reader.readuntil(b"ok")
    assert first.startswith(b"HTTP/1.1 200")
    reader, writer = await asyncio.open_connection(host, int(port))
    with pytest.raises(ConnectionError):
        await _trickle(writer, target.request())
    assert 0.3 < time.monotonic() - started < 1.5


async def _trickle(writer: asyncio.StreamWriter, data: bytes) -> None:
    for byte in data:
        writer.write(bytes([byte]))
        await writer.drain()
        await asyncio.sleep(0.02)


async def test_a_second_request_behind_an_admitted_one_is_decided_by_itself(target: Range) -> None:
    first = target.request().replace(b"Connection: close\r\n", b"")
    answer = await target.send(first + SMUGGLED)
    assert answer.startswith(b"HTTP/1.1 200")
    assert b"HTTP/1.1 401" in answer
    assert len(target.upstream.requests()) == 1
