"""The Identity Store behind IAM Identity Center: who has which id, and whether a user is enabled.

https://docs.aws.amazon.com/singlesignon/latest/IdentityStoreAPIReference/ . boto3 is imported when first used, in a job. It
blocks, so each call runs in a thread. Needs identitystore:DescribeUser and identitystore:ListUsers.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from offboard_worker.core.event import EventKind, IdentityEvent, Ignored
from offboard_worker.core.person import Subject
from offboard_worker.errors import SourceUnavailable
from offboard_worker.secret import Secret
from offboard_worker.sources import wire

T = TypeVar("T")


class StoreAccess(BaseModel):
    """How the source reaches the Identity Store; a part of its configuration. Without a store id it never does."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    identity_store_id: str | None = Field(default=None, pattern=r"^d-[0-9a-f]{10}$|^[0-9a-f-]{36}$", description="d-…")
    region: str | None = Field(default=None, description="The Identity Center's region.")
    endpoint_url: wire.VendorUrl | None = Field(default=None, description="In place of AWS's (a simulator).")
    access_key_id: str | None = Field(default=None, description="A read-only key; boto3's own chain by default.")
    secret_access_key: Secret | None = Field(default=None, description="Its secret.")


class IdentityStore:
    """One Identity Store, read with boto3."""

    def __init__(self, instance: str, system: str, access: StoreAccess) -> None:
        self._instance = instance
        self._system = system
        self._access = access
        self._client: Any = None

    async def confirm(self, event: IdentityEvent) -> IdentityEvent | Ignored:
        """Say whether the user is enabled, disabled or gone. Raises SourceUnavailable."""
        user_id, store = event.subject.id, event.detail.get("identityStoreId") or self._access.identity_store_id
        if self._access.identity_store_id is None or not user_id:
            advice = f"can't be re-read: set identity_store_id and region of sources.{self._instance}"
            return Ignored(event.key, advice, event.vendor_type)
        if store != self._access.identity_store_id:
            return Ignored(event.key, "about another identity store", event.vendor_type)
        # What is found is dated by the reading: of two readings the later one is the truth.
        event = replace(event, occurred_at=datetime.now(UTC))
        user = await self._ask(lambda: self._opened().describe_user(IdentityStoreId=store, UserId=user_id))
        if user is None:
            return replace(event, kind=EventKind.ACCOUNT_PURGED, detail={**event.detail, "confirmed": "state"})
        status = user.get("UserStatus")
        if status not in ("ENABLED", "DISABLED"):
            return Ignored(event.key, "the Identity Store does not tell whether the user is enabled", event.vendor_type)
        kind = EventKind.ACCOUNT_ENABLED if status == "ENABLED" else EventKind.ACCOUNT_DISABLED
        return replace(event, kind=kind, subject=self._subject(user), detail={**event.detail, "confirmed": "state"})

    async def everyone(self) -> AsyncIterator[Subject]:
        if self._access.identity_store_id is None:
            return
        token: dict[str, str] = {}
        while True:
            asked = {"IdentityStoreId": self._access.identity_store_id, **token}
            page = await self._ask(lambda asked=asked: self._opened().list_users(**asked))  # type: ignore[misc]
            if page is None:
                raise SourceUnavailable(
                    "there is no such identity store", advice=f"Check identity_store_id of sources.{self._instance}."
                )
            for user in page.get("Users", ()):
                yield self._subject(user)
            if not page.get("NextToken"):
                return
            token = {"NextToken": page["NextToken"]}

    def _subject(self, user: Mapping[str, Any]) -> Subject:
        """The primary e-mail comes first; a user name is a login, whatever it looks like."""
        listed = sorted(user.get("Emails") or (), key=lambda email: not email.get("Primary"))
        emails = tuple(dict.fromkeys(email["Value"] for email in listed if email.get("Value")))
        login = user.get("UserName")
        name = user.get("DisplayName") or ""
        return Subject(self._system, id=user["UserId"], emails=emails, logins=(login,) if login else (), name=name)

    async def _ask(self, call: Callable[[], T]) -> T | None:
        """Run one call in a thread; None means that it isn't there. The one place where boto3's errors become ours."""
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            return await asyncio.to_thread(call)
        except ClientError as error:
            code = str(error.response.get("Error", {}).get("Code", ""))
            if code == "ResourceNotFoundException":
                return None
            advice = None
            if code.startswith("AccessDenied") or code in ("UnrecognizedClientException", "InvalidClientTokenId"):
                advice = f"sources.{self._instance} needs identitystore:DescribeUser and identitystore:ListUsers."
            raise SourceUnavailable(f"the Identity Store answered {code}", advice=advice) from None
        except BotoCoreError as error:
            raise SourceUnavailable(f"the Identity Store could not be asked: {type(error).__name__}") from None

    def _opened(self) -> Any:
        if self._client is None:
            import boto3  # type: ignore[import-untyped,unused-ignore]  # in a job, when first used

            secret = self._access.secret_access_key
            self._client = boto3.session.Session().client(
                "identitystore",
                region_name=self._access.region,
                endpoint_url=self._access.endpoint_url,
                aws_access_key_id=self._access.access_key_id,
                aws_secret_access_key=secret.reveal() if secret else None,
            )
        return self._client
