"""Large bodies pass at the pace of the slower side, without being kept."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator

import psutil
import pytest

from tests.denylist.conftest import until
from tests.proxy.conftest import World

pytestmark = pytest.mark.integration
MIB = 1024 * 1024


async def test_a_client_that_reads_slowly_slows_the_upstream_down(world: World) -> None:
    process = psutil.Process()
    async with world.client.get(f"{world.proxies[0].url}/api/v1/big", headers=world.auth()) as answer:
        await asyncio.sleep(0.4)
        stalled_at = world.upstream.uploaded
        await asyncio.sleep(0.1)
        assert world.upstream.uploaded == stalled_at, "the upstream was not slowed down"
        assert stalled_at < 24 * MIB
        before, read = process.memory_info().rss, 0
        async for piece in answer.content.iter_any():
            read += len(piece)
        assert read == 64 * MIB
    assert process.memory_info().rss - before < 24 * MIB


async def test_a_large_upload_arrives_whole_at_flat_memory(world: World) -> None:
    process, digest = psutil.Process(), hashlib.sha256()
    peak = [0]

    async def pieces() -> AsyncIterator[bytes]:
        for number in range(512):
            piece = number.to_bytes(2, "big") * 65536
            digest.update(piece)
            peak[0] = max(peak[0], process.memory_info().rss)
            yield piece

    before = process.memory_info().rss
    async with world.client.put(f"{world.proxies[0].url}/api/v1/upload", headers=world.auth(), data=pieces()) as answer:
        assert answer.status == 200
        assert await answer.text() == digest.hexdigest()
    assert world.upstream.uploaded == 64 * MIB
    assert peak[0] - before < 24 * MIB


async def test_an_upload_slower_than_the_upstreams_timeout_still_arrives(world: World) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(3):
            await asyncio.sleep(0.9)
            yield b"x"

    async with world.client.post(
        f"{world.proxies[0].url}/api/v1/upload", headers=world.auth(), data=pieces()
    ) as answer:
        assert answer.status == 200


async def test_a_client_that_breaks_off_an_upload_leaves_a_broken_one_at_the_upstream(world: World) -> None:
    host, _, port = world.proxies[0].url.removeprefix("http://").partition(":")
    _, writer = await asyncio.open_connection(host, int(port))
    head = f"POST /api/v1/upload HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer {world.token()}\r\nContent-Length: 100\r\n\r\n"
    writer.write(head.encode() + b"only this")
    await until(lambda: world.upstream.uploaded == 9)
    writer.close()
    assert await until(lambda: world.upstream.open_streams == 0) < 0.1
