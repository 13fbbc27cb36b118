"""What Okta's event hooks prove and mean."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from offboard_worker.core.event import EventKind, IdentityEvent, Ignored
from offboard_worker.core.person import Subject
from offboard_worker.errors import BadSignature, MalformedDelivery, SourceUnavailable
from offboard_worker.secret import Secret
from offboard_worker.sources.okta import OktaConfig
from offboard_worker.sources.okta_types import MEANING
from offboard_worker.sources.source import Learned
from tests.sources.deliveries import NOW, delivery, fixture, okta

ROBIN = Subject(
    "okta-main",
    id="00uROBIN0001",
    emails=("robin.leaver@example.com",),
    logins=("robin.leaver@example.com",),
    name="Robin Leaver",
)


def one_event(vendor_type: str, **changes: Any) -> bytes:
    body = json.loads(fixture("okta/deactivate"))
    body["data"]["events"][0].update({"eventType": vendor_type, **changes})
    return json.dumps(body).encode()


def test_the_verification_is_answered_without_the_secret() -> None:
    answer = okta().handshake(delivery(method="GET", headers={"X-Okta-Verification-Challenge": "abc-123"}))
    assert answer is not None
    assert answer.status == 200
    assert json.loads(answer.body) == {"verification": "abc-123"}
    assert answer.content_type == "application/json"


@pytest.mark.parametrize(
    "headers", [{}, {"X-Okta-Verification-Challenge": ""}, {"X-Okta-Verification-Challenge": "x" * 1025}]
)
def test_another_get_is_refused(headers: dict[str, str]) -> None:
    with pytest.raises(MalformedDelivery):
        okta().handshake(delivery(method="GET", headers=headers))


def test_a_post_is_never_a_handshake() -> None:
    assert okta().handshake(delivery(b"{}", headers={"X-Okta-Verification-Challenge": "abc"})) is None


async def test_only_the_exact_secret_is_accepted() -> None:
    await okta().verify(delivery(headers={"Authorization": "hook-secret"}), NOW)
    for wrong in ("", "hook-secret ", "Hook-Secret", "hook-secre", "hook-secret\udcff"):
        with pytest.raises(BadSignature):
            await okta().verify(delivery(headers={"Authorization": wrong}), NOW)
    with pytest.raises(BadSignature) as caught:
        await okta().verify(delivery(), NOW)
    assert "hook-secret" not in caught.value.message + caught.value.advice


async def test_the_secret_can_come_in_another_header() -> None:
    await okta(header="X-Hook-Key").verify(delivery(headers={"X-Hook-Key": "hook-secret"}), NOW)
    with pytest.raises(BadSignature):
        await okta(header="X-Hook-Key").verify(delivery(headers={"Authorization": "hook-secret"}), NOW)


def test_the_leaver_is_the_target_and_not_the_administrator() -> None:
    assert list(okta().parse(delivery(fixture("okta/deactivate")))) == [
        IdentityEvent(
            "okta-main",
            "11111111-0000-11ef-8000-000000000001:user.lifecycle.deactivate",
            EventKind.ACCOUNT_DISABLED,
            ROBIN,
            datetime(2026, 11, 20, 9, 15, 30, 123000, UTC),
            "user.lifecycle.deactivate",
        )
    ]


def test_several_events_of_one_delivery_each_keep_their_own_meaning_and_key() -> None:
    said = list(okta().parse(delivery(fixture("okta/several_events"))))
    assert len({statement.key for statement in said}) == 6  # two share a uuid
    suspend, clear, failed, group, application, deleted = said
    assert isinstance(suspend, IdentityEvent)
    assert suspend.kind is EventKind.ACCOUNT_SUSPENDED
    assert isinstance(clear, IdentityEvent)
    assert clear.kind is EventKind.SESSION_REVOKED
    assert isinstance(failed, Ignored)
    assert "FAILURE" in failed.reason
    assert isinstance(group, Ignored)  # target: null
    assert isinstance(application, IdentityEvent)
    assert (application.kind, application.subject) == (EventKind.ACCESS_REMOVED, ROBIN)
    assert application.detail["AppInstance.id"] == "0oaAPP000001"
    assert isinstance(deleted, IdentityEvent)
    assert deleted.kind is EventKind.ACCOUNT_PURGED
    assert deleted.subject == Subject(
        "okta-main", id="00uROBIN0001", name="Robin Leaver"
    )  # deleted.invalid is no address


def test_leaving_a_group_is_lost_access_unless_the_group_is_the_staff() -> None:
    (plain,) = okta().parse(delivery(fixture("okta/group_removal")))
    (leaver,) = okta(leaver_groups={"00gSTAFF0001"}).parse(delivery(fixture("okta/group_removal")))
    assert isinstance(plain, IdentityEvent)
    assert isinstance(leaver, IdentityEvent)
    assert plain.kind is EventKind.ACCESS_REMOVED
    assert plain.detail == {"UserGroup.id": "00gSTAFF0001", "UserGroup.name": "Staff"}
    assert leaver.kind is EventKind.ACCOUNT_DISABLED


@pytest.mark.parametrize("vendor_type", sorted(name for name in MEANING if not name.endswith("*")))
def test_every_type_of_the_table_says_what_the_table_says(vendor_type: str) -> None:
    (said,) = okta().parse(delivery(one_event(vendor_type)))
    meaning = MEANING[vendor_type]
    if meaning.kind is not None:
        assert isinstance(said, IdentityEvent)
        assert (said.kind, said.subject) == (meaning.kind, ROBIN)
    elif meaning.teaches:
        assert said == Learned(said.key, ROBIN, vendor_type)
    else:
        assert said == Ignored(said.key, meaning.says, vendor_type)


@pytest.mark.parametrize("result", ["FAILURE", "SKIPPED", "DENY", "success", None])
def test_only_a_successful_deactivation_counts(result: str | None) -> None:
    (said,) = okta().parse(delivery(one_event("user.lifecycle.deactivate", outcome={"result": result})))
    assert isinstance(said, Ignored)


def test_an_unreadable_event_does_not_cost_the_others() -> None:
    body = json.loads(fixture("okta/deactivate"))
    body["data"]["events"] = [{"uuid": 5}, body["data"]["events"][0], "text"]
    bad, leaver, _ = okta().parse(delivery(body))
    assert isinstance(bad, Ignored)
    assert isinstance(leaver, IdentityEvent)
    assert leaver.kind is EventKind.ACCOUNT_DISABLED


def test_a_strange_date_does_not_cost_the_event() -> None:
    (said,) = okta().parse(delivery(one_event("user.lifecycle.suspend", published="yesterday")))
    assert isinstance(said, IdentityEvent)
    assert said.occurred_at == NOW


def test_the_namespace_is_configurable() -> None:
    (said,) = okta(system="okta").parse(delivery(fixture("okta/deactivate")))
    assert isinstance(said, IdentityEvent)
    assert said.subject.system == "okta"


def test_plain_http_to_another_machine_is_refused() -> None:
    with pytest.raises(ValueError, match="loopback"):
        OktaConfig(type="okta", secret=Secret("x"), base_url="http://okta.example.com")
    assert OktaConfig(type="okta", secret=Secret("x"), base_url="http://127.0.0.1:1/").base_url == "http://127.0.0.1:1"


@pytest.mark.integration
@pytest.mark.parametrize(
    ("status", "kind"),
    [("DEPROVISIONED", EventKind.ACCOUNT_DISABLED), ("SUSPENDED", EventKind.ACCOUNT_SUSPENDED), ("STAGED", None)],
)
async def test_an_import_is_reread(status: str, kind: EventKind | None) -> None:
    async def user(request: web.Request) -> web.Response:
        assert request.headers["Authorization"] == "SSWS read-only"
        profile = {"login": "robin", "email": "robin.leaver@example.com"}
        return web.json_response({"id": request.match_info["id"], "status": status, "profile": profile})

    app = web.Application()
    app.router.add_get("/api/v1/users/{id}", user)
    async with TestServer(app) as server:
        source = okta(base_url=str(server.make_url("")), api_token=Secret("read-only"))
        (event,) = source.parse(delivery(one_event("system.import.user.update_user_lifecycle_from_master")))
        assert isinstance(event, IdentityEvent)
        said = await source.confirm(event)
        await source.close()
    if kind is None:
        assert isinstance(said, Ignored)
    else:
        assert isinstance(said, IdentityEvent)
        assert said.kind is kind
        assert said.subject.emails == ("robin.leaver@example.com",)


@pytest.mark.integration
async def test_the_roster_follows_every_page_and_never_another_host() -> None:
    pages = 2

    async def users(request: web.Request) -> web.Response:
        page = int(request.query.get("after", 0))
        rows = [{"id": f"00u{page}", "status": "ACTIVE", "profile": {"login": f"p{page}@example.com"}}]
        response = web.json_response(rows)
        here = str(request.url.with_path("/api/v1/users").with_query(None))
        elsewhere = "http://127.0.0.2:9/api/v1/users"
        target = here if page < 2 else elsewhere
        if page < pages:
            response.headers.add("Link", f'<{target}?after={page + 1}>; rel="next"')
        response.headers.add("Link", f'<{here}>; rel="self"')
        return response

    app = web.Application()
    app.router.add_get("/api/v1/users", users)
    async with TestServer(app) as server:
        source = okta(base_url=str(server.make_url("")), api_token=Secret("read-only"))
        assert [subject.id async for subject in source.roster()] == ["00u0", "00u1", "00u2"]
        pages = 3
        with pytest.raises(SourceUnavailable):
            _ = [subject async for subject in source.roster()]
        await source.close()
