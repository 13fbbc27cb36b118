"""kill -9 at the worst moments: what was accepted is done, and done truly."""

from __future__ import annotations

import asyncio
import os
import random

import pytest

from tests.e2e.conftest import Town
from tests.e2e.system import System, until

pytestmark = [pytest.mark.e2e, pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(300)]


async def test_every_event_that_a_killed_receiver_had_answered_ends_in_a_verified_case(
    system: System, town: Town
) -> None:
    leavers = [town.somebody() for _ in range(6)]
    answers: dict[str, int] = {}
    one_answered = asyncio.Event()

    async def leave(number: int) -> None:
        await asyncio.sleep(number * 0.01)
        status = await system.okta(leavers[number])
        answers[leavers[number].person] = status
        if status == 204 or status == 200:
            one_answered.set()

    async def kill() -> list[int]:
        await one_answered.wait()
        await asyncio.sleep(random.uniform(0, 0.03))
        return system.kill("receiver")

    *_, old = await asyncio.gather(*(leave(n) for n in range(len(leavers))), kill())
    assert old is not None
    accepted = [who for who in leavers if answers[who.person] in (200, 204)]
    assert accepted
    for who in accepted:
        await system.verified(who, within=90)
    await system.back("receiver", old)

    async def listens() -> bool:
        return await system.okta(leavers[0]) in (200, 204)

    await until("the receiver answers at its old address", listens)


STEPS = {
    "after identify, before anything is found": "GET /api/v1/users/{id}/grants",
    "after find, the account suspended and unanswered": "POST /api/v1/users/{id}/lifecycle/suspend",
    "after the account, a grant revoked and unanswered": "DELETE /api/v1/users/{id}/grants/*",
    "read back, and nothing of it on record": "GET /api/v1/users/{id}/grants/*",
}


async def test_a_worker_killed_between_a_vendors_call_and_our_record_leaves_nothing_undone(
    system: System, town: Town
) -> None:
    faults = town.world.okta.faults
    leavers = {step: town.somebody(rich=True) for step in STEPS}
    for step, pattern in STEPS.items():
        faults.hang(pattern.format(id=leavers[step].okta_id), 60, performed=True)
    for who in leavers.values():
        assert await system.okta(who) in (200, 204)

    async def all_hang() -> bool:
        return faults.prepared == 0

    await until("each job hangs at its step", all_hang, within=60)
    jobs = [p for one in system.processes("worker") for p in one.children(recursive=True)]
    old = system.kill("worker")
    for who in leavers.values():
        await system.verified(who, within=90)
    await system.back("worker", old)
    assert not [process.pid for process in jobs if process.is_running()], "processes of the killed worker go on"
    for step, who in leavers.items():
        suspended = [c for c in faults.calls if c.line == f"POST /api/v1/users/{who.okta_id}/lifecycle/suspend"]
        assert suspended, step
        case = await system.case(who.person)
        assert any(part["runs"] > 1 for part in case["targets"] if part["connector"] == "okta"), step


async def test_a_worker_killed_in_the_middle_of_other_vendors_calls_leaves_nothing_undone(
    system: System, town: Town
) -> None:
    disabled, left, cut = leavers = [town.somebody(rich=True) for _ in range(3)]
    graph, aws = town.world.graph.faults, town.world.aws
    graph.hang(f"PATCH /v1.0/users/{disabled.entra_id}", 60, performed=True)
    graph.hang(f"DELETE /v1.0/groups/*/members/{left.entra_id}/$ref", 60, performed=True)
    aws.hang("UpdateAccessKey")
    for who in leavers:
        assert await system.okta(who) in (200, 204)

    async def all_hang() -> bool:
        return graph.prepared == 0 and not aws.front.prepared("UpdateAccessKey")

    await until("each job hangs at its step", all_hang, within=60)
    await system.back("worker", system.kill("worker"))
    for who in leavers:
        case = await system.verified(who, within=90)
        assert max(part["runs"] for part in case["targets"]) > 1 or who is cut


async def test_a_worker_killed_at_any_moment_leaves_nothing_undone(system: System, town: Town) -> None:
    town.world.okta.faults.latency = town.world.graph.faults.latency = 0.02
    leavers = [town.somebody() for _ in range(4)]
    for who in leavers:
        assert await system.okta(who) in (200, 204)
    for _ in range(2):
        await asyncio.sleep(random.uniform(0.3, 1.5))
        await system.back("worker", system.kill("worker"))
    for who in leavers:
        await system.verified(who, within=120)


async def test_a_job_whose_own_process_is_killed_is_done_by_another(system: System, town: Town) -> None:
    who, faults = town.somebody(), town.world.graph.faults
    faults.hang(f"PATCH /v1.0/users/{who.entra_id}", 60, performed=True)
    assert await system.okta(who) in (200, 204)

    async def hangs() -> bool:
        return faults.prepared == 0

    await until("the job hangs", hangs, within=60)
    (pool,) = system.processes("worker")
    horses = [process for worker in pool.children() for process in worker.children() if _is_job(process.pid)]
    for horse in horses:
        horse.kill()
    await system.verified(who)
    assert pool.is_running()


def _is_job(pid: int) -> bool:
    """Jobs lead process groups of their own; RQ's scheduler doesn't."""
    return os.getpgid(pid) == pid


async def test_a_killed_proxy_and_scheduler_come_back_knowing_every_denial(system: System, town: Town) -> None:
    who = town.somebody()
    token, neighbours = await system.token(who.person), await system.token(town.neighbour.person)
    assert await system.calls(token) == [200, 200]
    assert await system.okta(who) in (200, 204)
    assert await system.calls(token) == [401, 401]
    old = {name: system.kill(name) for name in ("proxy", "scheduler")}
    for name, pids in old.items():
        await system.back(name, pids)

    async def serve() -> bool:
        found = await system.calls(neighbours)
        assert 200 not in await system.calls(token)
        return found == [200, 200]

    await until("both replicas serve again", serve)
    assert await system.calls(token) == [401, 401]
    await system.verified(who)
