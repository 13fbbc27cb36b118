"""From what a source says to a case and a denial, through real stores."""

from __future__ import annotations

from dataclasses import replace

import pytest
from sqlalchemy import select, update

from offboard_worker.config import PersonSettings
from offboard_worker.core.case import State, Step, TargetState
from offboard_worker.core.event import EventKind as E
from offboard_worker.core.event import Ignored
from offboard_worker.core.person import PersonState
from offboard_worker.denylist.facts import TokenIdentity, email_key, first_killer, person_key, subject_key
from offboard_worker.errors import UsageError
from offboard_worker.jobs import intake
from offboard_worker.sources.source import Chore, Learned
from offboard_worker.store import audit, cases, inbox
from offboard_worker.store.database import Store
from offboard_worker.store.people import configured
from offboard_worker.store.schema import deliveries, events, people, targets
from tests.conftest import Clock
from tests.jobs.intake_world import BOOK, ISSUER, T0, Company, book, event, subject


@pytest.fixture
def company(store: Store) -> Company:
    return Company(store)


def token(*keys: str, issued_at: float = 0.0) -> TokenIdentity:
    return TokenIdentity(keys, int(T0 + issued_at))


# --- a leaver


async def test_a_leaver_is_denied_by_every_name_and_gets_a_case_in_one_transaction(company: Company) -> None:
    done = await company.hears(event(E.ACCOUNT_DISABLED, "ada"))
    ada = await company.person("okta-ada")
    (case,) = await company.cases_of("okta-ada")
    assert ada.state is PersonState.DEPARTED
    assert ada.generation == 1
    assert await company.denied() == {
        person_key(ada.id),
        subject_key(ISSUER, "okta-ada"),
        subject_key(ISSUER, "ada.login"),
        subject_key(ISSUER, "ada@example.com"),
        email_key("ada@example.com"),
    }
    assert (case.state, case.opened_by, case.denial_seq) == (State.REVOKING, "source:okta-main", 1)
    assert case.accepted_at == T0 + 1000
    assert await company.targets(case) == dict.fromkeys(BOOK.connectors, ("pending", "disable"))
    assert (done.denial_seq, done.cases, done.contained, done.events) == (1, [case.id], [case.id], 1)
    async with company.store.read() as conn:
        (row,) = await inbox.events_of_case(conn, case.id)
        what = [record.what async for record in audit.records(conn)]
    assert (row.effect, row.person_id, row.pending) == ("offboard", ada.id, False)
    assert sorted(what) == ["case.opened", "denylist.deny", "event.accepted", "person.added"]


async def test_nothing_of_a_batch_is_kept_if_the_transaction_fails(company: Company) -> None:
    async def half_way() -> None:
        async with company.store.write() as tx:
            received = inbox.Received("okta-main", "POST", {}, b"", T0)
            await intake.accept(tx, [intake.Arrival(received, (event(E.ACCOUNT_DISABLED, "ada"),))], BOOK)
            await tx.flush()
            raise RuntimeError("half way")

    with pytest.raises(RuntimeError, match="half way"):
        await half_way()
    async with company.store.read() as conn:
        for table in (people, events, deliveries):
            assert (await conn.execute(select(table))).all() == []
    assert await company.facts() == {}


async def test_a_duplicate_changes_nothing(company: Company) -> None:
    said = event(E.ACCOUNT_DISABLED, "ada")
    await company.hears(said)
    facts = await company.facts()
    again = await company.hears(said)
    assert (again.duplicates, again.events, again.denial_seq, again.cases) == (1, 0, 0, [])
    assert await company.facts() == facts
    assert len(await company.cases_of("okta-ada")) == 1


async def test_a_duplicate_within_a_batch_counts_once(company: Company) -> None:
    said = event(E.ACCOUNT_DISABLED, "ada")
    done = await company.hears([said, said], said)
    assert (done.events, done.duplicates) == (1, 2)
    assert len(await company.cases_of("okta-ada")) == 1


async def test_the_same_key_of_another_source_is_no_duplicate(company: Company) -> None:
    first = event(E.ACCOUNT_DISABLED, "ada", key="k1")
    done = await company.hears(first, event(E.ACCOUNT_DISABLED, "bob", source="entra-corp", key="k1"))
    assert (done.events, done.duplicates) == (2, 0)


