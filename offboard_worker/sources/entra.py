"""Microsoft Graph change notifications for Entra ID users.

https://learn.microsoft.com/graph/change-notifications-delivery-webhooks , .../change-notifications-lifecycle-events

A notification says only "this user changed", and for users its `clientState` is the only proof of origin. So each becomes
`account-changed`, and a job re-reads the account (`graph.py`). A notification carries no id of its own and a later one
about the same user is byte-identical: the dedupe key is the user and the instant of receipt, since reading twice is
harmless and swallowing a disable is not. The re-read comes after the record, so two in one microsecond need one reading.
"""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator, Iterable, Iterator
from datetime import datetime
from typing import Annotated, ClassVar, Final

from pydantic import FailFast, Field, TypeAdapter
from typing_extensions import TypedDict

from offboard_worker.core.event import EventKind, IdentityEvent, Ignored
from offboard_worker.core.person import Subject
from offboard_worker.errors import BadSignature, MalformedDelivery, UnknownTopic
from offboard_worker.secret import Secret
from offboard_worker.sources import wire
from offboard_worker.sources.graph import Directory, GraphAccess
from offboard_worker.sources.source import CATCH_UP, Answer, Chore, Delivery, Source, SourceConfig, Statement

KEPT_STATE: Final = "••••".encode()  # stands for the clientState in what is kept
MAX_TOKEN: Final = 4096  # characters of a validationToken; real ones have under 200
USER: Final = "#microsoft.graph.user"
USER_RESOURCE: Final = re.compile(r"^/?users/([^/@]+)$|^/?users\('([^'/@]+)'\)$", re.IGNORECASE)
USER_ID: Final = re.compile(r"^[0-9A-Za-z][0-9A-Za-z._-]{0,127}$")  # a GUID; it goes into an address, so no dots first

# What a change type means, and what a lifecycle event asks for. docs/sources/entra.md repeats both for people.
MEANING: Final = {
    "updated": EventKind.ACCOUNT_CHANGED,  # a disable and a soft delete are `updated` too
    "deleted": EventKind.ACCOUNT_CHANGED,  # comes about 30 days after a soft delete
    "created": EventKind.ACCOUNT_CHANGED,
}
RENEW: Final = "renew-subscription"
ENSURE: Final = "ensure-subscription"
LIFECYCLE: Final = {
    "reauthorizationRequired": (RENEW,),
    "subscriptionRemoved": (ENSURE, CATCH_UP),
    "missed": (CATCH_UP,),
}


ResourceData = TypedDict("ResourceData", {"id": str | None, "@odata.type": str | None}, total=False)


class Item(TypedDict, total=False):
    """One notification; lifecycle notifications have lifecycleEvent, and neither changeType nor resource."""

    subscriptionId: str | None
    clientState: str | None
    changeType: str | None
    resource: str | None
    tenantId: str | None
    organizationId: str | None
    lifecycleEvent: str | None
    resourceData: ResourceData | None


class Notifications(TypedDict):
    value: Annotated[list[Item], FailFast(), Field(max_length=wire.MAX_ITEMS)]


NOTIFICATIONS: Final = TypeAdapter(Notifications)


class EntraConfig(SourceConfig, GraphAccess):
    client_state: Secret = Field(description="The subscription's clientState: the only proof of a delivery's origin.")
    tenants: frozenset[str] = Field(
        default=frozenset(), description="Tenant ids to accept; tenant_id alone by default."
    )
    subscriptions: frozenset[str] = Field(default=frozenset(), description="Subscription ids to accept; empty: every.")


