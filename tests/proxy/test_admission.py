"""Admission: the order of its questions, and that no moment lies between a check and a cut."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
import pytest

from offboard_worker.config import ProxySettings, RoleSettings
from offboard_worker.denylist.facts import Fact, TokenIdentity, first_killer, person_key, token_key
from offboard_worker.proxy.admission import Admission, Flight, Refused
from offboard_worker.proxy.keys import ensure_signing_key
from offboard_worker.proxy.roles import Roles
from offboard_worker.proxy.tokens import TokenVerifier, mint
from tests.denylist.conftest import until

SETTINGS = ProxySettings.model_validate(
    {
        "upstreams": {"api": {"url": "http://127.0.0.1:1"}},
        "roles": {"r": {"rules": [{"upstream": "api", "paths": ["/v1/**"]}]}},
    }
)


@dataclass
class View:
    """A replica whose lease and facts are set by hand."""

    lease_left: float = 60.0
    facts: dict[str, Fact] = field(default_factory=dict)
    asked: int = 0

    @property
    def fresh(self) -> bool:
        return self.lease_left > 0

    @property
    def stale_for(self) -> float:
        return max(0.0, -self.lease_left)

    def denied(self, identity: TokenIdentity) -> Fact | None:
        self.asked += 1
        return first_killer(self.facts, identity, time.time())


@dataclass
class Gate:
    admission: Admission
    view: View
    token: str
    jti: str
    cuts: list[str]

    def flight(self) -> Flight:
        return Flight(self.cuts.append)

    async def admit(self, flight: Flight | None = None, path: str = "/api/v1/x", method: str = "GET") -> Flight:
        flight = flight or self.flight()
        await self.admission.admit(flight, [f"Bearer {self.token}"], method, path)
        return flight

    async def refusal(self, path: str = "/api/v1/x", *authorization: str) -> Refused:
        with pytest.raises(Refused) as refused:
            await self.admission.admit(self.flight(), authorization or [f"Bearer {self.token}"], "GET", path)
        return refused.value


@pytest.fixture
async def gate(tmp_path: Path) -> AsyncIterator[Gate]:
    keys, view, cuts = ensure_signing_key(tmp_path), View(), []  # type: ignore[var-annotated]
    token, claims = mint(keys, SETTINGS, "ada", generation=1, roles=["r"], now=time.time())
    async with aiohttp.ClientSession() as session:
        admission = Admission(view, TokenVerifier(SETTINGS, keys, session), Roles.of(SETTINGS))
        yield Gate(admission, view, token, claims["jti"], cuts)
        await admission.close()


async def test_an_admitted_flight_is_found_by_every_key_and_gone_once_it_left(gate: Gate) -> None:
    flight = await gate.admit()
    assert gate.admission.flights.of(person_key("ada")) == (flight,)
    assert len(gate.admission.flights.of(token_key(SETTINGS.issuer, gate.jti))) == 1
    gate.admission.leave(flight)
    assert len(gate.admission.flights) == 0
    assert gate.admission.flights.of(person_key("ada")) == ()


@pytest.mark.parametrize(
    "fact",
    [Fact(person_key("ada"), denied=True), Fact(person_key("ada"), denied=False, before=2)],
    ids=["denied", "older generation"],
)
async def test_a_denied_person_is_refused_and_whoever_flies_is_cut(gate: Gate, fact: Fact) -> None:
    await gate.admit()
    gate.view.facts[fact.key] = fact
    gate.admission.on_facts([fact])
    assert gate.cuts == ["revoked"]
    refused = await gate.refusal()
    assert (refused.status, refused.error) == (401, "revoked")
    gate.admission.on_facts([fact])
    assert gate.cuts == ["revoked", "revoked"], "the refused one was still registered: it has not left yet"


async def test_facts_about_others_and_lifts_cut_nobody(gate: Gate) -> None:
    await gate.admit()
    gate.admission.on_facts(
        [
            Fact(person_key("bea"), denied=True),
            Fact(person_key("ada"), denied=False, before=1),
            Fact(token_key(SETTINGS.issuer, gate.jti), denied=True, expires_at=1),
        ]
    )
    assert gate.cuts == []


async def test_a_denial_between_check_and_upstream_finds_the_flight(gate: Gate) -> None:
    flight = await gate.admit()
    gate.admission.on_facts([Fact(person_key("ada"), denied=True)])
    with pytest.raises(Refused) as refused:
        gate.admission.check(flight)
    assert refused.value.status == 401
    assert not gate.admission.still(flight)
    assert gate.cuts == ["revoked"]


async def test_the_flight_is_registered_before_the_denylist_is_asked(gate: Gate) -> None:
    registered: list[int] = []
    asked = gate.view.denied

    def denied(identity: TokenIdentity) -> Fact | None:
        registered.append(len(gate.admission.flights))
        return asked(identity)

    gate.view.denied = denied  # type: ignore[method-assign]
    await gate.admit()
    assert registered == [1]


async def test_without_a_lease_nobody_passes_and_the_denylist_is_not_asked(gate: Gate) -> None:
    gate.view.lease_left = 0
    refused = await gate.refusal()
    assert (refused.status, refused.error, refused.retry_after) == (503, "denylist-unavailable", 1)
    assert gate.view.asked == 0


async def test_the_end_of_the_lease_cuts_streams_when_it_comes_not_later(gate: Gate) -> None:
    await gate.admit()
    started = time.monotonic()
    end = started + 0.15
    type(gate.view).lease_left = property(lambda self: end - time.monotonic())  # type: ignore[assignment]
    try:
        gate.admission.start()
        await until(lambda: bool(gate.cuts), 1)
    finally:
        type(gate.view).lease_left = 60.0
    assert gate.cuts == ["lease-expired"]
    assert 0.14 < time.monotonic() - started < 0.25


async def test_the_reasons_of_refusals(gate: Gate) -> None:
    for authorization, reason, status in [
        (("Basic abc",), "no-token", 401),
        (("Bearer",), "no-token", 401),
        (("Bearer a b",), "no-token", 401),
        (("Bearer x.y.z",), "token-malformed", 401),
        ((f"Bearer {gate.token}", f"Bearer {gate.token}"), "duplicate-authorization", 400),
    ]:
        refused = await gate.refusal("/api/v1/x", *authorization)
        assert (refused.reason, refused.status) == (reason, status)
        assert gate.token not in str(refused)
    assert (await gate.refusal("/api/v2/x")).reason == "no-role"
    assert (await gate.refusal("/api/v1/%2e%2e/x")).reason == "bad-path"
    assert (await gate.refusal("nonsense")).reason == "bad-target"


async def test_who_is_revoked_learns_nothing_about_roles_or_paths(gate: Gate) -> None:
    gate.view.facts[person_key("ada")] = Fact(person_key("ada"), denied=True)
    for path in ("/api/v1/x", "/api/v2/x", "/nowhere/x", "/api/v1/../x"):
        assert (await gate.refusal(path)).reason == "revoked"


async def test_a_route_with_a_stale_policy_outlives_the_lease_for_as_long_as_it_says_and_no_longer(
    tmp_path: Path,
) -> None:
    raw = {"upstream": "api", "paths": ["/v1/**"], "stale_policy": "allow_for(30s)"}
    settings = SETTINGS.model_copy(update={"roles": {"r": RoleSettings.model_validate({"rules": [raw]})}})
    keys, view = ensure_signing_key(tmp_path), View()
    token, claims = mint(keys, settings, "ada", generation=1, roles=["r"], now=time.time())
    async with aiohttp.ClientSession() as session:
        admission = Admission(view, TokenVerifier(settings, keys, session), Roles.of(settings))
        gate = Gate(admission, view, token, claims["jti"], [])
        view.lease_left = -29.0
        assert (await gate.admit()).allowed_as == "stale-lease"
        view.lease_left = -31.0
        assert (await gate.refusal()).reason == "lease-expired"
        view.lease_left = -1.0
        denied = person_key("ada")
        view.facts[denied] = Fact(denied, True, 2)
        assert (await gate.refusal()).reason == "revoked"


async def test_by_default_no_route_outlives_the_lease(gate: Gate) -> None:
    gate.view.lease_left = -0.001
    assert (await gate.refusal()).reason == "lease-expired"
