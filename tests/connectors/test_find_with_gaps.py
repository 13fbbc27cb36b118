"""A leaver one of whose lists can't be read: the rest is found and ended all the same, and it never counts as done.

For each connector and each list that is refused, throttled or broken; then through the real job, on a real store.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest

from connectors.aws_iam import AwsIam
from connectors.entra import Entra
from connectors.entra.credentials import GLOBAL_ADMINISTRATOR
from connectors.okta import Okta
from offboard_worker.connector import Connector, drained
from offboard_worker.core.case import TargetState
from offboard_worker.core.credential import CredentialKind, CredentialState, Outcome
from offboard_worker.core.person import Person
from offboard_worker.demo.aws_simulator import AwsSimulator
from offboard_worker.demo.okta_records import User
from offboard_worker.demo.okta_simulator import OktaSimulator
from offboard_worker.errors import AccessRefused, NeedsHuman, Retryable
from offboard_worker.jobs import revoke
from offboard_worker.secret import Secret
from offboard_worker.store.cases import TargetRow
from tests.connectors import aws_world, entra_world
from tests.connectors.okta.world import living
from tests.jobs.conftest import office as office
from tests.jobs.conftest import sqlite_url as sqlite_url
from tests.jobs.toy import Office

pytestmark = [pytest.mark.integration, pytest.mark.filterwarnings("ignore:This class is deprecated")]  # msgraph's own

K = CredentialKind
SYSTEM = "okta"  # the namespace in which the office's events name people
DENIED = {"errorCode": "E0000006", "errorSummary": "You do not have permission"}


def refuse_at_okta(okta: OktaSimulator, path: str) -> None:
    okta.faults.answer(f"GET /api/v1/{path}", status=403, json=DENIED, times=None)


@pytest.fixture
async def aws() -> AsyncIterator[AwsSimulator]:
    async with AwsSimulator() as aws:
        await aws.add_user("ada")
        yield aws


@pytest.fixture
async def tenant() -> AsyncIterator[entra_world.World]:
    async with entra_world.world() as made:
        yield made


@pytest.fixture
async def okta() -> AsyncIterator[OktaSimulator]:
    async with OktaSimulator() as okta:
        yield okta


@pytest.fixture
def ada(okta: OktaSimulator) -> User:
    return okta.add_user(
        "ada@example.com",
        sessions=1,
        grants=[("0oaWiki", "profile")],
        refresh_tokens=["0oaPortal", "0oaMobile"],
        api_tokens=["nightly-export"],
        roles=["HELP_DESK_ADMIN"],
    )


@asynccontextmanager
async def at_aws(aws: AwsSimulator, **more: Any) -> AsyncIterator[AwsIam]:
    async with AwsIam.open("aws", aws_world.config_for(aws, system=SYSTEM, **more)) as iam:
        yield iam


@asynccontextmanager
async def at_entra(tenant: entra_world.World) -> AsyncIterator[Entra]:
    async with tenant.connector(system=SYSTEM) as entra:
        yield entra


@asynccontextmanager
async def at_okta(okta: OktaSimulator) -> AsyncIterator[Okta]:
    config = Okta.Config(base_url=okta.url, api_token=Secret(okta.token), system=SYSTEM, timeout=5.0)
    async with Okta.open("okta", config) as opened:
        yield opened


def whom(vendor_id: str) -> Person:
    return Person("p1", "Ada", {SYSTEM: (vendor_id,)})


async def kinds(connector: Connector[Any], vendor_id: str) -> tuple[list[CredentialKind], Exception | None]:
    credentials, error = await drained(connector.find(whom(vendor_id)))
    return [credential.kind for credential in credentials], error


# Each list of each connector


@pytest.mark.parametrize(
    ("permission", "hidden"),
    [
        ("iam:ListSSHPublicKeys", {K.SSH_KEY}),
        ("iam:ListAccessKeys", {K.ACCESS_KEY}),
        ("iam:ListServiceSpecificCredentials", {K.SERVICE_CREDENTIAL}),
        ("iam:ListSigningCertificates", {K.CERTIFICATE}),
        ("iam:ListMFADevices", {K.MFA_DEVICE}),
        ("iam:GetLoginProfile", {K.PASSWORD}),
        ("iam:ListGroupsForUser", {K.GROUP_MEMBERSHIP}),
        ("iam:ListAttachedUserPolicies", set()),  # the inline one is still seen
        ("iam:ListUserPolicies", set()),
        ("iam:GetUserPolicy", set()),
    ],
)
async def test_aws_yields_the_permissions_first_and_all_but_the_list_that_is_refused(
    aws: AwsSimulator, permission: str, hidden: set[CredentialKind]
) -> None:
    aws.refuse(permission)
    async with at_aws(aws) as iam:
        found, error = await kinds(iam, "ada")
    assert isinstance(error, AccessRefused)
    assert permission.partition(":")[2].lower() in str(error).replace("_", ""), "the error names the list"
    assert found[0] is K.PERMISSIONS
    assert set(found) == set(AwsIam.kinds) - hidden


async def test_aws_does_not_call_permissions_active_whose_policies_it_could_not_read(aws: AwsSimulator) -> None:
    aws.refuse("iam:ListAttachedUserPolicies")
    async with at_aws(aws) as iam:
        (permissions, *_), _ = await drained(iam.find(whom("ada")))
        assert permissions.state is CredentialState.UNKNOWN
        assert await iam.disable(permissions) is Outcome.DONE
        (permissions, *_), _ = await drained(iam.find(whom("ada")))
        assert permissions.state is CredentialState.DISABLED, "our deny-all is seen all the same"


async def test_aws_denies_everything_to_a_user_whose_policies_it_may_not_look_at(aws: AwsSimulator) -> None:
    aws.refuse("iam:GetUserPolicy")
    async with at_aws(aws) as iam:
        (permissions, *_), _ = await drained(iam.find(whom("ada")))
        assert await iam.disable(permissions) is Outcome.DONE
    state = await aws.state_of("ada")
    assert state is not None
    assert aws_world.deny_all_in(state)


async def test_aws_finds_the_sessions_whose_roles_it_may_not_look_at(aws: AwsSimulator) -> None:
    await aws.add_role("deploy")
    async with at_aws(aws, revoke_role_sessions=["deploy"]) as iam:
        (permissions, *_), _ = await drained(iam.find(whom("ada")))
        await iam.disable(permissions)
        aws.refuse("iam:GetRolePolicy")
        credentials, error = await drained(iam.find(whom("ada")))
    assert isinstance(error, AccessRefused)
    assert {credential.kind for credential in credentials} == set(AwsIam.kinds)
    (session,) = [credential for credential in credentials if credential.kind is K.SESSION]
    assert session.state is CredentialState.UNKNOWN


async def test_aws_finds_one_user_of_a_person_though_the_other_can_not_be_read(aws: AwsSimulator) -> None:
    await aws.add_user("ada-admin")
    aws.fail("GetUser")
    async with at_aws(aws) as iam:
        both = Person("p1", "Ada", {SYSTEM: ("ada", "ada-admin")})
        credentials, error = await drained(iam.find(both))
    assert isinstance(error, Retryable)
    assert len({credential.owner for credential in credentials}) == 1
    assert {credential.kind for credential in credentials} == set(AwsIam.kinds)


async def test_aws_finds_everything_though_it_can_not_learn_who_we_are_and_then_acts_on_nothing(
    aws: AwsSimulator,
) -> None:
    aws.fail("GetCallerIdentity", times=2)
    async with at_aws(aws) as iam:
        credentials, error = await drained(iam.find(whom("ada")))
        assert error is None, "no list is missing"
        assert {credential.kind for credential in credentials} == set(AwsIam.kinds)
        with pytest.raises(Retryable):  # it might be ourselves
            await iam.disable(credentials[0])
        assert await iam.disable(credentials[0]) is Outcome.DONE


async def test_who_is_throttled_and_refused_is_told_to_come_again(aws: AwsSimulator) -> None:
    aws.refuse("iam:ListSSHPublicKeys")
    aws.throttle("ListAccessKeys")
    async with at_aws(aws) as iam:
        found, error = await kinds(iam, "ada")
        assert isinstance(error, Retryable)
        assert set(AwsIam.kinds) - set(found) == {K.SSH_KEY, K.ACCESS_KEY}
        assert isinstance((await kinds(iam, "ada"))[1], AccessRefused), "and hears of the refusal then"


@pytest.mark.parametrize(
    ("path", "hidden"),
    [
        ("roleManagement/**", K.ROLE),
        ("users/*/memberOf/**", K.GROUP_MEMBERSHIP),
        ("users/*/appRoleAssignments", K.APP_ASSIGNMENT),
        ("users/*/oauth2PermissionGrants", K.OAUTH_GRANT),
        ("users/*/ownedObjects", K.APP_SECRET),
    ],
)
@pytest.mark.parametrize(("status", "error"), [(403, AccessRefused), (500, Retryable), (429, Retryable)])
async def test_entra_yields_account_and_sessions_first_and_all_but_the_list_that_fails(
    tenant: entra_world.World, path: str, hidden: CredentialKind, status: int, error: type[Exception]
) -> None:
    tenant.graph.faults.answer(f"GET /v1.0/{path}", status=status, times=None)
    async with at_entra(tenant) as entra:
        found, raised = await kinds(entra, tenant.ada)
    assert isinstance(raised, error)
    assert found[:2] == [K.ACCOUNT, K.SESSION]
    assert set(found) == set(Entra.kinds) - {hidden}


async def test_entra_finds_what_somebody_holds_though_their_login_can_not_be_read(tenant: entra_world.World) -> None:
    tenant.graph.faults.answer("GET /v1.0/users/*", status=500, times=None)
    async with at_entra(tenant) as entra:
        found, error = await kinds(entra, tenant.ada)
    assert isinstance(error, Retryable)
    assert set(found) == set(Entra.kinds) - {K.ACCOUNT, K.SESSION}


async def test_entra_disables_nobody_of_whom_it_can_not_tell_whether_they_own_the_tenant(
    tenant: entra_world.World,
) -> None:
    directory, faults = tenant.graph.directory, tenant.graph.faults
    mine = directory.assign_role(tenant.ada, GLOBAL_ADMINISTRATOR)
    roles = "GET /v1.0/roleManagement/**"
    async with at_entra(tenant) as entra:
        faults.answer(roles, status=403, times=None)
        (account, *_), _ = await drained(entra.find(whom(tenant.ada)))
        with pytest.raises(AccessRefused):
            await entra.disable(account)
        faults.clear()
        faults.answer(roles, status=503, times=1)
        with pytest.raises(Retryable):
            await entra.disable(account)
        with pytest.raises(NeedsHuman, match="last Global Administrator"):
            await entra.disable(account)
        assert directory.users[tenant.ada]["accountEnabled"] is True

        del directory.role_assignments[mine]  # no owner after all
        assert await entra.disable(account) is Outcome.DONE


@pytest.mark.parametrize(
    ("path", "hidden"),
    [
        ("api-tokens", {K.API_TOKEN}),
        ("users/*/roles", {K.ROLE}),
        ("users/*/grants", set()),  # the refresh tokens are of the same kind
        ("users/*/clients", set()),
        ("users/*/clients/*/tokens", set()),
    ],
)
async def test_okta_yields_account_and_sessions_first_and_all_but_the_list_that_is_refused(
    okta: OktaSimulator, ada: User, path: str, hidden: set[CredentialKind]
) -> None:
    refuse_at_okta(okta, path)
    async with at_okta(okta) as connector:
        found, error = await kinds(connector, ada.id)
    assert isinstance(error, AccessRefused)
    assert found[:2] == [K.ACCOUNT, K.SESSION]
    assert set(found) == set(Okta.kinds) - hidden


async def test_okta_finds_the_refresh_tokens_of_one_client_though_anothers_can_not_be_read(
    okta: OktaSimulator, ada: User
) -> None:
    okta.faults.answer("GET /api/v1/users/*/clients/0oaMobile/tokens", status=500, times=None)
    async with at_okta(okta) as connector:
        credentials, error = await drained(connector.find(whom(ada.id)))
    assert isinstance(error, Retryable)
    assert f"{ada.id}/0oaPortal" in {credential.scope for credential in credentials}


async def test_okta_suspends_nobody_of_whom_it_can_not_tell_whether_they_are_the_last_super_administrator(
    okta: OktaSimulator,
) -> None:
    okta.state.roles.clear()
    okta.add_role(okta.service_user.id, "ORG_ADMIN")
    last = okta.add_user("ida@example.com", roles=["SUPER_ADMIN"])
    okta.faults.answer(f"GET /api/v1/users/{last.id}/roles", status=500, times=None)
    async with at_okta(okta) as connector:
        (account, *_), _ = await drained(connector.find(whom(last.id)))
        with pytest.raises(Retryable):
            await connector.disable(account)
        assert last.status == "ACTIVE"
        okta.add_role(okta.service_user.id, "SUPER_ADMIN")  # then it isn't the last, whatever it is
        assert await connector.disable(account) is Outcome.DONE


# An inventory with a gap is none


async def test_an_inventory_that_misses_one_list_is_an_error(
    aws: AwsSimulator, tenant: entra_world.World, okta: OktaSimulator, ada: User
) -> None:
    aws.refuse("iam:ListSSHPublicKeys")
    tenant.graph.faults.answer("GET /v1.0/groups", status=403, times=None)
    refuse_at_okta(okta, f"users/{ada.id}/grants")
    async with at_aws(aws) as iam, at_entra(tenant) as entra, at_okta(okta) as connector:
        for each in (iam, entra, connector):
            assert isinstance((await drained(each.inventory()))[1], AccessRefused), each.title


# Through the job


async def job(office: Office, connector: Connector[Any], vendor_id: str) -> tuple[TargetRow, BaseException | None]:
    """Offboard somebody whose only system is this connector; return how its part ended."""

    @asynccontextmanager
    async def opened(_: str) -> AsyncIterator[Connector[Any]]:
        yield connector

    office.change(open_connector=opened, book=replace(office.ctx.book, connectors={connector.instance: SYSTEM}))
    case = await office.offboard(vendor_id)
    raised: BaseException | None = None
    try:
        await revoke.run(office.ctx, case.id, connector.instance, next_try=None)
    except (AccessRefused, Retryable) as error:
        raised = error
    return await office.target(case, connector.instance), raised


async def test_the_job_denies_a_user_everything_whose_ssh_keys_it_may_not_list(
    office: Office, aws: AwsSimulator
) -> None:
    aws.refuse("iam:ListSSHPublicKeys")
    async with at_aws(aws) as iam:
        target, raised = await job(office, iam, "ada")
    state = await aws.state_of("ada")
    assert state is not None
    assert aws_world.deny_all_in(state)
    assert target.state is TargetState.PAUSED
    assert isinstance(raised, AccessRefused)


async def test_the_job_disables_an_okta_user_whose_roles_and_tokens_it_may_not_list(
    office: Office, okta: OktaSimulator, ada: User
) -> None:
    refuse_at_okta(okta, "users/*/roles")
    refuse_at_okta(okta, "api-tokens")
    async with at_okta(okta) as connector:
        target, _ = await job(office, connector, ada.id)
    assert ada.status == "SUSPENDED"
    assert {kind for kind, _ in living(okta, ada.id)} == {K.ROLE, K.API_TOKEN}
    assert target.state is TargetState.PAUSED


async def test_the_job_disables_an_entra_user_whose_groups_it_may_not_list(
    office: Office, tenant: entra_world.World
) -> None:
    tenant.graph.faults.answer("GET /v1.0/users/*/memberOf/**", status=403, times=None)
    async with at_entra(tenant) as entra:
        target, _ = await job(office, entra, tenant.ada)
    assert {kind for kind, _ in tenant.alive(tenant.ada)} == {K.GROUP_MEMBERSHIP}
    assert target.state is TargetState.PAUSED


async def test_the_job_ends_all_but_the_account_where_it_may_not_read_who_owns_the_tenant(
    office: Office, tenant: entra_world.World
) -> None:
    tenant.graph.faults.answer("GET /v1.0/roleManagement/**", status=403, times=None)
    async with at_entra(tenant) as entra:
        target, _ = await job(office, entra, tenant.ada)
    assert {kind for kind, _ in tenant.alive(tenant.ada)} == {K.ACCOUNT, K.ROLE}
    assert tenant.graph.faults.count(f"POST /v1.0/users/{tenant.ada}/revokeSignInSessions") == 1
    assert target.state is TargetState.PAUSED
