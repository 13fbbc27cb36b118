"""The proxy's listeners: one for developers, one on loopback for health and metrics. It builds the parts and ends them.

The developers' listener is aiohttp's low-level server: no router, because the exact bytes of the target decide. A
request's head must arrive within `head_timeout`, an idle connection is closed after `keepalive`. SIGTERM: stop
accepting, let requests in flight finish for `drain`, cut what is left.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Self

import aiohttp
from aiohttp import web

from offboard_worker.config import ProxySettings, split_listen
from offboard_worker.denylist.connection import Connect
from offboard_worker.denylist.facts import RedisNames
from offboard_worker.denylist.replica import Replica
from offboard_worker.proxy.admission import Admission
from offboard_worker.proxy.entrance import Door, Entrance
from offboard_worker.proxy.forward import Forwarder
from offboard_worker.proxy.health import health_app
from offboard_worker.proxy.keys import ensure_signing_key
from offboard_worker.proxy.observe import Metrics
from offboard_worker.proxy.roles import Roles
from offboard_worker.proxy.tokens import TokenVerifier
from offboard_worker.proxy.upstreams import Upstreams
from offboard_worker.proxy.websocket import Tunnels

log = logging.getLogger(__name__)


class ProxyServer:
    """One proxy replica: `async with ProxyServer(…) as proxy` serves at `proxy.url` until the block is left."""

    def __init__(
        self,
        settings: ProxySettings,
        redis: Connect | str,
        *,
        prefix: str = "offboard",
        data_dir: Path,
        name: str | None = None,
        reuse_port: bool = False,
    ) -> None:
        self._settings = settings
        self._reuse_port = reuse_port
        self.metrics = Metrics()
        self._keys = ensure_signing_key(settings.signing_keys or data_dir / "signing-keys")
        self._roles = Roles.of(settings)
        self._upstreams = Upstreams(settings)
        self.replica = Replica(
            redis,
            RedisNames(prefix),
            name or socket.gethostname(),
            lease=settings.lease.total_seconds(),
            heartbeat=settings.heartbeat.total_seconds(),
            on_facts=lambda facts: self.admission.on_facts(facts),
        )
        self._ending = contextlib.AsyncExitStack()
        self._entrance: Entrance | None = None
        self.admission: Admission
        self.url = ""
        self.metrics_url = ""

    async def __aenter__(self) -> Self:
        async with contextlib.AsyncExitStack() as building:
            await self._build(building)
            self._ending = building.pop_all()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._ending.aclose()

    async def _build(self, ending: contextlib.AsyncExitStack) -> None:
        settings = self._settings
        session = await ending.enter_async_context(aiohttp.ClientSession(trust_env=False))
        verifier = TokenVerifier(settings, self._keys, session)
        ending.push_async_callback(verifier.close)
        self._upstreams.open()
        ending.push_async_callback(self._upstreams.close)
        self.admission = Admission(
            self.replica,
            verifier,
            self._roles,
            streams_outlive_tokens=settings.streams_outlive_tokens,
            on_cut=lambda reason: self.metrics.cuts.labels(reason).inc(),
        )
        self.metrics.watch(
            lambda: len(self.admission.flights), lambda: self.replica.lease_left, lambda: self.replica.applied
        )
        await self.replica.start()
        ending.push_async_callback(self.replica.close)
        self.admission.start()
        ending.push_async_callback(self.admission.close)
        self._entrance = Entrance(
            self.admission,
            Forwarder(self._upstreams, self.admission, self.metrics),
            Tunnels(self._upstreams, self.admission, self.metrics),
            self.metrics,
            self._keys,
        )
        self.metrics_url = await self._listen_for_ops(ending)
        self.url = await self._listen_for_developers(ending, self._entrance)

    async def _listen_for_ops(self, ending: contextlib.AsyncExitStack) -> str:
        runner = web.AppRunner(health_app(self.replica, self.metrics), access_log=None, shutdown_timeout=0.5)
        await runner.setup()
        ending.push_async_callback(runner.cleanup)
        return await _bind(runner, self._settings.metrics, reuse_port=False)

    async def _listen_for_developers(self, ending: contextlib.AsyncExitStack, entrance: Entrance) -> str:
        runner = web.ServerRunner(Door(entrance, self._settings), shutdown_timeout=0.5)
        await runner.setup()
        ending.push_async_callback(self._drain, runner, entrance)
        return await _bind(runner, self._settings.listen, reuse_port=self._reuse_port)

    async def _drain(self, runner: web.ServerRunner, entrance: Entrance) -> None:
        """Stop accepting, wait for requests in flight, cut the rest."""
        for site in list(runner.sites):
            await site.stop()
        await entrance.drained(self._settings.drain.total_seconds())
        cut = self.admission.cut_all("shutdown")
        if cut:
            log.warning("%d requests were still in flight after %s and were cut", cut, self._settings.drain)
            await asyncio.sleep(0.05)
        await runner.cleanup()


async def run_proxy(
    settings: ProxySettings,
    redis_url: str,
    *,
    prefix: str = "offboard",
    data_dir: Path,
    on_ready: Callable[[dict[str, str]], None] = lambda addresses: None,
    stop: asyncio.Event | None = None,
    name: str | None = None,
) -> None:
    """Serve until SIGTERM, SIGINT or, where it is given, `stop` (then signals are the caller's).

    `on_ready` gets the bound addresses: `{"proxy": URL, "metrics": URL}`. It serves (and refuses with 503) before Redis
    is there: /readyz tells when the first lease is held.
    """
    loop = asyncio.get_running_loop()
    signals = (signal.SIGTERM, signal.SIGINT) if stop is None else ()
    stop = stop or asyncio.Event()
    for number in signals:
        loop.add_signal_handler(number, stop.set)
    try:
        async with ProxyServer(settings, redis_url, prefix=prefix, data_dir=data_dir, name=name) as proxy:
            on_ready({"proxy": proxy.url, "metrics": proxy.metrics_url})
            await stop.wait()
    finally:
        for number in signals:
            loop.remove_signal_handler(number)


async def _bind(runner: web.BaseRunner, listen: str, *, reuse_port: bool) -> str:
    host, port = split_listen(listen)
    await web.TCPSite(runner, host, port, reuse_port=reuse_port or None, backlog=1024).start()
    bound_host, bound_port = runner.addresses[0][:2]
    return f"http://{f'[{bound_host}]' if ':' in bound_host else bound_host}:{bound_port}"
