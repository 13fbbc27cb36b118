"""SNS messages signed with a real key, and every way in which one can be forged.

A server on loopback stands in for SNS's certificate host, as `sns_hosts` allows.
"""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey, generate_private_key
from cryptography.x509.oid import NameOID

from offboard_worker.core.event import EventKind, IdentityEvent, Ignored
from offboard_worker.errors import (
    BadSignature,
    DeliveryError,
    MalformedDelivery,
    SourceUnavailable,
    StaleDelivery,
    UnknownTopic,
)
from offboard_worker.sources.aws import AwsEvents
from offboard_worker.sources.aws.sns import SIGNED, Rules, canonical
from offboard_worker.sources.source import Chore, Delivery
from tests.sources.deliveries import NOW, TOPIC, aws, delivery, fixture

Message = dict[str, Any]


def certificate(key: RSAPrivateKey, *, days: int = 30) -> bytes:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "sns.amazonaws.com")])
    builder = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
    builder = builder.not_valid_before(NOW - timedelta(days=60)).not_valid_after(NOW + timedelta(days=days))
    return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


@dataclass
class Sns:
    """SNS's own side: the key, the certificate's address, and what was asked of it."""

    key: RSAPrivateKey
    url: str = ""
    asked: list[str] = field(default_factory=list)
    broken: bool = False

    @property
    def host(self) -> str:
        return self.url.removeprefix("http://").rstrip("/")

    def message(self, *, version: str = "2", **changes: Any) -> Message:
        made: Message = {
            "Type": "Notification",
            "MessageId": "22b80b92-0000-4000-8000-0000000000aa",
            "TopicArn": TOPIC,
            "Message": fixture("aws/iam_delete_user").decode(),
            "Timestamp": "2026-11-20T09:15:45.000Z",
            "SigningCertURL": f"{self.url}cert.pem",
            "SignatureVersion": version,
            "UnsubscribeURL": f"{self.url}?Action=Unsubscribe",
        }
        made.update(changes)
        if made["Type"] != "Notification":
            made.setdefault("Token", "2336412f37")
            made.setdefault("SubscribeURL", f"{self.url}?Action=ConfirmSubscription&TopicArn={TOPIC}&Token=2336412f37")
        algorithm = hashes.SHA1() if version == "1" else hashes.SHA256()  # noqa: S303 - SNS's version 1
        made["Signature"] = base64.b64encode(self.key.sign(canonical(made), PKCS1v15(), algorithm)).decode()
        return made

    def source(self, **settings: Any) -> AwsEvents:
        return aws(**{"sns_hosts": frozenset({self.host}), "api_key": None, **settings})


KEY = generate_private_key(65537, 2048)


@pytest.fixture
async def sns() -> AsyncIterator[Sns]:
    side = Sns(KEY)
    expired = certificate(KEY, days=-1)

    async def serve(request: web.Request) -> web.Response:
        side.asked.append(request.path_qs)
        if side.broken:
            return web.Response(status=503, headers={"Retry-After": "4"})
        match request.path:
            case "/cert.pem":
                return web.Response(body=certificate(KEY))
            case "/expired.pem":
                return web.Response(body=expired)
            case "/text.pem":
                return web.Response(body=b"-----BEGIN CERTIFICATE-----\nnone\n")
            case "/moved.pem":
                return web.Response(status=302, headers={"Location": "/cert.pem"})
            case "/big.pem":
                return web.Response(body=b"x" * 70_000)
            case "/":
                return web.Response(text="<ConfirmSubscriptionResponse/>")
        return web.Response(status=404)

    app = web.Application()
    app.router.add_get("/{rest:.*}", serve)
    async with TestServer(app) as server:
        side.url = str(server.make_url("/"))
        yield side


def sent(message: Message, **headers: str) -> Delivery:
    defaults = {"Content-Type": "text/plain; charset=UTF-8", "x-amz-sns-message-type": str(message.get("Type"))}
    return delivery(message, headers={**defaults, **headers})


async def refused(source: AwsEvents, given: Delivery, error: type[Exception]) -> Exception:
    try:
        with pytest.raises(error) as caught:
            await source.verify(given, NOW)
        return caught.value
    finally:
        await source.close()


@pytest.mark.integration
@pytest.mark.parametrize("version", ["1", "2"])
@pytest.mark.parametrize("subject", [{}, {"Subject": "Leaver"}, {"Subject": None}])
async def test_a_signed_message_is_accepted_and_its_event_read(sns: Sns, version: str, subject: dict[str, Any]) -> None:
    source = sns.source()
    given = sent(sns.message(version=version, **subject))
    await source.verify(given, NOW)
    await source.verify(given, NOW)
    await source.close()
    assert sns.asked == ["/cert.pem"]  # kept, not fetched twice
    (said,) = source.parse(given)
    assert isinstance(said, IdentityEvent)
    assert (said.kind, said.subject.id) == (EventKind.ACCOUNT_PURGED, "robin.leaver")


