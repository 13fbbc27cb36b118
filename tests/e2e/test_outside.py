"""What an outsider can see, and what is left when it ends: nothing below another folder, no process, no lost delivery."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests.e2e.conftest import Town
from tests.e2e.system import System, offboard, until

pytestmark = [pytest.mark.e2e, pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(300)]
SIGTERM_GIVES = 10.0


async def test_the_cli_the_export_and_the_metrics_tell_everything(system: System, town: Town, tmp_path: Path) -> None:
    who = town.somebody(rich=True)
    token = await system.token(who.person)
    assert await system.calls(token) == [200, 200]
    assert await system.okta(who) in (200, 204)
    assert await system.calls(token) == [401, 401]
    case = await system.verified(who)

    code, out, _ = await offboard(system.inst, "case", "show", case["id"], "--json")
    assert (code, json.loads(out)) == (0, case)
    (listed,) = [row for row in await system.inst.cli("case", "list") if row["person"] == who.person]
    assert (listed["state"], listed["id"]) == ("verified", case["id"])
    assert listed["refused_after_ms"] < 5000
    refused = list(case["refused_by"].values())
    assert refused.count("applied") == 2, refused
    assert set(refused) <= {"applied", "lease-expired"}  # replicas that an earlier test killed have no lease any more
    (fact,) = [f for f in await system.inst.cli("denylist", "list") if f["key"] == f"person|{who.person}"]
    assert fact["denied"]
    kinds = {(row["connector"], row["kind"]) for row in case["credentials"]}
    assert {("okta", "role"), ("entra", "app-assignment"), ("aws", "access-key"), ("proxy", "api-token")} <= kinds

    await system.inst.cli("audit", "checkpoint")
    export = tmp_path / "audit.jsonl"
    assert (await offboard(system.inst, "audit", "export", "--output", str(export)))[0] == 0
    records = [json.loads(line) for line in export.read_text().splitlines()]
    about = {record["what"] for record in records if record.get("subject") == case["id"]}
    assert {"case.opened", "case.settle", "case.refused-everywhere", "target.started", "target.ended"} <= about
    (key,) = (system.inst.folder / "data" / "audit").glob("*.pub.pem")
    alone = ("audit", "verify", "--export", str(export), "--public-key", str(key), "--json")
    code, out, _ = await offboard(system.inst, *alone)
    assert code == 0
    assert json.loads(out)["checkpoints"] >= 1
    export.write_text(export.read_text().replace(who.person, "somebody-else"))
    assert (await offboard(system.inst, *alone))[0] == 1

    (receiver,) = system.metrics_of("receiver")
    told = (await system.get(f"{receiver}/metrics"))[1]
    assert 'offboard_receiver_deliveries_total{outcome="accepted",source="okta-main"}' in told
    assert 'effect="offboard",kind="account-suspended"' in told
    for proxy in system.metrics_of("proxy"):
        told = (await system.get(f"{proxy}/metrics"))[1]
        assert 'offboard_proxy_decisions_total{decision="refused",reason="revoked"}' in told
        assert 'offboard_proxy_decisions_total{decision="allowed",reason="ok"}' in told


async def test_each_process_ends_with_0_soon_after_sigterm(system: System) -> None:
    listen, metrics = ("--listen", "127.0.0.1:0"), ("--metrics", "127.0.0.1:0")
    commands = {
        "receiver": (*listen, *metrics),
        "proxy": (*listen, *metrics),
        "worker": (),
        "scheduler": (),
        "dashboard": listen,
    }

    async def live_and_end(component: str, *options: str) -> tuple[str, int | None, bool]:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "offboard_worker", component, *options),
            *("--config", str(system.inst.config), "--json"),
            stdout=asyncio.subprocess.PIPE,
        )
        assert process.stdout is not None
        said = json.loads(await process.stdout.readline())
        assert said["component"] == component
        children = psutil.Process(process.pid).children(recursive=True)
        process.terminate()
        async with asyncio.timeout(SIGTERM_GIVES):
            code = await process.wait()
        return component, code, any(child.is_running() for child in children)

    ended = [await live_and_end(name, *options) for name, options in commands.items()]
    assert ended == [(name, 0, False) for name in commands]


async def test_sigterm_in_the_middle_of_deliveries_loses_none_that_was_answered_and_leaves_no_process(
    town: Town, folder: Path
) -> None:
    leavers = [town.somebody() for _ in range(5)]
    town.world.okta.faults.latency = 0.1  # so that jobs are under way when everything is to end
    async with System.running(town.world, folder, proxies=1) as system:
        everything = [psutil.Process(system.up), *psutil.Process(system.up).children(recursive=True)]
        statuses: dict[str, int] = {}
        stopping = asyncio.Event()

        async def deliver_on() -> None:
            for who in leavers:
                statuses[who.person] = await system.okta(who)
                if len(statuses) == 2:
                    stopping.set()

        async def stop() -> int | None:
            await stopping.wait()
            return await system.inst.stop()

        begun = time.monotonic()
        code, _ = await asyncio.gather(stop(), deliver_on())
        assert code == 0
        assert time.monotonic() - begun < SIGTERM_GIVES
        assert not [process for process in everything if process.is_running()]
        assert "did not end in time" not in system.read_log()
        assert set(os.listdir(folder)) == {"config.yaml", "offboard.log", "data"}

        answered = [who for who in leavers if statuses[who.person] in (200, 204)]
        assert len(answered) >= 2
        states = [part["state"] for who in answered for part in (await system.case(who.person))["targets"]]
        assert "running" not in states, "a job was not finished"
        town.world.okta.faults.clear()
        await system.inst.start()
        for who in answered:
            await system.verified(who)

        everything = [psutil.Process(system.up), *psutil.Process(system.up).children(recursive=True)]
        os.kill(system.up, signal.SIGKILL)

        async def gone() -> bool:
            return not [p for p in everything if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]

        await until("a killed `up` takes everything with it", gone, within=SIGTERM_GIVES)
        await system.inst.start()
        denied = {fact["key"] for fact in await system.inst.cli("denylist", "list") if fact["denied"]}
        assert {f"person|{who.person}" for who in answered} <= denied
        assert await system.ready() == [200]


async def test_sigterm_while_starting_ends_everything(town: Town, tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(town.world.config_text())
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "offboard_worker", "up", "--json", "--config", str(config)),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )

    async def children() -> list[psutil.Process]:
        return psutil.Process(process.pid).children(recursive=True) if process.returncode is None else []

    async def several() -> bool:
        return len(await children()) >= 3

    await until("it has started some processes", several, every=0.02)
    started = await children()
    process.terminate()
    async with asyncio.timeout(SIGTERM_GIVES):
        assert await process.wait() == 0
    assert not [child for child in started if child.is_running()]
