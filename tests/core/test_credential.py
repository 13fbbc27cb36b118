"""A result is never called stronger than what was read back."""

from __future__ import annotations

import itertools

import pytest

from offboard_worker.core.credential import Ability, Action, Credential, CredentialKind, CredentialState, Strength
from offboard_worker.core.credential import strength_of as judge

READ_BACK = Ability(reversible=True, read_back=True, permission="x")
ACKNOWLEDGED_ONLY = Ability(reversible=True, read_back=False, permission="x")
S, A = CredentialState, Action

REACHED = {
    (A.DISABLE, S.DISABLED),
    (A.DISABLE, S.GONE),
    (A.DELETE, S.GONE),
    (A.RESTORE, S.ACTIVE),
}


@pytest.mark.parametrize(("action", "state"), list(itertools.product(Action, set(CredentialState) - {S.UNKNOWN})))
def test_only_the_state_that_was_asked_for_counts(action: Action, state: CredentialState) -> None:
    reached = (action, state) in REACHED
    assert judge(state, READ_BACK, action) is (Strength.VERIFIED if reached else Strength.FAILED)
    assert judge(state, ACKNOWLEDGED_ONLY, action) is (Strength.ACKNOWLEDGED if reached else Strength.FAILED)


@pytest.mark.parametrize("action", Action)
def test_what_could_not_be_read_back_is_unknown_where_it_should_have_been(action: Action) -> None:
    assert judge(S.UNKNOWN, READ_BACK, action) is Strength.UNKNOWN
    assert judge(S.UNKNOWN, ACKNOWLEDGED_ONLY, action) is Strength.ACKNOWLEDGED


def test_a_reference_names_the_credential_exactly() -> None:
    key = Credential("aws-prod", CredentialKind.ACCESS_KEY, "AKIA1", owner="ada", scope="ada")
    assert key.ref == "aws-prod/access-key/ada/AKIA1"
    assert Credential("okta", CredentialKind.ACCOUNT, "00u1", owner="00u1").ref == "okta/account/00u1"
