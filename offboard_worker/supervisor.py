"""Runs the processes of one machine together: what `offboard up` is. Each child is an ordinary `offboard` command.

A child that dies is started again on the address that it had; the embedded Valkey keeps its port and data. SIGTERM
ends the receiver first, so that nothing is accepted that nobody works on, and Valkey last. Whatever a dead child leaves
running is ended, and if this process is killed the kernel ends the children.
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
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from redis.exceptions import RedisError

from offboard_worker.config import Config, split_listen
from offboard_worker.denylist.connection import open_client
from offboard_worker.denylist.embedded import EmbeddedValkey, die_with_parent
from offboard_worker.errors import ConfigError, DenylistUnavailable, OffboardError

log = logging.getLogger(__name__)
READY_WITHIN = 60.0
STOP_WITHIN = 8.0
"""Seconds that SIGTERM gives the children in all; Valkey's own end comes after them."""
STEADY = 10.0
"""Seconds after which a child that dies counts as one that had been running well."""
FIRST_WAIT, LONGEST_WAIT = 0.2, 10.0
"""Seconds until a dead child is started again: doubled while it keeps dying."""


@contextlib.asynccontextmanager
async def embedded_valkey(config: Config) -> AsyncIterator[EmbeddedValkey | None]:
    """Run a Valkey below data_dir and leave its URL where the other processes look; nothing if redis: is set."""
    if config.redis.url is not None:
        yield None
        return
    url = config.embedded_redis
    url.parent.mkdir(parents=True, exist_ok=True)
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


async def wait_for_redis(config: Config, within: float = READY_WITHIN) -> None:
    """Return once Redis answers: what a Procfile's processes wait for, as they all start at once.

    Raises ConfigError or DenylistUnavailable after `within` seconds.
    """
    until = asyncio.get_running_loop().time() + within
    while True:
        try:
            return await _ping(config)
        except OffboardError:
            if asyncio.get_running_loop().time() > until:
                raise
        await asyncio.sleep(0.1)


async def _ping(config: Config) -> None:
    client = open_client(config.redis_url, 1.0)  # read anew each time: a crash leaves the URL of a server that is gone
    try:
        await client.ping()
    except (RedisError, OSError) as error:
        raise DenylistUnavailable(f"Redis doesn't answer: {type(error).__name__}") from error
    finally:
        await client.aclose()


async def wait_for_others(server: EmbeddedValkey, within: float = 4.0) -> None:
    """Return once nobody else is connected: a Procfile's processes are all ended at once, and Valkey should be the last."""
    until = asyncio.get_running_loop().time() + within
    client = open_client(server.url, 1.0)
    try:
        while asyncio.get_running_loop().time() < until:
            if len(await client.client_list()) < 2:
                return
            await asyncio.sleep(0.1)
    except (RedisError, OSError) as error:
        log.warning("Valkey doesn't say who is connected: %s", type(error).__name__)
    finally:
        await client.aclose()


