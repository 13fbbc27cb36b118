"""One installation under test, as real processes in a simulated world, seen from outside only.

Everything that these tests learn comes from what an outsider has: HTTP, the CLI's JSON, the metrics, the process table, and
the simulated vendors themselves.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

import aiohttp
import psutil

from offboard_worker import config as configuration
from offboard_worker.app import App
from offboard_worker.demo.installation import Installation
from offboard_worker.demo.world import Inhabitant, World
from offboard_worker.denylist.connection import open_client
from offboard_worker.reports.case import described
from offboard_worker.store import cases
from offboard_worker.store.database import Store

T = TypeVar("T")
TRUE = {"verified", "acknowledged"}
TIMEOUTS = {"okta": 60, "entra": 4, "aws": 30}
"""Seconds: a call that hangs at Okta is there to be killed, one at Entra to be given up."""
QUICK_JOBS = {
    "workers": 4,
    "timeout": "60s",
    "attempts": 2,
    "max_wait": "1s",
    "retry_intervals": ["1s", "2s"],
    "reconcile_every": "1s",
}


async def until(what: str, true: Callable[[], Awaitable[T]], within: float = 30.0, every: float = 0.1) -> T:
    """Wait until something is true, and return it."""
    deadline = time.monotonic() + within
    while True:
        found = await true()
        if found:
            return found
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {within:g} s: {what}; last seen: {found!r}")
        await asyncio.sleep(every)


class System:
    """`async with System.running(world, folder) as system:` the world outlives it."""

    def __init__(self, world: World, inst: Installation, session: aiohttp.ClientSession, store: Store) -> None:
        self.world = world
        self.inst = inst
        self.http = session
        self._store = store

    @classmethod
    @asynccontextmanager
    async def running(cls, world: World, folder: Path, *, proxies: int = 2, **changes: Any) -> AsyncIterator[System]:
        connectors = {name: {**one, "timeout": TIMEOUTS[name]} for name, one in world.config()["connectors"].items()}
        whole = {"jobs": QUICK_JOBS, "guards": {"max_leavers": 1000}, "connectors": connectors, **changes}
        async with (
            Installation(folder, world.config_text(**whole), proxies=proxies) as inst,
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=20)) as session,
        ):
            store = await Store.open(App(configuration.load(inst.config)).config.store_url)
            try:
                yield cls(world, inst, session, store)
            finally:
                await store.close()

    # What happens to it

    async def deliver(self, source: str, body: bytes | str, headers: dict[str, str], query: str = "") -> int:
        """Post a delivery and return the status; 0 where no answer came."""
        sent = {"Content-Type": "application/json", **headers}
        url = f"{self.inst.receiver}/webhooks/{source}{query}"
        try:
            async with self.http.post(url, data=body, headers=sent) as answer:
                await answer.read()
                return answer.status
        except aiohttp.ClientError:
            return 0

    async def okta(self, who: Inhabitant, event_type: str = "user.lifecycle.suspend", **changes: Any) -> int:
        """Let Okta say something about somebody."""
        body = self.world.okta_event(who, event_type, **changes)
        return await self.deliver("okta-main", body, {"Authorization": self.world.hook_secret})

    def processes(self, component: str) -> list[psutil.Process]:
        """The running `offboard COMPONENT` processes, children of `up`, by their command lines."""
        found = []
        for process in psutil.Process(self.up).children():
            with contextlib.suppress(psutil.NoSuchProcess):
                line = process.cmdline()
                name = "valkey" if "valkey-server" in "".join(line[:1]) else "".join(line[3:4])
                if name == component:
                    found.append(process)
        return found

    @property
    def up(self) -> int:
        process = self.inst._process
        assert process is not None
        return process.pid

    def kill(self, component: str) -> list[int]:
        """kill -9 every process of a component; returns their pids."""
        pids = [process.pid for process in self.processes(component)]
        assert pids, f"no {component} runs"
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        return pids

    async def back(self, component: str, old: Iterable[int], within: float = 40.0) -> None:
        """Wait until other processes of a component run."""

        async def new() -> bool:
            now = {process.pid for process in self.processes(component)}
            return bool(now) and not now & set(old)

        await until(f"{component} runs again", new, within)

    # What is seen of it

    async def case(self, person: str) -> dict[str, Any]:
        """The latest case of a person, as `offboard case show --json` has it; empty where there is none."""
        async with self._store.read() as conn:
            found = await cases.many(conn, person_id=person, limit=1)
            return await described(conn, found[0]) if found else {}

    async def settled(self, person: str, state: str = "verified", within: float = 60.0) -> dict[str, Any]:
        """Wait until a person's case is in a state and its refusal is on record, and return it."""
        last: dict[str, Any] = {}

        async def there() -> bool:
            last.clear()
            last.update(await self.case(person))
            return last.get("state") == state and last.get("refused_at") is not None

        try:
            await until(f"the case of {person} is {state}", there, within)
        except AssertionError as error:
            shown = {k: last.get(k) for k in ("state", "summary", "targets", "refused_at", "tasks")}
            bad = [row for row in last.get("credentials", []) if row["strength"] not in TRUE]
            raise AssertionError(f"{error}\n{json.dumps(shown, indent=1)}\n{bad}") from None
        return last

    async def verified(self, who: Inhabitant, within: float = 60.0) -> dict[str, Any]:
        """Wait for a verified case whose evidence the vendors themselves agree with."""
        case = await self.settled(who.person, within=within)
        assert {row["strength"] for row in case["credentials"]} <= TRUE
        assert await self.world.still_open(who) == []
        names = [(row["connector"], row["kind"], row["scope"], row["id"]) for row in case["credentials"]]
        assert len(names) == len(set(names)), "a credential stands in the case twice"
        assert {row["connector"] for row in case["credentials"]} >= {"okta", "entra", "aws"}
        return case

    async def token(self, person: str) -> str:
        return str((await self.inst.cli("token", "issue", "--person", person, "--role", "developer"))["access_token"])

    async def call(self, proxy: str, token: str) -> int:
        """One call through a proxy; 0 where no answer came."""
        try:
            headers = {"Authorization": f"Bearer {token}"}
            async with self.http.get(f"{proxy}/ledger/v1/ledger", headers=headers) as answer:
                await answer.read()
                return answer.status
        except aiohttp.ClientError:
            return 0

    async def calls(self, token: str) -> list[int]:
        return [await self.call(proxy, token) for proxy in self.inst.proxies]

    async def get(self, url: str, **options: Any) -> tuple[int, str]:
        async with self.http.get(url, **options) as answer:
            return answer.status, await answer.text()

    def metrics_of(self, component: str) -> list[str]:
        """The metrics listeners of a component."""
        return [
            url
            for name, url in self.inst.urls.items()
            if name.endswith("_metrics") and name.partition("_")[0].partition("-")[0] == component
        ]

    async def ready(self) -> list[int]:
        """What /readyz of each proxy says."""
        return [(await self.get(f"{url}/readyz"))[0] for url in self.metrics_of("proxy")]

    async def redis(self, *command: str) -> Any:
        client = open_client(configuration.load(self.inst.config).redis_url, 5.0)
        try:
            return await client.execute_command(*command)  # type: ignore[no-untyped-call]
        finally:
            await client.aclose()

    def read_log(self) -> str:
        return self.inst.log.read_text("utf-8", "replace")


def basic_auth(user: str, password: str) -> dict[str, str]:
    return {"Authorization": f"Basic {base64.b64encode(f'{user}:{password}'.encode()).decode()}"}


async def offboard(inst: Installation, *arguments: str) -> tuple[int, str, str]:
    """Run one `offboard` command as a person would; return exit code, stdout and stderr."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "offboard_worker",
        *arguments,
        "--config",
        str(inst.config),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await process.communicate()
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()
