"""The `entra` connector against a simulated tenant, by the real SDK. Every call is held to Graph's own description."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from pydantic import ValidationError

from connectors.entra import Entra, EntraConfig
from offboard_worker.core.credential import Action, CredentialKind, CredentialState, Outcome
from offboard_worker.core.person import Person
from offboard_worker.demo.graph_directory import GLOBAL_ADMINISTRATOR
from offboard_worker.demo.graph_simulator import ALL_ROLES, GraphSimulator
from offboard_worker.errors import NeedsHuman
from offboard_worker.testing import ConnectorContract, CredentialsAlive
from tests.connectors.entra_world import SYSTEM, World, found, graph_contract, one, world

pytestmark = [pytest.mark.integration, pytest.mark.filterwarnings("ignore:This class is deprecated")]  # the SDK's own

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
async def tenant() -> AsyncIterator[World]:
    async with world() as made:
        yield made


@pytest.fixture
async def entra(tenant: World) -> AsyncIterator[Entra]:
    async with tenant.connector() as opened:
        yield opened


class TestEntraKeepsTheContract(ConnectorContract):
    @pytest.fixture
    async def connector(self, entra: Entra) -> Entra:
        return entra

    @pytest.fixture
    def leaver(self, tenant: World) -> Person:
        return tenant.leaver

    @pytest.fixture
    def bystander(self, tenant: World) -> Person:
        return tenant.bystander

    @pytest.fixture
    def stranger(self) -> Person:
        return Person("person-3", "Ada Lovelace", emails=("ada.lovelace@example.org", "lovelace@example.com"))

    @pytest.fixture
    def credentials_alive(self, tenant: World) -> CredentialsAlive:
        async def alive(person: Person) -> frozenset[tuple[CredentialKind, str]]:
            return frozenset(tenant.alive(tenant.ada if person.id == tenant.leaver.id else tenant.bob))

        return alive


class TestEntraWithoutRemovingSecretsKeepsTheContract(TestEntraKeepsTheContract):
    may_need_human = frozenset(
        {(Action.DISABLE, CredentialKind.APP_SECRET), (Action.DELETE, CredentialKind.APP_SECRET)}
    )

    @pytest.fixture
    async def connector(self, tenant: World) -> AsyncIterator[Entra]:
        async with tenant.connector(remove_app_secrets=False) as opened:
            yield opened


# Whom it finds


async def test_a_recorded_object_id_counts_before_any_attribute(tenant: World, entra: Entra) -> None:
    person = Person("p", emails=("ada.lovelace@example.com",), aliases={SYSTEM: (tenant.bob,)})
    assert await entra.identify(person) == (tenant.bob,)
    assert not tenant.calls


async def test_a_recorded_user_name_is_looked_up_exactly(tenant: World, entra: Entra) -> None:
    assert await entra.identify(Person("p", aliases={SYSTEM: ("BOB@example.com",)})) == (tenant.bob,)
    assert await entra.identify(Person("p", aliases={SYSTEM: ("bo@example.com",)})) == ()


async def test_nobody_is_found_by_an_attribute_that_the_configuration_does_not_name(tenant: World) -> None:
    async with tenant.connector(match="none") as entra:
        assert await entra.identify(tenant.leaver) == ()
        assert await found(entra, tenant.leaver) == {}


async def test_a_filter_that_answers_too_much_identifies_nobody(tenant: World, entra: Entra) -> None:
    """Graph's answer is compared with the address again."""
    row = {"@odata.type": "#microsoft.graph.user", "id": tenant.bob, "mail": "bob@example.com"}
    tenant.graph.faults.answer("GET /v1.0/users", status=200, json={"value": [row]})
    assert await entra.identify(tenant.leaver) == ()


async def test_two_users_with_one_address_are_a_task_for_a_person(tenant: World, entra: Entra) -> None:
    tenant.graph.directory.add_user("admin-ada@example.com", mail="ada.lovelace@example.com")
    with pytest.raises(NeedsHuman, match="2 users have the mail"):
        await entra.identify(tenant.leaver)


async def test_an_apostrophe_in_an_address_stays_within_the_filter(tenant: World, entra: Entra) -> None:
    sinead = tenant.graph.directory.add_user("sinead.o'connor@example.com")
    assert await entra.identify(Person("p", emails=("sinead.o'connor@example.com",))) == (sinead,)
    assert await entra.identify(Person("p", emails=("x' or mail eq 'bob@example.com",))) == ()


async def test_all_pages_of_every_list_are_read(tenant: World, entra: Entra) -> None:
    mine = await found(entra, tenant.leaver)
    assert len(mine[CredentialKind.GROUP_MEMBERSHIP]) == 5
    assert len([call for call in tenant.calls if "memberOf" in call.path]) == 3


