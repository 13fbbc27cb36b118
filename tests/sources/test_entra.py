"""What Graph's notifications prove and mean, and what re-reading the directory says."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from offboard_worker.core.event import EventKind, IdentityEvent, Ignored
from offboard_worker.core.person import Subject
from offboard_worker.demo.graph_simulator import GraphSimulator
from offboard_worker.errors import BadSignature, ConfigError, MalformedDelivery, SourceUnavailable, UnknownTopic
from offboard_worker.secret import Secret
from offboard_worker.sources.entra import ENSURE, RENEW, EntraConfig, EntraNotifications
from offboard_worker.sources.source import CATCH_UP, Chore, Learned
from tests.contract_checks import Exemption, VendorContract
from tests.shared_material import shared
from tests.sources.deliveries import NOW, TENANT, delivery, entra, fixture

USER = "6e7b768e-0000-4000-8000-00000000aaaa"


def notification(**changes: Any) -> dict[str, Any]:
    item = json.loads(fixture("entra/user_updated_twice"))["value"][0]
    return {"value": [{**item, **changes}]}


def changed(user_id: str, *, change: str = "updated", at: datetime | None = None) -> IdentityEvent:
    (event,) = entra().parse(
        delivery(
            notification(changeType=change, resourceData={"@odata.type": "#microsoft.graph.user", "id": user_id}),
            at=at or datetime.now(UTC) - timedelta(minutes=5),
        )
    )
    assert isinstance(event, IdentityEvent)
    return event


def test_the_validation_token_comes_back_as_plain_text_that_no_browser_will_run() -> None:
    token = "Validation: Testing <script>alert(1)</script> Request-Id: 522a8e7e"
    answer = entra().handshake(delivery(query={"validationToken": token}))
    assert answer is not None
    assert (answer.status, answer.body.decode()) == (200, token)
    assert answer.content_type.startswith("text/plain")
    assert answer.headers["X-Content-Type-Options"] == "nosniff"


@pytest.mark.parametrize("token", ["", "x" * 4097])
def test_an_absurd_validation_token_is_refused(token: str) -> None:
    with pytest.raises(MalformedDelivery):
        entra().handshake(delivery(query={"validationToken": token}))


def test_a_notification_is_no_handshake_and_is_answered_202() -> None:
    given = delivery(fixture("entra/user_updated_twice"))
    assert entra().handshake(given) is None
    assert entra().answer(given).status == 202


async def test_every_item_must_carry_the_client_state() -> None:
    await entra().verify(delivery(fixture("entra/user_updated_twice")), NOW)
    body = json.loads(fixture("entra/user_updated_twice"))
    for wrong in ("", None, "Not-A-Secret-State", "not-a-secret-state2"):
        body["value"][1]["clientState"] = wrong
        with pytest.raises(BadSignature):
            await entra().verify(delivery(body), NOW)
    del body["value"][1]["clientState"]
    with pytest.raises(BadSignature):
        await entra().verify(delivery(body), NOW)


@pytest.mark.parametrize("escaped", [False, True], ids=["plain", "escaped"])
def test_the_client_state_is_not_kept(escaped: bool) -> None:
    source, state = entra(), '"tricky" \\ st\u00e4te'
    source = EntraNotifications("entra-corp", source.config.model_copy(update={"client_state": Secret(state)}))
    written = "".join(f"\\u{ord(letter):04x}" for letter in state) if escaped else json.dumps(state)[1:-1]
    body = f'{{"value":[{{"clientState":"{written}","changeType":"updated"}}]}}'.encode()
    assert json.loads(body)["value"][0]["clientState"] == state
    kept = source.keepable(body)
    assert json.loads(kept) == {"value": [{"clientState": "\u2022\u2022\u2022\u2022", "changeType": "updated"}]}


async def test_an_empty_delivery_proves_nothing() -> None:
    with pytest.raises(MalformedDelivery):
        await entra().verify(delivery({"value": []}), NOW)


@pytest.mark.parametrize("name", ["tenantId", "organizationId"])
async def test_another_tenant_is_refused_under_either_spelling(name: str) -> None:
    with pytest.raises(UnknownTopic):
        await entra().verify(delivery(notification(**{name: "other-tenant"})), NOW)
    await entra(tenants={"OTHER-tenant", TENANT}).verify(delivery(notification(**{name: "other-tenant"})), NOW)


async def test_a_subscription_that_is_not_listed_is_refused() -> None:
    with pytest.raises(UnknownTopic):
        await entra(subscriptions={"mine"}).verify(delivery(notification()), NOW)
    await entra(subscriptions={"mine"}).verify(delivery(notification(subscriptionId="mine")), NOW)


def test_several_notifications_of_one_change_become_one_event_to_be_confirmed() -> None:
    (event,) = entra().parse(delivery(fixture("entra/user_updated_twice")))
    assert isinstance(event, IdentityEvent)
    assert event.kind is EventKind.ACCOUNT_CHANGED
    assert event.subject == Subject("entra-corp", id=USER)


def test_a_later_identical_notification_is_another_statement() -> None:
    """The disable that follows a harmless change looks just like it."""
    body = fixture("entra/user_updated_twice")
    first, second = (entra().parse(delivery(body, at=NOW + timedelta(seconds=s))) for s in (0, 1))
    assert {s.key for s in first}.isdisjoint(s.key for s in second)


def test_what_is_not_about_a_user_ends_nothing() -> None:
    message = {
        "resource": f"users/{USER}@{TENANT}/messages/1",
        "resourceData": {"@odata.type": "#Microsoft.Graph.Message", "id": "1"},
    }
    for changes in (message, {**message, "resourceData": None}, {"changeType": "imploded"}):
        (said,) = entra().parse(delivery(notification(**changes)))
        assert isinstance(said, Ignored)


@pytest.mark.parametrize("user_id", ["..", ".", "a/b", "a?b", "a b", ""])
def test_an_id_that_could_lead_elsewhere_is_never_asked_for(user_id: str) -> None:
    (said,) = entra().parse(delivery(notification(resource="users", resourceData={"id": user_id})))
    assert isinstance(said, Ignored)


def test_the_id_is_found_in_the_resource_where_the_data_are_missing() -> None:
    for resource in (f"Users/{USER}", f"users('{USER}')"):
        (said,) = entra().parse(delivery(notification(resource=resource, resourceData=None)))
        assert isinstance(said, IdentityEvent)
        assert said.subject.id == USER


def test_lifecycle_notifications_become_chores() -> None:
    said = list(entra().parse(delivery(fixture("entra/lifecycle"))))
    assert [s.name if isinstance(s, Chore) else type(s) for s in said] == [RENEW, ENSURE, CATCH_UP, Ignored]
    assert isinstance(said[0], Chore)
    assert said[0].argument["subscription"] == "7f105c7d-0000-4000-8000-00000000bbbb"


def test_plain_http_is_for_loopback_only() -> None:
    for name in ("base_url", "login_url", "notification_url"):
        with pytest.raises(ValueError, match="loopback"):
            entra(**{name: "http://graph.example.com"})
        entra(**{name: "http://localhost:8080/x"})


def test_the_secrets_do_not_show() -> None:
    config = EntraConfig(
        type="entra", tenant_id=TENANT, client_id="c", client_secret=Secret("s3cr3t"), client_state=Secret("st4te")
    )
    assert "s3cr3t" not in repr(config) + config.model_dump_json()
    assert "st4te" not in repr(config) + config.model_dump_json()


# With a directory


# The document writes these two in OData's other spelling; https://learn.microsoft.com/graph/api/user-delta writes ours.
SPELLINGS = {"/users/delta": "/users/delta()", "/microsoft.graph.user": "/graph.user"}


@pytest.fixture(scope="module")
def contract() -> VendorContract:
    """The same generated document is too strict in one thing, and silent about the links that Graph itself makes."""
    exemptions = [
        Exemption(r"/users", r"query: the document knows no '\$(deltatoken|skiptoken)'", "a link that Graph made"),
        Exemption(r".", r"at \.: '@odata.type' is a required property", "Graph neither wants nor sends it on lists"),
    ]
    return VendorContract(shared("specs/msgraph.json"), shared("specs/graph-extra.json"), exemptions=exemptions)


@pytest.fixture
async def graph(contract: VendorContract) -> AsyncIterator[GraphSimulator]:
    """A directory; afterwards each call and each answer is held against Microsoft's own document."""
    async with GraphSimulator(tenant_id=TENANT, page_size=2) as simulator:
        yield simulator
    for call in simulator.faults.calls:
        if call.path.startswith("/v1.0"):
            path = call.path
            for ours, theirs in SPELLINGS.items():
                path = path.removesuffix(ours) + theirs if path.endswith(ours) else path
            contract.check(replace(call, path=path))


