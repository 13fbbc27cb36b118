"""What operators do to cases, and what they are told when it can't be done."""

from __future__ import annotations

import pytest

from offboard_worker.core.case import State, TargetState
from offboard_worker.core.credential import Action
from offboard_worker.core.event import EventKind
from offboard_worker.core.person import PersonState
from offboard_worker.errors import DenylistUnavailable, Retryable, UsageError
from offboard_worker.jobs import operate
from offboard_worker.store.denials import StoredLog
from offboard_worker.store.people import configured
from tests.jobs.toy import ADA, KEY, Office

pytestmark = pytest.mark.integration
OPS = "operator:ops"


class Someone:
    """A person as the configuration names them."""

    def __init__(self, name: str = "", *, okta: str = "", email: str = "", protected: bool = False) -> None:
        self.name, self.protected = name, protected
        self.aliases = {"okta": okta} if okta else {}
        self.emails = (email,) if email else ()


async def people(office: Office, **them: Someone) -> None:
    async with office.store.write() as tx:
        await configured(tx, them)


async def test_a_case_is_opened_contained_and_handed_to_the_queue(office: Office) -> None:
    await people(office, ada=Someone("Ada", okta=ADA, email="ada@example.com"))
    case_id = await operate.open_case(office.ctx, "ada@example.com", OPS, "left today")
    case = await office.case()
    assert (case.id, case.state, case.opened_by, case.reason) == (case_id, State.REVOKING, OPS, "left today")
    assert case.refused_at is not None  # pushed and confirmed before the command returns
    assert office.submitted == [case_id]
    assert (await office.person()).state is PersonState.DEPARTED


async def test_opening_a_case_twice_is_the_same_case(office: Office) -> None:
    await people(office, ada=Someone("Ada", okta=ADA))
    first = await operate.open_case(office.ctx, "ada", OPS, "")
    assert await operate.open_case(office.ctx, ADA, OPS, "") == first


async def test_nothing_is_done_on_a_likeness(office: Office) -> None:
    await people(office, ada=Someone("Ada", email="ada@example.com"))
    with pytest.raises(UsageError, match="nobody has the exact id"):
        await operate.open_case(office.ctx, "ada@example.org", OPS, "")
    with pytest.raises(UsageError):
        await operate.open_case(office.ctx, "Ada ", OPS, "")


async def test_an_address_of_two_people_names_neither(office: Office) -> None:
    await people(office, ada=Someone(email="team@example.com"), bob=Someone(email="team@example.com"))
    with pytest.raises(UsageError, match="2 people have"):
        await operate.open_case(office.ctx, "team@example.com", OPS, "")


async def test_a_protected_person_is_never_touched(office: Office) -> None:
    await people(office, root=Someone("Break glass", protected=True))
    with pytest.raises(UsageError, match="protected"):
        await operate.open_case(office.ctx, "root", OPS, "")
    assert await StoredLog(office.store).head() == 0


async def test_what_redis_can_not_take_now_is_on_record_all_the_same(
    office: Office, caplog: pytest.LogCaptureFixture
) -> None:
    await people(office, ada=Someone("Ada", okta=ADA))

    async def away(_: list[str]) -> None:
        raise DenylistUnavailable("Redis can't take jobs now")

    office.change(submit=away)
    case_id = await operate.open_case(office.ctx, "ada", OPS, "")
    assert (await office.case()).id == case_id
    assert "pending until Redis is back" in caplog.text


async def test_a_held_case_goes_on_once_it_is_approved(office: Office) -> None:
    case = await office.offboard()
    await office.pretend(case, State.HELD)
    case = await operate.approve(office.ctx, case.id, OPS)
    assert (case.state, case.approved_by) == (State.REVOKING, OPS)
    assert office.submitted == [case.id]
    with pytest.raises(UsageError, match="only a held case"):
        await operate.approve(office.ctx, case.id, OPS)


