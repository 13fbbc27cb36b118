"""The proxy as a process of its own: it prints its addresses, serves, and ends in good order on SIGTERM."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest

from tests.proxy.conftest import World

SCRIPT = """
import asyncio, json, sys
from pathlib import Path
from offboard_worker.config import ProxySettings
from offboard_worker.proxy.server import run_proxy
settings = ProxySettings.model_validate_json(sys.argv[1])
say = lambda addresses: print(json.dumps(addresses), flush=True)
asyncio.run(run_proxy(settings, sys.argv[2], data_dir=Path(sys.argv[3]), on_ready=say))
unwanted = {"sqlalchemy", "rq", "boto3", "okta", "msgraph", "typer"} & set(sys.modules)
print(json.dumps(sorted(unwanted)), flush=True)
"""


@asynccontextmanager
async def process(world: World, folder: Path) -> AsyncIterator[tuple[asyncio.subprocess.Process, dict[str, str]]]:
    """Run one proxy as a process until it is ready, and end it however the test went."""
    raw = {
        "listen": "127.0.0.1:0",
        "drain": "300ms",
        "lease": "600ms",
        "heartbeat": "50ms",
        "upstreams": {"api": {"url": world.upstream.url}},
        "roles": {"developer": {"rules": [{"upstream": "api", "paths": ["/v1/**"]}]}},
    }
    arguments = [json.dumps(raw), world.valkey.url, str(folder)]
    proxy = await asyncio.create_subprocess_exec(
        sys.executable, "-c", SCRIPT, *arguments, stdout=asyncio.subprocess.PIPE
    )
    try:
        assert proxy.stdout is not None
        addresses = json.loads(await proxy.stdout.readline())
        while True:
            async with world.client.get(f"{addresses['metrics']}/readyz") as ready:
                if ready.status == 200:
                    break
            await asyncio.sleep(0.02)
        yield proxy, addresses
    finally:
        if proxy.returncode is None:
            proxy.kill()
            await proxy.wait()


@pytest.mark.e2e
async def test_sigterm_ends_the_process_cleanly_and_it_never_needed_store_or_queue(
    world: World, tmp_path: Path
) -> None:
    async with process(world, tmp_path) as (proxy, addresses):
        stream = await world.client.get(f"{addresses['proxy']}/api/v1/sse", headers=world.auth())
        assert stream.status == 200
        proxy.send_signal(signal.SIGTERM)
        ending = time.monotonic()
        with pytest.raises(aiohttp.ClientError):
            await stream.content.read()
        assert proxy.stdout is not None
        assert json.loads(await proxy.stdout.readline()) == []
        assert await asyncio.wait_for(proxy.wait(), 8) == 0
        assert time.monotonic() - ending < 8


@pytest.mark.e2e
async def test_a_proxy_that_was_stopped_lets_nobody_pass_on_what_it_knew_before(world: World, tmp_path: Path) -> None:
    async with process(world, tmp_path) as (proxy, addresses):
        url, headers = f"{addresses['proxy']}/api/v1/x", world.auth()
        async with world.client.get(url, headers=headers) as answer:
            assert answer.status == 200
        stream = await world.client.get(f"{addresses['proxy']}/api/v1/sse", headers=headers)
        proxy.send_signal(signal.SIGSTOP)
        await world.deny()
        calls = [asyncio.create_task(_status(world, url, headers)) for _ in range(5)]
        await asyncio.sleep(0.8)
        seen = len(world.upstream.seen)
        proxy.send_signal(signal.SIGCONT)
        assert set(await asyncio.gather(*calls)) <= {401, 503}
        assert len(world.upstream.seen) == seen
        with pytest.raises(aiohttp.ClientError):
            await stream.content.read()


async def _status(world: World, url: str, headers: dict[str, str]) -> int:
    async with world.client.get(url, headers=headers) as answer:
        return answer.status
