"""What the `entra` connector makes of a tenant that is busy, broken, lying, or not the tenant at all."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator

import pytest

from connectors.entra import Entra
from offboard_worker.core.credential import Action, CredentialKind, CredentialState, Strength, strength_of
from offboard_worker.core.person import Person
from offboard_worker.demo.graph_simulator import GraphSimulator
from offboard_worker.errors import AccessRefused, ConnectorError, Fatal, Retryable
from tests.connectors.entra_world import SYSTEM, World, found, one, world

pytestmark = [pytest.mark.integration, pytest.mark.filterwarnings("ignore:This class is deprecated")]  # the SDK's own


@pytest.fixture
async def tenant() -> AsyncIterator[World]:
    async with world() as made:
        yield made


@pytest.fixture
async def entra(tenant: World) -> AsyncIterator[Entra]:
    async with tenant.connector(timeout=0.6) as opened:
        yield opened


KINDS = {
    CredentialKind.ACCOUNT: "PATCH /v1.0/users/*",
    CredentialKind.ROLE: "DELETE /v1.0/roleManagement/**",
    CredentialKind.GROUP_MEMBERSHIP: "DELETE /v1.0/groups/**",
    CredentialKind.APP_ASSIGNMENT: "DELETE /v1.0/users/*/appRoleAssignments/*",
    CredentialKind.OAUTH_GRANT: "DELETE /v1.0/oauth2PermissionGrants/*",
    CredentialKind.APP_SECRET: "POST /v1.0/*/*/removePassword",
}


@pytest.mark.parametrize("kind", KINDS)
async def test_a_vendor_that_only_says_it_did_is_found_out(tenant: World, entra: Entra, kind: CredentialKind) -> None:
    credential = await one(entra, tenant.leaver, kind)
    tenant.graph.faults.lie(KINDS[kind])
    await entra.disable(credential)
    state = await entra.state(credential)
    assert state is CredentialState.ACTIVE
    assert strength_of(state, entra.kinds[kind], Action.DISABLE) is Strength.FAILED


async def test_a_lie_about_sessions_is_never_called_verified(tenant: World, entra: Entra) -> None:
    sessions = await one(entra, tenant.leaver, CredentialKind.SESSION)
    tenant.graph.faults.lie("POST /v1.0/users/*/revokeSignInSessions")
    await entra.disable(sessions)
    state = await entra.state(sessions)
    assert strength_of(state, entra.kinds[CredentialKind.SESSION], Action.DISABLE) is Strength.ACKNOWLEDGED


@pytest.mark.parametrize(("header", "seconds"), [("7", 7.0), ("0.25", 0.25), (None, None), ("soon", None)])
async def test_throttling_is_told_to_the_job_at_once_and_never_slept_off(
    tenant: World, entra: Entra, header: str | None, seconds: float | None
) -> None:
    account = await one(entra, tenant.leaver, CredentialKind.ACCOUNT)
    tenant.graph.throttle("PATCH /v1.0/users/*", header)
    began = time.monotonic()
    with pytest.raises(Retryable) as told:
        await entra.disable(account)
    assert told.value.retry_after == seconds
    assert told.value.status == 429
    assert time.monotonic() - began < 0.5
    assert tenant.graph.faults.count("PATCH /v1.0/users/*") == 1


async def test_throttling_until_a_date_is_understood(tenant: World, entra: Entra) -> None:
    tenant.graph.throttle("GET /v1.0/users", "Fri, 31 Dec 2100 23:59:59 GMT")
    with pytest.raises(Retryable) as told:
        await entra.identify(tenant.leaver)
    assert told.value.retry_after is not None
    assert told.value.retry_after > 86_400


@pytest.mark.parametrize("status", [500, 502, 503, 504])
async def test_a_broken_vendor_is_asked_again_by_the_job_alone(tenant: World, entra: Entra, status: int) -> None:
    account = await one(entra, tenant.leaver, CredentialKind.ACCOUNT)
    tenant.graph.faults.answer("PATCH /v1.0/users/*", status=status, text="<html>oops</html>", content_type="text/html")
    with pytest.raises(Retryable) as told:
        await entra.disable(account)
    assert told.value.status == status
    assert tenant.graph.faults.count("PATCH /v1.0/users/*") == 1
    assert await entra.disable(account)


@pytest.mark.parametrize("performed", [False, True])
async def test_a_vendor_that_never_answers_costs_the_timeout_and_no_more(
    tenant: World, entra: Entra, performed: bool
) -> None:
    account = await one(entra, tenant.leaver, CredentialKind.ACCOUNT)
    tenant.graph.faults.hang("PATCH /v1.0/users/*", 5.0, performed=performed)
    began = time.monotonic()
    with pytest.raises(Retryable, match="no answer within"):
        await entra.disable(account)
    assert time.monotonic() - began < 2.0
    expected = CredentialState.DISABLED if performed else CredentialState.ACTIVE
    assert await entra.state(account) is expected


@pytest.mark.parametrize("call", ["GET /v1.0/users/*/memberOf/**", "GET /v1.0/users/*", "GET /v1.0/roleManagement/**"])
async def test_half_a_body_is_not_half_a_list(tenant: World, entra: Entra, call: str) -> None:
    tenant.graph.faults.drop(call)
    with pytest.raises(Retryable):
        await found(entra, tenant.leaver)


async def test_a_later_page_that_fails_fails_the_whole_list(tenant: World, entra: Entra) -> None:
    tenant.graph.faults.answer("GET /v1.0/users/*/memberOf/**", status=503, times=1)
    with pytest.raises(Retryable):
        await found(entra, tenant.leaver)


@pytest.mark.parametrize("body", ["", "{}", '{"value": null}', "[]", "<html>welcome</html>", '{"value": [{"id": '])
async def test_a_200_that_is_no_list_is_never_taken_for_an_empty_one(tenant: World, entra: Entra, body: str) -> None:
    kind = "application/json"
    tenant.graph.faults.answer("GET /v1.0/users/*/memberOf/**", status=200, text=body, content_type=kind)
    with pytest.raises(Retryable):
        await found(entra, tenant.leaver)


@pytest.mark.parametrize("body", ["", "{}", '{"id": "x"}', "null"])
async def test_a_200_that_is_no_user_proves_nothing(tenant: World, entra: Entra, body: str) -> None:
    account = await one(entra, tenant.leaver, CredentialKind.ACCOUNT)
    tenant.graph.faults.answer("GET /v1.0/users/*", status=200, text=body, content_type="application/json")
    with pytest.raises(Retryable):
        await entra.state(account)


async def test_a_404_that_is_not_graphs_is_not_already_gone(tenant: World, entra: Entra) -> None:
    """A wrong base_url or a gateway would otherwise prove that every credential is gone."""
    credentials = [c for held in (await found(entra, tenant.leaver)).values() for c in held]
    tenant.graph.faults.answer("* /v1.0/**", status=404, text="<html>no such page</html>", times=None)
    for credential in credentials:
        if credential.kind is not CredentialKind.SESSION:
            with pytest.raises(Fatal):
                await entra.state(credential)
        with pytest.raises(Fatal):
            await entra.disable(credential)


async def test_a_redirect_is_neither_followed_nor_taken_for_success(tenant: World, entra: Entra) -> None:
    account = await one(entra, tenant.leaver, CredentialKind.ACCOUNT)
    async with GraphSimulator() as elsewhere:
        moved = {"Location": f"{elsewhere.api}/users/{tenant.ada}"}
        tenant.graph.faults.answer("PATCH /v1.0/users/*", status=302, headers=moved)
        with pytest.raises(Fatal, match="302"):
            await entra.disable(account)
        assert not elsewhere.faults.calls


async def test_our_token_goes_to_no_other_host(tenant: World, entra: Entra) -> None:
    """A next link may say anything: the token leaves for the origin of base_url alone."""
    async with GraphSimulator() as elsewhere:
        link = f"{elsewhere.api}/users?$skiptoken=x"
        answer = {"value": [], "@odata.nextLink": link}
        tenant.graph.faults.answer("GET /v1.0/users", status=200, json=answer)
        with pytest.raises(Fatal, match="not base_url"):
            await entra.identify(tenant.leaver)
        assert not elsewhere.faults.calls


async def test_pages_that_lead_in_a_circle_end(tenant: World, entra: Entra) -> None:
    link = f"{tenant.graph.api}/users?$skiptoken=b2Zmc2V0OjA="
    tenant.graph.faults.answer("GET /v1.0/users", status=200, json={"value": [], "@odata.nextLink": link}, times=None)
    with pytest.raises(Fatal, match="circle"):
        await entra.identify(tenant.leaver)


# Our own access


async def test_a_token_that_expired_early_is_replaced_and_the_call_tried_again(tenant: World, entra: Entra) -> None:
    account = await one(entra, tenant.leaver, CredentialKind.ACCOUNT)
    tenant.graph.expire_tokens()
    with pytest.raises(Retryable) as told:
        await entra.disable(account)
    assert told.value.retry_after == 0.0
    await entra.disable(account)
    assert await entra.state(account) is CredentialState.DISABLED


async def test_a_fresh_token_that_graph_refuses_pauses_the_connector(tenant: World, entra: Entra) -> None:
    tenant.graph.fail("GET /v1.0/users", 401, "InvalidAuthenticationToken")
    with pytest.raises(AccessRefused):
        await entra.identify(tenant.leaver)


async def test_a_missing_permission_is_said_with_advice(tenant: World, entra: Entra) -> None:
    tenant.graph.roles = ("User.Read.All",)
    account = Person("p", aliases={SYSTEM: (tenant.ada,)})
    with pytest.raises(AccessRefused, match="Authorization_RequestDenied") as told:
        await found(entra, account)
    assert "admin consent" in told.value.advice


async def test_a_wrong_secret_is_refused_without_being_repeated(tenant: World) -> None:
    async with tenant.connector(client_secret="not-the-secret-7781") as entra:
        with pytest.raises(AccessRefused, match="AADSTS7000215") as told:
            await entra.check()
    shown = f"{told.value} {told.value.advice} {told.value!r} {entra!r}"
    assert "not-the-secret-7781" not in shown


@pytest.mark.parametrize(("status", "expected"), [(429, 3.5), (503, None)])
async def test_a_busy_token_endpoint_is_tried_again_later(
    tenant: World, entra: Entra, status: int, expected: float | None
) -> None:
    headers = {"Retry-After": str(expected)} if expected else {}
    tenant.graph.faults.answer("POST /*/oauth2/v2.0/token", status=status, headers=headers)
    with pytest.raises(Retryable) as told:
        await entra.check()
    assert told.value.retry_after == expected


async def test_one_token_serves_many_calls(tenant: World, entra: Entra) -> None:
    await found(entra, tenant.leaver)
    await found(entra, tenant.bystander)
    assert tenant.graph.faults.count("POST /*/oauth2/v2.0/token") == 1


async def test_a_tenant_that_can_not_be_reached_is_tried_again(tenant: World) -> None:
    async with GraphSimulator() as gone:
        url = gone.url
    async with tenant.connector(base_url=f"{url}/v1.0", login_url=url) as entra:
        with pytest.raises(Retryable, match="connection"):
            await entra.check()
    async with tenant.connector() as entra:
        assert (await entra.check()).ok


@pytest.mark.parametrize("owner", ["", "me", "../groups", "x?y"])
async def test_an_id_that_is_none_reaches_no_call(tenant: World, entra: Entra, owner: str) -> None:
    """`DELETE /users/{""}` would address something else than one person."""
    account = await one(entra, tenant.leaver, CredentialKind.ACCOUNT)
    before = len(tenant.calls)
    odd = type(account)(account.connector, account.kind, owner, owner)
    for verb in (entra.disable, entra.delete, entra.state):
        with pytest.raises(ConnectorError, match="not an object id"):
            await verb(odd)
    assert len(tenant.calls) == before
