"""AWS IAM: order, read-back, faults and guards, on real boto3 against the simulator."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta

import pytest
from pydantic import ValidationError

from connectors.aws_iam import AwsIam, AwsIamConfig
from connectors.aws_iam.policies import denied_since, deny_all, revoke_older_sessions, revoked_before
from offboard_worker.core.credential import Action, CredentialKind, CredentialState, Outcome, strength_of
from offboard_worker.demo.aws_simulator import READ_ONLY, AwsSimulator
from offboard_worker.errors import AccessRefused, ConnectorError, Fatal, NeedsHuman, Retryable
from offboard_worker.testing import in_stages
from tests.connectors.aws_world import ADA, DENY, REVOKE, config_for, deny_all_in, held, state_of

K = CredentialKind

integration = pytest.mark.integration


# --- the documents ------------------------------------------------------------------------------------------------


def test_a_deny_all_is_recognised_with_its_moment() -> None:
    at = datetime(2026, 11, 24, 9, 47, 3, tzinfo=UTC)
    assert denied_since(json.loads(deny_all(at))) == at


@pytest.mark.parametrize(
    "change",
    [
        {"Effect": "Allow"},
        {"Action": "s3:*"},
        {"Resource": "arn:aws:s3:::one"},
        {"Condition": {"Bool": {"aws:SecureTransport": "false"}}},
        {"Sid": "SomebodyElses"},
    ],
)
def test_a_document_that_denies_less_than_everything_is_no_deny_all(change: dict[str, object]) -> None:
    document = json.loads(deny_all(datetime.now(UTC)))
    document["Statement"][0] |= change
    assert denied_since(document) is None


@pytest.mark.parametrize(
    "document", [None, "", [], {}, {"Statement": []}, {"Statement": ["x"]}, {"Statement": [{}, {}]}]
)
def test_what_is_no_policy_document_denies_nothing(document: object) -> None:
    assert denied_since(document) is None
    assert revoked_before(document) is None


def test_a_session_policy_is_recognised_with_its_moment_and_not_when_narrowed() -> None:
    at = datetime(2026, 11, 24, 9, 47, 3, tzinfo=UTC)
    document = json.loads(revoke_older_sessions(at))
    assert revoked_before(document) == at
    document["Statement"][0]["Condition"]["StringEquals"] = {"aws:userid": "x"}
    assert revoked_before(document) is None


# --- the configuration --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"access_key_id": "AKIAEXAMPLE"}, "belong together"),
        ({"endpoint_url": "http://aws.example.com"}, "https"),
        ({"deny_policy_name": "has space"}, "deny_policy_name"),
        ({"deny_policy_name": "same", "revoke_policy_name": "same"}, "must differ"),
        ({"match": "email"}, "match"),
        ({"reigon": "us-east-1"}, "reigon"),
    ],
)
def test_a_wrong_configuration_is_refused(wrong: dict[str, str], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        AwsIamConfig.model_validate({"type": "aws_iam", **wrong})


# --- order and read-back ------------------------------------------------------------------------------------------


@integration
async def test_the_deny_all_is_written_before_anything_else(aws: AwsSimulator, iam: AwsIam) -> None:
    for credential in await in_stages(iam, ADA):
        await iam.disable(credential)
    writes = [c for c in aws.calls if not c.action.startswith(("Get", "List"))]
    assert writes[0].action == "PutUserPolicy"
    assert writes[0].params["PolicyName"] == DENY
    assert writes[-1].action == "DeactivateMFADevice"
    assert {call.user for call in writes} == {"ada"}


@integration
async def test_everything_is_powerless_afterwards_as_the_account_itself_says(aws: AwsSimulator, iam: AwsIam) -> None:
    everything = await in_stages(iam, ADA)
    assert {credential.kind for credential in everything} == set(AwsIam.kinds)
    for credential in everything:
        assert await iam.disable(credential) is not None
        read = await iam.state(credential)
        assert strength_of(read, AwsIam.kinds[credential.kind], Action.DISABLE) == "verified", credential.ref
    after = await state_of(aws)
    assert deny_all_in(after)
    assert not after.password
    assert (after.mfa_devices, after.groups, after.attached) == (frozenset(), frozenset(), frozenset())
    assert set(after.inline) == {DENY}
    for keys in (after.access_keys, after.ssh_keys, after.certificates, after.service_credentials):
        assert list(keys.values()) == ["Inactive"]


@integration
async def test_what_was_disabled_comes_back_as_it_was(aws: AwsSimulator, iam: AwsIam) -> None:
    before = await state_of(aws)
    everything = await in_stages(iam, ADA)
    for credential in everything:
        await iam.disable(credential)
    asked = set()
    for credential in everything:
        if AwsIam.kinds[credential.kind].reversible:
            assert await iam.restore(credential) is Outcome.DONE
        else:
            asked.add(credential.kind)
            with pytest.raises(NeedsHuman):
                await iam.restore(credential)
    after = await state_of(aws)
    assert asked == {K.PASSWORD, K.SESSION, K.MFA_DEVICE}
    assert after.groups == before.groups
    assert after.attached == before.attached
    assert after.access_keys == before.access_keys
    assert {name: doc for name, doc in after.inline.items() if name != REVOKE} == before.inline
    # Sessions from before stay dead: only new ones get their power back.
    assert revoked_before(after.inline[REVOKE]) is not None


@integration
@pytest.mark.parametrize(
    ("kind", "action"),
    [
        (K.PERMISSIONS, "PutUserPolicy"),
        (K.PASSWORD, "DeleteLoginProfile"),
        (K.ACCESS_KEY, "UpdateAccessKey"),
        (K.SSH_KEY, "UpdateSSHPublicKey"),
        (K.SERVICE_CREDENTIAL, "UpdateServiceSpecificCredential"),
        (K.CERTIFICATE, "UpdateSigningCertificate"),
        (K.GROUP_MEMBERSHIP, "RemoveUserFromGroup"),
        (K.POLICY, "DeleteUserPolicy"),
        (K.SESSION, "PutUserPolicy"),
    ],
)
async def test_what_aws_only_pretended_to_do_reads_back_as_active(
    aws: AwsSimulator, iam: AwsIam, kind: CredentialKind, action: str
) -> None:
    credential = (await held(iam))[kind]
    aws.lie(action)
    assert await iam.disable(credential) is Outcome.DONE
    read = await iam.state(credential)
    assert read is CredentialState.ACTIVE
    assert strength_of(read, AwsIam.kinds[kind], Action.DISABLE) == "failed"


@integration
async def test_a_deny_all_that_somebody_weakened_reads_back_as_active_and_is_put_again(
    aws: AwsSimulator, iam: AwsIam
) -> None:
    permissions = (await held(iam))[K.PERMISSIONS]
    await iam.disable(permissions)
    weak = json.loads(deny_all(datetime.now(UTC)))
    weak["Statement"][0]["Action"] = "ec2:*"
    aws.client("iam").put_user_policy(UserName="ada", PolicyName=DENY, PolicyDocument=json.dumps(weak))
    assert await iam.state(permissions) is CredentialState.ACTIVE
    assert await iam.disable(permissions) is Outcome.DONE
    assert await iam.state(permissions) is CredentialState.DISABLED


@integration
async def test_without_room_for_an_inline_policy_awss_own_deny_all_is_attached(aws: AwsSimulator, iam: AwsIam) -> None:
    permissions = (await held(iam))[K.PERMISSIONS]
    aws.fail("PutUserPolicy", "LimitExceeded", 409)
    assert await iam.disable(permissions) is Outcome.DONE
    assert "arn:aws:iam::aws:policy/AWSDenyAll" in (await state_of(aws)).attached
    assert await iam.state(permissions) is CredentialState.DISABLED
    assert await iam.restore(permissions) is Outcome.DONE
    assert (await state_of(aws)).attached == {READ_ONLY}


@integration
async def test_mfa_is_not_taken_from_a_user_whose_password_works(aws: AwsSimulator, iam: AwsIam) -> None:
    mine = await held(iam)
    with pytest.raises(Retryable):
        await iam.disable(mine[K.MFA_DEVICE])
    assert (await state_of(aws)).mfa_devices
    await iam.disable(mine[K.PASSWORD])
    await iam.disable(mine[K.MFA_DEVICE])
    assert await iam.state(mine[K.MFA_DEVICE]) is CredentialState.DISABLED
    await iam.delete(mine[K.MFA_DEVICE])
    assert await iam.state(mine[K.MFA_DEVICE]) is CredentialState.GONE


# --- faults -------------------------------------------------------------------------------------------------------


@integration
@pytest.mark.parametrize(
    ("code", "status", "expected"),
    [
        ("Throttling", 400, Retryable),
        ("RequestLimitExceeded", 429, Retryable),
        ("ServiceFailure", 500, Retryable),
        ("ServiceUnavailable", 503, Retryable),
        ("EntityTemporarilyUnmodifiable", 409, Retryable),
        ("ConcurrentModification", 409, Retryable),
        ("DeleteConflict", 409, Retryable),
        ("AccessDenied", 403, AccessRefused),
        ("InvalidClientTokenId", 403, AccessRefused),
        ("SignatureDoesNotMatch", 403, AccessRefused),
        ("ExpiredToken", 403, AccessRefused),
        ("LimitExceeded", 409, Fatal),
        ("ValidationError", 400, Fatal),
    ],
)
async def test_each_error_of_aws_becomes_the_right_one_of_ours(
    aws: AwsSimulator, iam: AwsIam, code: str, status: int, expected: type[ConnectorError]
) -> None:
    key = (await held(iam))[K.ACCESS_KEY]
    aws.forget_calls()
    aws.fail("UpdateAccessKey", code, status)
    with pytest.raises(expected) as raised:
        await iam.disable(key)
    assert raised.value.status == status
    assert raised.value.advice
    assert aws.actions().count("UpdateAccessKey") == 1, "botocore retried by itself"
    assert await iam.disable(key) is Outcome.DONE


@integration
async def test_retry_after_is_passed_on(aws: AwsSimulator, iam: AwsIam) -> None:
    aws.fail("GetUser", "RequestLimitExceeded", 429, headers={"Retry-After": "7"})
    with pytest.raises(Retryable) as raised:
        await held(iam)
    assert raised.value.retry_after == 7.0


@integration
async def test_a_hanging_answer_is_given_up_after_the_timeout(aws: AwsSimulator) -> None:
    async with AwsIam.open("aws", config_for(aws, timeout=0.3)) as iam:
        key = (await held(iam))[K.ACCESS_KEY]
        aws.hang("UpdateAccessKey")
        started = datetime.now(UTC)
        with pytest.raises(Retryable):
            await iam.disable(key)
        assert datetime.now(UTC) - started < timedelta(seconds=3)
        assert await iam.disable(key) is Outcome.DONE


@integration
async def test_a_half_written_answer_is_retryable_and_the_second_try_says_what_is_true(
    aws: AwsSimulator, iam: AwsIam
) -> None:
    password = (await held(iam))[K.PASSWORD]
    aws.break_off("DeleteLoginProfile")
    with pytest.raises(Retryable):
        await iam.disable(password)
    assert not (await state_of(aws)).password, "the simulator does the deed before it breaks off"
    assert await iam.disable(password) is Outcome.ALREADY
    assert await iam.state(password) is CredentialState.GONE


@integration
async def test_a_half_read_list_is_never_taken_for_an_empty_one(aws: AwsSimulator, iam: AwsIam) -> None:
    aws.break_off("ListAccessKeys")
    with pytest.raises(Retryable):
        await held(iam)
    aws.lie("ListAccessKeys", times=1)  # well-formed, without the list
    with pytest.raises(Retryable):
        await held(iam)


@integration
async def test_an_unreachable_endpoint_is_retryable(aws: AwsSimulator) -> None:
    config = config_for(aws, endpoint_url="http://127.0.0.1:9", timeout=1.0)
    async with AwsIam.open("aws", config) as iam:
        with pytest.raises(Retryable):
            await held(iam)


@integration
async def test_what_is_gone_already_is_a_result(aws: AwsSimulator, iam: AwsIam) -> None:
    everything = await in_stages(iam, ADA)
    await aws.remove_user("ada")
    async with AwsIam.open("aws", config_for(aws)) as later:
        for credential in everything:
            assert await later.disable(credential) is Outcome.ALREADY, credential.ref
            if credential.kind is not K.MFA_DEVICE:
                assert await later.state(credential) is CredentialState.GONE
        with pytest.raises(NeedsHuman):
            await later.restore(everything[0])
