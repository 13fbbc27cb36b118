"""The interface of a source (DESIGN section 4): verify bytes, then say what they mean.

The receiver calls handshake → verify → parse → answer. `confirm`, `perform` and `roster` run in jobs; only they may
import a vendor's SDK, and only when called: the receiver imports none.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, ClassVar, Final, Generic, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from offboard_worker.core.event import IdentityEvent, Ignored
from offboard_worker.core.person import Subject
from offboard_worker.secret import Secret as Secret  # what a source's Config uses for its secrets


class SourceConfig(BaseModel):
    """What every source instance can be told. Each source's own `Config` extends this; unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    type: str
    system: str | None = Field(
        default=None, description="The namespace of this source's person ids: the instance's own name by default."
    )
    issuers: tuple[str, ...] = Field(
        default=(),
        description="Token issuers (`iss`) whose subject is an id or login of this source: a leaver is denied there too.",
    )
    trust_email: bool = Field(
        default=False,
        description="Whether an e-mail address that this source reports is verified and unique, so that it identifies "
        "a person whom another system knows by the same address.",
    )


C = TypeVar("C", bound=SourceConfig)


@dataclass(frozen=True, slots=True)
class Delivery:
    """One inbound request, raw. `headers` has lower-case names, `query` is URL-decoded."""

    source: str
    method: str
    headers: Mapping[str, str]
    query: Mapping[str, str]
    body: bytes
    received_at: datetime


@dataclass(frozen=True, slots=True)
class Answer:
    """What the source's protocol wants to hear."""

    status: int = 200
    body: bytes = b""
    content_type: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def json(cls, value: Any, status: int = 200) -> Answer:
        return cls(status, json.dumps(value).encode(), "application/json")

    @classmethod
    def text(cls, value: str, status: int = 200) -> Answer:
        return cls(status, value.encode(), "text/plain; charset=utf-8")


@dataclass(frozen=True, slots=True)
class Learned:
    """A statement that ends nothing but teaches an id: kept, since after a deletion no vendor tells whose it was."""

    key: str
    subject: Subject
    vendor_type: str = ""


CATCH_UP: Final = "catch-up"


@dataclass(frozen=True, slots=True)
class Chore:
    """Something that the source itself must do because of a delivery (confirm a subscription, renew one).

    It is stored with the delivery and done by a job, which calls `Source.perform`; doing it twice is harmless. A chore
    named CATCH_UP is done by calling `Source.catch_up` with the stored cursor instead, since it yields statements.
    """

    key: str
    name: str
    argument: Mapping[str, str] = field(default_factory=dict)


Statement = IdentityEvent | Ignored | Learned | Chore


class Source(ABC, Generic[C]):
    """One configured channel. Built by `Source(instance, config)`; construction touches no network."""

    name: ClassVar[str]  # the `type:` of the configuration
    title: ClassVar[str]
    Config: ClassVar[type[SourceConfig]]
    methods: ClassVar[frozenset[str]] = frozenset({"POST"})

    def __init__(self, instance: str, config: C) -> None:
        self.instance = instance
        self.config = config
        self.system = config.system or instance

    def handshake(self, delivery: Delivery) -> Answer | None:
        """Answer the protocol's own proof of ownership, or None if this is no handshake. May raise DeliveryError.

        A handshake is answered before verification and stores nothing.
        """
        return None

    @abstractmethod
    async def verify(self, delivery: Delivery, now: datetime) -> None:
        """Prove the origin over the raw bytes. Raises BadSignature, StaleDelivery or UnknownTopic.

        Where the proof lies inside the body (Graph, SNS) it raises MalformedDelivery for a body without one.
        Raises SourceUnavailable where a key could not be fetched: the receiver answers 503 and the sender retries.
        """

    @abstractmethod
    def parse(self, delivery: Delivery) -> Iterable[Statement]:
        """Say what the verified delivery means. Raises MalformedDelivery."""

    def keepable(self, body: bytes) -> bytes:
        """The verified body as the inbox keeps it: a secret that proves the sender, and stands in it, is left out."""
        return body

    def answer(self, delivery: Delivery) -> Answer:
        """The answer for an accepted delivery, the same for a duplicate."""
        return Answer(200)

    async def confirm(self, event: IdentityEvent) -> IdentityEvent | Ignored:
        """Re-read what an `account-changed` event is about and say what it means. Runs in a job.

        Raises SourceUnavailable to be tried again later.
        """
        return Ignored(event.key, "this source's events need no confirmation", event.vendor_type)

    async def perform(self, chore: Chore) -> str:
        """Do a chore and return one sentence for the audit. Runs in a job. Raises SourceUnavailable."""
        raise NotImplementedError(f"{self.name} declares no chores")

    def upkeep(self) -> Iterable[Chore]:
        """Name the chores that are due every few hours without a delivery asking for them (renew a subscription)."""
        return ()

    async def catch_up(self, cursor: str | None) -> tuple[list[Statement], str]:
        """Read what a lost delivery would have said since `cursor`, and return the next cursor. Runs in a job.

        `cursor` is None the first time: that reading is the baseline and makes nobody a leaver. The statements must be
        stored before the cursor is. An empty cursor in return: this source has no catch-up. Raises SourceUnavailable.
        """
        return [], cursor or ""

    async def roster(self) -> AsyncIterator[Subject]:
        """Yield everybody whom the directory knows, so that ids are known before anyone leaves. Runs in a job."""
        return
        yield  # an async generator that yields nothing

    async def close(self) -> None:
        """Release what the source holds (an HTTP session)."""
