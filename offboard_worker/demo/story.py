"""One leaver's story, played for real: what `offboard demo` shows. Exit code 0 only if every claim of it came true.

Ada leaves; Grace stays, and nothing of hers may change. Every claim is checked from outside: by calls through the
proxies, and by asking the simulated vendors themselves.
"""

from __future__ import annotations

import asyncio
import json
import tempfile
import time
from collections.abc import Awaitable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
from rich.console import Console
from rich.live import Live
from rich.spinner import Spinner
from rich.table import Table

from offboard_worker import config as configuration
from offboard_worker.app import App, Opened
from offboard_worker.demo.installation import Installation
from offboard_worker.demo.world import Inhabitant, World
from offboard_worker.reports.case import described
from offboard_worker.store import cases

SETTLED_WITHIN = 120.0
COLOUR = {"verified": "green", "acknowledged": "green", "unknown": "yellow", "failed": "red"}


@dataclass
class Claim:
    """One thing that the story says, and whether it came true."""

    text: str
    true: bool
    figure: str = ""


@dataclass
class Stream:
    """An open streaming answer through a proxy: how many bytes came, and when it ended."""

    url: str
    token: str
    received: int = 0
    ended_at: float | None = None
    task: asyncio.Task[None] | None = field(default=None, repr=False)

    def start(self, session: aiohttp.ClientSession) -> None:
        self.task = asyncio.create_task(self._read(session))

    async def _read(self, session: aiohttp.ClientSession) -> None:
        try:
            async with session.get(self.url, headers={"Authorization": f"Bearer {self.token}"}) as answer:
                async for chunk in answer.content.iter_any():
                    self.received += len(chunk)
        except aiohttp.ClientError:
            pass  # cut: that is what the story waits for
        self.ended_at = time.monotonic()


def play(*, keep: bool, svg: Path | None) -> int:
    """Play the story; return the exit code."""
    console = Console(record=svg is not None)
    if svg is not None or not console.is_terminal:
        console = Console(record=svg is not None, width=132)
    with tempfile.TemporaryDirectory(prefix="offboard-demo-") as folder:
        try:
            code = asyncio.run(Story(console, Path(folder)).run(keep))
        except KeyboardInterrupt:
            console.print("ended")
            code = 130
    if svg is not None:
        console.save_svg(str(svg), title="offboard demo")
    return code


