"""One connector's part of one case: what is believed, what is retried, and what a crash leaves behind."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta

import pytest

from offboard_worker.core.case import State, TargetState
from offboard_worker.core.credential import Action, CredentialKind, CredentialState, Strength
from offboard_worker.core.event import EventKind
from offboard_worker.denylist.embedded import EmbeddedValkey
from offboard_worker.errors import AccessRefused, Fatal, NeedsHuman, Retryable
from offboard_worker.jobs import operate, revoke
from offboard_worker.jobs.duties import queue_due_deletes
from offboard_worker.store import cases, credentials
from offboard_worker.store.cases import CaseRow
from offboard_worker.store.credentials import held_by_case
from offboard_worker.store.database import Store
from tests.conftest import Clock
from tests.jobs.toy import KEY, QUICK, ROLE, SESSION, Office
from tests.jobs.toy import office as open_office

pytestmark = pytest.mark.integration


class Killed(BaseException):
    """The process is gone: nothing of ours may catch this."""


@pytest.fixture
async def either(store: Store, valkey: EmbeddedValkey) -> AsyncIterator[Office]:
    """The office on each database."""
    async with open_office(store, valkey.url) as opened:
        yield opened


# What is believed


async def test_what_is_read_back_as_powerless_is_verified(either: Office) -> None:
    either.vault.add(KEY, "k1", "k2")
    either.vault.add(SESSION, "s1")
    case = await either.work(await either.offboard())
    assert case.state is State.VERIFIED
    assert await either.strengths(case) == dict.fromkeys(("k1", "k2", "s1"), Strength.VERIFIED)
    assert either.vault.alive() == set()
    (session,) = [proof for proof in await either.evidence(case) if proof.credential.kind is SESSION]
    assert session.verified_at is not None
    assert session.residual_until == session.acknowledged_at + timedelta(hours=1)  # type: ignore[operator]


async def test_what_the_vendor_only_acknowledges_is_acknowledged_and_settles_the_case(office: Office) -> None:
    office.vault.add(ROLE, "r1")
    case = await office.work(await office.offboard())
    assert await office.strengths(case) == {"r1": Strength.ACKNOWLEDGED}
    assert case.state is State.VERIFIED


async def test_a_key_that_the_vendor_only_pretended_to_disable_is_reported_as_failed(either: Office) -> None:
    either.vault.add(KEY, "k1", "k2")
    either.vault.lies.add("k1")
    case = await either.work(await either.offboard())
    assert case.state is State.ATTENTION
    assert await either.strengths(case) == {"k1": Strength.FAILED, "k2": Strength.VERIFIED}
    (proof,) = [proof for proof in await either.evidence(case) if proof.credential.id == "k1"]
    assert "reads access-key k1 back as active" in proof.error
    assert proof.advice


async def test_a_vendor_that_is_slow_to_say_so_is_read_again(office: Office) -> None:
    office.vault.add(KEY, "k1")
    office.vault.late["k1"] = 2
    case = await office.work(await office.offboard())
    assert await office.strengths(case) == {"k1": Strength.VERIFIED}
    assert office.vault.calls.count(("state", "k1")) == 3


async def test_a_fatal_answer_about_one_credential_fails_it_and_spares_the_others(office: Office) -> None:
    office.vault.add(KEY, "k1", "k2")
    office.vault.always["disable", "k1"] = Fatal("no such right", advice="grant it")
    case = await office.work(await office.offboard())
    assert case.state is State.ATTENTION
    assert await office.strengths(case) == {"k1": Strength.FAILED, "k2": Strength.VERIFIED}


async def test_a_read_back_that_breaks_off_leaves_the_result_unknown_and_the_acknowledgement_on_record(
    office: Office,
) -> None:
    office.vault.add(KEY, "k1")
    office.vault.always["state", "k1"] = Retryable("no answer")
    case = await office.offboard()
    with pytest.raises(Retryable):
        await office.work(case)
    (proof,) = await office.evidence(case)
    assert (proof.strength, proof.state) == (Strength.UNKNOWN, CredentialState.UNKNOWN)
    assert proof.acknowledged_at is not None
    assert proof.verified_at is None
    assert (await office.case()).state is State.ATTENTION


async def test_nothing_found_is_a_verified_case(office: Office) -> None:
    case = await office.work(await office.offboard())
    assert case.state is State.VERIFIED
    assert await office.evidence(case) == []


async def test_what_is_gone_already_is_verified_as_gone(office: Office) -> None:
    office.vault.add(KEY, "k1")
    office.vault.faults["disable", "k1"].append(lambda: office.vault.things.pop("k1") and None)
    case = await office.work(await office.offboard())
    (proof,) = await office.evidence(case)
    assert (proof.strength, proof.state) == (Strength.VERIFIED, CredentialState.GONE)


async def test_nothing_of_anybody_else_is_touched(office: Office) -> None:
    office.vault.add(KEY, "k1")
    office.vault.add(KEY, "grace1", owner="00uGRACE")
    await office.work(await office.offboard())
    assert office.vault.alive("00uGRACE") == {"grace1"}
    assert ("disable", "grace1") not in office.vault.calls


# Needs a person


async def test_what_needs_a_person_becomes_a_task_and_their_word_settles_it(either: Office) -> None:
    either.vault.add(KEY, "k1", "k2")
    either.vault.always["disable", "k1"] = NeedsHuman("k1 belongs to the last owner", advice="Name another owner.")
    case = await either.work(await either.offboard())
    assert case.state is State.ATTENTION
    (task,) = await either.tasks(case)
    assert (task["title"], task["advice"], task["done_at"]) == (
        "k1 belongs to the last owner",
        "Name another owner.",
        None,
    )
    settled = await operate.attest(either.ctx, task["id"], "operator:ops", "named Grace")
    assert settled.state is State.VERIFIED
    assert await either.strengths(case) == {"k1": Strength.ATTESTED, "k2": Strength.VERIFIED}


async def test_a_task_is_opened_once_and_closed_by_a_read_back(office: Office) -> None:
    office.vault.add(KEY, "k1")
    office.vault.always["disable", "k1"] = NeedsHuman("the last owner", advice="Name another owner.")
    case = await office.work(await office.offboard())
    await operate.retry(office.ctx, case.id, "operator:ops")
    await office.work(case)
    assert len(await office.tasks(case)) == 1
    del office.vault.always["disable", "k1"]
    await operate.retry(office.ctx, case.id, "operator:ops")
    case = await office.work(case)
    (task,) = await office.tasks(case)
    assert task["done_by"] == "worker"
    assert case.state is State.VERIFIED
    assert await office.strengths(case) == {"k1": Strength.VERIFIED}


async def test_a_system_that_only_a_person_can_look_into_becomes_a_task_of_its_own(office: Office) -> None:
    office.vault.always["identify", (await _leaver(office))] = NeedsHuman("the export is by hand", advice="Ask them.")
    case = await office.work(await office.case())
    assert case.state is State.ATTENTION
    (task,) = await office.tasks(case)
    assert task["credential_id"] == ""
    assert (await operate.attest(office.ctx, task["id"], "operator:ops", "looked")).state is State.VERIFIED


async def _leaver(office: Office) -> str:
    await office.offboard()
    return (await office.person()).id


# Trouble


async def test_seconds_of_retry_happen_inside_the_job_and_are_counted(office: Office) -> None:
    office.vault.add(KEY, "k1")
    office.vault.faults["disable", "k1"] += [Retryable("busy"), Retryable("busy", retry_after=0.01)]
    case = await office.work(await office.offboard())
    (proof,) = await office.evidence(case)
    assert (proof.attempts, proof.strength) == (3, Strength.VERIFIED)


async def test_tries_are_bounded_and_the_queue_gets_the_rest(office: Office) -> None:
    office.vault.add(KEY, "k1")
    office.vault.always["disable", "k1"] = Retryable("busy")
    case = await office.offboard()
    with pytest.raises(Retryable):
        await office.work(case, next_try=60)
    assert office.vault.calls.count(("disable", "k1")) == QUICK.attempts
    target = await office.target(case)
    assert target.state is TargetState.RETRYING
    assert target.next_attempt_at == office.store.clock() + 75
    assert (await office.case()).state is State.REVOKING


async def test_a_vendor_that_asks_to_be_left_alone_for_long_is_not_tried_again_at_once(office: Office) -> None:
    office.vault.add(KEY, "k1")
    office.vault.always["disable", "k1"] = Retryable("busy", retry_after=120)
    case = await office.offboard()
    with pytest.raises(Retryable) as caught:
        await office.work(case, next_try=60)
    assert caught.value.retry_after == 120
    assert office.vault.calls.count(("disable", "k1")) == 1
    assert (await office.target(case)).next_attempt_at == office.store.clock() + 120 + 15


async def test_a_part_without_tries_left_has_failed_and_a_retry_ends_it(office: Office) -> None:
    office.vault.add(KEY, "k1")
    office.vault.always["disable", "k1"] = Retryable("busy", advice="wait")
    case = await office.offboard()
    with pytest.raises(Retryable):
        await office.work(case, next_try=None)
    assert (await office.target(case)).state is TargetState.FAILED
    assert (await office.case()).state is State.ATTENTION
    office.vault.always.clear()
    assert await operate.retry(office.ctx, case.id, "operator:ops") == ["toy"]
    assert (await office.work(case)).state is State.VERIFIED


async def test_refused_access_pauses_the_connector_until_a_run_gets_through(office: Office) -> None:
    office.vault.add(KEY, "k1")
    office.vault.always["find", (await _leaver(office))] = AccessRefused("the token is revoked")
    case = await office.case()
    with pytest.raises(AccessRefused):
        await office.work(case)
    assert (await office.target(case)).state is TargetState.PAUSED
    assert (await office.case()).state is State.ATTENTION
    assert (await office.audited())["connector.paused"] == 1
    office.vault.always.clear()
    case = await office.work(case)  # as rq-dashboard re-runs it: no other step is needed
    assert case.state is State.VERIFIED
    assert (await office.audited())["connector.resumed"] == 1


async def test_a_pause_is_not_taken_back_by_a_run_that_the_vendor_did_not_answer(office: Office) -> None:
    office.vault.always["find", (await _leaver(office))] = AccessRefused("the token is revoked")
    case = await office.case()
    with pytest.raises(AccessRefused):
        await office.work(case)
    office.vault.always = {key: Retryable("no answer") for key in office.vault.always}
    with pytest.raises(Retryable):
        await office.work(case)
    assert (await office.audited())["connector.resumed"] == 0


@pytest.mark.parametrize("error", [Retryable("broke off"), Fatal("broke off"), AccessRefused("refused")])
async def test_a_search_that_breaks_off_ends_what_it_found_and_never_as_done(office: Office, error: Exception) -> None:
    office.vault.add(KEY, "k1", "k2", "k3")
    office.vault.find_fails_after, office.vault.find_error = 2, error
    case = await office.offboard()
    with pytest.raises(type(error)):
        await office.work(case)
    assert office.vault.alive() == {"k3"}
    assert (await office.target(case)).state is not TargetState.DONE
    assert (await office.case()).state is State.ATTENTION
    office.vault.find_fails_after = None
    assert (await office.work(case)).state is State.VERIFIED
    assert office.vault.alive() == set()


async def test_what_an_earlier_try_of_the_search_found_is_not_forgotten(office: Office) -> None:
    office.vault.add(KEY, "k1", "k2")
    office.vault.find_fails_after = 1
    person = await _leaver(office)
    office.vault.faults["find", person] += [lambda: None, Retryable("nothing at all"), Retryable("nothing at all")]
    case = await office.case()
    with pytest.raises(Retryable):
        await office.work(case)
    assert office.vault.alive() == {"k2"}


@pytest.mark.parametrize("verb", ["identify", "find"])
async def test_a_bug_in_a_connector_never_ends_as_a_verified_case(office: Office, verb: str) -> None:
    office.vault.add(KEY, "k1")
    person = await _leaver(office)
    office.vault.always[verb, person] = KeyError("token=sekret")
    case = await office.case()
    with pytest.raises(Fatal) as caught:
        await office.work(case)
    assert "KeyError" in str(caught.value)
    target = await office.target(case)
    assert target.state is TargetState.FAILED
    assert "sekret" not in target.error
    assert (await office.case()).state is State.ATTENTION


async def test_a_connector_that_finds_what_it_does_not_declare_has_failed(office: Office) -> None:
    office.vault.add(KEY, "k1")
    office.vault.add(CredentialKind.POLICY, "odd")
    case = await office.offboard()
    with pytest.raises(Fatal):
        await office.work(case)
    assert office.vault.alive() == {"odd"}
    assert (await office.case()).state is State.ATTENTION


async def test_a_connector_that_is_not_configured_any_more_needs_attention(office: Office) -> None:
    case = await office.offboard()
    office.removed.add("toy")
    with pytest.raises(Exception, match="not configured"):
        await office.work(case)
    target = await office.target(case)
    assert target.state is TargetState.FAILED
    assert target.advice == "Put it back."
    assert (await office.case()).state is State.ATTENTION


async def test_a_call_that_hangs_is_given_up_and_tried_again(office: Office) -> None:
    office.config = office.config.model_copy(update={"timeout": 0.05})
    office.vault.add(KEY, "k1")
    office.vault.faults["disable", "k1"].append(lambda: asyncio.sleep(30))
    case = await office.work(await office.offboard())
    (proof,) = await office.evidence(case)
    assert (proof.strength, proof.attempts) == (Strength.VERIFIED, 2)


async def test_a_part_that_takes_longer_than_a_job_may_keeps_what_it_did_and_is_tried_again(office: Office) -> None:
    office.vault.add(KEY, "k1")
    office.vault.add(SESSION, "s1")
    office.vault.faults["disable", "s1"].append(lambda: asyncio.sleep(30))
    office.change(settings=office.ctx.settings.model_copy(update={"timeout": timedelta(seconds=1)}))
    case = await office.offboard()
    with pytest.raises(Retryable, match=r"jobs\.timeout"):
        await office.work(case, next_try=60)
    assert (await office.target(case)).state is TargetState.RETRYING
    assert (await office.strengths(case))["k1"] is Strength.VERIFIED
    assert (await office.work(case)).state is State.VERIFIED


async def test_a_part_that_kills_its_process_each_time_is_left_to_a_person(office: Office) -> None:
    office.vault.add(KEY, "k1")
    case = await office.offboard()
    async with office.store.write() as tx:
        await cases.set_target(tx, case.id, "toy", state=TargetState.RUNNING.value, runs=revoke.DEATHS)
    assert (await office.work(case)).state is State.ATTENTION
    target = await office.target(case)
    assert (target.state, target.runs) == (TargetState.FAILED, revoke.DEATHS)
    assert "process died" in target.error
    assert not office.vault.calls
    await operate.retry(office.ctx, case.id, "operator:test")  # a person may try again
    assert (await office.work(case)).state is State.VERIFIED


# Order and bounds


async def test_stages_run_one_after_another(office: Office) -> None:
    office.vault.add(SESSION, "s1")
    office.vault.add(KEY, "k1", "k2")
    office.vault.delay = 0.005
    await office.work(await office.offboard())
    done = [id_ for verb, id_ in office.vault.calls if verb == "disable"]
    assert set(done[:2]) == {"k1", "k2"}
    last_key = max(n for n, (_, id_) in enumerate(office.vault.calls) if id_ in ("k1", "k2"))
    assert last_key < office.vault.calls.index(("disable", "s1"))


async def test_calls_in_flight_are_bounded_by_the_connectors_concurrency(office: Office) -> None:
    office.vault.add(KEY, *(f"k{n}" for n in range(20)))
    office.vault.delay = 0.005
    await office.work(await office.offboard())
    assert office.vault.most_flying == 4


# Crashes


@pytest.mark.parametrize("verb", ["identify", "find", "disable", "state"])
@pytest.mark.parametrize("when", ["before", "after"])
async def test_a_worker_killed_at_any_step_loses_nothing(
    office: Office, verb: str, when: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    office.vault.add(KEY, "k1", "k2")
    person = await _leaver(office)
    what = person if verb in ("identify", "find") else "k1"
    if when == "after" and verb == "disable":
        office.vault.after["disable", "k1"] = Killed()
    else:
        office.vault.faults[verb, what].append(Killed())
    case = await office.case()
    with pytest.raises(Killed):
        await office.work(case)
    assert (await office.target(case)).state is TargetState.RUNNING
    case = await office.work(case)
    assert case.state is State.VERIFIED
    assert await office.strengths(case) == dict.fromkeys(("k1", "k2"), Strength.VERIFIED)
    assert office.vault.alive() == set()
    assert (await office.target(case)).runs == 2
    await _snapshots_are_from_before(office, case.id)


@pytest.mark.parametrize("name", ["keep_found", "keep_evidence"])
async def test_a_worker_killed_before_a_record_is_written_loses_nothing(
    office: Office, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    office.vault.add(KEY, "k1", "k2")
    case = await office.offboard()

    async def die(*_: object) -> None:
        raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(credentials, name, die)
        with pytest.raises(Killed):
            await office.work(case)
    case = await office.work(case)
    assert case.state is State.VERIFIED
    assert await office.strengths(case) == dict.fromkeys(("k1", "k2"), Strength.VERIFIED)
    await _snapshots_are_from_before(office, case.id)
    async with office.store.read() as conn:
        assert all(one.disabled_by_us for one in await held_by_case(conn, case.id))


async def test_a_worker_killed_after_its_last_record_loses_nothing(
    office: Office, monkeypatch: pytest.MonkeyPatch
) -> None:
    office.vault.add(KEY, "k1")
    case = await office.offboard()

    async def die(*_: object) -> None:
        raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(revoke, "_end", die)
        with pytest.raises(Killed):
            await office.work(case)
    office.vault.calls.clear()
    case = await office.work(case)
    assert case.state is State.VERIFIED
    assert office.vault.acted() == []  # what was proven stays proven


async def test_what_a_later_run_does_not_find_any_more_is_still_read_back(office: Office) -> None:
    office.vault.add(KEY, "k1", "k2")
    office.vault.after["disable", "k1"] = Killed()
    case = await office.offboard()
    with pytest.raises(Killed):
        await office.work(case)
    del office.vault.things["k1"]  # the vendor lists disabled keys no more
    case = await office.work(case)
    assert await office.strengths(case) == dict.fromkeys(("k1", "k2"), Strength.VERIFIED)
    (proof,) = [proof for proof in await office.evidence(case) if proof.credential.id == "k1"]
    assert proof.state is CredentialState.GONE


async def test_a_cancelled_job_leaves_its_part_to_be_found_again(office: Office) -> None:
    begun = asyncio.Event()

    async def hang() -> None:
        begun.set()
        await asyncio.sleep(30)

    office.vault.add(KEY, "k1")
    office.vault.faults["disable", "k1"].append(hang)
    case = await office.offboard()
    job = asyncio.create_task(office.work(case))
    async with asyncio.timeout(5):
        await begun.wait()
    job.cancel()
    with pytest.raises(asyncio.CancelledError):
        await job
    assert (await office.target(case)).state is TargetState.RUNNING
    assert not await office.ctx.claims.held(f"{case.id}:toy")
    assert (await office.work(case)).state is State.VERIFIED


async def _snapshots_are_from_before(office: Office, case_id: str) -> None:
    async with office.store.read() as conn:
        for one in await held_by_case(conn, case_id):
            assert one.credential.snapshot == {"note": "as it was"}


async def test_of_two_workers_with_the_same_job_one_acts(either: Office) -> None:
    either.vault.add(KEY, "k1", "k2")
    either.vault.delay = 0.02
    case = await either.offboard()
    await asyncio.gather(either.work(case), either.work(case))
    assert sorted(either.vault.acted()) == ["k1", "k2"]
    assert (await either.case()).state is State.VERIFIED


async def test_a_finished_part_that_is_run_again_does_nothing(office: Office) -> None:
    office.vault.add(KEY, "k1")
    case = await office.work(await office.offboard())
    office.vault.calls.clear()
    await office.work(case)
    assert office.vault.calls == []
    assert len(await office.evidence(case, latest=False)) == 1


# Somebody comes back


async def test_nothing_is_taken_from_somebody_who_is_back_before_the_job_ran(office: Office) -> None:
    office.vault.add(KEY, "k1")
    case = await office.offboard()
    await office.hears(EventKind.ACCOUNT_ENABLED)
    await office.work(case)
    assert office.vault.alive() == {"k1"}
    assert office.vault.acted() == []


async def test_somebody_who_comes_back_in_the_middle_gets_everything_back(
    office: Office, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("offboard_worker.jobs.part.ASK_AGAIN", 0.0)
    office.config = office.config.model_copy(update={"concurrency": 1})
    office.vault.add(KEY, "k1", "k2", "k3")
    for first in ("k1", "k2", "k3"):
        office.vault.faults["disable", first].append(lambda: office.hears(EventKind.ACCOUNT_ENABLED))
    case = await office.work(await office.offboard())
    assert case.state is State.REINSTATED
    assert len(office.vault.acted()) == 1  # what had begun ends; nothing else is taken
    target = await office.target(case)
    assert (target.action, target.state) == (Action.RESTORE, TargetState.PENDING)  # still to be done
    await office.work(case)
    assert office.vault.alive() == {"k1", "k2", "k3"}
    assert (await office.target(case)).state is TargetState.DONE


async def test_what_was_disabled_without_a_record_is_restored_too(office: Office) -> None:
    office.vault.add(KEY, "k1", "k2")
    office.vault.after["disable", "k1"] = Killed()
    case = await office.offboard()
    with pytest.raises(Killed):
        await office.work(case)
    await office.hears(EventKind.ACCOUNT_ENABLED)
    await office.work(case)
    assert office.vault.alive() == {"k1", "k2"}


async def test_only_what_was_active_before_is_restored(office: Office) -> None:
    office.vault.add(KEY, "k1", "old")
    office.vault.things["old"].state = CredentialState.DISABLED
    case = await office.work(await office.offboard())
    await office.hears(EventKind.ACCOUNT_ENABLED)
    await office.work(case)
    assert office.vault.alive() == {"k1"}
    latest = {proof.credential.id: proof.action for proof in await office.evidence(case)}
    assert latest == {"k1": Action.RESTORE, "old": Action.DISABLE}


async def test_what_can_not_be_restored_becomes_a_task(office: Office) -> None:
    office.vault.add(SESSION, "s1")
    case = await office.work(await office.offboard())
    await office.hears(EventKind.ACCOUNT_ENABLED)
    case = await office.work(case)
    assert case.state is State.REINSTATED
    (task,) = await office.tasks(case)
    assert task["advice"] == "Let them sign in again."


async def test_restoring_goes_backwards_through_the_stages(office: Office) -> None:
    office.vault.add(KEY, "k1")
    office.vault.add(ROLE, "r1")
    case = await office.work(await office.offboard())
    await office.hears(EventKind.ACCOUNT_ENABLED)
    await office.work(case)
    assert [id_ for verb, id_ in office.vault.calls if verb == "restore"] == ["r1", "k1"]


async def test_a_cancelled_case_stops_in_the_middle(office: Office, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("offboard_worker.jobs.part.ASK_AGAIN", 0.0)
    office.config = office.config.model_copy(update={"concurrency": 1})
    office.vault.add(KEY, "k1", "k2")
    case = await office.offboard()
    cancel = lambda: operate.cancel(office.ctx, case.id, "operator:ops", "a mistake", reinstate=False)  # noqa: E731
    for first in ("k1", "k2"):
        office.vault.faults["disable", first].append(cancel)
    assert (await office.work(case)).state is State.CANCELLED
    assert len(office.vault.acted()) == 1


async def test_work_that_is_asked_for_while_the_part_runs_is_still_done_afterwards(office: Office) -> None:
    """A further id of the leaver becomes known while the connector is at work on the ones before."""
    office.vault.add(KEY, "k1")
    office.vault.add(KEY, "other", owner="00uADA2")
    office.vault.knows.add("00uADA2")
    case = await office.offboard()

    async def learn() -> None:
        async with office.store.write() as tx:
            from offboard_worker.jobs.intake import learn_aliases

            await learn_aliases(tx, case.person_id, "okta", ["00uADA2"], "test", office.ctx.book)
            await cases.reopen_target(tx, case.id, "toy")

    office.vault.faults["disable", "k1"].append(learn)
    assert (await office.work(case)).state is State.REVOKING
    assert (await office.target(case)).state is TargetState.PENDING
    assert (await office.work(case)).state is State.VERIFIED
    assert office.vault.alive() | office.vault.alive("00uADA2") == set()


# Deleting


async def test_a_delete_after_the_grace_period_removes_for_good_and_reads_back(office: Office, clock: Clock) -> None:
    office.vault.add(KEY, "k1")
    office.vault.add(SESSION, "s1")
    case = await _deleting(office, clock)
    case = await office.work(case)
    assert case.state is State.VERIFIED
    assert set(office.vault.things) == {"s1"}  # sessions can't be deleted, and stay disabled
    actions = {proof.credential.id: (proof.action, proof.state) for proof in await office.evidence(case)}
    assert actions["k1"] == (Action.DELETE, CredentialState.GONE)
    assert actions["s1"] == (Action.DISABLE, CredentialState.DISABLED)


async def test_a_delete_that_the_vendor_only_pretended_needs_attention(office: Office, clock: Clock) -> None:
    office.vault.add(KEY, "k1")
    case = await _deleting(office, clock)
    office.vault.lies.add("k1")
    case = await office.work(case)
    assert case.state is State.ATTENTION
    assert await office.strengths(case) == {"k1": Strength.FAILED}


async def test_a_delete_is_not_done_to_somebody_who_is_back(office: Office, clock: Clock) -> None:
    office.vault.add(KEY, "k1")
    case = await _deleting(office, clock)
    await office.hears(EventKind.ACCOUNT_ENABLED)
    await office.work(case)
    assert office.vault.alive() == {"k1"}


async def _deleting(office: Office, clock: Clock) -> CaseRow:
    case = await office.work(await office.offboard())
    async with office.store.write() as tx:
        await cases.set_case(tx, case.id, delete_due_at=clock.now + 60)
    clock.go(61)
    assert await queue_due_deletes(office.ctx) == 1
    office.number += 100
    return await office.case()