async def test_many_leavers_in_one_batch_each_get_their_own_case_and_denial(company: Company) -> None:
    done = await company.hears(*(event(E.ACCOUNT_DISABLED, f"p{n}") for n in range(20)))
    assert len(set(done.contained)) == 20
    assert done.denial_seq == 20
    await company.log_is_sound()
    async with company.store.read() as conn:
        assert sorted(case.denial_seq or 0 for case in await cases.many(conn)) == list(range(1, 21))


@pytest.mark.parametrize("kind", [E.ACCOUNT_DISABLED, E.ACCOUNT_SUSPENDED, E.ACCOUNT_PURGED])
async def test_each_kind_that_the_policy_names_opens_a_case(company: Company, kind: E) -> None:
    done = await company.hears(event(kind, "ada"))
    assert len(done.contained) == 1


async def test_a_suspension_that_the_policy_leaves_out_cuts_sessions_alone(company: Company) -> None:
    company.book = book(revoke_on=("account-disabled",))
    await company.hears(event(E.ACCOUNT_SUSPENDED, "ada"))
    assert await company.denied() == set()
    assert await company.cases_of("okta-ada") == []
    assert (await company.person("okta-ada")).state is PersonState.ACTIVE


# --- coming back, and the order of things


async def test_somebody_who_is_back_gets_new_tokens_and_old_ones_stay_dead(company: Company, clock: Clock) -> None:
    await company.hears(event(E.ACCOUNT_DISABLED, "ada", 10))
    clock.go(60)
    done = await company.hears(event(E.ACCOUNT_ENABLED, "ada", 20))
    ada = await company.person("okta-ada")
    (case,) = await company.cases_of("okta-ada")
    assert (ada.state, ada.generation, case.state) == (PersonState.ACTIVE, 2, State.REINSTATED)
    assert done.cases == [case.id]
    assert await company.targets(case) == dict.fromkeys(BOOK.connectors, ("pending", "restore"))
    facts, key = await company.facts(), subject_key(ISSUER, "okta-ada")
    assert await company.denied() == set()
    assert first_killer(facts, token(key, issued_at=60), 0) is not None
    assert first_killer(facts, token(key, issued_at=61), 0) is None
    person = person_key(ada.id)
    assert first_killer(facts, TokenIdentity((), None, person, generation=1), 0) is not None
    assert first_killer(facts, TokenIdentity((), None, person, generation=2), 0) is None


async def test_a_late_disable_after_an_enable_is_only_recorded(company: Company) -> None:
    await company.hears(event(E.ACCOUNT_ENABLED, "ada", 20))
    done = await company.hears(event(E.ACCOUNT_DISABLED, "ada", 10))
    assert done.contained == []
    assert await company.denied() == set()
    assert (await company.effects())[-1] == ("account-disabled", "record")


async def test_a_late_enable_after_a_disable_is_only_recorded(company: Company) -> None:
    await company.hears(event(E.ACCOUNT_DISABLED, "ada", 20))
    await company.hears(event(E.ACCOUNT_ENABLED, "ada", 10))
    assert (await company.person("okta-ada")).state is PersonState.DEPARTED
    assert await company.denied() != set()


@pytest.mark.parametrize("order", [(E.ACCOUNT_DISABLED, E.ACCOUNT_ENABLED), (E.ACCOUNT_ENABLED, E.ACCOUNT_DISABLED)])
async def test_of_two_that_happened_at_once_the_departure_stands(company: Company, order: tuple[E, E]) -> None:
    for kind in order:
        await company.hears(event(kind, "ada", 10))
    assert (await company.person("okta-ada")).state is PersonState.DEPARTED


@pytest.mark.parametrize("together", [True, False])
async def test_disabled_enabled_and_disabled_again(company: Company, together: bool) -> None:
    said = [
        event(E.ACCOUNT_DISABLED, "ada", 1),
        event(E.ACCOUNT_ENABLED, "ada", 2),
        event(E.ACCOUNT_DISABLED, "ada", 3),
    ]
    if together:
        await company.hears(*said)
    else:
        for one in said:
            await company.hears(one)
    assert (await company.person("okta-ada")).state is PersonState.DEPARTED
    found = await company.cases_of("okta-ada")
    assert sorted(case.state for case in found) == [State.REINSTATED, State.REVOKING]
    assert sorted(case.denial_seq or 0 for case in found) == [1, 3]
    assert len(await company.denied()) == 5
    await company.log_is_sound()


