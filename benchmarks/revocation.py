"""A leaver with 60 credentials in three systems, 100 ms away each: `python -m benchmarks.revocation [--json]`.

A whole installation runs as real processes; the vendors' own SDKs talk to simulators that answer every call after the
latency. An Okta hook says that Ada left; the clock runs from its acceptance until the last connector's part is on record:
queued, forked, found, disabled, read back, evidence written.

The baseline is the same connector calls for Bob, who holds the same, made bare: no queue, no store, no evidence, each
connector in a process of its own. The slowest of them is the critical path: the longest chain of calls that no order of
work can shorten.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sqlite3
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import aiohttp

CONNECTORS = ("okta", "entra", "aws")
TARGET = 1.5
LATENCY = 0.1
SETTLED_WITHIN = 180.0


async def settle(world: Any, person: str, first: str) -> Any:
    """Give somebody about twenty credentials in each system."""
    from offboard_worker.demo.aws_simulator import READ_ONLY
    from offboard_worker.demo.world import Inhabitant

    who = Inhabitant(person, f"{first} Leaver", f"{person}@example.com", aws_name=person)
    who.okta_id = world.okta.add_user(
        who.email,
        first=first,
        last="Leaver",
        sessions=2,
        grants=[(f"0oaAPP{n}", "okta.users.read") for n in range(6)],
        refresh_tokens=[f"0oaAPP{n}" for n in range(6)],
        api_tokens=[f"{person} export {n}" for n in range(4)],
        roles=["ORG_ADMIN", "APP_ADMIN"],
    ).id
    directory = world.graph.directory
    who.entra_id = directory.add_user(who.email, name=who.name)
    for number in range(13):
        directory.add_group(f"team {number} of {person}", members=[who.entra_id])
    resource = directory.add_service_principal(f"ledger of {person}")
    for number in range(3):
        directory.add_grant(who.entra_id, directory.add_service_principal(f"editor {number} of {person}"), resource)
    directory.assign_app(who.entra_id, resource)
    directory.assign_role(who.entra_id)
    await world.aws.add_user(
        person,
        email=who.email,
        access_keys=2,
        ssh_keys=5,
        service_credentials=("codecommit.amazonaws.com", "cassandra.amazonaws.com"),
        certificates=2,
        groups=tuple(f"group-{number}" for number in range(6)),
        attached=(READ_ONLY,),
    )
    world.people[person] = who
    return who


def slow_down(world: Any, seconds: float) -> None:
    world.okta.faults.latency = world.graph.faults.latency = seconds
    world.aws.set_latency(seconds)


# -- the baseline: bare calls, in a process of their own ---------------------------------------------------------------


async def bare(config: Path, name: str, person_id: str) -> dict[str, float]:
    """Find, disable and read back with one connector, in its own order; return seconds and how many credentials."""
    from offboard_worker import config as configuration
    from offboard_worker.app import App
    from offboard_worker.connector import Connector
    from offboard_worker.core.credential import Credential
    from offboard_worker.core.person import Person

    settings = configuration.load(config)
    app = App(settings)
    kind, _ = app.connectors[name]
    kind.preload()
    entry = settings.people[person_id]
    person = Person(person_id, entry.name, {"okta": (str(entry.aliases["okta"]),)}, entry.emails)
    async with app.open_connector(name) as connector:
        slots = asyncio.Semaphore(connector.config.concurrency)

        async def end(credential: Credential, connector: Connector[Any] = connector) -> None:
            async with slots:
                await connector.disable(credential)
                await connector.state(credential)

        begun = time.perf_counter()
        ids = await connector.identify(person)
        person = Person(person.id, person.name, {**person.aliases, connector.system: ids}, person.emails)
        found = [credential async for credential in connector.find(person)]
        for stage in connector.stages:
            await asyncio.gather(*(end(one) for one in found if one.kind in stage))
        return {"seconds": time.perf_counter() - begun, "credentials": len(found)}


async def run_bare(config: Path, name: str, person_id: str) -> dict[str, float]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "benchmarks.revocation", "--bare", str(config), name, person_id),
        stdout=asyncio.subprocess.PIPE,
    )
    output, _ = await process.communicate()
    found: dict[str, float] = json.loads(output)
    return found


# -- the case ----------------------------------------------------------------------------------------------------------


def _parts(database: Path) -> tuple[str, float, dict[str, dict[str, Any]]]:
    """The newest case's state, when it was accepted, and its parts."""
    with sqlite3.connect(f"file:{database}?mode=ro", uri=True) as db:
        db.row_factory = sqlite3.Row
        case = db.execute("SELECT * FROM cases ORDER BY opened_at DESC LIMIT 1").fetchone()
        if case is None:
            return "", 0.0, {}
        rows = db.execute("SELECT * FROM targets WHERE case_id = ?", (case["id"],)).fetchall()
        return case["state"], case["accepted_at"], {row["connector"]: dict(row) for row in rows}


