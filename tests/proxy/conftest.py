"""Two proxy replicas before one upstream, on a real Valkey that is fed from a denial log in memory."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from offboard_worker.config import ProxySettings
from offboard_worker.denylist.connection import open_client
from offboard_worker.denylist.embedded import EmbeddedValkey
from offboard_worker.denylist.facts import Fact, RedisNames, person_key
from offboard_worker.denylist.projection import Projection
from offboard_worker.proxy.keys import SigningKeys, ensure_signing_key
from offboard_worker.proxy.server import ProxyServer
from offboard_worker.proxy.tokens import mint
from tests.denylist.memory_log import MemoryLog
from tests.proxy.upstream import FakeUpstream

KEY = "canary-upstream-key-9f8e7d6c"


def settings(upstream_url: str, **more: Any) -> ProxySettings:
    rules = [{"upstream": "api", "methods": ["GET", "POST", "PUT", "HEAD", "DELETE"], "paths": ["/v1/**"]}]
    return ProxySettings.model_validate(
        {
            "listen": "127.0.0.1:0",
            "lease": "600ms",
            "heartbeat": "50ms",
            "drain": "200ms",
            "upstreams": {"api": {"url": upstream_url, "header": "X-Api-Key", "secret": KEY, "timeout": "2s"}},
            "roles": {"developer": {"rules": rules}, "reader": {"rules": [{**rules[0], "methods": ["GET"]}]}},
            **more,
        }
    )


@dataclass
class World:
    upstream: FakeUpstream
    valkey: EmbeddedValkey
    projection: Projection
    log: MemoryLog
    proxies: list[ProxyServer]
    settings: ProxySettings
    keys: SigningKeys
    client: aiohttp.ClientSession
    minted: list[str] = field(default_factory=list)

    def token(self, person: str = "leaver", **more: Any) -> str:
        arguments = {"generation": 0, "roles": ["developer"], "now": time.time(), **more}
        token, _ = mint(self.keys, self.settings, person, **arguments)
        self.minted.append(token)
        return token

    def auth(self, person: str = "leaver", **more: Any) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.token(person, **more)}"}

    async def deny(self, *facts: Fact) -> float:
        """Deny and push; return the monotonic time at which the push returned."""
        self.log.append(*facts or (Fact(person_key("leaver"), denied=True),))
        await self.projection.push()
        return time.monotonic()


@pytest.fixture
async def upstream() -> AsyncIterator[FakeUpstream]:
    async with FakeUpstream() as upstream:
        yield upstream


@pytest.fixture
async def world(tmp_path: Path, upstream: FakeUpstream) -> AsyncIterator[World]:
    configured = settings(upstream.url)
    keys = ensure_signing_key(tmp_path / "signing-keys")
    async with EmbeddedValkey(tmp_path / "valkey") as valkey, aiohttp.ClientSession() as client:
        redis, log = open_client(valkey.url, 2.0), MemoryLog()
        projection = Projection(redis, log, RedisNames(), lease=configured.lease / timedelta(seconds=1))
        await projection.push()
        async with (
            ProxyServer(configured, valkey.url, data_dir=tmp_path, name="one") as one,
            ProxyServer(configured, valkey.url, data_dir=tmp_path, name="two") as two,
        ):
            await one.replica.wait_ready(5)
            await two.replica.wait_ready(5)
            yield World(upstream, valkey, projection, log, [one, two], configured, keys, client)
        await redis.aclose()