@pytest.fixture
async def source(graph: GraphSimulator) -> AsyncIterator[EntraNotifications]:
    built = entra(base_url=graph.api, login_url=graph.url, notification_url="http://127.0.0.1:9/webhooks/entra-corp")
    yield built
    await built.close()


@pytest.mark.integration
async def test_a_disabled_account_is_confirmed_with_its_login_and_mail(
    graph: GraphSimulator, source: EntraNotifications
) -> None:
    user = graph.directory.add_user("robin@corp.example.com", mail="robin.leaver@example.com", name="Robin")
    enabled = await source.confirm(changed(user))
    graph.directory.update_user(user, {"accountEnabled": False})
    disabled = await source.confirm(changed(user))
    assert isinstance(enabled, IdentityEvent)
    assert isinstance(disabled, IdentityEvent)
    assert (enabled.kind, disabled.kind) == (EventKind.ACCOUNT_ENABLED, EventKind.ACCOUNT_DISABLED)
    assert enabled.detail["confirmed"] == "state"
    assert datetime.now(UTC) - enabled.occurred_at < timedelta(minutes=1)  # dated by the reading
    assert enabled.occurred_at < disabled.occurred_at
    whole = Subject("entra-corp", user, ("robin.leaver@example.com",), ("robin@corp.example.com",), "Robin")
    assert disabled.subject == whole