@pytest.mark.integration
@pytest.mark.parametrize("name", sorted(set(SIGNED["Notification"]) - {"Type", "TopicArn", "Timestamp"}))
async def test_a_change_in_any_signed_field_is_found(sns: Sns, name: str) -> None:
    message = sns.message(Subject="Leaver")
    message[name] = message[name] + " "
    await refused(sns.source(), sent(message), BadSignature)


@pytest.mark.integration
@pytest.mark.parametrize("kind", ["SubscriptionConfirmation", "UnsubscribeConfirmation"])
@pytest.mark.parametrize("name", ["SubscribeURL", "Token", "Message"])
async def test_a_change_in_a_signed_confirmation_is_found(sns: Sns, kind: str, name: str) -> None:
    message = sns.message(Type=kind)
    message[name] = message[name] + "x"
    await refused(sns.source(), sent(message), BadSignature)


@pytest.mark.integration
async def test_a_signature_by_another_key_or_of_another_version_is_found(sns: Sns) -> None:
    forged = Sns(generate_private_key(65537, 2048), sns.url).message()
    await refused(sns.source(), sent(forged), BadSignature)
    await refused(sns.source(), sent({**sns.message(version="1"), "SignatureVersion": "2"}), BadSignature)
    await refused(sns.source(), sent({**sns.message(), "SignatureVersion": "3"}), BadSignature)
    await refused(sns.source(), sent({**sns.message(), "Signature": "?"}), BadSignature)
    await refused(sns.source(), sent({**sns.message(), "Signature": ""}), BadSignature)


@pytest.mark.integration
@pytest.mark.parametrize(
    ("path", "error"),
    [
        ("moved.pem", BadSignature),  # a redirect
        ("missing.pem", BadSignature),
        ("expired.pem", BadSignature),
        ("cert.pem?x=1", BadSignature),
        ("cert", BadSignature),
        ("text.pem", SourceUnavailable),
        ("big.pem", SourceUnavailable),
    ],
)
async def test_only_a_plain_valid_certificate_is_believed(sns: Sns, path: str, error: type[Exception]) -> None:
    await refused(sns.source(), sent(sns.message(SigningCertURL=sns.url + path)), error)
    assert path != "moved.pem" or "/cert.pem" not in sns.asked


@pytest.mark.integration
async def test_a_certificate_host_in_trouble_is_our_trouble(sns: Sns) -> None:
    sns.broken = True
    error = await refused(sns.source(), sent(sns.message()), SourceUnavailable)
    assert isinstance(error, SourceUnavailable)
    assert error.retry_after == 4


@pytest.mark.integration
async def test_nothing_is_fetched_for_a_topic_that_is_not_listed(sns: Sns) -> None:
    message = sns.message(TopicArn=TOPIC + "2")
    await refused(sns.source(), sent(message), UnknownTopic)
    await refused(sns.source(topics=frozenset(), api_key="k"), sent(sns.message()), UnknownTopic)
    assert sns.asked == []


@pytest.mark.integration
@pytest.mark.parametrize(
    "timestamp", ["2026-11-20T08:00:00.000Z", "2026-11-20T09:22:00.000Z", "2012-05-02T00:54:06.655Z", "soon", ""]
)
async def test_an_old_a_future_and_an_undated_message_are_stale(sns: Sns, timestamp: str) -> None:
    await refused(sns.source(), sent(sns.message(Timestamp=timestamp)), StaleDelivery)


@pytest.mark.integration
async def test_a_message_retried_for_an_hour_is_not_stale(sns: Sns) -> None:
    source = sns.source()
    await source.verify(sent(sns.message(Timestamp="2026-11-20T08:16:00.000Z")), NOW)
    await source.close()


@pytest.mark.integration
async def test_headers_that_contradict_the_signed_body_are_refused(sns: Sns) -> None:
    message = sns.message()
    for header in ("x-amz-sns-message-type", "x-amz-sns-topic-arn"):
        await refused(sns.source(), sent(message, **{header: "SubscriptionConfirmation"}), BadSignature)
    await refused(sns.source(), sent(message, **{"x-amz-sns-rawdelivery": "true"}), BadSignature)


@pytest.mark.integration
async def test_a_message_without_the_sns_headers_is_still_proved_by_its_signature(sns: Sns) -> None:
    source = sns.source()
    await source.verify(delivery(sns.message()), NOW)
    await source.close()
    await refused(sns.source(), delivery({**sns.message(), "Message": "{}"}), BadSignature)


RULES = Rules(frozenset({TOPIC}), timedelta(hours=1), frozenset({"127.0.0.1:5000", "sim.example.com:5000"}))


