"""Proof that Amazon SNS sent a message.

https://docs.aws.amazon.com/sns/latest/dg/sns-verify-signature-of-message.html . The signature covers a canonical string of
some fields, its key is in a certificate that the message itself names: so the certificate's address is the whole proof,
and only SNS's own hosts in the topic's own region, over https and without redirects, may be asked. This file knows
nothing of what a message means.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Final
from urllib.parse import parse_qs, urlsplit

from pydantic import TypeAdapter
from typing_extensions import TypedDict

from offboard_worker.errors import BadSignature, MalformedDelivery, SourceUnavailable, StaleDelivery, UnknownTopic
from offboard_worker.sources import wire
from offboard_worker.sources.source import Delivery

if TYPE_CHECKING:  # cryptography is imported with the first signature: it costs a receiver without SNS 8 MB
    from aiohttp import ClientSession
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey

NOTIFICATION: Final = "Notification"
SUBSCRIPTION: Final = "SubscriptionConfirmation"
UNSUBSCRIPTION: Final = "UnsubscribeConfirmation"

SIGNED: Final = {
    NOTIFICATION: ("Message", "MessageId", "Subject", "Timestamp", "TopicArn", "Type"),
    SUBSCRIPTION: ("Message", "MessageId", "SubscribeURL", "Timestamp", "Token", "TopicArn", "Type"),
    UNSUBSCRIPTION: ("Message", "MessageId", "SubscribeURL", "Timestamp", "Token", "TopicArn", "Type"),
}
OPTIONAL: Final = frozenset({"Subject"})
HASHES: Final[Mapping[str, str]] = {"1": "SHA1", "2": "SHA256"}
HOST: Final = re.compile(r"sns\.([a-zA-Z0-9-]{3,})\.amazonaws\.com(\.cn)?")
TOPIC: Final = re.compile(r"arn:(aws[a-z-]*):sns:([a-z0-9-]{3,}):[0-9]{12}:[A-Za-z0-9_.-]{1,256}")
FUTURE: Final = timedelta(minutes=5)
CERTIFICATE_LIMIT: Final = 64 * 1024  # bytes; SNS's have 2 KB
KEEP_FOR: Final = 24 * 3600.0  # seconds that a certificate is kept
KEEP: Final = 16  # certificates; a topic uses one at a time


class _Envelope(TypedDict):
    Type: str
    MessageId: str
    TopicArn: str
    Message: str
    Timestamp: str
    SignatureVersion: str
    Signature: str
    SigningCertURL: str


class Envelope(_Envelope, total=False):
    """An SNS message over HTTPS. Subject is absent, or null, where none was given."""

    Subject: str | None
    SubscribeURL: str
    Token: str


ENVELOPE: Final = TypeAdapter(Envelope)


def canonical(envelope: Mapping[str, object]) -> bytes:
    """Return the bytes that SNS signed. Raises MalformedDelivery where a signed field is missing."""
    lines: list[str] = []
    for name in SIGNED.get(str(envelope["Type"]), ()):
        value = envelope.get(name)
        if value is None:
            if name in OPTIONAL:
                continue
            raise MalformedDelivery(f"an SNS message without {name}")
        lines += [name, str(value)]
    if not lines:
        raise MalformedDelivery("an SNS message of an unknown Type")
    return "".join(f"{line}\n" for line in lines).encode("utf-8", "surrogatepass")


@dataclass(frozen=True, slots=True)
class Rules:
    """Whom to believe. `hosts` are further `host:port`s in SNS's place; http among them is allowed to loopback only."""

    topics: frozenset[str]
    max_age: timedelta
    hosts: frozenset[str] = frozenset()

    def topic(self, arn: str) -> None:
        if arn not in self.topics:
            raise UnknownTopic(
                "the SNS topic is not on the list", advice="Add its ARN to `topics:` of this source if it is yours."
            )

    def address(self, url: str, arn: str, what: str) -> None:
        """Check that SNS itself is behind an address, in the topic's region. Raises BadSignature."""
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError:
            raise BadSignature(f"{what} is not an address") from None
        plain = url.isascii() and url.isprintable() and not set(url) & set(' \\<>"')
        if not plain or parts.username is not None or parts.password is not None or parts.fragment:
            raise BadSignature(f"{what} is not a plain address")
        if parts.netloc in self.hosts:
            if parts.scheme == "https" or (parts.scheme == "http" and wire.is_loopback(parts.hostname or "")):
                return
            raise BadSignature(f"{what} is not https")
        found, topic = HOST.fullmatch(parts.netloc.removesuffix(":443")), TOPIC.fullmatch(arn)
        if parts.scheme != "https" or port not in (None, 443):
            raise BadSignature(f"{what} is not https")
        if found is None or topic is None:
            raise BadSignature(f"{what} is not an address of SNS")
        if found[1].lower() != topic[2] or (found[2] is not None) != (topic[1] == "aws-cn"):
            raise BadSignature(f"{what} is in another region than the topic")

    def certificate(self, url: str, arn: str) -> None:
        self.address(url, arn, "SigningCertURL")
        parts = urlsplit(url)
        if not parts.path.endswith(".pem") or parts.query:
            raise BadSignature("SigningCertURL is not a certificate's address")

    def subscribe_url(self, url: str, arn: str) -> None:
        """Check the address that confirms a subscription: SNS's own, to confirm just this topic. Raises BadSignature."""
        self.topic(arn)
        self.address(url, arn, "SubscribeURL")
        asked = parse_qs(urlsplit(url).query)
        if asked.get("Action", ["ConfirmSubscription"]) != ["ConfirmSubscription"] or asked.get("TopicArn", [arn]) != [
            arn
        ]:
            raise BadSignature("SubscribeURL asks for something else than to confirm this topic")

    def age(self, timestamp: str, now: datetime) -> None:
        unreadable = now - self.max_age - timedelta(days=1)
        age = now - wire.instant(timestamp, unreadable)
        if age > self.max_age or -age > FUTURE:
            raise StaleDelivery(
                "the SNS message's Timestamp is outside the window",
                advice="Check this machine's clock. SNS retries for an hour at most; `max_age_seconds` sets the window.",
            )


