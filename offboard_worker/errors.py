"""Every error that the project raises on purpose.

Each says what happened, to what, and what the operator should do next. `reason` is a slug that is also the metric's
label; `advice` is a sentence for a person. No secret may ever be put into one. This file does no I/O.
"""

from __future__ import annotations

from typing import ClassVar


class OffboardError(Exception):
    """Something that we foresaw went wrong."""

    reason: ClassVar[str] = "error"
    default_advice: ClassVar[str] = "Look at the log lines before this one."

    def __init__(self, message: str, *, advice: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.advice = advice or self.default_advice

    def __str__(self) -> str:
        return self.message


class ConfigError(OffboardError):
    """The configuration can't be used: the process refuses to start."""

    reason = "config"
    default_advice = "Compare the key with config.example.yaml, where each one is explained."


class UsageError(OffboardError):
    """An operator asked for something that can't be done as asked (unknown person, closed case, …)."""

    reason = "usage"
    default_advice = "See --help."


class DeliveryError(OffboardError):
    """An inbound delivery is refused with `status`."""

    reason = "delivery"
    status: ClassVar[int] = 400


class BadSignature(DeliveryError):
    """The delivery doesn't prove where it came from."""

    reason = "bad-signature"
    status = 401


class StaleDelivery(DeliveryError):
    """The delivery is authentic but too old, or from the future: possibly a replay."""

    reason = "stale-delivery"
    status = 401


class MalformedDelivery(DeliveryError):
    """The delivery is authentic but isn't in the shape that the source documents."""

    reason = "malformed-delivery"
    status = 400


class UnknownTopic(DeliveryError):
    """The delivery is well formed but comes from a topic, tenant or subscription that is not on the list."""

    reason = "unknown-topic"
    status = 403


class StoreUnavailable(OffboardError):
    """The store can't be written: nothing may be answered 2xx."""

    reason = "store-unavailable"
    default_advice = "Check the disk's free space and the database named by store:"


class SourceUnavailable(OffboardError):
    """An identity provider could not be asked (a re-read, a certificate, a key set): try again later."""

    reason = "source-unavailable"

    def __init__(self, message: str, *, advice: str | None = None, retry_after: float | None = None) -> None:
        super().__init__(message, advice=advice)
        self.retry_after = retry_after


class ConnectorError(OffboardError):
    """A call to a connected system did not do what was asked."""

    reason = "connector"

    def __init__(
        self,
        message: str,
        *,
        advice: str | None = None,
        connector: str = "",
        credential: str = "",
        status: int | None = None,
    ) -> None:
        super().__init__(message, advice=advice)
        self.connector = connector
        self.credential = credential
        self.status = status


class Retryable(ConnectorError):
    """The vendor is busy, slow or broken; the same call may succeed after `retry_after` seconds."""

    reason = "retryable"
    default_advice = "Nothing: it is tried again by itself."

    def __init__(
        self,
        message: str,
        *,
        retry_after: float | None = None,
        advice: str | None = None,
        connector: str = "",
        credential: str = "",
        status: int | None = None,
    ) -> None:
        super().__init__(message, advice=advice, connector=connector, credential=credential, status=status)
        self.retry_after = retry_after


class AccessRefused(ConnectorError):
    """Our own credential for the system is bad or lacks a permission: the connector pauses until it is mended."""

    reason = "access-refused"
    default_advice = "Run `offboard check`: it names the permission that is missing. Then retry the case."


class NeedsHuman(ConnectorError):
    """No API call can or may do this (last owner, infrastructure as code, missing API): it becomes a task."""

    reason = "needs-human"
    default_advice = "Do it by hand in the vendor's console, then attest it on the case."


class Fatal(ConnectorError):
    """The vendor refused for good: the case needs attention."""

    reason = "fatal"
    default_advice = "Read the vendor's answer in the evidence, mend the cause, then retry the case."


class IllegalTransition(OffboardError):
    """A case was asked to take a step that its state doesn't allow: a bug in the caller."""

    reason = "illegal-transition"
    default_advice = "This is a bug in offboard-worker: please report it with the case's id."


class AuditBroken(OffboardError):
    """The audit chain doesn't verify: stop writing, alarm."""

    reason = "audit-broken"
    default_advice = (
        "Keep the store as it is, compare it with the last exported checkpoint, and treat it as an incident."
    )


class DenylistUnavailable(OffboardError):
    """The denylist can't be read or written now: the proxy fails closed."""

    reason = "denylist-unavailable"
    default_advice = "Check that Redis at redis: answers; entries wait in the store and are pushed by themselves."


class TokenRefused(OffboardError):
    """A bearer token is not accepted."""

    reason = "token-refused"
    default_advice = "Get a new token with `offboard token issue`, or sign in again."