async def test_there_is_no_acting_on_a_case_that_is_not_there(office: Office) -> None:
    for act in (
        operate.approve(office.ctx, "c-none", OPS),
        operate.retry(office.ctx, "c-none", OPS),
        operate.cancel(office.ctx, "c-none", OPS, "", reinstate=False),
        operate.attest(office.ctx, "t-none", OPS, "done"),
    ):
        with pytest.raises(UsageError, match="there is no"):
            await act


async def test_only_what_did_not_end_well_is_retried(office: Office) -> None:
    office.vault.add(KEY, "k1")
    case = await office.work(await office.offboard())
    with pytest.raises(UsageError, match="nothing in it is unfinished"):
        await operate.retry(office.ctx, case.id, OPS)
    assert (await office.case()).state is State.VERIFIED


async def test_a_retry_runs_the_connector_that_left_something_open(office: Office) -> None:
    office.vault.add(KEY, "k1")
    office.vault.lies.add("k1")
    case = await office.work(await office.offboard())
    assert await operate.retry(office.ctx, case.id, OPS) == ["toy"]
    assert (await office.target(case)).state is TargetState.PENDING
    assert office.submitted == [case.id]
    office.vault.lies.clear()
    assert (await office.work(case)).state is State.VERIFIED


async def test_a_cancelled_case_leaves_the_person_refused(office: Office) -> None:
    case = await office.offboard()
    case = await operate.cancel(office.ctx, case.id, OPS, "not yet", reinstate=False)
    assert case.state is State.CANCELLED
    assert case.finished_at is not None
    assert (await office.person()).state is PersonState.DEPARTED
    with pytest.raises(UsageError, match="nothing left to cancel"):
        await operate.cancel(office.ctx, case.id, OPS, "", reinstate=False)
    with pytest.raises(UsageError, match="cancelled"):
        await operate.retry(office.ctx, case.id, OPS)


async def test_a_reinstatement_restores_what_was_taken(office: Office) -> None:
    office.vault.add(KEY, "k1")
    case = await office.work(await office.offboard())
    case = await operate.cancel(office.ctx, case.id, OPS, "a mistake", reinstate=True)
    assert case.state is State.REINSTATED
    person = await office.person()
    assert (person.state, person.generation) == (PersonState.ACTIVE, 2)  # old tokens stay dead
    assert office.submitted == [case.id]
    await office.work(case)
    assert office.vault.alive() == {"k1"}


async def test_a_reinstatement_after_a_cancellation_restores_too(office: Office) -> None:
    office.vault.add(KEY, "k1")
    case = await office.work(await office.offboard())
    await office.pretend(case, State.REVOKING)
    await operate.cancel(office.ctx, case.id, OPS, "stop", reinstate=False)
    await operate.cancel(office.ctx, case.id, OPS, "she is back", reinstate=True)
    assert (await office.target(case)).action is Action.RESTORE
    await office.work(case)
    assert office.vault.alive() == {"k1"}


async def test_somebody_who_works_here_is_not_reinstated_again(office: Office) -> None:
    """It would end the tokens that they have by now."""
    case = await office.offboard()
    await office.hears(EventKind.ACCOUNT_ENABLED)
    generation = (await office.person()).generation
    with pytest.raises(UsageError, match="works here"):
        await operate.cancel(office.ctx, case.id, OPS, "", reinstate=True)
    assert (await office.person()).generation == generation


async def test_a_restoration_that_failed_can_be_retried(office: Office) -> None:
    office.vault.add(KEY, "k1")
    case = await office.work(await office.offboard())
    await office.hears(EventKind.ACCOUNT_ENABLED)
    office.vault.always["restore", "k1"] = Retryable("busy")
    with pytest.raises(Retryable):
        await office.work(case)
    assert (await office.target(case)).state is TargetState.FAILED
    office.vault.always.clear()
    assert await operate.retry(office.ctx, case.id, OPS) == ["toy"]
    await office.work(case)
    assert office.vault.alive() == {"k1"}
