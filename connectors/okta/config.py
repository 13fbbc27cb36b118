"""What the Okta connector can be told, and what it declares that it can do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import timedelta
from ipaddress import ip_address
from typing import Annotated, Final, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field

from offboard_worker.connector import ConnectorConfig, Secret
from offboard_worker.core.credential import Ability, CredentialKind

SESSIONS_OUTLIVE: Final = timedelta(hours=24)  # the longest lifetime that an authorization server can be given

ABILITIES: Final[Mapping[CredentialKind, Ability]] = {
    CredentialKind.ACCOUNT: Ability(reversible=True, read_back=True, permission="okta.users.manage", deletable=False),
    CredentialKind.SESSION: Ability(
        reversible=False,
        read_back=False,
        permission="okta.users.manage",
        residual=SESSIONS_OUTLIVE,
        residual_note="Access tokens already issued, where an application verifies them offline; sessions that web and "
        "native applications keep of their own end by Universal Logout only.",
    ),
    CredentialKind.API_TOKEN: Ability(reversible=False, read_back=True, permission="okta.apiTokens.manage"),
    CredentialKind.OAUTH_GRANT: Ability(
        reversible=False,
        read_back=True,
        permission="okta.users.manage",
        residual=SESSIONS_OUTLIVE,
        residual_note="Access tokens that were issued under the grant, where an application verifies them offline.",
    ),
    CredentialKind.ROLE: Ability(reversible=False, read_back=True, permission="okta.roles.manage"),
}


def _organisation(url: str) -> str:
    """Accept the organisation's own https address; plain http for loopback alone, since the token goes there."""
    parts = urlsplit(url)
    if not parts.hostname or parts.path.strip("/") or parts.query or parts.fragment or parts.username:
        raise ValueError("expected the organisation's address and nothing after it: https://example.okta.com")
    if "-admin." in parts.hostname:
        raise ValueError("expected the organisation's address, not its admin console's: leave out -admin")
    if parts.scheme != "https" and not (parts.scheme == "http" and _is_loopback(parts.hostname)):
        raise ValueError("expected https: plain http is for loopback alone, since the API token goes there")
    return f"{parts.scheme}://{parts.netloc}"


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


class OktaConfig(ConnectorConfig):
    """One Okta organisation."""

    type: Literal["okta"] = "okta"
    base_url: Annotated[str, AfterValidator(_organisation)] = Field(
        description="The organisation's address: https://example.okta.com, or its custom domain."
    )
    api_token: Secret = Field(
        description="An SSWS token of a service user with the permissions that docs/connectors/okta.md lists."
    )
    match: Literal["email", "login", "none"] = Field(
        default="none",
        description="The attribute that is authoritative for people whose Okta id we have not recorded: `email` or "
        "`login`, compared exactly with the person's addresses. `none`: recorded ids alone count.",
    )
    deactivate: bool = Field(
        default=False,
        description="Deactivate the account at once instead of suspending it: every application is deprovisioned, and "
        "it can't be undone.",
    )
    delete_account: bool = Field(
        default=False, description="Delete the account for good after the grace period, which deactivates it first."
    )
    proxy: str | None = Field(
        default=None, description="An HTTP proxy to reach Okta by. HTTP_PROXY and HTTPS_PROXY are not read."
    )


def abilities(config: OktaConfig) -> Mapping[CredentialKind, Ability]:
    """What this instance can do: how the account ends is the configuration's choice."""
    account = replace(
        ABILITIES[CredentialKind.ACCOUNT], reversible=not config.deactivate, deletable=config.delete_account
    )
    return {**ABILITIES, CredentialKind.ACCOUNT: account}