@pytest.mark.integration
async def test_a_soft_delete_is_a_disable_and_a_purge_a_purge(
    graph: GraphSimulator, source: EntraNotifications
) -> None:
    user = graph.directory.add_user("robin@corp.example.com")
    graph.directory.soft_delete(user)
    soft = await source.confirm(changed(user))
    graph.directory.purge(user)
    gone = await source.confirm(changed(user))
    assert isinstance(soft, IdentityEvent)
    assert isinstance(gone, IdentityEvent)
    assert (soft.kind, soft.subject.logins) == (EventKind.ACCOUNT_DISABLED, ("robin@corp.example.com",))  # not mangled
    assert soft.detail["deleted"].startswith("soft")
    assert gone.kind is EventKind.ACCOUNT_PURGED


@pytest.mark.integration
async def test_a_new_account_that_is_nowhere_yet_is_not_taken_for_a_leaver(source: EntraNotifications) -> None:
    with pytest.raises(SourceUnavailable) as caught:
        await source.confirm(changed(USER, at=datetime.now(UTC)))
    assert caught.value.retry_after is not None
    assert 0 < caught.value.retry_after <= 15
    deleted = await source.confirm(changed(USER, change="deleted", at=datetime.now(UTC)))
    assert isinstance(deleted, IdentityEvent)
    assert deleted.kind is EventKind.ACCOUNT_PURGED


@pytest.mark.integration
async def test_trouble_at_graph_is_told_with_its_retry_after(graph: GraphSimulator, source: EntraNotifications) -> None:
    user = graph.directory.add_user("robin@corp.example.com")
    for text, seconds in (("7", 7.0), ("1.5", 1.5), (None, None)):
        graph.throttle("GET /v1.0/users/*", text)
        with pytest.raises(SourceUnavailable) as caught:
            await source.confirm(changed(user))
        assert caught.value.retry_after == seconds
    graph.expire_tokens()  # a 401 is met with a new token
    assert isinstance(await source.confirm(changed(user)), IdentityEvent)


@pytest.mark.integration
async def test_a_refused_application_is_told_without_its_secret(graph: GraphSimulator) -> None:
    wrong = entra(base_url=graph.api, login_url=graph.url, client_secret=Secret("wr0ng-secret"))
    with pytest.raises(SourceUnavailable) as caught:
        await wrong.confirm(changed(USER))
    await wrong.close()
    assert "client_secret" in caught.value.advice
    assert "wr0ng-secret" not in caught.value.message + caught.value.advice


@pytest.mark.integration
async def test_a_catch_up_learns_everybody_first_and_then_tells_what_changed(
    graph: GraphSimulator, source: EntraNotifications
) -> None:
    staying, leaving, soft, purged, old = (graph.directory.add_user(f"{n}@corp.example.com") for n in "abcde")
    graph.directory.update_user(old, {"accountEnabled": False})
    baseline, cursor = await source.catch_up(None)
    assert {s.subject.id for s in baseline if isinstance(s, Learned)} == {staying, leaving, soft, purged, old}
    assert len(baseline) == 5  # three pages, and nobody is a leaver
    nothing, cursor = await source.catch_up(cursor)
    assert nothing == []

    graph.directory.update_user(leaving, {"accountEnabled": False})
    graph.directory.soft_delete(soft)
    graph.directory.soft_delete(purged)
    graph.directory.purge(purged)
    told, after = await source.catch_up(cursor)
    again, _ = await source.catch_up(cursor)
    kinds = {s.subject.id: s.kind for s in told if isinstance(s, IdentityEvent)}
    assert kinds == {
        leaving: EventKind.ACCOUNT_DISABLED,
        soft: EventKind.ACCOUNT_DISABLED,
        purged: EventKind.ACCOUNT_PURGED,
    }
    assert [s.key for s in told] == [s.key for s in again]  # the cursor wasn't stored: nothing is said twice
    assert (await source.catch_up(after))[0] == []