async def test_an_enable_of_another_source_does_not_bring_back(company: Company) -> None:
    await company.hears(event(E.ACCOUNT_DISABLED, "ada", 1))
    done = await company.hears(event(E.ACCOUNT_ENABLED, "ada", 2, source="entra-corp"))
    ada = await company.person("ada@example.com")
    assert set(ada.aliases) == {"okta", "entra"}  # one person: Entra's address is trusted
    assert ada.state is PersonState.DEPARTED
    async with company.store.read() as conn:
        reasons = [row.reason for row in await conn.execute(select(events).where(events.c.source == "entra-corp"))]
    assert reasons == ["still gone by the word of: okta-main"]
    assert done.cases == []
    await company.hears(event(E.ACCOUNT_ENABLED, "ada", 3))
    assert (await company.person("okta-ada")).state is PersonState.ACTIVE


async def test_somebody_is_back_once_every_source_says_so(company: Company) -> None:
    await company.hears(event(E.ACCOUNT_DISABLED, "ada", 1), event(E.ACCOUNT_DISABLED, "ada", 1, source="entra-corp"))
    await company.hears(event(E.ACCOUNT_ENABLED, "ada", 2))
    assert (await company.person("okta-ada")).state is PersonState.DEPARTED
    await company.hears(event(E.ACCOUNT_ENABLED, "ada", 2, source="entra-corp"))
    assert (await company.person("okta-ada")).state is PersonState.ACTIVE


async def test_nobody_is_brought_back_where_the_policy_leaves_it_to_operators(company: Company) -> None:
    company.book = book(reinstate_on_enable=False)
    await company.hears(event(E.ACCOUNT_DISABLED, "ada", 1))
    await company.hears(event(E.ACCOUNT_ENABLED, "ada", 2))
    assert (await company.person("okta-ada")).state is PersonState.DEPARTED


async def test_an_event_from_the_future_does_not_outrank_what_comes_after_it(company: Company) -> None:
    """A source whose clock runs ahead must not keep a later disable from counting."""
    await company.hears(event(E.ACCOUNT_ENABLED, "ada", 90_000), received=100)
    await company.hears(event(E.ACCOUNT_DISABLED, "ada", 200), received=201)
    assert (await company.person("okta-ada")).state is PersonState.DEPARTED


# --- guard rails


async def protect(company: Company, name: str) -> None:
    async with company.store.write() as tx:
        await configured(tx, {"break-glass": PersonSettings(protected=True, aliases={"okta": f"okta-{name}"})})


@pytest.mark.parametrize("kind", [E.ACCOUNT_DISABLED, E.ACCOUNT_PURGED, E.SESSION_REVOKED, E.CREDENTIAL_COMPROMISE])
async def test_a_protected_person_is_never_touched_and_operators_are_told(company: Company, kind: E) -> None:
    await protect(company, "root")
    done = await company.hears(event(kind, "root"))
    assert done.alarms == ["break-glass"]
    assert await company.facts() == {}
    assert await company.cases_of("okta-root") == []
    assert (await company.person("okta-root")).state is PersonState.ACTIVE


async def test_somebody_who_is_protected_after_a_source_named_them_is_not_touched(company: Company) -> None:
    await company.hears(Learned("k0", subject("root")))
    await protect(company, "root")
    done = await company.hears(event(E.ACCOUNT_DISABLED, "root"))
    assert len(done.alarms) == 1
    assert await company.facts() == {}


async def test_an_operator_cannot_offboard_a_protected_person(company: Company) -> None:
    await protect(company, "root")
    with pytest.raises(UsageError, match="protected"):
        async with company.store.write() as tx:
            await intake.open_case(tx, "break-glass", "ops", "by hand", BOOK)
    assert await company.facts() == {}


