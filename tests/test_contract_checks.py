"""The contract checker finds what breaks a vendor's contract: a checker that accepts everything would prove nothing."""

from __future__ import annotations

import json
from typing import Any

import pytest

from offboard_worker.demo.faults import Call
from tests.contract_checks import Exemption, VendorContract
from tests.shared_material import shared

USER = {"id": "00u1", "status": "ACTIVE", "profile": {"email": "a@example.com", "login": "a@example.com"}}


@pytest.fixture(scope="module")
def contract() -> VendorContract:
    return VendorContract(shared("specs/okta.json"), shared("specs/okta-extra.json"))


def call(line: str, status: int, answer: Any = None, query: tuple[tuple[str, str], ...] = (), **more: Any) -> Call:
    method, path = line.split()
    text = "" if answer is None else json.dumps(answer)
    return Call(method, path, query, {}, "", status, text, {"content-type": "application/json"}, **more)


@pytest.mark.parametrize(
    ("made", "problem"),
    [
        (call("GET /api/v1/nowhere", 200), "no such operation"),
        (call("PATCH /api/v1/users/00u1", 200), "no such operation"),
        (call("GET /api/v1/users", 200, [USER], (("limt", "1"),)), "knows no 'limt'"),
        (call("GET /api/v1/users", 200, [USER], (("limit", "many"),)), "request"),
        (call("GET /api/v1/users", 200, [{**USER, "status": "ASLEEP"}]), "at 0/status"),
        (call("GET /api/v1/users", 200, USER), "answer"),
        (call("GET /api/v1/users", 418, {}), "no status 418"),
        (call("DELETE /api/v1/users/00u1", 204, {}), "should have no body"),
    ],
)
def test_what_breaks_the_contract_is_named(contract: VendorContract, made: Call, problem: str) -> None:
    with pytest.raises(AssertionError, match=problem):
        contract.check(made)


def test_what_keeps_the_contract_passes(contract: VendorContract) -> None:
    kept = [
        call("GET /api/v1/users", 200, [USER], (("limit", "1"),)),
        call("DELETE /api/v1/users/00u1/sessions", 204, None, (("oauthTokens", "true"),)),
        call("GET /api/v1/users/00u1/grants/oag1", 404, {"errorCode": "E0000007"}),
    ]
    assert contract.check_all(kept) == 3


def test_a_made_up_answer_is_not_held_to_the_contract_but_its_request_is(contract: VendorContract) -> None:
    contract.check(call("GET /api/v1/users", 418, faulty=True))
    with pytest.raises(AssertionError, match="limt"):
        contract.check(call("GET /api/v1/users", 418, None, (("limt", "1"),), faulty=True))


def test_an_exemption_covers_its_own_problem_alone() -> None:
    exemption = Exemption(r"GET /api/v1/users$", r"knows no 'limt'", "for this test")
    contract = VendorContract(shared("specs/okta.json"), exemptions=[exemption])
    contract.check(call("GET /api/v1/users", 200, [USER], (("limt", "1"),)))
    assert contract.used == {exemption}
    with pytest.raises(AssertionError, match="other"):
        contract.check(call("GET /api/v1/users", 200, [USER], (("limt", "1"), ("other", "1"))))
