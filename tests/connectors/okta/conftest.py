"""Fixtures of the Okta connector's tests."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from connectors.okta import Okta
from offboard_worker.demo.okta_records import User
from offboard_worker.demo.okta_simulator import OktaSimulator
from tests.connectors.okta.world import EXEMPTIONS, SYSTEM, config
from tests.contract_checks import VendorContract
from tests.shared_material import shared


@pytest.fixture(scope="module")
def contract() -> VendorContract:
    specs = ("okta.json", "okta-extra.json", "okta-oauth.json")
    return VendorContract(*(shared(f"specs/{name}") for name in specs), exemptions=EXEMPTIONS)


@pytest.fixture
async def okta(contract: VendorContract) -> AsyncIterator[OktaSimulator]:
    """A fresh organisation. Every call of every test is held to Okta's own contract."""
    async with OktaSimulator() as simulator:
        yield simulator
        contract.check_all(simulator.faults.calls)


@pytest.fixture
def ada(okta: OktaSimulator) -> User:
    return okta.add_user(
        "ada@example.com",
        sessions=2,
        grants=[("0oaPortal", "okta.users.read.self"), ("0oaWiki", "profile")],
        refresh_tokens=["0oaPortal", "0oaMobile"],
        api_tokens=["nightly-export"],
        roles=["ORG_ADMIN"],
    )


@pytest.fixture
def bob(okta: OktaSimulator) -> User:
    return okta.add_user(
        "bob@example.org",
        grants=[("0oaPortal", "profile")],
        refresh_tokens=["0oaPortal"],
        api_tokens=["bobs-script"],
        roles=["HELP_DESK_ADMIN"],
    )


@pytest.fixture
async def connector(okta: OktaSimulator) -> AsyncIterator[Okta]:
    async with Okta.open(SYSTEM, config(okta)) as opened:
        yield opened
