"""AWS IAM: what `check` finds, which credential is used, and that the page tells all of it."""

from __future__ import annotations

import asyncio
import json
import os
import threading
from pathlib import Path

import pytest

from connectors.aws_iam import AwsIam, AwsIamConfig
from connectors.aws_iam.access import needed
from connectors.aws_iam.calls import Calls
from offboard_worker.connector import blocking
from offboard_worker.core.credential import CredentialKind
from offboard_worker.core.person import Person
from offboard_worker.demo.aws_simulator import AwsSimulator
from offboard_worker.errors import AccessRefused, NeedsHuman
from tests.connectors.aws_world import ADA, config_for, held

K = CredentialKind
DOCS = Path(__file__).resolve().parents[2] / "docs" / "connectors" / "aws_iam.md"

integration = pytest.mark.integration


@integration
async def test_check_names_each_missing_permission(aws: AwsSimulator, iam: AwsIam) -> None:
    whole = await iam.check()
    assert whole.ok
    assert whole.identity.endswith(":user/offboard-worker")
    aws.refuse("iam:PutUserPolicy", "iam:ListServiceSpecificCredentials")
    assert set((await iam.check()).missing) == {"iam:PutUserPolicy", "iam:ListServiceSpecificCredentials"}


@integration
async def test_check_without_the_policy_simulator_tries_the_reads_and_says_so(aws: AwsSimulator, iam: AwsIam) -> None:
    aws.refuse("iam:SimulatePrincipalPolicy", "iam:GetLoginProfile")
    standing = await iam.check()
    assert standing.missing == ("iam:GetLoginProfile",)
    assert "iam:SimulatePrincipalPolicy" in standing.notes[0]


@integration
async def test_a_refused_credential_is_said_and_never_shown(aws: AwsSimulator, iam: AwsIam) -> None:
    aws.fail("GetCallerIdentity", "InvalidClientTokenId", 403)
    with pytest.raises(AccessRefused) as raised:
        await iam.check()
    assert aws.secret_access_key not in repr(raised.value)
    assert aws.secret_access_key not in f"{iam.config!r}"


@integration
async def test_the_request_that_aws_quotes_in_a_signature_error_is_not_repeated(aws: AwsSimulator, iam: AwsIam) -> None:
    quoted = "The signature we calculated does not match.\n\nx-amz-security-token:token-of-ours"
    aws.fail("GetCallerIdentity", "SignatureDoesNotMatch", 403, message=quoted)
    with pytest.raises(AccessRefused) as raised:
        await iam.check()
    assert "does not match" in raised.value.message
    assert "token-of-ours" not in repr(raised.value)


async def test_no_credential_at_all_is_an_access_problem(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("HOME", str(tmp_path))
    config = AwsIamConfig(type="aws_iam", endpoint_url="http://127.0.0.1:9")
    async with AwsIam.open("aws", config) as iam:
        with pytest.raises(AccessRefused) as raised:
            await iam.check()
    assert "access_key_id" in raised.value.advice


@integration
async def test_a_role_is_assumed_where_configured(aws: AwsSimulator) -> None:
    arn = await aws.add_role("offboarder")
    async with AwsIam.open("aws", config_for(aws, role_arn=arn)) as iam:
        assert ":assumed-role/offboarder/" in (await iam.check()).identity
        assert {c.owner async for c in iam.find(ADA)} == {"ada"}
        # The user behind the role is us as well.
        with pytest.raises(NeedsHuman):
            await iam.disable((await held(iam, Person("p0", "us", {"aws": (aws.own_user,)})))[K.ACCESS_KEY])


@integration
async def test_our_own_role_is_not_cut(aws: AwsSimulator) -> None:
    arn = await aws.add_role("offboarder")
    async with AwsIam.open("aws", config_for(aws, role_arn=arn, revoke_role_sessions=("offboarder",))) as iam:
        assert any("our own role" in note for note in (await iam.check()).notes)
        with pytest.raises(NeedsHuman):
            await iam.disable((await held(iam))[K.SESSION])
    assert not await aws.role_policies("offboarder")


async def test_a_client_made_after_preload_parses_no_model_again(monkeypatch: pytest.MonkeyPatch) -> None:
    AwsIam.preload()

    def refuse(self: object, file_path: str) -> None:
        raise AssertionError(f"{file_path} is read again")

    monkeypatch.setattr("botocore.loaders.JSONFileLoader.load_file", refuse)
    keys = {"access_key_id": "AKIAEXAMPLE", "secret_access_key": "not-a-secret"}
    calls = Calls("aws", AwsIamConfig.model_validate({"type": "aws_iam", **keys}))
    for service in ("iam", "sts"):
        assert calls._client(service).meta.service_model.service_name == service
    await calls.close()


async def test_as_many_blocking_calls_run_at_once_as_a_connector_may_ask_for() -> None:
    together = threading.Barrier(64)  # breaks unless 64 threads wait in it at the same time
    await asyncio.gather(*(blocking(together.wait, 10) for _ in range(64)))


def test_the_page_documents_every_kind_right_and_key() -> None:
    page = DOCS.read_text()
    config = AwsIamConfig(type="aws_iam", revoke_role_sessions=("deployer",))
    for kind in AwsIam.kinds:
        assert f"`{kind.value}`" in page
    for key in AwsIamConfig.model_fields:
        assert f"`{key}`" in page, key
    policy = json.loads(page.split("```json")[1].split("```")[0])
    granted = {action for statement in policy["Statement"] for action in statement["Action"]}
    assert granted >= set(needed(config))
