"""What CloudTrail's calls mean, and who may deliver them without an SNS signature."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from typing import Any

import boto3
import pytest
from moto.server import ThreadedMotoServer

from offboard_worker.core.event import EventKind, IdentityEvent, Ignored
from offboard_worker.core.person import Subject
from offboard_worker.errors import BadSignature, MalformedDelivery, SourceUnavailable, UnknownTopic
from offboard_worker.secret import Secret
from offboard_worker.sources.aws import AwsConfig
from offboard_worker.sources.aws.cloudtrail import IAM, MEANING, Space
from offboard_worker.sources.source import Chore, Learned
from tests.sources.deliveries import NOW, TOPIC, aws, delivery, fixture

CENTER_USER = "90676f2f1c-6d321996-0000-4000-8000-00000000cccc"
KEY = {"x-api-key": "bridge-key"}


async def test_an_api_destination_is_known_by_its_key() -> None:
    body = fixture("aws/iam_delete_user")
    await aws().verify(delivery(body, headers=KEY), NOW)
    await aws(api_key_header="X-Hook").verify(delivery(body, headers={"x-hook": "bridge-key"}), NOW)
    for wrong in ({}, {"x-api-key": ""}, {"x-api-key": "Bridge-key"}, {"authorization": "bridge-key"}):
        with pytest.raises(BadSignature):
            await aws().verify(delivery(body, headers=wrong), NOW)


async def test_an_api_destination_may_use_basic_credentials() -> None:
    source = aws(api_key=None, basic_user="events", basic_password=Secret("p:w"))
    right = base64.b64encode(b"events:p:w").decode()
    await source.verify(delivery(b"{}", headers={"Authorization": f"Basic {right}"}), NOW)
    for wrong in (f"Bearer {right}", "Basic " + base64.b64encode(b"events:pw").decode(), "Basic", ""):
        with pytest.raises(BadSignature):
            await source.verify(delivery(b"{}", headers={"Authorization": wrong}), NOW)


async def test_an_unset_key_is_not_an_empty_key() -> None:
    with pytest.raises(BadSignature):
        await aws(api_key=None).verify(delivery(fixture("aws/iam_delete_user"), headers={"x-api-key": ""}), NOW)


async def test_the_api_key_does_not_stand_in_for_an_sns_signature() -> None:
    envelope = {"Type": "SubscriptionConfirmation", "TopicArn": TOPIC, "SubscribeURL": "https://192.0.2.1/"}
    with pytest.raises(MalformedDelivery):
        await aws().verify(delivery(envelope, headers=KEY), NOW)
    listed = delivery([envelope], headers=KEY)
    await aws().verify(listed, NOW)
    with pytest.raises(MalformedDelivery):
        list(aws().parse(listed))


def test_a_configuration_that_could_accept_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="nothing could be accepted"):
        AwsConfig(type="aws")
    with pytest.raises(ValueError, match="go together"):
        AwsConfig(type="aws", basic_user="events")
    with pytest.raises(ValueError, match="ARN"):
        AwsConfig(type="aws", topics=frozenset({"leavers"}))
    with pytest.raises(ValueError, match="host:port"):
        AwsConfig(type="aws", topics=frozenset({TOPIC}), sns_hosts=frozenset({"http://127.0.0.1:1"}))


def test_a_deleted_iam_user_is_a_leaver_under_the_iam_namespace() -> None:
    (said,) = aws().parse(delivery(fixture("aws/iam_delete_user")))
    assert isinstance(said, IdentityEvent)
    assert said.kind is EventKind.ACCOUNT_PURGED
    assert said.subject == Subject("aws-org", id="robin.leaver")  # not avery.admin, who did it
    assert said.key == "a1a1a1a1-0000-4000-8000-000000000001"


def test_a_failed_call_ends_nothing() -> None:
    (said,) = aws().parse(delivery(fixture("aws/iam_delete_user_failed")))
    assert isinstance(said, Ignored)
    assert "DeleteConflictException" in said.reason


def test_the_same_user_name_in_another_account_is_another_person() -> None:
    body = fixture("aws/iam_delete_user")
    (mine,) = aws(accounts={"123456789012": "aws-prod"}).parse(delivery(body))
    (foreign,) = aws(accounts={"999999999999": "aws-prod"}).parse(delivery(body))
    assert isinstance(mine, IdentityEvent)
    assert mine.subject.system == "aws-prod"
    assert isinstance(foreign, Ignored)
    assert "123456789012" in foreign.reason


def test_scim_hides_the_values_so_a_change_must_be_reread() -> None:
    (said,) = aws().parse(delivery(fixture("aws/scim_patch_user")))
    assert isinstance(said, IdentityEvent)
    assert said.kind is EventKind.ACCOUNT_CHANGED
    assert said.subject == Subject("aws-org:identity-store", id=CENTER_USER)


def test_a_created_user_is_learned_and_hidden_values_are_no_names() -> None:
    (said,) = aws(identity_store_system="center").parse(delivery(fixture("aws/scim_create_user")))
    assert said == Learned(said.key, Subject("center", id=CENTER_USER), "identitystore-scim.amazonaws.com:CreateUser")


def test_lost_assignments_name_the_user_and_what_was_lost() -> None:
    user, group, membership, renamed = aws().parse(delivery(fixture("aws/assignments_deleted")))
    assert isinstance(user, IdentityEvent)
    assert (user.kind, user.subject.id) == (EventKind.ACCESS_REMOVED, CENTER_USER)
    assert user.detail["targetId"] == "210987654321"
    assert isinstance(group, Ignored)
    assert isinstance(membership, Ignored)
    assert isinstance(renamed, Learned)
    assert renamed.subject == Subject("aws-org", id="robin.l", logins=("robin.leaver",))


@pytest.mark.parametrize(("source", "name"), sorted(MEANING))
def test_every_call_of_the_table_says_what_the_table_says(source: str, name: str) -> None:
    parameters = {"userName": "robin", "newUserName": "robin.l"} if source == IAM else {"userId": CENTER_USER}
    record = {"eventSource": source, "eventName": name, "eventID": "e-1", "requestParameters": parameters}
    (said,) = aws().parse(delivery(record))
    meaning = MEANING[source, name]
    if meaning.kind is not None:
        assert isinstance(said, IdentityEvent)
        assert said.kind is meaning.kind
        assert said.subject.system == ("aws-org" if meaning.space is Space.IAM else "aws-org:identity-store")
    else:
        assert isinstance(said, Learned if meaning.teaches else Ignored)


@pytest.mark.parametrize(
    "parameters", [None, {}, {"userName": None}, {"userName": "HIDDEN_DUE_TO_SECURITY_REASONS"}, {"userName": 5}]
)
def test_a_deletion_that_names_nobody_ends_nothing(parameters: Any) -> None:
    record = {"eventSource": IAM, "eventName": "DeleteUser", "eventID": "e-1", "requestParameters": parameters}
    (said,) = aws().parse(delivery(record))
    assert isinstance(said, Ignored)


def test_another_eventbridge_event_is_kept_and_ends_nothing() -> None:
    event = {"id": "e-1", "detail-type": "Object Created", "source": "aws.s3", "detail": {"bucket": {"name": "b"}}}
    (said,) = aws().parse(delivery(event))
    assert isinstance(said, Ignored)
    assert said.key == "e-1"


async def test_a_confirmation_is_never_sent_elsewhere() -> None:
    """What is stored is checked once more before it is visited."""
    for url, topic, error in (
        ("https://192.0.2.1/?Action=ConfirmSubscription", TOPIC, BadSignature),
        ("https://sns.us-east-1.amazonaws.com/?Action=DeleteTopic", TOPIC, BadSignature),
        ("https://sns.us-east-1.amazonaws.com/?Action=ConfirmSubscription", TOPIC + "2", UnknownTopic),
    ):
        with pytest.raises(error):
            await aws().perform(Chore("k", "confirm-subscription", {"url": url, "topic": topic}))


# With an identity store


@pytest.fixture
def endpoint(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "testing")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.mark.integration
async def test_the_identity_store_tells_who_has_which_id_and_who_is_gone(endpoint: str) -> None:
    client = boto3.client("identitystore", region_name="us-east-1", endpoint_url=endpoint)
    store = "d-90676f2f1c"
    user = client.create_user(
        IdentityStoreId=store,
        UserName="robin",
        DisplayName="Robin Leaver",
        Name={"GivenName": "Robin", "FamilyName": "Leaver"},
        Emails=[{"Value": "robin@example.org"}, {"Value": "robin.leaver@example.com", "Primary": True}],
    )["UserId"]
    source = aws(identity_store_id=store, region="us-east-1", endpoint_url=endpoint)
    expected = Subject(
        "aws-org:identity-store", user, ("robin.leaver@example.com", "robin@example.org"), ("robin",), "Robin Leaver"
    )
    assert [subject async for subject in source.roster()] == [expected]

    body = json.loads(fixture("aws/scim_patch_user"))
    body["detail"]["requestParameters"]["id"] = user
    (event,) = source.parse(delivery(body))
    assert isinstance(event, IdentityEvent)
    unknown = await source.confirm(event)  # moto tells no UserStatus
    assert isinstance(unknown, Ignored)
    client.delete_user(IdentityStoreId=store, UserId=user)
    gone = await source.confirm(event)
    assert isinstance(gone, IdentityEvent)
    assert gone.kind is EventKind.ACCOUNT_PURGED


class _Store:
    """Stands in for boto3's client where moto can't tell a UserStatus."""

    def __init__(self, status: str) -> None:
        self.status = status

    def describe_user(self, **asked: str) -> dict[str, Any]:
        return {"UserId": asked["UserId"], "UserName": "robin", "UserStatus": self.status}


@pytest.mark.parametrize(
    ("status", "kind"), [("DISABLED", EventKind.ACCOUNT_DISABLED), ("ENABLED", EventKind.ACCOUNT_ENABLED)]
)
async def test_a_rereading_tells_the_users_status(status: str, kind: EventKind) -> None:
    source = aws(identity_store_id="d-90676f2f1c", region="us-east-1")
    source._store._client = _Store(status)
    (event,) = source.parse(delivery(fixture("aws/scim_patch_user")))
    assert isinstance(event, IdentityEvent)
    said = await source.confirm(event)
    assert isinstance(said, IdentityEvent)
    assert (said.kind, said.subject.logins) == (kind, ("robin",))


@pytest.mark.integration
async def test_an_identity_store_that_is_away_is_asked_again_later() -> None:
    source = aws(
        identity_store_id="d-90676f2f1c", region="us-east-1", endpoint_url="http://127.0.0.1:9",
        access_key_id="testing", secret_access_key=Secret("testing"),
    )  # fmt: skip
    (event,) = source.parse(delivery(fixture("aws/scim_patch_user")))
    assert isinstance(event, IdentityEvent)
    with pytest.raises(SourceUnavailable):
        await source.confirm(event)


async def test_without_an_identity_store_nothing_is_reread_and_the_reason_says_so() -> None:
    (event,) = aws().parse(delivery(fixture("aws/scim_patch_user")))
    assert isinstance(event, IdentityEvent)
    said = await aws().confirm(event)
    assert isinstance(said, Ignored)
    assert "identity_store_id" in said.reason
    assert [subject async for subject in aws().roster()] == []
