"""Whatever the store says is unfinished and the queue has lost is found again."""

from __future__ import annotations

import pytest

from offboard_worker.core.case import State, TargetState
from offboard_worker.core.event import EventKind, IdentityEvent
from offboard_worker.core.person import Subject
from offboard_worker.jobs import intake
from offboard_worker.jobs.intake import Arrival
from offboard_worker.jobs.queue import CONTAIN, REVOKE, Queues
from offboard_worker.jobs.reconcile import GRACE, Reconciled, reconcile
from offboard_worker.store import cases
from offboard_worker.store.inbox import Received
from tests.conftest import Clock
from tests.jobs.toy import Office

pytestmark = pytest.mark.integration


async def test_what_a_flushed_redis_has_forgotten_is_queued_again(office: Office, queues: Queues) -> None:
    case = await office.offboard()
    assert await reconcile(office.store, queues, office.ctx.claims) == Reconciled(targets=1)
    assert await reconcile(office.store, queues, office.ctx.claims) == Reconciled()
    queues.redis.flushall()
    assert await reconcile(office.store, queues, office.ctx.claims) == Reconciled(targets=1)
    assert queues.queue(REVOKE).job_ids == [f"revoke-{case.id}-toy"]


async def test_a_running_part_whose_worker_is_alive_is_left_alone(office: Office, queues: Queues, clock: Clock) -> None:
    case = await office.offboard()
    await _set(office, case.id, state=TargetState.RUNNING.value, started_at=clock.now)
    clock.go(GRACE + 60)
    async with office.ctx.claims.hold(f"{case.id}:toy"):
        assert await reconcile(office.store, queues, office.ctx.claims) == Reconciled()


async def test_a_running_part_without_a_claim_is_a_dead_workers(office: Office, queues: Queues, clock: Clock) -> None:
    case = await office.offboard()
    await _set(office, case.id, state=TargetState.RUNNING.value, started_at=clock.now)
    assert await reconcile(office.store, queues, office.ctx.claims) == Reconciled(), "it has only just begun"
    clock.go(GRACE + 0.1)
    assert await reconcile(office.store, queues, office.ctx.claims) == Reconciled(targets=1)


async def test_a_part_that_waits_for_its_next_try_is_left_until_then(
    office: Office, queues: Queues, clock: Clock
) -> None:
    case = await office.offboard()
    await _set(office, case.id, state=TargetState.RETRYING.value, next_attempt_at=clock.now + 75)
    assert await reconcile(office.store, queues, office.ctx.claims) == Reconciled()
    clock.go(76)
    assert await reconcile(office.store, queues, office.ctx.claims) == Reconciled(targets=1)


@pytest.mark.parametrize("state", [TargetState.DONE, TargetState.FAILED, TargetState.PAUSED])
async def test_what_is_done_or_waits_for_an_operator_is_left_alone(
    office: Office, queues: Queues, state: TargetState
) -> None:
    case = await office.offboard()
    await _set(office, case.id, state=state.value)
    assert await reconcile(office.store, queues, office.ctx.claims) == Reconciled()


@pytest.mark.parametrize("state", [State.HELD, State.CONTAINED, State.CANCELLED, State.CLOSED])
async def test_a_case_that_is_not_at_work_has_nothing_to_queue(office: Office, queues: Queues, state: State) -> None:
    case = await office.offboard()
    await office.pretend(case, state)
    assert await reconcile(office.store, queues, office.ctx.claims) == Reconciled()


async def test_a_case_that_needs_attention_still_has_its_other_parts_finished(office: Office, queues: Queues) -> None:
    case = await office.offboard()
    await office.pretend(case, State.ATTENTION)
    assert await reconcile(office.store, queues, office.ctx.claims) == Reconciled(targets=1)


@pytest.mark.parametrize("before", [State.CLOSED, State.CANCELLED])
async def test_a_restoration_is_owed_by_a_finished_case_too(office: Office, queues: Queues, before: State) -> None:
    case = await office.offboard()
    await office.pretend(case, before)
    await office.hears(EventKind.ACCOUNT_ENABLED)
    assert (await office.case()).state is before
    assert await reconcile(office.store, queues, office.ctx.claims) == Reconciled(targets=1)


async def test_an_event_that_waits_for_a_job_is_queued_again(office: Office, queues: Queues) -> None:
    event_id = await _pending(office)
    assert await reconcile(office.store, queues, office.ctx.claims) == Reconciled(events=1)
    assert await reconcile(office.store, queues, office.ctx.claims) == Reconciled()
    queues.redis.flushall()
    async with office.ctx.claims.hold(f"event:{event_id}"):
        assert await reconcile(office.store, queues, office.ctx.claims) == Reconciled()
    assert await reconcile(office.store, queues, office.ctx.claims) == Reconciled(events=1)
    assert queues.queue(CONTAIN).job_ids == [f"event-{event_id}"]


async def _pending(office: Office) -> str:
    """Accept one event that only says that something changed."""
    from datetime import UTC, datetime

    at = datetime.fromtimestamp(office.store.clock(), UTC)
    event = IdentityEvent("okta-main", "n1", EventKind.ACCOUNT_CHANGED, Subject("okta", "00uADA"), at, "v")
    async with office.store.write() as tx:
        received = Received("okta-main", "POST", {}, b"{}", office.store.clock())
        accepted = await intake.accept(tx, [Arrival(received, (event,))], office.ctx.book)
    (event_id,) = accepted.pending
    return event_id


async def _set(office: Office, case_id: str, **values: object) -> None:
    async with office.store.write() as tx:
        await cases.set_target(tx, case_id, "toy", **values)
