"""Vendors that are busy, broken or lying, and jobs that run twice: every case ends in a true state."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from rq import Queue
from rq.job import Job
from rq.serializers import JSONSerializer

from offboard_worker import config as configuration
from offboard_worker.demo.world import Inhabitant
from offboard_worker.denylist.connection import open_blocking_client
from tests.e2e.conftest import DASHBOARD_PASSWORD, Town
from tests.e2e.system import System, basic_auth, offboard, until

pytestmark = [pytest.mark.e2e, pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(300)]


def suspend(who: Inhabitant) -> str:
    return f"POST /api/v1/users/{who.okta_id}/lifecycle/suspend"


def okta_rows(case: dict[str, Any]) -> list[dict[str, Any]]:
    return [row for row in case["credentials"] if row["connector"] == "okta"]


async def enqueue(system: System, case_id: str, connector: str, *job_ids: str) -> None:
    """Put jobs into the queue by hand, as some other program might."""

    def put() -> None:
        client = open_blocking_client(configuration.load(system.inst.config).redis_url, 5.0)
        queue = Queue("revoke", connection=client, serializer=JSONSerializer)
        for job_id in job_ids:
            queue.enqueue("offboard_worker.worker.revoke", args=(case_id, connector), job_id=job_id)
        client.close()

    await asyncio.to_thread(put)


async def status_of(system: System, *job_ids: str) -> list[str]:
    def look() -> list[str]:
        client = open_blocking_client(configuration.load(system.inst.config).redis_url, 5.0)
        try:
            found = Job.fetch_many(job_ids, connection=client, serializer=JSONSerializer)
            return [str(job.get_status().value) if job else "gone" for job in found]
        finally:
            client.close()

    return await asyncio.to_thread(look)


def job_id(case: dict[str, Any], connector: str = "okta") -> str:
    return f"revoke-{case['id']}-{connector}"


async def test_workers_that_are_given_the_same_job_have_one_effect(system: System, town: Town) -> None:
    who, faults = town.somebody(), town.world.okta.faults
    faults.latency = 0.25
    assert await system.okta(who) in (200, 204)
    case = await system.case(who.person)
    ids = (f"by-hand-1-{case['id']}", f"by-hand-2-{case['id']}")
    await enqueue(system, case["id"], "okta", *ids)
    case = await system.verified(who)

    async def done() -> bool:
        return await status_of(system, *ids) == ["finished", "finished"]

    await until("the jobs that were queued by hand end", done)
    assert faults.count(suspend(who)) == 1
    assert await system.case(who.person) == case, "a job that came late changed the evidence"


def busy(who: Inhabitant, town: Town) -> None:
    town.world.okta.faults.answer(suspend(who), status=429, headers={"Retry-After": "1"}, times=2)


def busy_for_longer_than_a_job_waits(who: Inhabitant, town: Town) -> None:
    town.world.okta.faults.answer(suspend(who), status=429, headers={"Retry-After": "4"})


def broken(who: Inhabitant, town: Town) -> None:
    town.world.okta.faults.answer(suspend(who), status=500, text="oops", times=3)


def broken_after_the_deed(who: Inhabitant, town: Town) -> None:
    town.world.graph.faults.answer(f"PATCH /v1.0/users/{who.entra_id}", status=503, text="", performed=True, times=2)


def silent(who: Inhabitant, town: Town) -> None:
    town.world.graph.faults.hang(f"PATCH /v1.0/users/{who.entra_id}", 30, performed=True)


def half_a_body(who: Inhabitant, town: Town) -> None:
    town.world.okta.faults.drop(f"GET /api/v1/users/{who.okta_id}/grants", times=2)
    town.world.graph.faults.drop(f"GET /v1.0/users/{who.entra_id}", times=2)


def half_an_answer_from_aws(who: Inhabitant, town: Town) -> None:
    town.world.aws.break_off("UpdateAccessKey", times=2)
    town.world.aws.fail("PutUserPolicy", "Throttling", 400, times=2)


TROUBLES = (
    busy, busy_for_longer_than_a_job_waits, broken, broken_after_the_deed, silent, half_a_body, half_an_answer_from_aws,
)  # fmt: skip


async def test_a_vendor_in_trouble_is_asked_again_until_the_case_is_verified(system: System, town: Town) -> None:
    leavers = {trouble: town.somebody() for trouble in TROUBLES}
    for trouble, who in leavers.items():
        trouble(who, town)
    for who in leavers.values():
        assert await system.okta(who) in (200, 204)
    cases = {trouble: await system.verified(who, within=120) for trouble, who in leavers.items()}
    assert town.world.okta.faults.prepared == 0, "not every trouble was met"
    assert town.world.graph.faults.prepared == 0
    patient = leavers[busy_for_longer_than_a_job_waits]
    (first, second) = [call for call in town.world.okta.faults.calls if call.line == suspend(patient)][:2]
    assert (first.status, second.status) == (429, 200)
    (part,) = [t for t in cases[busy_for_longer_than_a_job_waits]["targets"] if t["connector"] == "okta"]
    assert part["runs"] == 2, "a long Retry-After is the queue's to wait for"


async def test_a_job_out_of_retries_waits_in_the_dead_letter_until_it_is_run_again(system: System, town: Town) -> None:
    by_cli, by_dashboard, in_code = leavers = [town.somebody() for _ in range(3)]
    for who in leavers:
        town.world.okta.faults.answer(suspend(who), status=500, text="oops", times=None)
    for who in leavers:
        assert await system.okta(who) in (200, 204)
    found = {who.person: await system.settled(who.person, "attention", within=90) for who in leavers}
    ids = {person: job_id(case) for person, case in found.items()}

    async def dead() -> bool:
        return await status_of(system, *ids.values()) == ["failed"] * 3

    await until("the jobs stand in RQ's failed registry", dead)
    for case in found.values():
        assert {row["strength"] for row in okta_rows(case) if row["kind"] == "account"} == {"unknown"}
        assert [t["state"] for t in case["targets"] if t["connector"] == "okta"] == ["failed"]
    code, out, _ = await offboard(system.inst, "case", "show", found[by_cli.person]["id"])
    assert code == 3
    assert "attention" in out
    town.world.okta.faults.clear()

    code, out, err = await offboard(system.inst, "case", "retry", found[by_cli.person]["id"])
    assert (code, "okta" in out) == (0, True), err
    assert await requeue(system, ids[by_dashboard.person], "wrong") == 401
    assert await requeue(system, ids[by_dashboard.person], DASHBOARD_PASSWORD) == 200
    await asyncio.to_thread(_requeue_in_code, system, ids[in_code.person])
    verified = [await system.verified(who) for who in leavers]

    await enqueue(system, verified[0]["id"], "okta", f"once-more-{verified[0]['id']}")

    async def done() -> bool:
        return await status_of(system, f"once-more-{verified[0]['id']}") == ["finished"]

    await until("running it once more ends", done)
    assert await system.case(by_cli.person) == verified[0]
    assert town.world.okta.faults.count(suspend(by_cli)) >= 2


async def requeue(system: System, job: str, password: str) -> int:
    """Press rq-dashboard's button; the status of its answer."""
    url = f"{system.inst.urls['dashboard']}/job/{job}/requeue"
    async with system.http.post(url, headers=basic_auth("ops", password)) as answer:
        return answer.status