@pytest.mark.parametrize(
    "url",
    [
        "http://sns.us-east-1.amazonaws.com/a.pem",
        "https://sns.eu-west-1.amazonaws.com/a.pem",  # another region than the topic's
        "https://sns.us-east-1.amazonaws.com.cn/a.pem",
        "https://sns.us-east-1.amazonaws.com.attacker.example/a.pem",
        "https://attacker.example/sns.us-east-1.amazonaws.com/a.pem",
        "https://xsns.us-east-1.amazonaws.com/a.pem",
        "https://bucket.s3.us-east-1.amazonaws.com/a.pem",
        "https://sns.us-east-1.amazonaws.com@attacker.example/a.pem",
        "https://attacker.example#@sns.us-east-1.amazonaws.com/a.pem",
        "https://attacker.example\\@sns.us-east-1.amazonaws.com/a.pem",
        "https://sns.us-east-1.amazonaws.com:8443/a.pem",
        "https://sns.us-east-1.amazonaws.com:x/a.pem",
        "https://sns.us-east-1.amazonaws.com/a.txt",
        "https://sns.us-east-1.amazonaws.com/a.pem?x=.pem",
        "https://sns.us-east-1.amazonaws.com/a.pem\n",
        "https://sns.us-east-1.amazonaws.com\n/a.pem",
        "file:///etc/ssl/a.pem",
        "http://127.0.0.1:5001/a.pem",
        "http://sim.example.com:5000/a.pem",  # listed, but http goes to loopback only
        "//127.0.0.1:5000/a.pem",
        "https://[::1/a.pem",
        "",
    ],
)
def test_a_certificate_from_anywhere_else_is_refused(url: str) -> None:
    with pytest.raises(BadSignature):
        RULES.certificate(url, TOPIC)


def test_the_hosts_of_sns_are_accepted() -> None:
    RULES.certificate("https://sns.us-east-1.amazonaws.com/SimpleNotificationService-f3ec.pem", TOPIC)
    RULES.certificate("https://sns.us-east-1.amazonaws.com:443/a.pem", TOPIC)
    RULES.certificate("http://127.0.0.1:5000/a.pem", TOPIC)
    RULES.certificate("https://sim.example.com:5000/a.pem", TOPIC)
    RULES.certificate("https://sns.cn-north-1.amazonaws.com.cn/a.pem", "arn:aws-cn:sns:cn-north-1:123456789012:t")


@pytest.mark.integration
async def test_a_subscription_is_confirmed_by_its_chore(sns: Sns) -> None:
    source = sns.source()
    given = sent(sns.message(Type="SubscriptionConfirmation", Message="You have chosen to subscribe"))
    assert source.handshake(given) is None
    await source.verify(given, NOW)
    (chore,) = source.parse(given)
    assert isinstance(chore, Chore)
    assert "confirmed" in await source.perform(chore)
    assert "confirmed" in await source.perform(chore)  # twice is harmless
    assert sum("Action=ConfirmSubscription" in path for path in sns.asked) == 2
    sns.broken = True
    with pytest.raises(SourceUnavailable):
        await source.perform(chore)
    await source.close()


@pytest.mark.integration
async def test_the_end_of_a_subscription_is_told_loudly_and_nothing_is_visited(sns: Sns) -> None:
    source = sns.source()
    given = sent(sns.message(Type="UnsubscribeConfirmation", Message="You have chosen to deactivate"))
    await source.verify(given, NOW)
    (said,) = source.parse(given)
    assert isinstance(said, Ignored)
    assert "SUBSCRIPTION" in said.reason
    assert TOPIC in said.reason
    await source.close()
    assert not any("ConfirmSubscription" in path for path in sns.asked)


def test_a_message_that_is_no_event_is_kept_as_ignored() -> None:
    for text in ("Hello world!", "", "[]", "5", '{"detail": 5}', '{"a": 1}'):
        (said,) = aws().parse(delivery({"Type": "Notification", "TopicArn": TOPIC, "MessageId": "m", "Message": text}))
        assert said == Ignored("sns:m", "the message is no event", "Notification")


async def test_an_incomplete_message_is_malformed() -> None:
    whole = json.loads(
        json.dumps({"Type": "Notification", "MessageId": "m", "TopicArn": TOPIC, "Message": "x", "Timestamp": "t",
                    "SignatureVersion": "2", "Signature": "eA==", "SigningCertURL": "https://x/"})
    )  # fmt: skip
    for name in whole:
        partial = {key: value for key, value in whole.items() if key != name}
        with pytest.raises(MalformedDelivery):
            await aws(api_key=None).verify(delivery(partial, headers={"x-amz-sns-message-type": "Notification"}), NOW)
    for kind in ("SubscriptionConfirmation", "Other"):
        with pytest.raises(DeliveryError):
            await aws().verify(delivery({**whole, "Type": kind}), NOW)