async def test_an_assignment_of_the_leavers_group_is_not_the_leavers(tenant: World, entra: Entra) -> None:
    """Graph lists it among the user's; removing it would end the access of everybody in the group."""
    listed = tenant.graph.directory.app_assignments_of(tenant.ada)
    assert {row["principalType"] for row in listed} == {"User", "Group"}
    mine = (await found(entra, tenant.leaver))[CredentialKind.APP_ASSIGNMENT]
    assert [c.owner for c in mine] == [tenant.ada]


async def test_a_soft_deleted_user_has_a_gone_account_and_nothing_else(tenant: World, entra: Entra) -> None:
    tenant.graph.directory.soft_delete(tenant.ada)
    mine = await found(entra, Person("p", aliases={SYSTEM: (tenant.ada,)}))
    assert list(mine) == [CredentialKind.ACCOUNT]
    assert mine[CredentialKind.ACCOUNT][0].state is CredentialState.GONE
    assert await entra.disable(mine[CredentialKind.ACCOUNT][0]) is Outcome.ALREADY


async def test_a_user_purged_for_good_has_nothing(tenant: World, entra: Entra) -> None:
    tenant.graph.directory.soft_delete(tenant.ada)
    tenant.graph.directory.purge(tenant.ada)
    assert await found(entra, Person("p", aliases={SYSTEM: (tenant.ada,)})) == {}


async def test_every_call_of_the_sdk_is_held_to_graphs_own_description(tenant: World, entra: Entra) -> None:
    """The fixture checks all of them in the end: this one shows that there is something to check, and that it bites."""
    await found(entra, tenant.leaver)
    assert graph_contract().check_all(tenant.calls) > 10
    call = next(call for call in tenant.calls if call.path.endswith("/users"))
    with pytest.raises(AssertionError, match=r"knows no '\$selec'"):
        graph_contract().check(replace(call, query=(("$selec", "id"),)))
    with pytest.raises(AssertionError, match="answer"):
        graph_contract().check(replace(call, answer='{"value": [{"id": 7}]}'))


# What it does


async def test_the_account_is_read_with_account_enabled_selected(tenant: World, entra: Entra) -> None:
    account = await one(entra, tenant.leaver, CredentialKind.ACCOUNT)
    await entra.disable(account)
    assert await entra.state(account) is CredentialState.DISABLED
    assert "accountEnabled" in dict(tenant.calls[-1].query)["$select"]
    assert tenant.graph.directory.users[tenant.ada]["accountEnabled"] is False
    assert tenant.graph.directory.users[tenant.bob]["accountEnabled"] is True


async def test_leaving_a_group_never_deletes_the_person(tenant: World, entra: Entra) -> None:
    for membership in (await found(entra, tenant.leaver))[CredentialKind.GROUP_MEMBERSHIP]:
        assert await entra.disable(membership) is Outcome.DONE
        assert await entra.disable(membership) is Outcome.ALREADY
    deletes = [call.path for call in tenant.calls if call.method == "DELETE"]
    assert len(deletes) == 10
    assert all(path.endswith("/$ref") for path in deletes)
    assert tenant.ada in tenant.graph.directory.users
    assert tenant.graph.directory.members[tenant.group] == [tenant.bob]


@pytest.mark.parametrize(
    ("sort", "reason"), [("dynamic", "rule"), ("synced", "on premises"), ("mail_enabled", "distribution list")]
)
async def test_a_group_that_graph_can_not_change_is_a_task(tenant: World, entra: Entra, sort: str, reason: str) -> None:
    group = tenant.graph.directory.add_group("Everybody", members=[tenant.ada], **{sort: True})
    memberships = (await found(entra, tenant.leaver))[CredentialKind.GROUP_MEMBERSHIP]
    with pytest.raises(NeedsHuman, match=reason):
        await entra.disable(next(c for c in memberships if c.id == group))
    assert not [call for call in tenant.calls if call.method == "DELETE"]


async def test_sessions_are_gone_once_their_watermark_has_moved(tenant: World, entra: Entra) -> None:
    sessions = await one(entra, tenant.leaver, CredentialKind.SESSION)
    assert await entra.state(sessions) is CredentialState.UNKNOWN
    assert await entra.disable(sessions) is Outcome.DONE
    assert await entra.state(sessions) is CredentialState.GONE


async def test_a_guests_sessions_are_a_task_and_the_account_is_disabled(tenant: World, entra: Entra) -> None:
    guest = tenant.graph.directory.add_user("eve_example.org#EXT#@example.com", mail="eve@example.org", guest=True)
    mine = await found(entra, Person("p", emails=("eve@example.org",)))
    with pytest.raises(NeedsHuman, match="home tenant"):
        await entra.disable(mine[CredentialKind.SESSION][0])
    assert await entra.disable(mine[CredentialKind.ACCOUNT][0]) is Outcome.DONE
    assert tenant.graph.directory.users[guest]["accountEnabled"] is False