class EntraNotifications(Source[EntraConfig]):
    name: ClassVar[str] = "entra"
    title: ClassVar[str] = "Microsoft Graph change notifications"
    Config: ClassVar[type[SourceConfig]] = EntraConfig

    def __init__(self, instance: str, config: EntraConfig) -> None:
        super().__init__(instance, config)
        self._tenants = {tenant.casefold() for tenant in config.tenants or {config.tenant_id}}
        self._directory = Directory(instance, self.system, config, config.client_state)

    def handshake(self, delivery: Delivery) -> Answer | None:
        """Echo the validationToken, for the notification URL and the lifecycle URL alike.

        It is reflected content from a stranger: as plain text that no browser may take for anything else, and short.
        """
        token = delivery.query.get("validationToken")
        if token is None:
            return None
        if not 0 < len(token) <= MAX_TOKEN:
            raise MalformedDelivery(f"a validationToken of {len(token)} characters")
        return Answer(
            200,
            token.encode("utf-8", "surrogatepass"),
            "text/plain; charset=utf-8",
            {"X-Content-Type-Options": "nosniff", "Content-Security-Policy": "default-src 'none'; sandbox"},
        )

    async def verify(self, delivery: Delivery, now: datetime) -> None:
        """Compare the clientState of every item: one foreign item refuses the delivery. Raises MalformedDelivery too."""
        right = True
        items = self._items(delivery)
        for item in items:
            right &= wire.same(item.get("clientState") or "", self.config.client_state)
        if not right:
            raise BadSignature(
                "an item's clientState is missing or wrong",
                advice=f"Compare the subscription's clientState with sources.{self.instance}.client_state.",
            )
        for item in items:
            self._check_origin(item)

    def _check_origin(self, item: Item) -> None:
        """Raises UnknownTopic. A tenant may be left out (old resources do so): the clientState has proved the origin."""
        tenants = {tenant.casefold() for tenant in (item.get("tenantId"), item.get("organizationId")) if tenant}
        if not tenants <= self._tenants:
            raise UnknownTopic(
                "a notification from another tenant", advice=f"List the tenant under sources.{self.instance}.tenants."
            )
        if self.config.subscriptions and item.get("subscriptionId") not in self.config.subscriptions:
            raise UnknownTopic(
                "a notification of an unknown subscription",
                advice=f"List its id under sources.{self.instance}.subscriptions, or leave that empty.",
            )

    def _items(self, delivery: Delivery) -> list[Item]:
        items = wire.read(NOTIFICATIONS, delivery.body, "a Graph notification")["value"]
        if not items:
            raise MalformedDelivery("a delivery without notifications: it has no clientState to prove its origin")
        return items

    def keepable(self, body: bytes) -> bytes:
        """The body without its clientStates, however their letters were escaped. All else stays as it came."""
        state = self.config.client_state.reveal()
        for ascii_only in (True, False):
            body = body.replace(json.dumps(state, ensure_ascii=ascii_only)[1:-1].encode(), KEPT_STATE)
        found = json.loads(body)
        if any(item.get("clientState") == state for item in found["value"]):
            for item in found["value"]:
                item["clientState"] = KEPT_STATE.decode()
            return json.dumps(found).encode()
        return body

    def parse(self, delivery: Delivery) -> Iterable[Statement]:
        """One statement per user and delivery, since one change makes several notifications."""
        found: dict[str, Statement] = {}
        for number, item in enumerate(self._items(delivery)):
            for statement in self._statements(item, number, delivery.received_at):
                found.setdefault(statement.key, statement)
        return list(found.values())

    def _statements(self, item: Item, number: int, received: datetime) -> Iterator[Statement]:
        at = received.isoformat()
        lifecycle = item.get("lifecycleEvent")
        if lifecycle:
            yield from self._chores(lifecycle, item.get("subscriptionId") or "", at)
            return
        change, data = item.get("changeType") or "", item.get("resourceData") or {}
        kind, user_id = MEANING.get(change.casefold()), data.get("id") or _id_in(item.get("resource") or "")
        if change.startswith("Validation:"):
            yield Ignored(f"ignored:{at}:{number}", "a test whether we can be reached", "Validation")
        elif not _is_user(item, data):
            yield Ignored(f"ignored:{at}:{number}", "not about a user: it ends nobody's access", change[:80])
        elif kind is None or not USER_ID.match(user_id):
            yield Ignored(f"ignored:{at}:{number}", "an unknown change type, or no user id", change[:80])
        else:
            subject = Subject(self.system, id=user_id)
            detail = {"change": change.casefold(), "subscription": item.get("subscriptionId") or ""}
            yield IdentityEvent(self.instance, f"changed:{user_id}:{at}", kind, subject, received, change, detail)

    def _chores(self, lifecycle: str, subscription: str, at: str) -> Iterator[Statement]:
        """The key holds the instant: a reauthorisation asked for twice with one expiry is needed twice."""
        chores = LIFECYCLE.get(lifecycle)
        if chores is None:
            yield Ignored(f"{lifecycle[:80]}:{at}", "an unknown lifecycle event", lifecycle[:80])
            return
        for name in chores:
            yield Chore(f"{name}:{subscription}:{at}", name, {"subscription": subscription, "asked_by": lifecycle})

    def answer(self, delivery: Delivery) -> Answer:
        return Answer(202)

    async def confirm(self, event: IdentityEvent) -> IdentityEvent | Ignored:
        """Re-read the account, then the deleted items.

        An enabled account comes back as `account-enabled` with `detail["confirmed"] == "state"`: it says what is so,
        not that somebody enabled it just now, so it must not undo a departure that another source or an operator told.
        """
        return await self._directory.confirm(event)

    def upkeep(self) -> Iterable[Chore]:
        """Subscriptions live less than 29 days: see every few hours that ours exists and has a week left."""
        return (Chore(ENSURE, ENSURE),) if self.config.notification_url else ()

    async def perform(self, chore: Chore) -> str:
        if chore.name == RENEW:
            return await self._directory.renew(chore.argument.get("subscription", ""))
        if chore.name == ENSURE:
            return await self._directory.ensure_subscription()
        raise NotImplementedError(f"{chore.name} is no chore of {self.name}; {CATCH_UP} is done by catch_up()")

    async def catch_up(self, cursor: str | None) -> tuple[list[Statement], str]:
        """Delta query over users: mandatory, since Graph says nothing when it loses a notification about a user."""
        return await self._directory.changes(cursor)

    async def roster(self) -> AsyncIterator[Subject]:
        async for subject in self._directory.everyone():
            yield subject

    async def close(self) -> None:
        await self._directory.close()


def _is_user(item: Item, data: ResourceData) -> bool:
    """Whether it is about a user: by the declared type, else by the resource (users/ID/messages is a message)."""
    declared = str(data.get("@odata.type") or "").casefold()
    return declared == USER if declared else bool(USER_RESOURCE.match(item.get("resource") or ""))


def _id_in(resource: str) -> str:
    found = USER_RESOURCE.match(resource)
    return (found[1] or found[2]) if found else ""
