"""Okta event hooks. https://developer.okta.com/docs/concepts/event-hooks/

The secret is static and the body unsigned, so the header is the only proof of origin. Okta gives 3 s, retries once and
never retries a 4xx: our own trouble must be a 5xx, and one unreadable event must not cost us the others in its delivery.
The leaver is the target of an event, never its actor. What each event type means stands in `okta_types`.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import AsyncIterator, Iterable, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Final
from urllib.parse import quote

from pydantic import FailFast, Field, TypeAdapter, ValidationError
from typing_extensions import TypedDict

from offboard_worker.core.event import EventKind, IdentityEvent, Ignored
from offboard_worker.core.person import Subject
from offboard_worker.errors import BadSignature, MalformedDelivery, SourceUnavailable
from offboard_worker.secret import Secret
from offboard_worker.sources import wire
from offboard_worker.sources.okta_types import Meaning, meaning_of
from offboard_worker.sources.source import Answer, Delivery, Learned, Source, SourceConfig, Statement

if TYPE_CHECKING:
    from aiohttp import ClientSession

CHALLENGE: Final = "x-okta-verification-challenge"
GROUP_REMOVAL: Final = "group.user_membership.remove"
GONE_LOGIN: Final = "@deleted.invalid"  # what alternateId becomes after a deletion


class Target(TypedDict, total=False):
    id: str | None
    type: str | None
    alternateId: str | None
    displayName: str | None


class Outcome(TypedDict, total=False):
    result: str | None


class _Named(TypedDict):
    uuid: str
    eventType: str


class LogEvent(_Named, total=False):
    """The part of a LogEvent that we read; its other members are skipped."""

    published: str | None
    outcome: Outcome | None
    target: list[Target] | None


class Data(TypedDict):
    events: Annotated[list[LogEvent], FailFast()]


class Envelope(TypedDict):
    """A delivery. Its own id is spelled eventId (2019: eventID) and is not used: events are what is deduplicated."""

    data: Data


class _LooseData(TypedDict):
    events: list[Any]


class _LooseEnvelope(TypedDict):
    data: _LooseData


ENVELOPE: Final = TypeAdapter(Envelope)
LOOSE: Final = TypeAdapter(_LooseEnvelope)
EVENT: Final = TypeAdapter(LogEvent)

STATUS: Final = {
    "DEPROVISIONED": EventKind.ACCOUNT_DISABLED,
    "SUSPENDED": EventKind.ACCOUNT_SUSPENDED,
    "ACTIVE": EventKind.ACCOUNT_ENABLED,
    "RECOVERY": EventKind.ACCOUNT_ENABLED,
    "PASSWORD_EXPIRED": EventKind.ACCOUNT_ENABLED,
}


class OktaConfig(SourceConfig):
    secret: Secret = Field(description="The hook's authentication secret, exactly as entered in Okta.")
    header: str = Field(default="Authorization", pattern=r"^[A-Za-z0-9-]+$", description="The header that carries it.")
    leaver_groups: frozenset[str] = Field(
        default=frozenset(), description="Ids of groups (00g…) whose members are the staff: who is removed is a leaver."
    )
    base_url: wire.VendorUrl | None = Field(
        default=None, description="https://ORG.okta.com, for the roster and for events that need a re-read."
    )
    api_token: Secret | None = Field(default=None, description="A read-only API token for base_url.")


class OktaHook(Source[OktaConfig]):
    name: ClassVar[str] = "okta"
    title: ClassVar[str] = "Okta event hooks"
    Config: ClassVar[type[SourceConfig]] = OktaConfig
    methods: ClassVar[frozenset[str]] = frozenset({"GET", "POST"})

    def __init__(self, instance: str, config: OktaConfig) -> None:
        super().__init__(instance, config)
        self._header = config.header.lower()
        self._session: ClientSession | None = None

    def handshake(self, delivery: Delivery) -> Answer | None:
        """Answer the one-time verification, the only GET that Okta sends; it proves nothing and stores nothing."""
        if delivery.method != "GET":
            return None
        challenge = delivery.headers.get(CHALLENGE, "")
        if not 0 < len(challenge) <= 1024:
            raise MalformedDelivery(
                "a GET without X-Okta-Verification-Challenge",
                advice="Okta delivers events by POST: use this URL there.",
            )
        answer = Answer.json({"verification": challenge})
        return replace(answer, headers={"X-Content-Type-Options": "nosniff"})

    async def verify(self, delivery: Delivery, now: datetime) -> None:
        if not wire.same(delivery.headers.get(self._header, ""), self.config.secret):
            raise BadSignature(
                f"the {self.config.header} header is missing or wrong",
                advice=f"Compare the hook's authentication secret in Okta with sources.{self.instance}.secret.",
            )

    def parse(self, delivery: Delivery) -> Iterable[Statement]:
        if len(delivery.body) == 0:
            raise MalformedDelivery("an empty body")
        try:
            entries = ENVELOPE.validate_json(delivery.body)["data"]["events"]
        except ValidationError:
            return self._salvaged(delivery)
        return [statement for entry in entries for statement in self._statements(entry, delivery.received_at)]

    def _salvaged(self, delivery: Delivery) -> list[Statement]:
        """Read the events one by one, since Okta doesn't repeat what was refused: keep the readable, say what is not."""
        found: list[Statement] = []
        readable = 0
        entries = wire.read(LOOSE, delivery.body, "an Okta event hook")["data"]["events"]
        if len(entries) > wire.MAX_ITEMS:
            raise MalformedDelivery(f"more than {wire.MAX_ITEMS} events in one delivery")
        for entry in entries:
            try:
                event = EVENT.validate_python(_respelled(entry))
            except (ValidationError, RecursionError):
                digest = hashlib.sha256(repr(entry).encode("utf-8", "surrogatepass")).hexdigest()
                found.append(Ignored(f"unreadable:{digest[:32]}", "not a LogEvent: look at the stored body"))
                continue
            readable += 1
            found.extend(self._statements(event, delivery.received_at))
        if not readable:
            raise MalformedDelivery("none of the delivery's events is a LogEvent")
        return found

    def _statements(self, entry: LogEvent, received: datetime) -> Iterator[Statement]:
        """Say what one LogEvent means for each user whom it targets (nearly always one)."""
        vendor_type = entry["eventType"]
        key = f"{entry['uuid']}:{vendor_type}"
        meaning = meaning_of(vendor_type)
        targets = entry.get("target") or []
        result = (entry.get("outcome") or {}).get("result")
        if meaning is None:
            yield Ignored(key, "a type that ends nobody's access", vendor_type)
        elif result != "SUCCESS":
            yield Ignored(key, f"the action did not succeed: {(result or 'no outcome')[:40]}", vendor_type)
        else:
            yield from self._about_users(key, entry, meaning, targets, received)

    def _about_users(
        self, key: str, entry: LogEvent, meaning: Meaning, targets: list[Target], received: datetime
    ) -> Iterator[Statement]:
        vendor_type = entry["eventType"]
        kind, detail = meaning.kind, _objects(targets)
        if vendor_type == GROUP_REMOVAL and (group := self._leaver_group(targets)):
            kind, detail = EventKind.ACCOUNT_DISABLED, {**detail, "leaver_group": group}
        if kind is None and not meaning.teaches:
            yield Ignored(key, meaning.says, vendor_type)
            return
        users = {user["id"]: user for user in targets if user.get("type") == "User" and user.get("id")}
        if not users:
            yield Ignored(key, f"names no user: {meaning.says}", vendor_type)
        for user_id, user in users.items():
            own_key = key if len(users) == 1 else f"{key}:{user_id}"
            subject = self._subject(user)
            if kind is None:
                yield Learned(own_key, subject, vendor_type)
            else:
                published = wire.instant(entry.get("published"), received)
                yield IdentityEvent(self.instance, own_key, kind, subject, published, vendor_type, detail)

    def _leaver_group(self, targets: list[Target]) -> str | None:
        found = (target.get("id") for target in targets if target.get("type") == "UserGroup")
        return next((group for group in found if group in self.config.leaver_groups), None)

    def _subject(self, user: Target) -> Subject:
        login = (user.get("alternateId") or "").strip()
        if login.casefold().endswith(GONE_LOGIN) or login.casefold() == "unknown":
            login = ""
        return Subject(
            self.system,
            id=user.get("id"),
            emails=(login,) if _is_email(login) else (),
            logins=(login,) if login else (),
            name=user.get("displayName") or "",
        )

    async def confirm(self, event: IdentityEvent) -> IdentityEvent | Ignored:
        """Read the user's status: an import says that it changed, not to what."""
        if self.config.base_url is None or self.config.api_token is None or (user_id := event.subject.id) is None:
            return Ignored(
                event.key, f"can't be re-read: set base_url and api_token of sources.{self.instance}", event.vendor_type
            )
        # What is found is dated by the reading: of two readings the later one is the truth.
        event = replace(event, occurred_at=datetime.now(UTC))
        status, _, body = await self._get(f"{self.config.base_url}/api/v1/users/{quote(user_id, safe='')}")
        if status == 404:
            return replace(event, key=f"{event.key}:confirmed", kind=EventKind.ACCOUNT_PURGED)
        if status != 200:
            raise self._refused(status)
        user = wire.read_answer(USER, body, "Okta's user")
        kind = STATUS.get(user["status"])
        if kind is None:
            return Ignored(event.key, f"the account's status is {user['status'][:40]}", event.vendor_type)
        detail = {**event.detail, "confirmed": user["status"]}
        return replace(event, key=f"{event.key}:confirmed", kind=kind, subject=self._listed(user), detail=detail)

    async def roster(self) -> AsyncIterator[Subject]:
        """Yield every user who isn't deprovisioned, with login and e-mail."""
        if self.config.base_url is None or self.config.api_token is None:
            return
        url: str | None = f"{self.config.base_url}/api/v1/users?limit=200"
        while url:
            status, links, body = await self._get(url)
            if status != 200:
                raise self._refused(status)
            for user in wire.read_answer(USERS, body, "Okta's users"):
                yield self._listed(user)
            url = _next(links)
            if url and not url.startswith(self.config.base_url + "/"):
                raise SourceUnavailable("Okta's next page is at another address than base_url")

    def _listed(self, user: User) -> Subject:
        profile = user.get("profile") or {}
        login, email = profile.get("login") or "", profile.get("email") or ""
        emails = tuple(dict.fromkeys(address for address in (email, login) if _is_email(address)))
        return Subject(self.system, id=user["id"], emails=emails, logins=(login,) if login else ())

    async def _get(self, url: str) -> tuple[int, list[str], bytes]:
        """Ask Okta. Returns status, the raw Link headers (a joined one loses pages) and the body."""
        if self.config.api_token is None:
            raise SourceUnavailable("no api_token")
        self._session = self._session or wire.open_session()
        headers = {"Authorization": f"SSWS {self.config.api_token.reveal()}", "Accept": "application/json"}
        status, answered, body = await wire.fetch(self._session, "GET", url, encoded=True, headers=headers)
        links: list[str] = answered.getall("Link", []) if hasattr(answered, "getall") else [answered.get("Link", "")]
        return status, links, body

    def _refused(self, status: int) -> SourceUnavailable:
        return SourceUnavailable(
            f"Okta answered {status}",
            advice=f"Check api_token of sources.{self.instance}: it must be able to read users.",
        )

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None


