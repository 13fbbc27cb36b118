"""Every published payload in ../shared/events for these sources, against the outcome that its collector expects.

Where we say something else than the collector, it stands in DIFFERENT with the reason.
"""

from __future__ import annotations

import json
from typing import Any

import pytest

from offboard_worker.core.event import ENDS_ACCESS, EventKind, IdentityEvent
from offboard_worker.errors import MalformedDelivery
from offboard_worker.secret import Secret
from offboard_worker.sources.graph import Page
from offboard_worker.sources.source import Chore, Source, Statement
from tests.shared_material import ROOT, shared
from tests.sources.deliveries import aws, delivery, entra, okta

NAMES = [
    f"{source}/{path.name.removesuffix('.meta.json')}"
    for source in ("okta", "entra", "aws")
    for path in sorted((ROOT / "events" / source).glob("*.meta.json"))
]

# Bodies of another channel than the one this source receives: refused as malformed, which ends nobody's access.
ANOTHER_CHANNEL = {
    "okta/universal_logout_email": "Global Token Revocation has an endpoint, a token and answers of its own",
    "okta/universal_logout_iss_sub": "Global Token Revocation has an endpoint, a token and answers of its own",
}
DIFFERENT = {
    "entra/graph_eventhub_validation_NA": "expected handshake: an Event Hubs test message wants no answer, so over HTTP "
    "it could only be a notification that is ignored",
}


def raw(name: str) -> bytes:
    return shared(f"events/{name}.json").read_bytes()


def meta(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(shared(f"events/{name}.meta.json").read_text())
    return found


def statements(name: str) -> list[Statement]:
    """Wrap a bare System Log row or page in a delivery's envelope; everything else is parsed as published."""
    body: Any = json.loads(raw(name))
    sources: dict[str, Source[Any]] = {"okta": okta(), "entra": entra(), "aws": aws()}
    if name == "entra/graph_delta_removed_changed":  # the answer of a poll
        directory = entra()._directory
        return [directory._statement(user, "mark") for user in Page.model_validate(body).value]
    if name.startswith("okta/") and (isinstance(body, list) or "uuid" in body):
        body = {"data": {"events": body if isinstance(body, list) else [body]}}
    return list(sources[name.split("/")[0]].parse(delivery(body)))


def test_the_payloads_are_there() -> None:
    shared("events")
    assert len(NAMES) > 30


@pytest.mark.parametrize("name", NAMES)
def test_a_published_payload_means_what_its_collector_expects(name: str) -> None:
    expected = meta(name)["expected_outcome"]
    if name in ANOTHER_CHANNEL:
        assert expected == "ignore"
        with pytest.raises(MalformedDelivery):
            statements(name)
        return
    said = statements(name)
    leavers = [s for s in said if isinstance(s, IdentityEvent) and s.kind in ENDS_ACCESS]
    enabled = [s for s in said if isinstance(s, IdentityEvent) and s.kind is EventKind.ACCOUNT_ENABLED]
    if name in DIFFERENT:
        expected = "ignore"
    if expected == "offboard":
        assert leavers
        for event in leavers:
            check_person(event, meta(name)["expected_user"])
    elif expected == "reactivate":
        assert enabled
        assert not leavers
        check_person(enabled[0], meta(name)["expected_user"])
    else:
        assert not leavers
        assert not enabled
        if expected == "handshake":
            assert [type(s) for s in said] == [Chore]


def check_person(event: IdentityEvent, user: dict[str, str]) -> None:
    """Compare every identity that the expectation names."""
    subject = event.subject
    known = {subject.id, *subject.logins, *subject.emails}
    wanted = {user[k] for k in ("okta_id", "login", "entra_id", "user_id", "iam_user") if k in user}
    assert wanted
    assert wanted <= known
    assert user.get("must_not_be") not in known
    if "iam_user" in user:
        assert subject.system == "aws-org"
        assert event.detail["account"] == user["account"]
    if "user_id" in user:
        assert subject.system == "aws-org:identity-store"
        assert event.detail["identityStoreId"] == user["identity_store_id"]


async def test_the_published_entra_notifications_are_believed_by_their_client_state() -> None:
    body = raw("entra/graph_lifecycle_reauthorizationRequired")
    tenant = "84bd8158-6d4d-4958-8b9f-9d6445542f95"
    given = delivery(body)
    source = entra(tenant_id=tenant, client_state=Secret("{secret client state}"))
    await source.verify(given, given.received_at)