def _requeue_in_code(system: System, job: str) -> None:
    client = open_blocking_client(configuration.load(system.inst.config).redis_url, 5.0)
    Job.fetch(job, connection=client, serializer=JSONSerializer).requeue()
    client.close()


async def test_a_refused_credential_of_ours_is_told_and_the_case_goes_on_once_it_is_mended(
    system: System, town: Town
) -> None:
    who, refusal = town.somebody(), {"errorCode": "E0000011", "errorSummary": "Invalid token provided"}
    town.world.okta.faults.answer("* /api/v1/**", status=401, json=refusal, times=None)
    assert await system.okta(who) in (200, 204)
    case = await system.settled(who.person, "attention")
    (part,) = [target for target in case["targets"] if target["connector"] == "okta"]
    assert part["state"] == "paused"
    assert part["advice"]
    assert {t["state"] for t in case["targets"] if t["connector"] != "okta"} <= {"done", "running", "pending"}

    async def given_up() -> bool:
        return await status_of(system, job_id(case)) == ["failed"]

    await until("the queue stops trying", given_up)
    assert (await system.case(who.person))["state"] == "attention"
    town.world.okta.faults.clear()
    await system.inst.cli("case", "retry", case["id"])
    await system.verified(who)


async def test_a_vendor_that_lies_is_not_believed(system: System, town: Town) -> None:
    who = town.somebody()
    town.world.okta.faults.lie(suspend(who))
    assert await system.okta(who) in (200, 204)
    case = await system.settled(who.person, "attention")
    (account,) = [row for row in okta_rows(case) if row["kind"] == "account"]
    assert (account["strength"], account["state"]) == ("failed", "active")
    assert "okta account" in await town.world.still_open(who)
    code, out, _ = await offboard(system.inst, "case", "show", case["id"], "--json")
    assert code == 3
    assert '"failed"' in out
    town.world.okta.faults.clear()
    await system.inst.cli("case", "retry", case["id"])
    await system.verified(who)
