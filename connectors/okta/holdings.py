"""What Okta's documents mean as credentials. Reads JSON and nothing else: no call is made here.

Okta's own models in the SDK refuse documents that Okta sends (one phone number in its own format is enough), so the raw
JSON is read, and only the members that matter.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final

from offboard_worker.core.credential import Credential, CredentialKind, CredentialState

Document = Mapping[str, Any]

# Every status that Okta has: a list without a filter leaves out DEPROVISIONED.
STATUSES: Final = (
    "STAGED",
    "PROVISIONED",
    "ACTIVE",
    "RECOVERY",
    "PASSWORD_EXPIRED",
    "LOCKED_OUT",
    "SUSPENDED",
    "DEPROVISIONED",
)
POWERLESS: Final = frozenset({"SUSPENDED", "DEPROVISIONED"})


def account_state(user: Document) -> CredentialState:
    """DISABLED for a suspended or deactivated user.

    Everything else is ACTIVE, a locked-out or a staged user too: they get in after a reset of the password.
    """
    return CredentialState.DISABLED if user.get("status") in POWERLESS else CredentialState.ACTIVE


def account(connector: str, user: Document) -> Credential:
    return Credential(
        connector,
        CredentialKind.ACCOUNT,
        id=user["id"],
        owner=user["id"],
        label=_login(user),
        state=account_state(user),
        created_at=_moment(user, "created"),
        last_used_at=_moment(user, "lastLogin"),
        snapshot={"status": str(user.get("status", ""))},
    )


def sessions(connector: str, user: Document) -> Credential:
    """All sessions of a user as one credential: Okta lists none, and ends them together."""
    return Credential(
        connector,
        CredentialKind.SESSION,
        id=user["id"],
        owner=user["id"],
        label=f"all sessions and OAuth tokens of {_login(user)}",
        last_used_at=_moment(user, "lastLogin"),
    )


def api_token(connector: str, token: Document) -> Credential:
    return Credential(
        connector,
        CredentialKind.API_TOKEN,
        id=token["id"],
        owner=token["userId"],
        label=str(token.get("name", "")),
        state=CredentialState.ACTIVE,
        created_at=_moment(token, "created"),
        expires_at=_moment(token, "expiresAt"),
    )


def grant(connector: str, user_id: str, document: Document) -> Credential:
    """A scope that the user consented to: `scope` is the user's id."""
    return Credential(
        connector,
        CredentialKind.OAUTH_GRANT,
        id=document["id"],
        owner=user_id,
        scope=user_id,
        label=f"{document.get('scopeId', '')} for {document.get('clientId', '')}",
        state=grant_state(document),
        created_at=_moment(document, "created"),
    )


def refresh_token(connector: str, user_id: str, client_id: str, document: Document) -> Credential:
    """A refresh token: `scope` is the user's id and the client's, by which alone Okta finds it."""
    return Credential(
        connector,
        CredentialKind.OAUTH_GRANT,
        id=document["id"],
        owner=user_id,
        scope=f"{user_id}/{client_id}",
        label=f"refresh token for {client_id}",
        state=grant_state(document),
        created_at=_moment(document, "created"),
        expires_at=_moment(document, "expiresAt"),
    )


def grant_state(document: Document) -> CredentialState:
    return CredentialState.GONE if document.get("status") == "REVOKED" else CredentialState.ACTIVE


def role(connector: str, user_id: str, document: Document) -> Credential:
    return Credential(
        connector,
        CredentialKind.ROLE,
        id=document["id"],
        owner=user_id,
        scope=user_id,
        label=str(document.get("label", document.get("type", ""))),
        state=role_state(document),
        created_at=_moment(document, "created"),
        snapshot={
            "type": str(document.get("type", "")),
            "assignment": str(document.get("assignmentType", "")),
            "role": str(document.get("role", "")),
            "resource-set": str(document.get("resource-set", "")),
        },
    )


def role_state(document: Document) -> CredentialState:
    return CredentialState.DISABLED if document.get("status") == "INACTIVE" else CredentialState.ACTIVE


def is_super_admin(role_document: Document) -> bool:
    return role_document.get("type") == "SUPER_ADMIN" and role_state(role_document) is CredentialState.ACTIVE


def attribute(user: Document, name: str) -> str:
    """One attribute of the profile as text, empty where it is missing."""
    value = user.get("profile", {}).get(name)
    return value if isinstance(value, str) else ""


def _login(user: Document) -> str:
    return attribute(user, "login") or str(user["id"])


def _moment(document: Document, name: str) -> datetime | None:
    value = document.get(name)
    try:
        return datetime.fromisoformat(value) if isinstance(value, str) else None
    except ValueError:
        return None