@pytest.mark.parametrize("together", [True, False])
async def test_more_leavers_than_the_limit_are_contained_but_held(company: Company, together: bool) -> None:
    company.book = book(max_leavers=3)
    said = [event(E.ACCOUNT_DISABLED, f"p{n}") for n in range(5)]
    if together:
        done = await company.hears(*said)
        assert len(done.cases) == 3
    else:
        for one in said:
            await company.hears(one)
    states = [(await company.cases_of(f"okta-p{n}"))[0].state for n in range(5)]
    assert states == [State.REVOKING] * 3 + [State.HELD] * 2
    denied = await company.denied()
    assert {person_key((await company.person(f"okta-p{n}")).id) for n in range(5)} <= denied
    assert "the limit is 3" in (await company.cases_of("okta-p4"))[0].reason


async def test_the_guard_counts_the_window_alone(company: Company, clock: Clock) -> None:
    company.book = book(max_leavers=1)
    await company.hears(event(E.ACCOUNT_DISABLED, "p0"))
    clock.go(3601)
    await company.hears(event(E.ACCOUNT_DISABLED, "p1"))
    assert (await company.cases_of("okta-p1"))[0].state is State.REVOKING


async def test_operators_cases_do_not_count_for_the_guard(company: Company) -> None:
    company.book = book(max_leavers=1)
    await company.hears(Learned("k0", subject("p0")))
    async with company.store.write() as tx:
        await intake.open_case(tx, (await company_person(company, "okta-p0")), "ops", "by hand", company.book)
    await company.hears(event(E.ACCOUNT_DISABLED, "p1"))
    assert (await company.cases_of("okta-p1"))[0].state is State.REVOKING


async def company_person(company: Company, name: str) -> str:
    return (await company.person(name)).id


async def test_an_approval_policy_holds_every_case_once_contained(company: Company) -> None:
    company.book = book(approval=True)
    done = await company.hears(event(E.ACCOUNT_DISABLED, "ada"))
    (case,) = await company.cases_of("okta-ada")
    assert case.state is State.HELD
    assert (done.cases, done.contained) == ([], [case.id])
    assert len(await company.denied()) == 5


async def test_a_held_case_is_reinstated_by_an_enable(company: Company) -> None:
    company.book = book(approval=True)
    await company.hears(event(E.ACCOUNT_DISABLED, "ada", 1), event(E.ACCOUNT_ENABLED, "ada", 2))
    (case,) = await company.cases_of("okta-ada")
    assert case.state is State.REINSTATED
    assert await company.denied() == set()


# --- sessions


async def test_revoked_sessions_kill_old_tokens_and_let_new_ones_pass(company: Company) -> None:
    await company.hears(event(E.SESSION_REVOKED, "ada", 10))
    facts, key = await company.facts(), subject_key(ISSUER, "okta-ada")
    assert await company.denied() == set()
    assert await company.cases_of("okta-ada") == []
    assert first_killer(facts, token(key, issued_at=5), 0) is not None  # within the configured skew
    assert first_killer(facts, token(key, issued_at=6), 0) is None
    assert (await company.person("okta-ada")).generation == 1


async def test_revoked_sessions_of_a_leaver_keep_the_denial_in_place(company: Company) -> None:
    await company.hears(event(E.ACCOUNT_DISABLED, "ada", 1))
    before = await company.denied()
    done = await company.hears(event(E.SESSION_REVOKED, "ada", 2))
    assert await company.denied() == before
    assert done.denial_seq > 1
    await company.log_is_sound()


async def test_revoked_sessions_that_bring_a_leavers_further_name_deny_it(company: Company) -> None:
    await company.hears(event(E.ACCOUNT_DISABLED, "ada", 1))
    renamed = subject("ada", logins=("ada.new",))
    await company.hears(event(E.SESSION_REVOKED, renamed, 2))
    assert subject_key(ISSUER, "ada.new") in await company.denied()


async def test_a_leaver_and_revoked_sessions_in_one_batch_are_denied(company: Company) -> None:
    await company.hears(event(E.ACCOUNT_DISABLED, "ada", 1), event(E.SESSION_REVOKED, "ada", 1))
    assert len(await company.denied()) == 5


# --- what waits, and what only teaches


async def test_a_change_waits_for_a_re_read_and_touches_nobody(company: Company) -> None:
    done = await company.hears(event(E.ACCOUNT_CHANGED, "ada", source="entra-corp"))
    async with company.store.read() as conn:
        (row,) = await inbox.pending(conn, T0)
    assert (done.pending, row.effect, row.kind) == ([row.id], "confirm", "account-changed")
    assert inbox.from_json(row.statement).subject == subject("ada", "entra")
    assert await company.facts() == {}