async def test_sessions_that_graph_says_it_did_not_revoke_are_no_success(tenant: World, entra: Entra) -> None:
    sessions = await one(entra, tenant.leaver, CredentialKind.SESSION)
    tenant.graph.directory.users[tenant.ada]["userType"] = "Guest"  # became one after it was found
    with pytest.raises(Exception, match="revoked no session"):
        await entra.disable(sessions)


@pytest.mark.parametrize("kind", [CredentialKind.ACCOUNT, CredentialKind.ROLE])
async def test_the_last_global_administrator_is_never_removed(
    tenant: World, entra: Entra, kind: CredentialKind
) -> None:
    directory = tenant.graph.directory
    mine = directory.assign_role(tenant.ada, GLOBAL_ADMINISTRATOR)
    disabled = directory.add_user("old-admin@example.com", enabled=False)
    directory.assign_role(disabled, GLOBAL_ADMINISTRATOR)
    directory.assign_role(directory.add_service_principal("robot"), GLOBAL_ADMINISTRATOR)
    held = (await found(entra, tenant.leaver))[kind]
    credential = next(c for c in held if kind is CredentialKind.ACCOUNT or c.id == mine)
    with pytest.raises(NeedsHuman, match="last Global Administrator"):
        await entra.disable(credential)
    with pytest.raises(NeedsHuman, match="last Global Administrator"):
        await entra.delete(credential)
    assert mine in directory.role_assignments
    assert directory.users[tenant.ada]["accountEnabled"] is True

    directory.assign_role(tenant.bob, GLOBAL_ADMINISTRATOR)
    assert await entra.disable(credential) is Outcome.DONE


async def test_secrets_of_owned_applications_are_tasks_unless_configured(tenant: World) -> None:
    async with tenant.connector(remove_app_secrets=False) as entra:
        secrets = (await found(entra, tenant.leaver))[CredentialKind.APP_SECRET]
        assert len(secrets) == 3
        for secret in secrets:
            with pytest.raises(NeedsHuman, match="may know the secret"):
                await entra.disable(secret)
    assert len(tenant.graph.directory.applications[tenant.build]["passwordCredentials"]) == 2


async def test_a_removed_secret_leaves_the_applications_other_secrets(tenant: World, entra: Entra) -> None:
    secrets = (await found(entra, tenant.leaver))[CredentialKind.APP_SECRET]
    first, second = [c for c in secrets if c.scope.startswith(f"applications/{tenant.build}/")]
    assert await entra.disable(first) is Outcome.DONE
    assert (await entra.state(first), await entra.state(second)) == (CredentialState.GONE, CredentialState.ACTIVE)
    assert await entra.disable(first) is Outcome.ALREADY


async def test_a_secret_that_two_people_know_is_a_credential_of_each(tenant: World, entra: Entra) -> None:
    tenant.graph.directory.owners[tenant.build].append(tenant.bob)
    known = [
        {c.id: c for c in (await found(entra, person))[CredentialKind.APP_SECRET] if tenant.build in c.scope}
        for person in (tenant.leaver, tenant.bystander)
    ]
    assert known[0].keys() == known[1].keys()
    assert len({c.ref for part in known for c in part.values()}) == 4


async def test_the_application_of_the_worker_itself_is_never_touched(tenant: World, entra: Entra) -> None:
    ours = tenant.graph.directory.add_application("offboard", owners=[tenant.ada], app_id=tenant.graph.client_id)
    secrets = (await found(entra, tenant.leaver))[CredentialKind.APP_SECRET]
    with pytest.raises(NeedsHuman, match="offboard-worker itself"):
        await entra.disable(next(c for c in secrets if ours in c.scope))
    assert len(tenant.graph.directory.applications[ours]["passwordCredentials"]) == 1


async def test_a_certificate_of_an_owned_application_is_a_task(tenant: World, entra: Entra) -> None:
    key = tenant.graph.directory.add_certificate(tenant.build)
    secrets = (await found(entra, tenant.leaver))[CredentialKind.APP_SECRET]
    with pytest.raises(NeedsHuman, match="certificate"):
        await entra.disable(next(c for c in secrets if c.id == key))


# What it brings back


