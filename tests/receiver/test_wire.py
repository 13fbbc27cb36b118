"""Bodies that are too long, too slow or oddly framed, and connections that misbehave."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator

import pytest

from tests.receiver.conftest import SECRET, Build, World, leaver

pytestmark = pytest.mark.integration

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def connect(world: World) -> Streams:
    host, port = world.receiver.url.removeprefix("http://").split(":")
    return await asyncio.open_connection(host, int(port))


HEAD = f"POST /webhooks/okta-main HTTP/1.1\r\nHost: x\r\nAuthorization: {SECRET}\r\n".encode()


async def test_a_body_over_the_limit_is_413(build: Build) -> None:
    world = await build(max_body=2048)
    status, body, _ = await world.okta_event(b"x" * 2049)
    assert (status, json.loads(body)["error"]) == (413, "too-large")
    assert await world.count("deliveries") == 0


async def test_a_body_at_the_limit_is_read_whole(build: Build) -> None:
    body = leaver().ljust(200_000)
    world = await build(max_body=200_000)
    assert (await world.okta_event(body))[0] == 200
    assert (await world.okta_event(body + b" "))[0] == 413


async def test_a_declared_length_over_the_limit_is_refused_before_any_of_it_is_read(build: Build) -> None:
    world = await build(max_body=2048)
    reader, writer = await connect(world)
    writer.write(HEAD + b"Content-Length: 999999999\r\n\r\n")
    assert (await asyncio.wait_for(reader.readline(), 5)).startswith(b"HTTP/1.1 413 ")
    writer.close()


async def test_an_endless_chunked_body_is_refused_at_the_limit(build: Build) -> None:
    world = await build(max_body=64 * 1024)
    reader, writer = await connect(world)
    writer.write(HEAD + b"Transfer-Encoding: chunked\r\n\r\n")
    chunk = b"4000\r\n" + b"x" * 0x4000 + b"\r\n"

    async def send() -> int:
        sent = 0
        try:
            for _ in range(100_000):
                writer.write(chunk)
                await writer.drain()
                sent += 1
        except ConnectionError:
            pass
        return sent

    sending = asyncio.create_task(send())
    assert (await asyncio.wait_for(reader.readline(), 10)).startswith(b"HTTP/1.1 413 ")
    assert await asyncio.wait_for(sending, 20) < 100_000, "the connection was not ended"
    assert await world.count("deliveries") == 0


async def test_a_chunked_delivery_is_taken(world: World) -> None:
    async def parts() -> AsyncIterator[bytes]:
        body = leaver()
        for start in range(0, len(body), 300):
            yield body[start : start + 300]
            await asyncio.sleep(0)

    status, *_ = await world.post("okta-main", parts(), Authorization=SECRET)
    assert status == 200
    assert await world.count("cases") == 1


async def test_a_body_with_false_chunks_is_400(world: World) -> None:
    reader, writer = await connect(world)
    writer.write(HEAD + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n")
    assert b" 400 " in await asyncio.wait_for(reader.readline(), 5)
    writer.close()


async def test_a_slow_body_is_given_up(build: Build) -> None:
    world = await build(body_timeout=0.2)
    reader, writer = await connect(world)
    writer.write(HEAD + b"Content-Length: 100\r\n\r\n")
    answer = await asyncio.wait_for(reader.read(), 5)
    assert answer.startswith(b"HTTP/1.1 408 ")
    writer.close()


async def test_a_body_that_drips_is_given_up_all_the_same(build: Build) -> None:
    world = await build(body_timeout=0.3)
    reader, writer = await connect(world)
    writer.write(HEAD + b"Content-Length: 100000\r\n\r\n")

    async def drip() -> None:
        while True:
            writer.write(b"x")
            await asyncio.sleep(0.02)

    dripping = asyncio.create_task(drip())
    assert (await asyncio.wait_for(reader.readline(), 5)).startswith(b"HTTP/1.1 408 ")
    dripping.cancel()
    writer.close()


@pytest.mark.parametrize("sent", [b"", b"POST /webhooks/okta-main HT", HEAD])
async def test_a_slow_head_is_cut_off(build: Build, sent: bytes) -> None:
    world = await build(head_timeout=0.2)
    reader, writer = await connect(world)
    writer.write(sent)
    with contextlib.suppress(ConnectionResetError):  # cut off all the same
        assert await asyncio.wait_for(reader.read(), 5) == b""
    writer.close()


async def test_what_is_not_http_is_refused_without_repeating_it(world: World) -> None:
    reader, writer = await connect(world)
    writer.write(b"POST /webhooks/okta-main HTTP/1.1\r\nHost: x\r\nAuthoriza tion: canary-header\r\n\r\n")
    answer = await asyncio.wait_for(reader.read(), 5)
    assert b" 400 " in answer.partition(b"\r\n")[0]
    assert b"canary" not in answer
    writer.close()


async def test_expect_100_continue_is_answered_before_the_body(world: World) -> None:
    reader, writer = await connect(world)
    body = leaver()
    writer.write(HEAD + b"Expect: 100-continue\r\nContent-Length: %d\r\nConnection: close\r\n\r\n" % len(body))
    assert await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5) == b"HTTP/1.1 100 Continue\r\n\r\n"
    writer.write(body)
    assert (await asyncio.wait_for(reader.read(), 5)).startswith(b"HTTP/1.1 200 ")
    writer.close()


async def test_pipelined_deliveries_are_all_taken_in_order(world: World) -> None:
    reader, writer = await connect(world)
    for _ in range(5):
        body = leaver()
        writer.write(HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body)
    for _ in range(5):
        assert (await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5)).startswith(b"HTTP/1.1 200 ")
    assert await world.count("cases") == 5
    writer.close()


async def test_a_compressed_body_is_not_unpacked(world: World) -> None:
    """Signatures are over the raw bytes, and a small body could unpack to a large one."""
    status, *_ = await world.okta_event(b"\x1f\x8b\x08\x00", **{"Content-Encoding": "gzip"})
    assert status == 400