async def test_a_confirmed_change_is_a_leaver_once(company: Company) -> None:
    changed = event(E.ACCOUNT_CHANGED, "ada", 5, source="entra-corp")
    await company.hears(changed)
    async with company.store.read() as conn:
        (row,) = await inbox.pending(conn, T0)
    for expected in (1, 0):
        async with company.store.write() as tx:
            done = await intake.accept_confirmed(tx, row, replace(changed, kind=E.ACCOUNT_DISABLED), BOOK)
        assert len(done.contained) == expected
    async with company.store.read() as conn:
        assert await inbox.pending(conn, T0) == []
        settled = await inbox.event(conn, row.id)
    assert settled is not None
    assert (settled.kind, settled.effect, bool(settled.case_id)) == ("account-disabled", "offboard", True)
    assert (await company.person("entra-ada")).state is PersonState.DEPARTED


async def test_a_change_that_means_nothing_is_settled_with_its_reason(company: Company) -> None:
    await company.hears(event(E.ACCOUNT_CHANGED, "ada", source="entra-corp"))
    async with company.store.read() as conn:
        (row,) = await inbox.pending(conn, T0)
    async with company.store.write() as tx:
        await intake.accept_confirmed(tx, row, Ignored(row.key, "still enabled"), BOOK)
    async with company.store.read() as conn:
        settled = await inbox.event(conn, row.id)
    assert settled is not None
    assert (settled.pending, settled.effect, settled.reason) == (False, "record", "still enabled")


async def test_a_chore_waits_for_a_job_with_its_argument(company: Company) -> None:
    done = await company.hears(Chore("k1", "confirm-subscription", {"url": "https://sns.example.com/"}))
    async with company.store.read() as conn:
        (row,) = await inbox.pending(conn, T0)
    assert done.pending == [row.id]
    assert (row.kind, row.effect) == ("chore", "chore")
    assert row.statement == '{"name":"confirm-subscription","argument":{"url":"https://sns.example.com/"}}'


async def test_what_is_ignored_is_kept_with_its_reason(company: Company) -> None:
    await company.hears(Ignored("k1", "the action did not succeed", "user.lifecycle.deactivate"))
    assert await company.effects() == [("ignored", "record")]
    async with company.store.read() as conn:
        assert (await conn.execute(select(events.c.reason))).scalar_one() == "the action did not succeed"


async def test_ids_that_were_learned_are_denied_when_their_person_leaves(company: Company) -> None:
    await company.hears(Learned("k1", subject("ada", logins=("ada.old",))))
    await company.hears(event(E.ACCOUNT_PURGED, subject("ada", logins=(), emails=())))  # deleted: only the id is left
    assert {subject_key(ISSUER, "ada.old"), email_key("ada@example.com")} <= await company.denied()


async def test_a_name_that_is_learned_of_a_leaver_is_denied_too(company: Company) -> None:
    await company.hears(event(E.ACCOUNT_DISABLED, "ada"))
    done = await company.hears(Learned("k1", subject("ada", logins=("ada.new",), emails=("new@example.com",))))
    assert done.denial_seq == 2
    assert {subject_key(ISSUER, "ada.new"), email_key("new@example.com")} <= await company.denied()


async def test_a_late_event_that_brings_a_leavers_further_name_denies_it(company: Company) -> None:
    await company.hears(event(E.ACCOUNT_DISABLED, "ada", 5))
    await company.hears(event(E.ACCOUNT_ENABLED, subject("ada", logins=("ada.new",)), 1))
    assert subject_key(ISSUER, "ada.new") in await company.denied()


async def test_a_login_that_was_given_on_is_denied_with_its_new_owner(company: Company) -> None:
    await company.hears(Learned("k1", subject("ada", emails=())))
    again = subject("zoe", logins=("ada.login",), emails=())
    await company.hears(event(E.ACCOUNT_DISABLED, again))
    denied = await company.denied()
    assert {subject_key(ISSUER, "okta-zoe"), subject_key(ISSUER, "ada.login")} <= denied
    assert subject_key(ISSUER, "okta-ada") not in denied
    assert (await company.person("okta-ada")).state is PersonState.ACTIVE


