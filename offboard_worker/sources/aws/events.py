"""The AWS source: deliveries by SNS over HTTPS or by an EventBridge API destination.

https://docs.aws.amazon.com/eventbridge/latest/userguide/eb-api-destinations.html . An SNS envelope is always proved by its
signature; anything else by the API key or Basic credentials of the API destination's connection. EventBridge retries 429
and 5xx only, so our own trouble must be a 5xx. boto3 is imported in jobs alone, by `directory`.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import AsyncIterator, Iterable, Iterator
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Annotated, Any, ClassVar, Final, Self

from pydantic import FailFast, Field, TypeAdapter, ValidationError, field_validator, model_validator
from typing_extensions import TypedDict

from offboard_worker.core.event import IdentityEvent, Ignored
from offboard_worker.core.person import Subject
from offboard_worker.errors import BadSignature, MalformedDelivery, SourceUnavailable
from offboard_worker.secret import Secret
from offboard_worker.sources import wire
from offboard_worker.sources.aws import cloudtrail, sns
from offboard_worker.sources.aws.directory import IdentityStore, StoreAccess
from offboard_worker.sources.source import Chore, Delivery, Source, SourceConfig, Statement

CONFIRM: Final = "confirm-subscription"
API_CALL: Final = "AWS API Call via CloudTrail"


class Shape(TypedDict, total=False):
    """Whatever may arrive, by its telling members: an SNS envelope, an EventBridge event, a record, a file of records."""

    Type: str | None
    TopicArn: str | None
    MessageId: str | None
    Message: str | None
    SubscribeURL: str | None
    id: str | None
    detail: cloudtrail.Record | None
    Records: Annotated[list[cloudtrail.Record], FailFast(), Field(max_length=wire.MAX_ITEMS)]
    eventID: str | None
    eventSource: str | None
    eventName: str | None
    eventTime: str | None
    errorCode: str | None
    recipientAccountId: str | None
    requestParameters: dict[str, Any] | None
    responseElements: dict[str, Any] | None


class Peek(TypedDict, total=False):
    Type: Any
    TopicArn: Any
    Signature: Any


SHAPE: Final = TypeAdapter(Shape)
PEEK: Final = TypeAdapter(Peek)
LIST: Final = TypeAdapter(Annotated[list[Shape], FailFast(), Field(max_length=wire.MAX_ITEMS)])
DETAIL_TYPE: Final = "detail-type"


class AwsConfig(SourceConfig, StoreAccess):
    topics: frozenset[str] = Field(default=frozenset(), description="ARNs of the SNS topics to accept; empty: no SNS.")
    max_age_seconds: float = Field(default=3900, gt=0, description="The oldest SNS message; SNS retries for an hour.")
    sns_hosts: frozenset[str] = Field(
        default=frozenset(), description="Further host:port in place of SNS's (a simulator); http to loopback only."
    )
    api_key: Secret | None = Field(default=None, description="The key of the API destination's connection.")
    api_key_header: str = Field(default="x-api-key", pattern=r"^[A-Za-z0-9-]+$", description="The header that has it.")
    basic_user: str | None = Field(default=None, description="User name of a connection with Basic authorization.")
    basic_password: Secret | None = Field(default=None, description="Its password.")
    accounts: dict[str, str] = Field(
        default_factory=dict,
        description="AWS account id → system of its IAM user names. Name it wherever events of several accounts "
        "arrive: the same user name in another account is another person.",
    )
    identity_store_system: str | None = Field(
        default=None, description="Namespace of Identity Store user ids; NAME:identity-store by default."
    )

    @field_validator("topics")
    @classmethod
    def _arns(cls, topics: frozenset[str]) -> frozenset[str]:
        for arn in topics:
            if not sns.TOPIC.fullmatch(arn):
                raise ValueError("expected ARNs of SNS topics like arn:aws:sns:us-east-1:123456789012:leavers")
        return topics

    @field_validator("sns_hosts")
    @classmethod
    def _hosts(cls, hosts: frozenset[str]) -> frozenset[str]:
        if any(set(host) & set("/@? ") for host in hosts):
            raise ValueError("expected host:port, without scheme or path")
        return hosts

    @model_validator(mode="after")
    def _some_proof(self) -> Self:
        if (self.basic_user is None) != (self.basic_password is None):
            raise ValueError("basic_user and basic_password go together")
        if not self.topics and self.api_key is None and self.basic_password is None:
            raise ValueError("nothing could be accepted: set topics, api_key, or basic_user and basic_password")
        return self


class AwsEvents(Source[AwsConfig]):
    name: ClassVar[str] = "aws"
    title: ClassVar[str] = "AWS CloudTrail events by SNS or EventBridge"
    Config: ClassVar[type[SourceConfig]] = AwsConfig

    def __init__(self, instance: str, config: AwsConfig) -> None:
        super().__init__(instance, config)
        self._rules = sns.Rules(config.topics, timedelta(seconds=config.max_age_seconds), config.sns_hosts)
        self._certificates = sns.Certificates()
        store = config.identity_store_system or f"{instance}:identity-store"
        self._spaces = cloudtrail.Namespaces(self.system, store, config.accounts)
        self._store = IdentityStore(instance, store, config)
        self._basic = _basic(config.basic_user, config.basic_password)

    async def verify(self, delivery: Delivery, now: datetime) -> None:
        """Raises MalformedDelivery for an SNS message without what its signature covers."""
        if delivery.headers.get("x-amz-sns-rawdelivery", "").casefold() == "true":
            raise BadSignature(
                "raw SNS delivery is unsigned", advice="Switch raw message delivery off at the subscription."
            )
        if "x-amz-sns-message-type" in delivery.headers or _is_sns(delivery.body):
            await sns.verify(delivery, now, self._rules, self._certificates)
        elif not self._has_key(delivery):
            raise BadSignature(
                "no SNS signature, and no valid API key or Basic credentials",
                advice=f"Compare the EventBridge connection's credentials with sources.{self.instance}.",
            )

    def _has_key(self, delivery: Delivery) -> bool:
        """Compare both kinds of credential always, each in constant time."""
        given, basic = (
            delivery.headers.get(self.config.api_key_header.lower(), ""),
            delivery.headers.get("authorization", ""),
        )
        key = self.config.api_key is not None and wire.same(given, self.config.api_key)
        scheme, _, encoded = basic.partition(" ")
        pair = self._basic is not None and scheme.casefold() == "basic" and wire.same(encoded.strip(), self._basic)
        return key or pair

    def parse(self, delivery: Delivery) -> Iterable[Statement]:
        body = delivery.body.lstrip()
        if body.startswith(b"["):
            # never SNS messages: in a list they would not have been proved by their signatures
            shapes = wire.read(LIST, body, "a list of AWS events")
            found = [statement for shape in shapes for statement in self._event(shape, delivery.received_at)]
        else:
            found = list(self._envelope(wire.read(SHAPE, body, "an AWS event"), delivery.received_at))
        if not found:
            raise MalformedDelivery("neither an SNS message, an EventBridge event nor a CloudTrail record")
        return found

    def _envelope(self, shape: Shape, received: datetime) -> Iterator[Statement]:
        kind, arn = shape.get("Type"), shape.get("TopicArn")
        if kind is None or arn is None:
            yield from self._event(shape, received)
            return
        key = f"sns:{(shape.get('MessageId') or '')[:100]}"
        if kind == sns.SUBSCRIPTION:
            yield Chore(key, CONFIRM, {"url": shape.get("SubscribeURL") or "", "topic": arn})
        elif kind == sns.UNSUBSCRIPTION:
            reason = f"THE SUBSCRIPTION OF {arn[:300]} WAS DELETED: no event comes from it any more. Subscribe again"
            yield Ignored(key, f"{reason} if nobody meant to; SubscribeURL is never visited by itself.", kind)
        elif kind == sns.NOTIFICATION:
            yield from self._message(key, shape.get("Message") or "", received)
        else:
            yield Ignored(key, "an unknown type of SNS message", kind[:80])

    def _message(self, key: str, message: str, received: datetime) -> Iterator[Statement]:
        """Read the event inside an SNS message: a text. What isn't one is authentic and kept, but says nothing."""
        found: list[Statement] = []
        try:
            found = list(self._event(SHAPE.validate_json(message), received))
        except (ValidationError, ValueError):
            if '"eventName"' in message:
                raise MalformedDelivery("the SNS message holds a CloudTrail record that can't be read") from None
        yield from found or [Ignored(key, "the message is no event", sns.NOTIFICATION)]

    def _event(self, shape: Shape, received: datetime) -> Iterator[Statement]:
        """Read an EventBridge event, a file of records, or one bare record."""
        detail, records = shape.get("detail"), shape.get("Records")
        if detail is not None:
            if detail.get("eventName"):
                record = detail if detail.get("eventID") else {**detail, "eventID": shape.get("id")}
                yield from self._record(record, received)
            else:
                digest = hashlib.sha256(repr(shape).encode("utf-8", "surrogatepass")).hexdigest()[:32]
                yield Ignored(shape.get("id") or f"no-id:{digest}", "not an API call recorded by CloudTrail")
        elif records is not None:
            for record in records:
                yield from self._record(record, received)
        elif shape.get("eventName") and shape.get("eventSource"):
            yield from self._record(shape, received)

    def _record(self, record: Any, received: datetime) -> Iterator[Statement]:
        return cloudtrail.statements(self.instance, record, self._spaces, received)

    async def confirm(self, event: IdentityEvent) -> IdentityEvent | Ignored:
        """Re-read an Identity Center user whom SCIM changed. IAM users are never `account-changed`."""
        if event.subject.system != self._spaces.store:
            return Ignored(event.key, "IAM events need no confirmation", event.vendor_type)
        found = await self._store.confirm(event)
        return replace(found, key=f"{event.key}:confirmed") if isinstance(found, IdentityEvent) else found

    async def perform(self, chore: Chore) -> str:
        """Confirm a subscription by its SubscribeURL, whose host is checked once more: what is stored is not trusted."""
        if chore.name != CONFIRM:
            raise NotImplementedError(f"{chore.name} is no chore of {self.name}")
        url, topic = chore.argument.get("url", ""), chore.argument.get("topic", "")
        self._rules.subscribe_url(url, topic)
        session = wire.open_session()
        try:
            status, _, _ = await wire.fetch(session, "GET", url, limit=64 * 1024, encoded=True)
        finally:
            await session.close()
        if status != 200:
            raise SourceUnavailable(
                f"SNS answered {status} to the confirmation of {topic}",
                advice="A confirmation expires after 3 days: ask for a new one with `aws sns subscribe`.",
            )
        return f"the subscription to {topic} was confirmed"

    async def roster(self) -> AsyncIterator[Subject]:
        """Yield the Identity Store's users: after DeleteUser nothing tells any more whose id it was."""
        async for subject in self._store.everyone():
            yield subject

    async def close(self) -> None:
        await self._certificates.close()


def _is_sns(body: bytes) -> bool:
    """Whether a body claims to be an SNS message; then only its signature counts."""
    try:
        found = PEEK.validate_json(body)
    except ValidationError:
        return False
    return "TopicArn" in found or "Signature" in found


def _basic(user: str | None, password: Secret | None) -> Secret | None:
    if user is None or password is None:
        return None
    return Secret(base64.b64encode(f"{user}:{password.reveal()}".encode()).decode())
