"""AWS IAM: whose a user is, whom nothing is done to, and sessions that outlive everything."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from connectors.aws_iam import AwsIam
from connectors.aws_iam.policies import revoke_older_sessions, revoked_before
from offboard_worker.core.credential import CredentialKind, CredentialState, Outcome
from offboard_worker.core.person import Person
from offboard_worker.demo.aws_simulator import READ_ONLY, S3_READ, AwsSimulator
from offboard_worker.errors import NeedsHuman
from offboard_worker.testing import in_stages
from tests.connectors.aws_world import ADA, REVOKE, config_for, deny_all_in, held, state_of

K = CredentialKind
BOB = Person("p2", "Bob", {"aws": ("bob",)}, ("bob@example.com",))

integration = pytest.mark.integration


@integration
async def test_a_later_user_of_the_same_name_is_not_touched(aws: AwsSimulator, iam: AwsIam) -> None:
    everything = await in_stages(iam, ADA)
    ids = await iam.identify(ADA)
    await aws.remove_user("ada")
    await aws.add_user("ada", mfa=False)  # somebody else
    before = await state_of(aws)
    async with AwsIam.open("aws", config_for(aws)) as later:
        for credential in everything:
            assert await later.disable(credential) is Outcome.ALREADY
        known = replace(ADA, aliases={"aws": ids})
        assert [c async for c in later.find(known)] == []
    assert await state_of(aws) == before


@integration
async def test_a_renamed_user_is_found_by_their_unique_id(aws: AwsSimulator, iam: AwsIam) -> None:
    known = replace(ADA, aliases={"aws": await iam.identify(ADA)})
    aws.client("iam").update_user(UserName="ada", NewUserName="ada-hidden")
    assert {c.owner async for c in iam.find(known)} == {"ada-hidden"}


@integration
@pytest.mark.parametrize(
    ("match", "emails", "expected"),
    [
        ({"tag": "email"}, ("ADA@example.com",), "ada"),
        ({"tag": "email"}, ("ada@example.org",), None),
        ({"tag": "okta", "of": "okta-main"}, (), "ada.o"),
        ("username", ("eve@example.com",), "eve@example.com"),
        ("none", ("ada@example.com", "eve@example.com"), None),
    ],
)
async def test_only_the_configured_attribute_identifies(
    aws: AwsSimulator, match: object, emails: tuple[str, ...], expected: str | None
) -> None:
    await aws.add_user("eve@example.com", mfa=False)
    await aws.add_user("ada.o", mfa=False, tags={"okta": "00u1"})
    person = Person("p9", "Ada", {"okta-main": ("00u1",)}, emails)
    async with AwsIam.open("aws", config_for(aws, match=match)) as iam:
        ids = await iam.identify(person)
    assert ids[:1] == ((expected,) if expected else ())


@integration
async def test_nothing_of_a_bystander_in_the_same_group_is_touched(aws: AwsSimulator, iam: AwsIam) -> None:
    await aws.add_user("bob", email="bob@example.com")
    before = await state_of(aws, "bob")
    for credential in await in_stages(iam, ADA):
        await iam.disable(credential)
        if AwsIam.kinds[credential.kind].deletable:
            await iam.delete(credential)
    assert await state_of(aws, "bob") == before


@integration
async def test_every_page_of_every_list_is_read(aws: AwsSimulator, iam: AwsIam) -> None:
    groups = tuple(f"team-{n}" for n in range(7))
    inline = {f"policy-{n}": S3_READ for n in range(5)}
    services = ("codecommit.amazonaws.com", "cassandra.amazonaws.com", "bedrock.amazonaws.com")
    bob = await aws.add_user(
        "bob", access_keys=2, ssh_keys=4, certificates=2, groups=groups, inline=inline, service_credentials=services
    )
    aws.set_page_size(1)
    found = [c async for c in iam.find(BOB)]
    ids = {kind: {c.id for c in found if c.kind is kind} for kind in K}
    assert ids[K.ACCESS_KEY] == set(bob.access_keys)
    assert ids[K.SSH_KEY] == set(bob.ssh_keys)
    assert ids[K.CERTIFICATE] == set(bob.certificates)
    assert ids[K.SERVICE_CREDENTIAL] == set(bob.service_credentials)
    assert len(bob.service_credentials) == 3
    assert ids[K.GROUP_MEMBERSHIP] == set(groups)
    assert ids[K.POLICY] == {READ_ONLY, *inline}
    owners = {c.owner async for c in iam.inventory()}
    assert owners == {"ada", "bob", aws.own_user}


# --- guards -------------------------------------------------------------------------------------------------------


@integration
async def test_the_user_whom_the_worker_itself_is_stays_whole(aws: AwsSimulator, iam: AwsIam) -> None:
    ourselves = Person("p0", "us", {"aws": (aws.own_user,)})
    before = await state_of(aws, aws.own_user)
    mine = await held(iam, ourselves)
    for credential in mine.values():
        for verb in (iam.disable, iam.delete, iam.restore):
            with pytest.raises(NeedsHuman, match="offboard-worker itself"):
                await verb(credential)
    assert await state_of(aws, aws.own_user) == before


@integration
async def test_permissions_and_sessions_are_never_deleted(aws: AwsSimulator, iam: AwsIam) -> None:
    mine = await held(iam)
    await iam.disable(mine[K.PERMISSIONS])
    for kind in (K.PERMISSIONS, K.SESSION):
        with pytest.raises(NeedsHuman) as task:
            await iam.delete(mine[kind])
        assert "36 h" in task.value.advice
    assert deny_all_in(await state_of(aws))


# --- sessions -----------------------------------------------------------------------------------------------------


def test_the_sessions_residual_is_declared_with_its_longest_duration() -> None:
    ability = AwsIam.kinds[K.SESSION]
    assert ability.residual == timedelta(hours=36)
    assert "36 h" in ability.residual_note
    assert "12 h" in ability.residual_note


@integration
async def test_roles_are_cut_only_where_configured(aws: AwsSimulator, iam: AwsIam) -> None:
    await aws.add_role("deployer")
    await aws.add_role("auditor")
    for credential in await in_stages(iam, ADA):
        await iam.disable(credential)
    assert not await aws.role_policies("deployer")
    async with AwsIam.open("aws", config_for(aws, revoke_role_sessions=("deployer", "no-such-role"))) as cutting:
        session = (await held(cutting))[K.SESSION]
        assert await cutting.state(session) is CredentialState.ACTIVE, "the user is denied, the role isn't cut yet"
        assert await cutting.disable(session) is Outcome.DONE
        assert await cutting.state(session) is CredentialState.DISABLED
        policies = await aws.role_policies("deployer")
        assert revoked_before(policies[REVOKE]) is not None
        # Once cut it stays cut: a second leaver's case may cut it again, this one must not.
        assert await cutting.disable(session) is Outcome.ALREADY
        assert await aws.role_policies("deployer") == policies
    assert not await aws.role_policies("auditor")


@integration
async def test_a_role_cut_before_the_leaver_was_denied_is_cut_again(aws: AwsSimulator) -> None:
    await aws.add_role("deployer")
    old = revoke_older_sessions(datetime.now(UTC) - timedelta(hours=1))
    aws.client("iam").put_role_policy(RoleName="deployer", PolicyName=REVOKE, PolicyDocument=old)
    async with AwsIam.open("aws", config_for(aws, revoke_role_sessions=("deployer",))) as iam:
        session = (await held(iam))[K.SESSION]
        assert await iam.disable(session) is Outcome.DONE
    before = revoked_before((await aws.role_policies("deployer"))[REVOKE])
    assert before is not None
    assert before >= datetime.now(UTC) - timedelta(minutes=1)


@integration
async def test_sessions_of_a_user_who_is_deleted_already_are_still_cut(aws: AwsSimulator) -> None:
    await aws.add_role("deployer")
    await aws.remove_user("ada")
    async with AwsIam.open("aws", config_for(aws, revoke_role_sessions=("deployer",))) as iam:
        left = [c async for c in iam.find(ADA)]
        assert [c.kind for c in left] == [K.SESSION]
        assert await iam.disable(left[0]) is Outcome.DONE
        assert await iam.state(left[0]) is CredentialState.GONE
    assert REVOKE in await aws.role_policies("deployer")