@dataclass(slots=True)
class Child:
    """One process: how it is started, and what it said when it was ready."""

    name: str
    arguments: tuple[str, ...]
    process: asyncio.subprocess.Process | None = None
    said: dict[str, Any] = field(default_factory=dict)

    def command(self) -> tuple[str, ...]:
        """Its arguments; a child that had bound an address gets the same one again."""
        again: list[str] = []
        for key, option in (("receiver", "listen"), ("proxy", "listen"), ("url", "listen"), ("metrics", "metrics")):
            if url := self.said.get(key):
                again += [f"--{option}", str(url).partition("://")[2].rstrip("/")]
        return (self.arguments[0], *again) if again else self.arguments


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
        async with embedded_valkey(self._config) as valkey:
            watches: list[asyncio.Task[None]] = []
            try:
                if not await self._unless_stopped(self._start_all()):
                    return
                ready(self._addresses(valkey))
                watches = [asyncio.create_task(self._keep(child), name=child.name) for child in self._children]
                if valkey is not None:
                    watches.append(asyncio.create_task(self._keep_valkey(valkey), name="valkey"))
                await self._stop.wait()
            finally:
                for watch in watches:
                    watch.cancel()
                await asyncio.gather(*watches, return_exceptions=True)
                await self._end()

    async def _start_all(self) -> None:
        await self._prepare()
        await asyncio.gather(*(self._start(child) for child in self._children))

    async def _unless_stopped(self, work: Coroutine[Any, Any, None]) -> bool:
        """Do it, and say whether it was done before somebody asked us to end."""
        task, stop = asyncio.create_task(work), asyncio.create_task(self._stop.wait())
        await asyncio.wait({task, stop}, return_when=asyncio.FIRST_COMPLETED)
        stop.cancel()
        if not task.done():
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            return False
        await task
        return True

    async def _prepare(self) -> None:
        """Bring the store up to date once, before several processes would."""
        from offboard_worker.store.database import Store

        store = await Store.open(self._config.store_url)
        await store.close()

    def _addresses(self, valkey: EmbeddedValkey | None) -> dict[str, object]:
        found: dict[str, object] = {}
        for child in self._children:
            said = {key: value for key, value in child.said.items() if key != "component"}
            main = said.pop(child.name.partition("-")[0], None) or said.pop("url", None)
            if main:
                found[child.name] = main
            found.update({f"{child.name}_{key}": value for key, value in said.items()})
        pids = {child.name: child.process.pid for child in self._children if child.process}
        found["pids"] = pids | ({"valkey": valkey.pid} if valkey is not None else {})
        return found

    async def _start(self, child: Child) -> None:
        child.process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "offboard_worker",
            *child.command(),
            "--config",
            str(self._path),
            "--json",
            stdout=asyncio.subprocess.PIPE,
            start_new_session=True,  # Ctrl-C reaches us alone: we end the children in order
            preexec_fn=die_with_parent,
        )
        assert child.process.stdout is not None  # noqa: S101 - it was asked for
        try:
            async with asyncio.timeout(READY_WITHIN):
                line = await child.process.stdout.readline()
        except TimeoutError:
            child.process.kill()
            raise OffboardError(f"{child.name} was not ready within {READY_WITHIN:g} s: killed") from None
        if not line:
            code = await _exit_of(child.process)
            raise _failed(child.name, code)
        try:
            child.said = json.loads(line)
        except ValueError:  # it was killed while it spoke
            child.process.kill()
            raise OffboardError(f"{child.name} did not say that it is ready") from None

    async def _keep(self, child: Child) -> None:
        """Start a child again whenever it dies, less and less eagerly while it keeps dying."""
        clock, wait = asyncio.get_running_loop().time, FIRST_WAIT
        while True:
            assert child.process is not None  # noqa: S101 - it was started
            begun = clock()
            code = await _exit_of(child.process)
            _end_leftovers(child.process.pid)
            wait = FIRST_WAIT if clock() - begun > STEADY else wait
            log.warning("%s ended with %s: it is started again in %.1f s", child.name, code, wait)
            await asyncio.sleep(wait)
            wait = min(wait * 2, LONGEST_WAIT)
            try:
                await self._start(child)
            except (OffboardError, OSError) as error:
                log.warning("%s", error)

    async def _keep_valkey(self, valkey: EmbeddedValkey) -> None:
        """Start the embedded Valkey again whenever it dies: same port, same data."""
        wait = FIRST_WAIT
        while True:
            await asyncio.sleep(wait if not valkey.running else FIRST_WAIT)
            if valkey.running:
                wait = FIRST_WAIT
                continue
            log.warning("the embedded Valkey ended: it is started again")
            wait = min(wait * 2, LONGEST_WAIT)
            try:
                await valkey.stop()
                await valkey.start()
            except (OffboardError, OSError) as error:
                log.warning("%s", error)

    async def _end(self) -> None:
        first = [child for child in self._children if child.name == "receiver"]
        rest = [child for child in self._children if child.name != "receiver"]
        deadline = asyncio.get_running_loop().time() + STOP_WITHIN
        for group in (first, rest):
            await asyncio.gather(*(_terminate(child, deadline) for child in group))


async def _exit_of(process: asyncio.subprocess.Process) -> int:
    """Wait for a process's end. Not `wait()`: that waits for whoever inherited its stdout too, like a killed worker's jobs."""
    while process.returncode is None:  # noqa: ASYNC110 - no event tells of it alone
        await asyncio.sleep(0.1)
    return process.returncode


def _end_leftovers(pid: int) -> None:
    """Kill what a dead child left running in its session, or it would go on without anybody who could end it."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)


async def _terminate(child: Child, deadline: float) -> None:
    process = child.process
    if process is None:
        return
    if process.returncode is None:
        await _ended(child.name, process, deadline)
    _end_leftovers(process.pid)


async def _ended(name: str, process: asyncio.subprocess.Process, deadline: float) -> None:
    with contextlib.suppress(ProcessLookupError):
        process.terminate()
    try:
        async with asyncio.timeout_at(deadline):
            await _exit_of(process)
    except TimeoutError:
        log.warning("%s did not end in time: killed", name)
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await _exit_of(process)


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
