"""What the Entra source asks Microsoft Graph: one account, the changes since a cursor, and its own subscription.

Plain HTTP, not the SDK: four calls need no 390 MB. https://learn.microsoft.com/graph/api/user-delta ,
.../directory-deleteditems-get , .../subscription-post-subscriptions . Needs User.Read.All (application), and for deleted
users Directory.Read.All or User.ReadBasic.All with deleted items. It knows nothing of deliveries.
"""

# ruff: noqa: N815 - members are called what Graph calls them
from __future__ import annotations

import hashlib
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final, TypeVar
from urllib.parse import quote

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from offboard_worker.core.event import EventKind, IdentityEvent, Ignored
from offboard_worker.core.person import Subject
from offboard_worker.errors import ConfigError, SourceUnavailable
from offboard_worker.secret import Secret
from offboard_worker.sources import wire
from offboard_worker.sources.source import Learned, Statement

if TYPE_CHECKING:
    from aiohttp import ClientSession

M = TypeVar("M", bound=BaseModel)

SELECT: Final = "id,accountEnabled,userPrincipalName,mail,displayName"
LIFETIME: Final = timedelta(days=28)  # the most is 41,760 minutes, 29 days
RENEW_BELOW: Final = timedelta(days=7)


class GraphAccess(BaseModel):
    """How the source reaches Graph; a part of its configuration."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    tenant_id: str = Field(pattern=r"^[0-9A-Za-z][0-9A-Za-z.-]*$", description="The directory's (tenant's) id.")
    client_id: str = Field(min_length=1, description="The application that reads the directory.")
    client_secret: Secret = Field(description="A secret of that application.")
    base_url: wire.VendorUrl = Field(default="https://graph.microsoft.com/v1.0", description="Graph, with its version.")
    login_url: wire.VendorUrl = Field(
        default="https://login.microsoftonline.com", description="Where tokens come from."
    )
    scope: str = Field(default="https://graph.microsoft.com/.default", description="Other clouds have another one.")
    notification_url: wire.VendorUrl | None = Field(
        default=None, description="Our own public address, /webhooks/NAME: with it the subscription is kept for you."
    )
    settle_seconds: float = Field(
        default=15.0,
        ge=0,
        description="How long an account that is nowhere must stay so before it counts as gone: a new one is nowhere "
        "until Graph's replicas agree.",
    )


class User(BaseModel):
    """A user as Graph tells it. In a delta only what changed is there, or `@removed`."""

    id: str
    accountEnabled: bool | None = None
    userPrincipalName: str | None = None
    mail: str | None = None
    displayName: str | None = None
    removed: dict[str, Any] | None = Field(default=None, alias="@removed")

    def subject(self, system: str) -> Subject:
        """A deleted user's login is mangled: the id without dashes stands before it."""
        login = (self.userPrincipalName or "").removeprefix(self.id.replace("-", ""))
        return Subject(
            system,
            id=self.id,
            emails=(self.mail,) if self.mail else (),
            logins=(login,) if login else (),
            name=self.displayName or "",
        )


class Page(BaseModel):
    value: list[User]
    next_link: str | None = Field(default=None, alias="@odata.nextLink")
    delta_link: str | None = Field(default=None, alias="@odata.deltaLink")


class Subscription(BaseModel):
    id: str
    resource: str = ""
    notificationUrl: str = ""
    expirationDateTime: str = ""


class Subscriptions(BaseModel):
    value: list[Subscription]
    next_link: str | None = Field(default=None, alias="@odata.nextLink")


class Token(BaseModel):
    access_token: str = Field(min_length=1)
    expires_in: float = 3600