async def offboard_ada(installation: Any, world: Any, ada: Any) -> dict[str, Any]:
    """Deliver the hook and wait until the case has ended."""
    database = next((installation.folder / "data").glob("*.db"))
    headers = {"Authorization": world.hook_secret, "Content-Type": "application/json"}
    async with aiohttp.ClientSession() as session:
        body = world.okta_event(ada)
        async with session.post(f"{installation.receiver}/webhooks/okta-main", data=body, headers=headers) as answer:
            answer.raise_for_status()
    async with asyncio.timeout(SETTLED_WITHIN):
        while True:
            state, accepted, parts = await asyncio.to_thread(_parts, database)
            if state in ("verified", "attention"):
                break
            await asyncio.sleep(0.1)
    return {
        "state": state,
        "seconds": max(part["finished_at"] or accepted for part in parts.values()) - accepted,
        "began_after": {name: part["started_at"] - accepted for name, part in parts.items()},
        "parts": {name: (part["finished_at"] or 0) - part["started_at"] for name, part in parts.items()},
    }


async def run(latency: float) -> dict[str, Any]:
    """Play it and return the figures."""
    from offboard_worker.demo.installation import Installation
    from offboard_worker.demo.world import World

    with tempfile.TemporaryDirectory(prefix="offboard-benchmark-") as folder:
        async with World() as world:
            ada, _bob = await settle(world, "ada", "Ada"), await settle(world, "bob", "Bob")
            text = world.config_text(jobs={"workers": 4, "reconcile_every": "5s"})
            async with Installation(Path(folder), text) as installation:
                slow_down(world, latency)
                baseline = {name: await run_bare(installation.config, name, "bob") for name in CONNECTORS}
                case = await offboard_ada(installation, world, ada)
                shown = (await installation.cli("case", "list"))[0]
                slow_down(world, 0.0)
    critical = max(one["seconds"] for one in baseline.values())
    return {
        "latency_ms": latency * 1000,
        "credentials": sum(int(one["credentials"]) for one in baseline.values()),
        "state": case["state"],
        "summary": shown["summary"],
        "case_seconds": round(case["seconds"], 2),
        "critical_path_seconds": round(critical, 2),
        "ratio": round(case["seconds"] / critical, 2),
        "connectors": {
            name: {
                "credentials": int(baseline[name]["credentials"]),
                "bare_seconds": round(baseline[name]["seconds"], 2),
                "job_seconds": round(case["parts"][name], 2),
                "job_overhead": round(case["parts"][name] / baseline[name]["seconds"], 2),
                "began_after_seconds": round(case["began_after"][name], 2),
            }
            for name in CONNECTORS
        },
        "target_ratio": TARGET,
        "met": case["state"] == "verified" and case["seconds"] / critical <= TARGET,
    }


def show(found: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    title = f"{found['credentials']} credentials, every vendor call {found['latency_ms']:g} ms: {found['summary']}"
    table = Table(title=title)
    for column in ("connector", "credentials", "began after s", "job s", "bare calls s", "job / bare"):
        table.add_column(column, justify="left" if column == "connector" else "right")
    for name, one in found["connectors"].items():
        table.add_row(
            name,
            str(one["credentials"]),
            f"{one['began_after_seconds']:.2f}",
            f"{one['job_seconds']:.2f}",
            f"{one['bare_seconds']:.2f}",
            f"{one['job_overhead']:.2f}",
        )
    console = Console()
    console.print(table)
    console.print(
        f"from the hook to the last record: {found['case_seconds']:.2f} s; "
        f"critical path {found['critical_path_seconds']:.2f} s; ratio {found['ratio']:.2f}, target {TARGET:g}"
    )
    console.print("[green]target met[/green]" if found["met"] else "[red]target missed[/red]")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.revocation")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--latency", type=float, default=LATENCY, help="seconds that each vendor call takes")
    parser.add_argument("--bare", nargs=3, metavar=("CONFIG", "CONNECTOR", "PERSON"), help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.bare:
        config, name, person = options.bare
        print(json.dumps(asyncio.run(bare(Path(config), name, person))))
        return
    found = asyncio.run(run(options.latency))
    print(json.dumps(found, indent=2)) if options.json else show(found)


if __name__ == "__main__":
    main()