class Story:
    """The story's state, from the first call to the last table."""

    def __init__(self, console: Console, folder: Path) -> None:
        self.console = console
        self.folder = folder
        self.claims: list[Claim] = []
        self.case: dict[str, Any] = {}

    async def run(self, keep: bool) -> int:
        self._say(
            "[bold]One leaver's story[/bold]: real processes, a real Valkey, the vendors' own SDKs, simulated vendors"
        )
        async with World() as world:
            ada = await world.settle("ada", "Ada", "Leaver")
            grace = await world.settle("grace", "Grace", "Stays", rich=False)
            self._say(f"  {len(await world.still_open(ada))} ways in are open to Ada, in Okta, Entra ID and AWS")
            installation = Installation(self.folder, world.config_text(), proxies=2)
            async with self._waiting("starting receiver, worker, scheduler and two proxy replicas", installation):
                async with aiohttp.ClientSession() as session:
                    await self._play(world, installation, session, ada, grace)
                code = self._verdict()
                if keep:
                    await self._keep(world, installation, ada)
        return code

    def _waiting(self, what: str, installation: Installation) -> _Starting:
        return _Starting(self.console, what, installation)

    async def _play(
        self, world: World, inst: Installation, session: aiohttp.ClientSession, ada: Inhabitant, grace: Inhabitant
    ) -> None:
        tokens = {who.person: await self._token(inst, who) for who in (ada, grace)}
        await self._both_get_in(inst, session, tokens)
        streams = [Stream(f"{proxy}/ledger/v1/ticks", tokens[who]) for proxy in inst.proxies for who in tokens]
        for stream in streams:
            stream.start(session)
        await self._until(lambda: all(stream.received for stream in streams), 10)
        self._say(f"  {len(streams)} streaming answers are open, two of them Ada's")
        before = await world.still_open(grace)
        await self._she_leaves(world, inst, session, ada, tokens, streams)
        await self._watch_revocation(inst)
        await self._ask_the_vendors(world, ada, grace, before, streams, tokens)
        await self._audit(inst)
        for stream in streams:
            if stream.task:
                stream.task.cancel()

    async def _token(self, inst: Installation, who: Inhabitant) -> str:
        issued = await inst.cli("token", "issue", "--person", who.person, "--role", "developer")
        return str(issued["access_token"])

    async def _both_get_in(self, inst: Installation, session: aiohttp.ClientSession, tokens: dict[str, str]) -> None:
        answers = [await self._call(session, proxy, token) for proxy in inst.proxies for token in tokens.values()]
        self._claim("Ada and Grace get through both replicas", all(status == 200 for status in answers), str(answers))

    async def _call(self, session: aiohttp.ClientSession, proxy: str, token: str) -> int:
        async with session.get(f"{proxy}/ledger/v1/ledger", headers={"Authorization": f"Bearer {token}"}) as answer:
            await answer.read()
            return answer.status

    async def _she_leaves(
        self,
        world: World,
        inst: Installation,
        session: aiohttp.ClientSession,
        ada: Inhabitant,
        tokens: dict[str, str],
        streams: list[Stream],
    ) -> None:
        world.okta.users[ada.okta_id].status = "SUSPENDED"  # what the administrator did in Okta
        body = world.okta_event(ada, "user.lifecycle.suspend")
        self._say("\n[bold]Okta says that Ada is suspended[/bold] (event hook, authenticated)")
        begun = time.monotonic()
        headers = {"Authorization": world.hook_secret, "Content-Type": "application/json"}
        async with session.post(f"{inst.receiver}/webhooks/okta-main", data=body, headers=headers) as answer:
            accepted = answer.status
        answered = time.monotonic()
        refused = [await self._call(session, proxy, tokens["ada"]) for proxy in inst.proxies]
        self._claim("the receiver accepted it", accepted in (200, 204), f"{(answered - begun) * 1000:.1f} ms")
        self._claim(
            "the very next call through each replica was refused", refused == [401] * len(refused), str(refused)
        )
        hers = [stream for stream in streams if stream.token == tokens["ada"]]
        await self._until(lambda: all(stream.ended_at for stream in hers), 5)
        cut = [(stream.ended_at - begun) * 1000 for stream in hers if stream.ended_at]
        figure = ", ".join(f"{ms:.1f} ms" for ms in cut)
        self._claim("her open streams were cut", len(cut) == len(hers), figure)

    async def _watch_revocation(self, inst: Installation) -> None:
        self._say("\n[bold]Jobs find, disable and read back[/bold]")
        app = App(configuration.load(inst.config))
        async with app.open() as opened:
            with Live(Spinner("dots", "looking"), console=self.console, transient=True, refresh_per_second=8) as live:
                until = time.monotonic() + SETTLED_WITHIN
                while time.monotonic() < until:
                    self.case = await self._latest(opened)
                    live.update(_credential_table(self.case))
                    if self.case.get("state") in ("verified", "attention", "closed") and self.case["refused_at"]:
                        break
                    await asyncio.sleep(0.1)
        strengths = {row["strength"] for row in self.case["credentials"]}
        self._claim("the case is verified", self.case["state"] == "verified", self.case["summary"])
        self._claim("every result was read back or acknowledged", strengths <= {"verified", "acknowledged"})
        self._claim(
            "the refusal was confirmed at both replicas",
            len(self.case["refused_by"]) == 2 and set(self.case["refused_by"].values()) == {"applied"},
            f"{self.case['refused_after_ms']} ms from accepted to refused everywhere",
        )

    async def _latest(self, opened: Opened) -> dict[str, Any]:
        async with opened.store.read() as conn:
            found = await cases.many(conn, limit=1)
            return await described(conn, found[0]) if found else {}

    async def _ask_the_vendors(
        self,
        world: World,
        ada: Inhabitant,
        grace: Inhabitant,
        before: list[str],
        streams: list[Stream],
        tokens: dict[str, str],
    ) -> None:
        doors = await world.still_open(ada)
        self._claim("asked themselves, the vendors let Ada in nowhere", not doors, ", ".join(doors[:4]))
        after = await world.still_open(grace)
        self._claim("nothing of Grace's was touched", after == before, f"{len(after)} ways in, as before")
        hers = [stream for stream in streams if stream.token == tokens["grace"]]
        self._claim("Grace's streams run on", all(stream.ended_at is None for stream in hers))

    async def _audit(self, inst: Installation) -> None:
        await inst.cli("audit", "checkpoint")
        found = await inst.cli("audit", "verify")
        marks = found["checkpoints"]
        figure = f"{found['records']} records, {marks} signed checkpoint{'s' if marks != 1 else ''}"
        self._claim("the audit chain verifies", found["intact"] and found["checkpoints"] >= 1, figure)

    def _verdict(self) -> int:
        self._say("")
        self.console.print(_credential_table(self.case))
        untrue = [claim for claim in self.claims if not claim.true]
        for claim in untrue:
            self._say(f"  [red]✘ NOT TRUE[/red] {claim.text}  {claim.figure}")
        count = len(self.claims)
        if untrue:
            self._say(f"\n[red]Not all of it happened: {count - len(untrue)} of {count} claims came true.[/red]")
            return 1
        refused = f"refused everywhere {self.case['refused_after_ms']:g} ms after the event was accepted"
        self._say(f"\n[green]All of it happened: {count} of {count} claims came true[/green]; {refused}.")
        return 0

    async def _keep(self, world: World, inst: Installation, ada: Inhabitant) -> None:
        urls = {name: url for name, url in inst.urls.items() if isinstance(url, str)}
        self._say("\n[bold]Everything keeps running[/bold] until Ctrl-C")
        for name, url in urls.items():
            self._say(f"  {name:18} {url}")
        settings = f"--config {inst.config}"
        body = json.dumps({"people": list(world.people)})
        self._say(f"\nPeople in this world: {body}. Try:")
        for line in (
            f"offboard case show {self.case.get('id')} {settings}",
            f"offboard denylist list {settings}",
            f"offboard token issue --person grace --role developer {settings}",
            f"offboard case open grace --reason 'just to see' {settings}",
            f"offboard case cancel {self.case.get('id')} --reinstate {settings}",
            f'curl -H "Authorization: Bearer TOKEN" {inst.proxies[0]}/ledger/v1/ledger',
        ):
            self._say(f"  {line}")
        await asyncio.Event().wait()

    def _claim(self, text: str, true: bool, figure: str = "") -> None:
        self.claims.append(Claim(text, true, figure))
        mark = "[green]✔[/green]" if true else "[red]✘[/red]"
        self._say(f"  {mark} {text}" + (f"  [dim]{figure}[/dim]" if figure else ""))

    def _say(self, text: str) -> None:
        self.console.print(text, highlight=False, soft_wrap=True)

    async def _until(self, true: Any, within: float) -> bool:
        until = time.monotonic() + within
        while not true():
            if time.monotonic() > until:
                return False
            await asyncio.sleep(0.005)
        return True


