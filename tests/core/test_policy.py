"""What each kind of event leads to, for every kind of person."""

from __future__ import annotations

import pytest

from offboard_worker.core.event import EventKind
from offboard_worker.core.person import Person, PersonState
from offboard_worker.core.policy import Effect, Rules, decide

RULES = Rules(revoke_on=("account-disabled", "account-suspended", "account-purged"), max_leavers=3)
E = EventKind
ACTIVE, DEPARTED = PersonState.ACTIVE, PersonState.DEPARTED


def person(state: PersonState = ACTIVE, *, protected: bool = False) -> Person:
    return Person("p-1", state=state, protected=protected)


# (kind, state, protected) → effect: every combination stands here.
TABLE = {
    (E.ACCOUNT_DISABLED, ACTIVE, False): Effect.OFFBOARD,
    (E.ACCOUNT_DISABLED, DEPARTED, False): Effect.OFFBOARD,
    (E.ACCOUNT_DISABLED, ACTIVE, True): Effect.ALARM,
    (E.ACCOUNT_DISABLED, DEPARTED, True): Effect.ALARM,
    (E.ACCOUNT_SUSPENDED, ACTIVE, False): Effect.OFFBOARD,
    (E.ACCOUNT_SUSPENDED, DEPARTED, False): Effect.OFFBOARD,
    (E.ACCOUNT_SUSPENDED, ACTIVE, True): Effect.ALARM,
    (E.ACCOUNT_SUSPENDED, DEPARTED, True): Effect.ALARM,
    (E.ACCOUNT_PURGED, ACTIVE, False): Effect.OFFBOARD,
    (E.ACCOUNT_PURGED, DEPARTED, False): Effect.OFFBOARD,
    (E.ACCOUNT_PURGED, ACTIVE, True): Effect.ALARM,
    (E.ACCOUNT_PURGED, DEPARTED, True): Effect.ALARM,
    (E.ACCOUNT_ENABLED, ACTIVE, False): Effect.RECORD,
    (E.ACCOUNT_ENABLED, DEPARTED, False): Effect.REINSTATE,
    (E.ACCOUNT_ENABLED, ACTIVE, True): Effect.RECORD,
    (E.ACCOUNT_ENABLED, DEPARTED, True): Effect.REINSTATE,
    (E.ACCOUNT_CHANGED, ACTIVE, False): Effect.CONFIRM,
    (E.ACCOUNT_CHANGED, DEPARTED, False): Effect.CONFIRM,
    (E.ACCOUNT_CHANGED, ACTIVE, True): Effect.CONFIRM,
    (E.ACCOUNT_CHANGED, DEPARTED, True): Effect.CONFIRM,
    (E.SESSION_REVOKED, ACTIVE, False): Effect.CUT_SESSIONS,
    (E.SESSION_REVOKED, DEPARTED, False): Effect.CUT_SESSIONS,
    (E.SESSION_REVOKED, ACTIVE, True): Effect.ALARM,
    (E.SESSION_REVOKED, DEPARTED, True): Effect.ALARM,
    (E.CREDENTIAL_COMPROMISE, ACTIVE, False): Effect.CUT_SESSIONS,
    (E.CREDENTIAL_COMPROMISE, DEPARTED, False): Effect.CUT_SESSIONS,
    (E.CREDENTIAL_COMPROMISE, ACTIVE, True): Effect.ALARM,
    (E.CREDENTIAL_COMPROMISE, DEPARTED, True): Effect.ALARM,
    (E.ACCESS_REMOVED, ACTIVE, False): Effect.RECORD,
    (E.ACCESS_REMOVED, DEPARTED, False): Effect.RECORD,
    (E.ACCESS_REMOVED, ACTIVE, True): Effect.RECORD,
    (E.ACCESS_REMOVED, DEPARTED, True): Effect.RECORD,
}


def test_the_table_names_every_combination() -> None:
    assert set(TABLE) == {
        (kind, state, protected) for kind in E for state in PersonState for protected in (False, True)
    }


@pytest.mark.parametrize(("kind", "state", "protected"), TABLE)
def test_an_event_leads_to_what_the_table_says(kind: EventKind, state: PersonState, protected: bool) -> None:
    decision = decide(kind, person(state, protected=protected), RULES, recent_leavers=0)
    assert decision.effect is TABLE[kind, state, protected]
    assert decision.reason
    assert not decision.hold


@pytest.mark.parametrize(("recent", "held"), [(0, False), (2, False), (3, True), (300, True)])
def test_more_leavers_than_the_limit_are_held_once_contained(recent: int, held: bool) -> None:
    decision = decide(E.ACCOUNT_DISABLED, person(), RULES, recent)
    assert decision.effect is Effect.OFFBOARD
    assert decision.hold is held
    assert ("the limit is 3" in decision.reason) is held


def test_an_approval_policy_holds_every_leaver() -> None:
    rules = Rules(RULES.revoke_on, approval=True)
    decision = decide(E.ACCOUNT_DISABLED, person(), rules, 0)
    assert (decision.effect, decision.hold) == (Effect.OFFBOARD, True)
    assert "approval" in decision.reason


def test_what_the_policy_does_not_revoke_on_cuts_sessions_alone() -> None:
    rules = Rules(revoke_on=("account-purged",))
    assert decide(E.ACCOUNT_SUSPENDED, person(), rules, 0).effect is Effect.CUT_SESSIONS
    assert decide(E.ACCOUNT_PURGED, person(), rules, 0).effect is Effect.OFFBOARD


def test_a_compromise_ends_access_where_the_policy_says_so() -> None:
    rules = Rules(revoke_on=("credential-compromise",))
    assert decide(E.CREDENTIAL_COMPROMISE, person(), rules, 0).effect is Effect.OFFBOARD


def test_nobody_is_reinstated_by_an_event_where_the_policy_says_so() -> None:
    rules = Rules(RULES.revoke_on, reinstate_on_enable=False)
    decision = decide(E.ACCOUNT_ENABLED, person(DEPARTED), rules, 0)
    assert decision.effect is Effect.RECORD
    assert "operator" in decision.reason