class Certificates:
    """SNS's signing keys by address, fetched once a day."""

    def __init__(self) -> None:
        self._session: ClientSession | None = None
        self._kept: dict[str, tuple[float, x509.Certificate]] = {}
        self._turn = asyncio.Lock()  # one fetch at a time: a stranger must not make us open many

    async def key(self, url: str, now: datetime) -> RSAPublicKey:
        """Return the key of a certificate that is valid now. Raises BadSignature or SourceUnavailable."""
        from cryptography.exceptions import UnsupportedAlgorithm
        from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey

        certificate = self._fresh(url)
        if certificate is None:
            async with self._turn:
                certificate = self._fresh(url) or await self._fetched(url)
        if not certificate.not_valid_before_utc <= now <= certificate.not_valid_after_utc:
            raise BadSignature("the signing certificate has expired or is not valid yet")
        try:
            key = certificate.public_key()
        except (ValueError, UnsupportedAlgorithm):
            key = None
        if not isinstance(key, RSAPublicKey):
            raise BadSignature("the signing certificate holds no RSA key")
        return key

    def _fresh(self, url: str) -> x509.Certificate | None:
        found = self._kept.get(url)
        return found[1] if found is not None and time.monotonic() - found[0] < KEEP_FOR else None

    async def _fetched(self, url: str) -> x509.Certificate:
        from cryptography import x509

        self._session = self._session or wire.open_session()
        status, _, body = await wire.fetch(self._session, "GET", url, limit=CERTIFICATE_LIMIT, encoded=True)
        if status != 200:
            raise BadSignature(f"SigningCertURL answered {status}: redirects are not followed")
        try:
            certificate = x509.load_pem_x509_certificate(body)
        except ValueError:
            raise SourceUnavailable("SigningCertURL did not return a certificate") from None
        while len(self._kept) >= KEEP:
            del self._kept[next(iter(self._kept))]
        self._kept.pop(url, None)
        self._kept[url] = (time.monotonic(), certificate)
        return certificate

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None


async def verify(delivery: Delivery, now: datetime, rules: Rules, certificates: Certificates) -> None:
    """Prove that SNS sent this for a topic on the list, not long ago. Cheap checks come before the fetch."""
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15

    envelope = wire.read(ENVELOPE, delivery.body, "an SNS message")
    arn = envelope["TopicArn"]
    _check_headers(delivery.headers, envelope)
    rules.topic(arn)
    signed = canonical(envelope)
    algorithm = HASHES.get(envelope["SignatureVersion"])
    if algorithm is None:
        raise BadSignature("an unknown SignatureVersion: 1 and 2 exist")
    rules.certificate(envelope["SigningCertURL"], arn)
    rules.age(envelope["Timestamp"], now)
    try:
        signature = base64.b64decode(envelope["Signature"], validate=True)
    except (binascii.Error, ValueError):
        raise BadSignature("the Signature is not base64") from None
    key = await certificates.key(envelope["SigningCertURL"], now)
    try:
        key.verify(signature, signed, PKCS1v15(), getattr(hashes, algorithm)())
    except InvalidSignature:
        raise BadSignature("the SNS signature does not match: forged, or changed on its way") from None


def _check_headers(headers: Mapping[str, str], envelope: Envelope) -> None:
    """Headers aren't signed: where they are present they must say what the signed body says."""
    for header, name in (("x-amz-sns-message-type", "Type"), ("x-amz-sns-topic-arn", "TopicArn")):
        told = headers.get(header)
        if told is not None and told != envelope[name]:  # type: ignore[literal-required]
            raise BadSignature(f"the header {header} and the signed {name} differ")