async def test_a_login_alone_finds_whom_it_was_recorded_for(company: Company) -> None:
    await company.hears(Learned("k1", subject("ada")))
    await company.hears(event(E.ACCOUNT_DISABLED, subject("x", id=None, logins=("other", "ada.login"), emails=())))
    assert (await company.person("okta-ada")).state is PersonState.DEPARTED


async def test_an_address_of_a_source_that_is_not_trusted_makes_nobody_the_same(company: Company) -> None:
    await company.hears(Learned("k1", subject("ada")))
    await company.hears(event(E.ACCOUNT_DISABLED, subject("zoe", emails=("ada@example.com",))))
    assert (await company.person("okta-ada")).state is PersonState.ACTIVE


# --- what is found later


async def finish(company: Company, name: str) -> None:
    """Bring somebody's case to its end, as the jobs would."""
    (case,) = [case for case in await company.cases_of(name) if case.finished_at is None]
    async with company.store.write() as tx:
        await tx.conn.execute(update(targets).where(targets.c.case_id == case.id).values(state=TargetState.DONE.value))
        for step in (Step.SETTLE, Step.CLOSE):
            case = await cases.move(tx, case, step, "test")


async def test_a_deletion_after_the_case_is_closed_opens_no_other(company: Company) -> None:
    await company.hears(event(E.ACCOUNT_DISABLED, "ada", 1))
    await finish(company, "okta-ada")
    before = await company.denied()
    done = await company.hears(event(E.ACCOUNT_PURGED, "ada", 2))
    assert (done.contained, done.cases) == ([], [])
    assert len(await company.cases_of("okta-ada")) == 1
    assert await company.denied() == before


async def test_a_deletion_that_brings_a_new_id_opens_another_case(company: Company) -> None:
    await company.hears(event(E.ACCOUNT_DISABLED, "ada", 1))
    await finish(company, "okta-ada")
    done = await company.hears(event(E.ACCOUNT_PURGED, "ada", 2, source="entra-corp"))
    assert len(done.contained) == 1
    assert [case.state for case in await company.cases_of("okta-ada")] == [State.CLOSED, State.REVOKING]


async def target_done(company: Company, case_id: str) -> None:
    async with company.store.write() as tx:
        await tx.conn.execute(update(targets).where(targets.c.case_id == case_id).values(state=TargetState.DONE.value))


@pytest.mark.parametrize("teach", ["event", "learned"])
async def test_a_further_id_of_somebody_with_an_open_case_runs_the_matching_connector_again(
    company: Company, teach: str
) -> None:
    await company.hears(event(E.ACCOUNT_DISABLED, "ada", 1))
    (case,) = await company.cases_of("okta-ada")
    await target_done(company, case.id)
    more = subject("ada", logins=("ada.new",))
    done = await company.hears(event(E.ACCOUNT_PURGED, more, 2) if teach == "event" else Learned("k0", more))
    assert done.cases == [case.id]
    done_before = dict.fromkeys(("aws-prod", "proxy"), ("done", "disable"))
    assert await company.targets(case) == {"okta": ("pending", "disable"), **done_before}
    assert len(await company.cases_of("okta-ada")) == 1


async def test_a_further_id_takes_a_verified_case_back_to_work(company: Company) -> None:
    await company.hears(event(E.ACCOUNT_DISABLED, "ada", 1))
    (case,) = await company.cases_of("okta-ada")
    async with company.store.write() as tx:
        await cases.move(tx, case, Step.SETTLE, "test")
    await company.hears(event(E.ACCOUNT_PURGED, subject("ada", logins=("ada.new",)), 2))
    assert (await company.cases_of("okta-ada"))[0].state is State.REVOKING


async def test_ids_that_a_connector_identified_are_denied_too(company: Company) -> None:
    await company.hears(event(E.ACCOUNT_DISABLED, "ada"))
    ada = await company_person(company, "okta-ada")
    async with company.store.write() as tx:
        seq = await intake.learn_aliases(tx, ada, "okta", (i for i in ["00u-extra"]), "connector:okta", BOOK)
        assert seq == 2
    async with company.store.write() as tx:
        assert await intake.learn_aliases(tx, ada, "okta", ["00u-extra"], "connector:okta", BOOK) is None
        assert await intake.learn_aliases(tx, ada, "aws", ["AdaL"], "connector:aws-prod", BOOK) is None
    assert subject_key(ISSUER, "00u-extra") in await company.denied()
    assert (await company.person("AdaL")).id == ada


