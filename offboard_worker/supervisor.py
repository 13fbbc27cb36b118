"""Runs the processes of one machine together: what `offboard up` is. Each child is an ordinary `offboard` command.

A child that dies is started again; the embedded Valkey keeps its port and data. SIGTERM ends the receiver first, so
that nothing is accepted that nobody works on, and Valkey last.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import secrets
import signal
import sys
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from redis.exceptions import RedisError

from offboard_worker.config import Config, split_listen
from offboard_worker.denylist.connection import open_client
from offboard_worker.denylist.embedded import EmbeddedValkey
from offboard_worker.errors import ConfigError, DenylistUnavailable, OffboardError

log = logging.getLogger(__name__)
READY_WITHIN = 60.0
STOP_WITHIN = 9.0


@contextlib.asynccontextmanager
async def embedded_valkey(config: Config) -> AsyncIterator[EmbeddedValkey | None]:
    """Run a Valkey below data_dir and leave its URL where the other processes look; nothing if redis: is set."""
    if config.redis.url is not None:
        yield None
        return
    url = config.embedded_redis
    url.parent.mkdir(parents=True, exist_ok=True)
    url.unlink(missing_ok=True)  # one that a crash left behind leads to a port that is somebody else's now
    server = EmbeddedValkey(url.parent, password=secrets.token_urlsafe(24))
    await server.start()
    try:
        descriptor = os.open(url, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(server.url + "\n")
        yield server
    finally:
        url.unlink(missing_ok=True)
        await server.stop()


@dataclass(slots=True)
class Child:
    """One process: how it is started, and what it said when it was ready."""

    name: str
    arguments: tuple[str, ...]
    process: asyncio.subprocess.Process | None = None
    said: dict[str, Any] = field(default_factory=dict)
    watch: asyncio.Task[None] | None = None


class Supervisor:
    """Starts the children, keeps them running, and ends them in order."""

    def __init__(self, config: Config, path: Path, *, proxies: int = 1, dashboard: bool = True) -> None:
        self._config = config
        self._path = path
        self._children = [
            Child("scheduler", ("scheduler",)),
            Child("worker", ("worker",)),
            *(Child("proxy" if n == 0 else f"proxy-{n + 1}", _replica(n, config)) for n in range(proxies)),
            Child("receiver", ("receiver",)),
        ]
        if dashboard and config.dashboard.password is not None:
            self._children.append(Child("dashboard", ("dashboard",)))
        self._stop = asyncio.Event()

    async def run(self, ready: Callable[[dict[str, object]], None]) -> None:
        """Run until SIGTERM or SIGINT. `ready` gets every bound address. Raises ConfigError, OffboardError."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop.set)
        async with embedded_valkey(self._config):
            await self._prepare()
            try:
                await asyncio.gather(*(self._start(child) for child in self._children))
                ready(self._addresses())
                for child in self._children:
                    child.watch = asyncio.create_task(self._keep(child), name=f"watch {child.name}")
                await self._stop.wait()
            finally:
                await self._end()

    async def _prepare(self) -> None:
        """Bring the store up to date once, before several processes would."""
        from offboard_worker.store.database import Store

        store = await Store.open(self._config.store_url)
        await store.close()

    def _addresses(self) -> dict[str, object]:
        found: dict[str, object] = {}
        for child in self._children:
            said = {key: value for key, value in child.said.items() if key != "component"}
            main = said.pop(child.name.partition("-")[0], None) or said.pop("url", None)
            if main:
                found[child.name] = main
            found.update({f"{child.name}_{key}": value for key, value in said.items()})
        found["pids"] = {child.name: child.process.pid for child in self._children if child.process}
        return found

    async def _start(self, child: Child) -> None:
        child.process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "offboard_worker",
            *child.arguments,
            "--config",
            str(self._path),
            "--json",
            stdout=asyncio.subprocess.PIPE,
            start_new_session=True,  # Ctrl-C reaches us alone: we end the children in order
        )
        assert child.process.stdout is not None  # noqa: S101 - it was asked for
        try:
            async with asyncio.timeout(READY_WITHIN):
                line = await child.process.stdout.readline()
        except TimeoutError:
            raise OffboardError(f"{child.name} was not ready within {READY_WITHIN:g} s") from None
        if not line:
            code = await child.process.wait()
            raise _failed(child.name, code)
        child.said = json.loads(line)

    async def _keep(self, child: Child) -> None:
        """Start a child again whenever it dies, less and less eagerly."""
        wait = 0.2
        while not self._stop.is_set():
            assert child.process is not None  # noqa: S101 - it was started
            code = await child.process.wait()
            if self._stop.is_set():
                return
            log.warning("%s ended with %s: it is started again in %.1f s", child.name, code, wait)
            await asyncio.sleep(wait)
            wait = min(wait * 2, 10.0)
            with contextlib.suppress(OffboardError):
                await self._start(child)

    async def _end(self) -> None:
        for child in self._children:
            if child.watch is not None:
                child.watch.cancel()
        first = [child for child in self._children if child.name == "receiver"]
        rest = [child for child in self._children if child.name != "receiver"]
        deadline = asyncio.get_running_loop().time() + STOP_WITHIN
        for group in (first, rest):
            await asyncio.gather(*(_terminate(child, deadline) for child in group))


async def _terminate(child: Child, deadline: float) -> None:
    process = child.process
    if process is None or process.returncode is not None:
        return
    with contextlib.suppress(ProcessLookupError):
        process.terminate()
    try:
        async with asyncio.timeout_at(deadline):
            await process.wait()
    except TimeoutError:
        log.warning("%s did not end in time: killed", child.name)
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


def _replica(number: int, config: Config) -> tuple[str, ...]:
    if number == 0:
        return ("proxy",)
    host, _ = split_listen(config.proxy.listen)
    return ("proxy", "--listen", f"{host}:0", "--metrics", "127.0.0.1:0")


def _failed(name: str, code: int) -> OffboardError:
    if code == 2:
        return ConfigError(f"{name} could not start: see its message above")
    return OffboardError(f"{name} ended with {code} before it was ready: see its messages above")


def run_dashboard(config: Config, ready: Callable[[dict[str, str]], None]) -> None:
    """Run rq-dashboard on loopback, behind basic auth, with the JSON serializer. Raises ConfigError."""
    try:
        from offboard_worker.dashboard import serve
    except ImportError as error:
        raise ConfigError(
            f"rq-dashboard is not installed ({error.name} is missing)",
            advice="pip install 'offboard-worker[dashboard]'",
        ) from error
    serve(config, ready)