async def test_everything_reversible_comes_back_from_its_snapshot(tenant: World, entra: Entra) -> None:
    before = tenant.graph.directory
    groups = {group for group, members in before.members.items() if tenant.ada in members}
    scopes = {row["scope"] for row in before.grants.values() if row["principalId"] == tenant.ada}
    reversible = [
        c for held in (await found(entra, tenant.leaver)).values() for c in held if entra.kinds[c.kind].reversible
    ]
    for credential in reversible:
        assert await entra.disable(credential) is Outcome.DONE
    assert {kind for kind, _ in tenant.alive(tenant.ada)} == {CredentialKind.APP_SECRET}
    for credential in reversible:
        assert await entra.restore(credential) is Outcome.DONE
        assert await entra.restore(credential) is Outcome.ALREADY
        assert await entra.state(credential) is CredentialState.ACTIVE
    assert {group for group, members in before.members.items() if tenant.ada in members} == groups
    assert {row["scope"] for row in before.grants.values() if row["principalId"] == tenant.ada} == scopes
    assert before.users[tenant.ada]["accountEnabled"] is True


async def test_an_account_that_was_disabled_before_is_not_enabled(tenant: World, entra: Entra) -> None:
    tenant.graph.directory.users[tenant.ada]["accountEnabled"] = False
    account = await one(entra, tenant.leaver, CredentialKind.ACCOUNT)
    await entra.disable(account)
    assert await entra.restore(account) is Outcome.ALREADY
    assert tenant.graph.directory.users[tenant.ada]["accountEnabled"] is False


async def test_a_soft_deleted_account_is_brought_back_and_a_purged_one_is_a_task(tenant: World, entra: Entra) -> None:
    account = await one(entra, tenant.leaver, CredentialKind.ACCOUNT)
    await entra.disable(account)
    assert await entra.delete(account) is Outcome.DONE
    assert await entra.state(account) is CredentialState.GONE
    assert await entra.restore(account) is Outcome.DONE
    assert tenant.graph.directory.users[tenant.ada]["accountEnabled"] is True

    await entra.delete(account)
    tenant.graph.directory.purge(tenant.ada)
    with pytest.raises(NeedsHuman, match="deleted for good"):
        await entra.restore(account)


# Our own access


async def test_check_names_each_permission_that_is_missing(tenant: World, entra: Entra) -> None:
    tenant.graph.roles = ("User.ReadWrite.All", "Directory.Read.All")
    standing = await entra.check()
    assert set(standing.missing) == set(ALL_ROLES) - {"User.ReadWrite.All"}


async def test_check_knows_wider_permissions_and_what_the_configuration_needs(tenant: World) -> None:
    tenant.graph.roles = (
        "User.ReadWrite.All",
        "User.RevokeSessions.All",
        "AppRoleAssignment.ReadWrite.All",
        "RoleManagement.ReadWrite.Directory",
        "DelegatedPermissionGrant.ReadWrite.All",
        "Group.ReadWrite.All",
        "Directory.Read.All",
    )
    async with tenant.connector(remove_app_secrets=False) as entra:
        assert (await entra.check()).ok
    async with tenant.connector(remove_app_secrets=True) as entra:
        assert (await entra.check()).missing == ("Application.ReadWrite.All",)


async def test_check_changes_nothing(tenant: World, entra: Entra) -> None:
    assert (await entra.check()).ok
    assert {call.method for call in tenant.calls if "/oauth2/" not in call.path} == {"GET"}


# Configuration


@pytest.mark.parametrize(
    "url", ["http://graph.example.com/v1.0", "ftp://127.0.0.1", "https://me@graph.example.com", "x"]
)
async def test_our_token_never_travels_in_plain_text(url: str) -> None:
    async with GraphSimulator() as graph:
        made = {"type": "entra", "tenant_id": graph.tenant_id, "client_id": "c", "client_secret": "s"}
        for key in ("base_url", "login_url"):
            with pytest.raises(ValidationError, match=key):
                Entra.Config.model_validate({**made, key: url})


def test_each_residual_has_an_end() -> None:
    assert all(ability.residual <= timedelta(hours=28) for ability in Entra.kinds.values())
    assert Entra.kinds[CredentialKind.SESSION].residual == timedelta(hours=28)


def test_the_sdk_is_imported_only_when_a_connector_is_opened() -> None:
    """A worker that doesn't use this connector doesn't pay for it, and one that forks pays once."""
    code = (
        "import sys, connectors.entra as entra\n"
        "assert not {'msgraph', 'httpx', 'kiota_http'} & set(sys.modules)\n"
        "entra.Entra.preload()\n"
        "assert {'msgraph', 'httpx', 'kiota_http'} <= set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, timeout=60)


def test_everything_declared_is_documented() -> None:
    page = (ROOT / "docs/connectors/entra.md").read_text()
    declared = {kind.value for kind in Entra.kinds} | {ability.permission for ability in Entra.kinds.values()}
    for name in declared | (set(EntraConfig.model_fields) - {"type"}):
        assert f"`{name}`" in page, f"docs/connectors/entra.md doesn't mention {name}"