class Profile(TypedDict, total=False):
    login: str | None
    email: str | None


class _User(TypedDict):
    id: str
    status: str


class User(_User, total=False):
    profile: Profile | None


USER: Final = TypeAdapter(User)
USERS: Final = TypeAdapter(list[User])


SPELLING: Final = {"eventtype": "eventType", "alternateid": "alternateId", "displayname": "displayName"}


def _respelled(entry: Any) -> Any:
    """Undo what forwarders do that lower-case the names of members; only read where the plain reading failed."""
    if isinstance(entry, dict):
        return {
            SPELLING.get(key, key): [_respelled(item) for item in value]
            if key == "target" and isinstance(value, list)
            else value
            for key, value in entry.items()
        }
    return entry


def _objects(targets: list[Target]) -> dict[str, str]:
    """Name what the event is about beside the user: groups, applications, roles. The first of each type is named."""
    found: dict[str, str] = {}
    for target in targets:
        kind = target.get("type") or ""
        if kind and kind != "User":
            found.setdefault(f"{kind}.id"[:80], target.get("id") or "")
            found.setdefault(f"{kind}.name"[:80], target.get("displayName") or "")
    return found


def _is_email(text: str) -> bool:
    local, at, domain = text.rpartition("@")
    return bool(at and local and domain and "." in domain and " " not in text)


def _next(links: list[str]) -> str | None:
    for header in links:
        for url, relation in re.findall(r'<([^>]*)>\s*;\s*rel="?([a-z]+)"?', header):
            if relation == "next":
                return str(url)
    return None
