"""What an `entra` instance can be told, and which permissions it needs for that. Knows no SDK."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import Field, field_validator

from offboard_worker.connector import ConnectorConfig, Secret
from offboard_worker.core.credential import Ability, CredentialKind

LOOPBACK = frozenset({"127.0.0.1", "::1", "localhost"})
TENANT = r"^[A-Za-z0-9][A-Za-z0-9.-]*$"

# Which application permissions also allow what the one on the left allows, by the permissions reference:
# https://learn.microsoft.com/graph/permissions-reference
WIDER: Mapping[str, frozenset[str]] = {
    "Application.Read.All": frozenset({"Application.ReadWrite.All", "Directory.Read.All", "Directory.ReadWrite.All"}),
    "Application.ReadWrite.All": frozenset({"Directory.ReadWrite.All"}),
    "DelegatedPermissionGrant.ReadWrite.All": frozenset({"Directory.ReadWrite.All"}),
    "GroupMember.ReadWrite.All": frozenset({"Group.ReadWrite.All", "Directory.ReadWrite.All"}),
}


class EntraConfig(ConnectorConfig):
    """One Entra tenant, and the application by which we act in it."""

    tenant_id: Annotated[str, Field(pattern=TENANT)] = Field(description="The tenant's id or a verified domain of it.")
    client_id: str = Field(description="The application (client) id of our own app registration: never touched.")
    client_secret: Secret = Field(description="Its client secret.")
    base_url: str = Field(
        default="https://graph.microsoft.com/v1.0",
        description="Microsoft Graph, with its version. National clouds have their own. Our token goes nowhere else.",
    )
    login_url: str = Field(
        default="https://login.microsoftonline.com", description="The authority that issues our access token."
    )
    match: Literal["mail", "userPrincipalName", "none"] = Field(
        default="none",
        description="The attribute that says whose account it is, compared exactly with the person's e-mail addresses. "
        "none: recorded ids alone.",
    )
    remove_app_secrets: bool = Field(
        default=False,
        description="Remove the client secrets of applications that the leaver owns. Whatever uses them stops: unless "
        "this is set, each is a task for a person.",
    )

    @field_validator("base_url", "login_url")
    @classmethod
    def _https_but_to_loopback(cls, value: str) -> str:
        url = urlsplit(value)
        if not url.hostname or url.username or url.query or url.fragment:
            raise ValueError("expected the URL of a server, without user, query or fragment")
        if url.scheme != "https" and not (url.scheme == "http" and url.hostname in LOOPBACK):
            raise ValueError("expected https:// (plain http is for loopback alone: our token would be readable)")
        return value.rstrip("/")

    @property
    def scope(self) -> str:
        """The scope of our token: everything that the tenant's administrator consented to for our application."""
        url = urlsplit(self.base_url)
        host = url.hostname if url.scheme == "https" else "graph.microsoft.com"
        return f"https://{host}/.default"

    @property
    def token_url(self) -> str:
        return f"{self.login_url}/{self.tenant_id}/oauth2/v2.0/token"


def needed(kinds: Mapping[CredentialKind, Ability], config: EntraConfig) -> tuple[str, ...]:
    """Return the application permissions that this instance needs, once each, in the order of `kinds`."""
    names = dict.fromkeys(ability.permission for ability in kinds.values())
    if not config.remove_app_secrets:
        secrets = kinds[CredentialKind.APP_SECRET].permission
        names = dict.fromkeys("Application.Read.All" if name == secrets else name for name in names)
    return tuple(names)


def lacking(wanted: Iterable[str], held: Iterable[str]) -> tuple[str, ...]:
    """Return the wanted permissions that neither they themselves nor a wider one among `held` gives."""
    have = set(held)
    return tuple(name for name in wanted if not have & {name, *WIDER.get(name, ())})