# --- operators


async def test_an_operator_opens_a_case(company: Company) -> None:
    await company.hears(Learned("k1", subject("ada")))
    async with company.store.write() as tx:
        done = await intake.open_case(tx, await company_person(company, "okta-ada"), "ops@example.com", "left", BOOK)
    (case,) = await company.cases_of("okta-ada")
    assert done.contained == [case.id]
    assert (case.opened_by, case.state, case.denial_seq) == ("ops@example.com", State.REVOKING, 1)
    await company.hears(event(E.ACCOUNT_ENABLED, "ada", 99))  # a directory doesn't outweigh the operator
    assert (await company.person("okta-ada")).state is PersonState.DEPARTED


async def test_an_operator_opens_another_case_once_the_last_is_closed(company: Company) -> None:
    await company.hears(event(E.ACCOUNT_DISABLED, "ada"))
    await finish(company, "okta-ada")
    async with company.store.write() as tx:
        await intake.open_case(tx, await company_person(company, "okta-ada"), "ops", "look again", BOOK)
    assert [case.state for case in await company.cases_of("okta-ada")] == [State.CLOSED, State.REVOKING]


async def test_an_operator_reinstates_over_every_source(company: Company) -> None:
    await company.hears(event(E.ACCOUNT_DISABLED, "ada", 1), event(E.ACCOUNT_DISABLED, "ada", 1, source="entra-corp"))
    async with company.store.write() as tx:
        await intake.reinstate(tx, await company_person(company, "okta-ada"), "ops", "mistake", BOOK)
    assert (await company.person("okta-ada")).state is PersonState.ACTIVE
    assert await company.denied() == set()
    assert (await company.cases_of("okta-ada"))[0].state is State.REINSTATED
    await company.hears(event(E.ACCOUNT_DISABLED, "ada", 50))  # news: they left after all
    assert (await company.person("okta-ada")).state is PersonState.DEPARTED


async def test_a_closed_case_is_restored_and_its_work_is_not_lost(company: Company) -> None:
    await company.hears(event(E.ACCOUNT_DISABLED, "ada", 1))
    await finish(company, "okta-ada")
    done = await company.hears(event(E.ACCOUNT_ENABLED, "ada", 2))
    (case,) = await company.cases_of("okta-ada")
    assert done.cases == [case.id]
    assert case.state is State.CLOSED
    async with company.store.read() as conn:
        work = await cases.unfinished_targets(conn, T0 + 1e6)
    assert sorted((part.connector, part.action.value) for part in work) == [
        (n, "restore") for n in sorted(BOOK.connectors)
    ]


async def test_an_operator_who_names_nobody_is_told_so(company: Company) -> None:
    for command in (intake.open_case, intake.reinstate):
        with pytest.raises(UsageError, match="no person p-nobody"):
            async with company.store.write() as tx:
                await command(tx, "p-nobody", "ops", "r", BOOK)


# --- what no database should choke on


@pytest.mark.parametrize(
    "name", ["a\0da", "ada" * 400, "a b" * 170, "дядя" * 60, "😀" * 300, 'O\'Brien "x" \\', "ada\n", "%00", "\u202eada"]
)
async def test_an_odd_name_costs_nobody_a_leaver(company: Company, name: str) -> None:
    """One row that the database refuses would take everybody in its batch along."""
    odd = subject("odd", id=name, logins=(name + ".login",), emails=(name + "@example.com",), name=name)
    said = replace(event(E.ACCOUNT_DISABLED, odd, key=f"k1{name}"), vendor_type=name)
    done = await company.hears(event(E.ACCOUNT_DISABLED, "ada"), said)
    assert len(done.contained) == 2
    again = await company.hears(said, replace(said, key="another", kind=E.ACCOUNT_PURGED))
    assert (again.duplicates, again.contained) == (1, [])  # found again as the same event and the same person
    await company.log_is_sound()
    assert await audit.verify(company.store, {}) != (0, 0)