class Directory:
    """One tenant's users, read with the source's own application."""

    def __init__(self, instance: str, system: str, access: GraphAccess, client_state: Secret) -> None:
        self._instance = instance
        self._system = system
        self._access = access
        self._client_state = client_state
        self._session: ClientSession | None = None
        self._token: Secret | None = None
        self._token_until = 0.0  # monotonic

    # One account

    async def confirm(self, event: IdentityEvent) -> IdentityEvent | Ignored:
        """Say what an `account-changed` event means now. Raises SourceUnavailable.

        What is found is dated by the reading, not by the notification: two notifications may be read in either order,
        and the later reading is the truth.
        """
        user_id, noticed = event.subject.id, event.occurred_at
        event = replace(event, occurred_at=datetime.now(UTC))
        if not user_id:
            return Ignored(event.key, "names no user id", event.vendor_type)
        user = await self._user(f"/users/{quote(user_id, safe='')}?$select={SELECT}")
        if user is not None:
            return self._as_found(event, user)
        deleted = await self._user(f"/directory/deletedItems/{quote(user_id, safe='')}")
        if deleted is not None:
            detail = {"confirmed": "state", "deleted": "soft: it can be restored for 30 days"}
            return self._confirmed(event, EventKind.ACCOUNT_DISABLED, deleted.subject(self._system), detail)
        age = (event.occurred_at - noticed).total_seconds()
        if event.detail.get("change") != "deleted" and age < self._access.settle_seconds:
            raise SourceUnavailable(
                "the account is nowhere yet: a new one is, until Graph's replicas agree",
                retry_after=self._access.settle_seconds - age,
            )
        return self._confirmed(event, EventKind.ACCOUNT_PURGED, event.subject, {"confirmed": "state"})

    def _as_found(self, event: IdentityEvent, user: User) -> IdentityEvent:
        if user.accountEnabled is None:
            raise SourceUnavailable(
                "Graph does not tell accountEnabled",
                advice=f"Grant the application of sources.{self._instance} User.Read.All with admin consent.",
            )
        kind = EventKind.ACCOUNT_ENABLED if user.accountEnabled else EventKind.ACCOUNT_DISABLED
        return self._confirmed(event, kind, user.subject(self._system), {"confirmed": "state"})

    def _confirmed(
        self, event: IdentityEvent, kind: EventKind, subject: Subject, detail: Mapping[str, str]
    ) -> IdentityEvent:
        return replace(
            event, key=f"{event.key}:confirmed", kind=kind, subject=subject, detail={**event.detail, **detail}
        )

    async def _user(self, path: str) -> User | None:
        status, body = await self._call("GET", self._access.base_url + path)
        if status == 404:
            return None
        self._expect(status, 200)
        return _read(User, body)

    # Changes since a cursor

    async def changes(self, cursor: str | None) -> tuple[list[Statement], str]:
        """Read the delta since `cursor` (a delta link), and return the next one.

        None is the baseline: everybody is learned, and who is disabled by then is no leaver. A link that is older than
        Graph keeps (7 days, 410) is another matter: leavers may have been missed, so everything is read again and
        everybody disabled or in the deleted items is told; who is known to be gone changes nothing.
        """
        start = f"{self._access.base_url}/users/delta?$select={SELECT}"
        mark = hashlib.sha256((cursor or "").encode()).hexdigest()[:16]
        users, link = await self._delta(cursor or start)
        if users is not None:
            return [self._statement(user, mark, baseline=cursor is None) for user in users], link
        users, link = await self._delta(start)
        if users is None:
            raise SourceUnavailable("Graph refuses a new delta query with 410")
        deleted = [user async for user in self._pages("/directory/deletedItems/microsoft.graph.user")]
        removed = [user.model_copy(update={"removed": {"reason": "changed"}}) for user in deleted]
        return [self._statement(user, mark) for user in users + removed], link

    async def _delta(self, link: str) -> tuple[list[User] | None, str]:
        users: list[User] = []
        while True:
            status, body = await self._call("GET", self._own(link), headers={"Prefer": "odata.maxpagesize=500"})
            if status == 410 or (status == 400 and b"syncState" in body):
                return None, ""
            self._expect(status, 200)
            page = _read(Page, body)
            users += page.value
            if page.delta_link:
                return users, page.delta_link
            if not page.next_link:
                raise SourceUnavailable("a delta page has neither a next link nor a delta link")
            link = page.next_link

    def _statement(self, user: User, mark: str, *, baseline: bool = False) -> Statement:
        """The key names the cursor and the content: reading again from the same cursor says nothing twice."""
        digest = hashlib.sha256(user.model_dump_json(by_alias=True).encode()).hexdigest()[:16]
        key, subject = f"delta:{mark}:{digest}", user.subject(self._system)
        now, removed = datetime.now(UTC), user.removed is not None
        if baseline and not removed:
            return Learned(key, subject, "users/delta")
        if removed:
            soft = (user.removed or {}).get("reason") != "deleted"
            kind = EventKind.ACCOUNT_DISABLED if soft else EventKind.ACCOUNT_PURGED
            reason = {"deleted": "soft" if soft else "for good"}
            return IdentityEvent(self._instance, key, kind, subject, now, "users/delta", reason)
        if user.accountEnabled is None:
            return Learned(key, subject, "users/delta")
        kind = EventKind.ACCOUNT_ENABLED if user.accountEnabled else EventKind.ACCOUNT_DISABLED
        return IdentityEvent(self._instance, key, kind, subject, now, "users/delta", {"confirmed": "state"})

    async def everyone(self) -> AsyncIterator[Subject]:
        async for user in self._pages(f"/users?$select={SELECT}&$top=500"):
            yield user.subject(self._system)

    async def _pages(self, path: str) -> AsyncIterator[User]:
        link: str | None = self._access.base_url + path
        while link:
            status, body = await self._call("GET", self._own(link))
            self._expect(status, 200)
            page = _read(Page, body)
            for user in page.value:
                yield user
            link = page.next_link

    def _own(self, link: str) -> str:
        """A link that Graph returned must lead to Graph: our token goes with it."""
        if not link.startswith(self._access.base_url + "/"):
            raise SourceUnavailable("Graph's next page is at another address than base_url")
        return link

    # Our subscription

    async def renew(self, subscription: str) -> str:
        """Extend a subscription, which reauthorises it as well; make a new one if it is gone."""
        if not subscription:
            return await self.ensure_subscription()
        until = _expiry()
        url = f"{self._access.base_url}/subscriptions/{quote(subscription, safe='')}"
        status, _ = await self._call("PATCH", url, payload={"expirationDateTime": until})
        if status == 404:
            return await self.ensure_subscription()
        self._expect(status, 200)
        return f"subscription {subscription} was renewed until {until}"

    async def ensure_subscription(self) -> str:
        """See that a subscription to users leads to notification_url and has a week left. Doing it twice is harmless."""
        target = self._access.notification_url
        if target is None:
            raise ConfigError(
                f"sources.{self._instance}.notification_url is not set: the subscription can't be made anew",
                advice="Set it to the public address of /webhooks/NAME, or make the subscription yourself.",
            )
        for found in await self._subscriptions():
            if found.notificationUrl == target and found.resource.strip("/").casefold() == "users":
                left = wire.instant(found.expirationDateTime, datetime.min.replace(tzinfo=UTC)) - datetime.now(UTC)
                if left > RENEW_BELOW:
                    return f"subscription {found.id} is in place until {found.expirationDateTime}"
                if left > timedelta(0):
                    return await self.renew(found.id)
        wanted = {
            "changeType": "updated,deleted",
            "notificationUrl": target,
            "lifecycleNotificationUrl": target,
            "resource": "users",
            "expirationDateTime": _expiry(),
            "clientState": self._client_state.reveal(),
        }
        status, body = await self._call("POST", f"{self._access.base_url}/subscriptions", payload=wanted)
        self._expect(status, 201)
        return f"subscription {_read(Subscription, body).id} was made until {wanted['expirationDateTime']}"

    async def _subscriptions(self) -> list[Subscription]:
        found: list[Subscription] = []
        link: str | None = f"{self._access.base_url}/subscriptions"
        while link:
            status, body = await self._call("GET", self._own(link))
            self._expect(status, 200)
            page = _read(Subscriptions, body)
            found, link = found + page.value, page.next_link
        return found

    # Calls

    async def _call(
        self, method: str, url: str, *, payload: object = None, headers: Mapping[str, str] | None = None
    ) -> tuple[int, bytes]:
        """Ask Graph with our token, once more with a new one after a 401. Raises SourceUnavailable."""
        for fresh in (False, True):
            token = await self._bearer(fresh=fresh)
            sent = {"Authorization": f"Bearer {token.reveal()}", "Accept": "application/json", **(headers or {})}
            options: dict[str, Any] = {"headers": sent}
            if payload is not None:
                options["json"] = payload
            status, _, body = await wire.fetch(self._opened(), method, url, encoded=True, **options)
            if status != 401:
                break
        return status, body

    def _expect(self, status: int, wanted: int) -> None:
        if status in (wanted, 200):
            return
        advice = f"Compare the permissions of the application of sources.{self._instance} with docs/sources/entra.md."
        raise SourceUnavailable(f"Graph answered {status}", advice=advice)

    async def _bearer(self, *, fresh: bool) -> Secret:
        if self._token is not None and not fresh and time.monotonic() < self._token_until:
            return self._token
        form = {
            "grant_type": "client_credentials",
            "client_id": self._access.client_id,
            "client_secret": self._access.client_secret.reveal(),
            "scope": self._access.scope,
        }
        url = f"{self._access.login_url}/{self._access.tenant_id}/oauth2/v2.0/token"
        status, _, body = await wire.fetch(self._opened(), "POST", url, data=form)
        if status != 200:
            raise SourceUnavailable(
                f"the login service refused our application with {status}",
                advice=f"Check tenant_id, client_id and client_secret of sources.{self._instance}: has it expired?",
            )
        token = _read(Token, body)
        self._token = Secret(token.access_token)
        self._token_until = time.monotonic() + max(token.expires_in - 60, 0)
        return self._token

    def _opened(self) -> ClientSession:
        self._session = self._session or wire.open_session()
        return self._session

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None


def _expiry() -> str:
    return (datetime.now(UTC) + LIFETIME).strftime("%Y-%m-%dT%H:%M:%SZ")


def _read(shape: type[M], body: bytes) -> M:
    return wire.read_answer(TypeAdapter(shape), body, f"Graph's {shape.__name__}")