class _Starting:
    """Shows a spinner while an installation starts."""

    def __init__(self, console: Console, what: str, installation: Installation) -> None:
        self._console = console
        self._what = what
        self._installation = installation

    async def __aenter__(self) -> None:
        begun = time.monotonic()
        with self._console.status(self._what):
            await self._installation.__aenter__()
        self._console.print(f"  {self._what}: ready in {time.monotonic() - begun:.1f} s", highlight=False)

    async def __aexit__(self, *details: object) -> None:
        leaving: Awaitable[None] = self._installation.__aexit__(*details)
        await leaving


def _credential_table(case: dict[str, Any]) -> Table:
    table = Table(
        title=f"Case {case.get('id', '…')}: {case.get('state', 'opening')}", title_justify="left", show_edge=False
    )
    for column in ("system", "kind", "id", "action", "evidence", "reads", "verified", "residual"):
        table.add_column(column, overflow="ellipsis", no_wrap=True, max_width=30 if column == "id" else None)
    for row in case.get("credentials", []):
        colour = COLOUR.get(row["strength"], "white")
        table.add_row(
            row["connector"],
            row["kind"],
            row["id"],
            row["action"],
            f"[{colour}]{row['strength']}[/{colour}]",
            row["state"],
            _clock(row["verified_at"] or row["acknowledged_at"]),
            _clock(row["residual_until"], day=True),
        )
    return table


def _clock(at: str | None, *, day: bool = False) -> str:
    """The part of an RFC 3339 time that fits a column."""
    if not at:
        return ""
    return at[5:16].replace("T", " ") if day else at[11:23]