@pytest.mark.integration
async def test_an_expired_cursor_loses_no_leaver(graph: GraphSimulator, source: EntraNotifications) -> None:
    disabled, soft, staying = (graph.directory.add_user(f"{n}@corp.example.com") for n in "abc")
    graph.directory.update_user(disabled, {"accountEnabled": False})
    graph.directory.soft_delete(soft)
    told, cursor = await source.catch_up(f"{graph.api}/users/delta?$deltatoken=too-old")
    kinds = {s.subject.id: s.kind for s in told if isinstance(s, IdentityEvent)}
    assert kinds == {
        disabled: EventKind.ACCOUNT_DISABLED, soft: EventKind.ACCOUNT_DISABLED, staying: EventKind.ACCOUNT_ENABLED,
    }  # fmt: skip
    assert (await source.catch_up(cursor))[0] == []


@pytest.mark.integration
async def test_the_roster_is_everybody(graph: GraphSimulator, source: EntraNotifications) -> None:
    ids = {graph.directory.add_user(f"{n}@corp.example.com") for n in "abcde"}
    assert {subject.id async for subject in source.roster()} == ids


@pytest.mark.integration
async def test_the_subscription_is_made_kept_and_renewed(graph: GraphSimulator) -> None:
    """The receiver of this test answers the handshake with the source itself."""
    source = entra(base_url=graph.api, login_url=graph.url)

    async def receive(request: web.Request) -> web.Response:
        answer = source.handshake(delivery(await request.read(), query=dict(request.query)))
        assert answer is not None
        return web.Response(status=answer.status, body=answer.body, headers={"Content-Type": answer.content_type})

    app = web.Application()
    app.router.add_post("/webhooks/entra-corp", receive)
    async with TestServer(app) as server:
        with pytest.raises(ConfigError):
            await source.perform(Chore("k", ENSURE))
        await source.close()
        url = str(server.make_url("/webhooks/entra-corp"))
        source = entra(base_url=graph.api, login_url=graph.url, notification_url=url)
        (due,) = source.upkeep()
        assert "was made" in await source.perform(due)
        assert "is in place" in await source.perform(due)  # twice is harmless
        ((made, row),) = graph.directory.subscriptions.items()
        assert (row["changeType"], row["clientState"]) == ("updated,deleted", "not-a-secret-state")
        row["expirationDateTime"] = (datetime.now(UTC) + timedelta(days=2)).isoformat()
        assert "was renewed" in await source.perform(due)
        assert "was renewed" in await source.perform(Chore("k", RENEW, {"subscription": made}))
        assert "is in place" in await source.perform(Chore("k", RENEW, {"subscription": "lost"}))
        assert len(graph.directory.subscriptions) == 1
        await source.close()


@pytest.mark.integration
async def test_our_token_goes_to_no_other_address(graph: GraphSimulator, source: EntraNotifications) -> None:
    with pytest.raises(SourceUnavailable, match="another address"):
        await source.catch_up("http://127.0.0.2:9/v1.0/users/delta?$deltatoken=1")


@pytest.mark.integration
async def test_a_redirect_is_not_followed() -> None:
    seen: list[str] = []

    async def redirect(request: web.Request) -> web.Response:
        seen.append(request.path)
        if request.path.endswith("/token"):
            return web.json_response({"access_token": "t", "expires_in": 3600})
        return web.Response(status=302, headers={"Location": "/elsewhere"})

    app = web.Application()
    app.router.add_route("*", "/{rest:.*}", redirect)
    async with TestServer(app) as server:
        url = str(server.make_url(""))
        source = entra(base_url=url, login_url=url)
        with pytest.raises(SourceUnavailable, match="302"):
            await source.confirm(changed(USER))
        await source.close()
    assert "/elsewhere" not in seen


async def test_an_event_without_an_id_is_not_asked_for() -> None:
    said = await entra().confirm(replace(changed(USER), subject=Subject("entra-corp", emails=("a@example.com",))))
    assert isinstance(said, Ignored)
