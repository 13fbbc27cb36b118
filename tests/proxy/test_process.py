"""The proxy as a process of its own: it prints its addresses, serves, and ends in good order on SIGTERM."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
import time
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


@pytest.mark.e2e
async def test_sigterm_ends_the_process_cleanly_and_it_never_needed_store_or_queue(
    world: World, tmp_path: Path
) -> None:
    raw = {
        "listen": "127.0.0.1:0",
        "drain": "300ms",
        "upstreams": {"api": {"url": world.upstream.url}},
        "roles": {"developer": {"rules": [{"upstream": "api", "paths": ["/v1/**"]}]}},
    }
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", SCRIPT, json.dumps(raw), world.valkey.url, str(tmp_path), stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    started = time.monotonic()
    addresses = json.loads(await process.stdout.readline())
    async with aiohttp.ClientSession() as client:
        while True:
            async with client.get(f"{addresses['metrics']}/readyz") as ready:
                if ready.status == 200:
                    break
            await asyncio.sleep(0.02)
        print(f"ready after {time.monotonic() - started:.2f} s")
        stream = await client.get(f"{addresses['proxy']}/api/v1/sse", headers=world.auth())
        assert stream.status == 200
        process.send_signal(signal.SIGTERM)
        ending = time.monotonic()
        with pytest.raises(aiohttp.ClientError):
            await stream.content.read()
        assert json.loads(await process.stdout.readline()) == []
        assert await asyncio.wait_for(process.wait(), 5) == 0
        assert time.monotonic() - ending < 3
