"""The AWS simulator answers the real SDK as IAM would, pages, logs and misbehaves on demand."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import boto3
import pytest
from botocore.config import Config
from botocore.exceptions import ClientError, ReadTimeoutError
from botocore.parsers import ResponseParserError

from offboard_worker.demo.aws_simulator import IDENTITY_STORE, READ_ONLY, REGION, AwsSimulator

pytestmark = pytest.mark.integration


@pytest.fixture
async def aws() -> AsyncIterator[AwsSimulator]:
    async with AwsSimulator() as aws:
        yield aws


def client(aws: AwsSimulator, service: str = "iam", **config: Any) -> Any:
    session: Any = boto3.Session(aws.access_key_id, aws.secret_access_key, region_name=REGION)
    settings = Config(retries={"total_max_attempts": 1}, **config)
    return session.client(service, endpoint_url=aws.url, config=settings)


async def test_a_seeded_user_has_one_of_everything(aws: AwsSimulator) -> None:
    ada = await aws.add_user("ada", email="ada@example.com", tags={"team": "core"})
    state = await aws.state_of("ada")
    assert state is not None
    assert state.password
    assert list(state.access_keys) == list(ada.access_keys)
    assert list(state.ssh_keys) == list(ada.ssh_keys)
    assert list(state.certificates) == list(ada.certificates)
    assert list(state.service_credentials) == list(ada.service_credentials)
    assert state.mfa_devices == set(ada.mfa_devices)
    assert state.groups == {"developers"}
    assert state.attached == {READ_ONLY}
    assert set(state.inline) == {"read-buckets"}
    tags = client(aws).list_user_tags(UserName="ada")["Tags"]
    assert {tag["Key"]: tag["Value"] for tag in tags} == {"email": "ada@example.com", "team": "core"}
    assert await aws.state_of("nobody") is None


async def test_the_worker_is_a_user_of_its_own(aws: AwsSimulator) -> None:
    arn = client(aws, "sts").get_caller_identity()["Arn"]
    assert arn == f"arn:aws:iam::{aws.account_id}:user/offboard-worker"


async def test_two_simulators_are_two_accounts(aws: AwsSimulator) -> None:
    await aws.add_user("ada")
    with AwsSimulator() as other:
        assert other.account_id != aws.account_id
        assert [user["UserName"] for user in client(other).list_users()["Users"]] == ["offboard-worker"]


async def test_service_specific_credentials_live_as_in_iam(aws: AwsSimulator) -> None:
    ada = await aws.add_user("ada")
    iam = client(aws)
    (credential,) = iam.list_service_specific_credentials(UserName="ada")["ServiceSpecificCredentials"]
    assert (credential["Status"], credential["ServiceName"]) == ("Active", "codecommit.amazonaws.com")
    assert "ServicePassword" not in credential
    named = {"UserName": "ada", "ServiceSpecificCredentialId": ada.service_credentials[0]}
    iam.update_service_specific_credential(Status="Inactive", **named)
    assert (await aws.state_of("ada")).service_credentials == {ada.service_credentials[0]: "Inactive"}  # type: ignore[union-attr]
    iam.delete_service_specific_credential(**named)
    with pytest.raises(iam.exceptions.NoSuchEntityException):
        iam.delete_service_specific_credential(**named)
    with pytest.raises(iam.exceptions.NoSuchEntityException):
        iam.list_service_specific_credentials(UserName="nobody")


@pytest.mark.parametrize("size", [1, 2, 100])
async def test_lists_are_paged_without_loss_or_repetition(aws: AwsSimulator, size: int) -> None:
    services = ("codecommit.amazonaws.com", "cassandra.amazonaws.com", "bedrock.amazonaws.com")
    ada = await aws.add_user("ada", service_credentials=services, groups=("a", "b", "c", "d", "e"))
    aws.set_page_size(size)
    iam = client(aws)
    pages = list(iam.get_paginator("list_groups_for_user").paginate(UserName="ada"))
    assert [len(page["Groups"]) for page in pages] == [size] * (5 // size) + ([5 % size] if 5 % size else [])
    assert [group["GroupName"] for page in pages for group in page["Groups"]] == list("abcde")
    found: list[str] = []
    marker: dict[str, str] = {}
    while True:
        answer = iam.list_service_specific_credentials(UserName="ada", **marker)
        found += [each["ServiceSpecificCredentialId"] for each in answer["ServiceSpecificCredentials"]]
        if not answer["IsTruncated"]:
            break
        marker = {"Marker": answer["Marker"]}
    assert found == list(ada.service_credentials)
    assert len(iam.list_users(MaxItems=1)["Users"]) == 1


@pytest.mark.parametrize(
    ("code", "status"),
    [
        ("Throttling", 400),
        ("RequestLimitExceeded", 429),
        ("ServiceFailure", 500),
        ("EntityTemporarilyUnmodifiable", 409),
    ],
)
async def test_a_prepared_error_comes_as_often_as_asked(aws: AwsSimulator, code: str, status: int) -> None:
    aws.fail("ListUsers", code, status, times=2, headers={"Retry-After": "3"})
    iam = client(aws)
    for _ in range(2):
        with pytest.raises(ClientError) as raised:
            iam.list_users()
        assert raised.value.response["Error"]["Code"] == code
        assert raised.value.response["ResponseMetadata"]["HTTPStatusCode"] == status
        assert raised.value.response["ResponseMetadata"]["HTTPHeaders"]["retry-after"] == "3"
    assert iam.list_users()["Users"]


async def test_a_lie_answers_200_and_does_nothing_until_told_to_behave(aws: AwsSimulator) -> None:
    await aws.add_user("ada")
    before = await aws.state_of("ada")
    aws.lie("DeleteLoginProfile")
    iam = client(aws)
    for _ in range(3):
        assert iam.delete_login_profile(UserName="ada")["ResponseMetadata"]["HTTPStatusCode"] == 200
    assert await aws.state_of("ada") == before
    aws.behave()
    iam.delete_login_profile(UserName="ada")
    assert await aws.state_of("ada") != before


async def test_a_broken_off_answer_is_half_of_it_after_the_deed(aws: AwsSimulator) -> None:
    await aws.add_user("ada")
    aws.break_off("DeleteLoginProfile")
    with pytest.raises(ResponseParserError):
        client(aws).delete_login_profile(UserName="ada")
    assert not (await aws.state_of("ada")).password  # type: ignore[union-attr]


async def test_a_hanging_call_holds_up_neither_others_nor_the_end(aws: AwsSimulator) -> None:
    aws.hang("ListUsers")
    iam = client(aws, read_timeout=0.3)
    hanging = asyncio.create_task(asyncio.to_thread(iam.list_users))
    await asyncio.sleep(0.05)
    assert client(aws, "sts").get_caller_identity()
    with pytest.raises(ReadTimeoutError):
        await hanging
    started = time.monotonic()
    await asyncio.to_thread(aws.stop)
    assert time.monotonic() - started < 5


async def test_latency_is_added_to_each_call_and_not_summed_up(aws: AwsSimulator) -> None:
    iam = client(aws)
    iam.list_users()
    aws.set_latency(0.2)
    started = time.monotonic()
    await asyncio.gather(*(asyncio.to_thread(iam.list_users) for _ in range(3)))
    assert 0.2 <= time.monotonic() - started < 0.6


async def test_the_log_holds_every_call_but_the_seeding(aws: AwsSimulator) -> None:
    await aws.add_user("ada")
    assert aws.actions() == []
    client(aws).list_access_keys(UserName="ada")
    (call,) = aws.calls
    assert (call.action, call.user) == ("ListAccessKeys", "ada")
    aws.forget_calls()
    assert aws.actions() == []


async def test_a_refused_permission_is_denied_and_simulated_as_denied(aws: AwsSimulator) -> None:
    aws.refuse("iam:ListUsers")
    iam = client(aws)
    with pytest.raises(ClientError, match="AccessDenied"):
        iam.list_users()
    arn = f"arn:aws:iam::{aws.account_id}:user/offboard-worker"
    results = iam.simulate_principal_policy(PolicySourceArn=arn, ActionNames=["iam:ListUsers", "iam:GetUser"])
    decisions = {each["EvalActionName"]: each["EvalDecision"] for each in results["EvaluationResults"]}
    assert decisions == {"iam:ListUsers": "implicitDeny", "iam:GetUser": "allowed"}


async def test_identity_center_users_are_described_until_they_are_deleted(aws: AwsSimulator) -> None:
    user_id = await aws.add_identity_center_user("ada", "ada@example.com")
    store = client(aws, "identitystore")
    described = store.describe_user(IdentityStoreId=IDENTITY_STORE, UserId=user_id)
    assert described["UserName"] == "ada"
    assert described["Emails"][0]["Value"] == "ada@example.com"
    assert [user["UserId"] for user in store.list_users(IdentityStoreId=IDENTITY_STORE)["Users"]] == [user_id]
    store.delete_user(IdentityStoreId=IDENTITY_STORE, UserId=user_id)
    with pytest.raises(store.exceptions.ResourceNotFoundException):
        store.describe_user(IdentityStoreId=IDENTITY_STORE, UserId=user_id)
