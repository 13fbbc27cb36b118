"""What the simulated Okta organisation holds, and how the management API shows it.

https://developer.okta.com/docs/api/. Records only: what a call does to them is `okta_simulator`'s.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

CREATED = "2024-03-04T09:00:00.000Z"
RECENT = "2026-11-20T16:20:00.000Z"
LATER = "2027-11-20T16:20:00.000Z"
LABELS = {"SUPER_ADMIN": "Super Administrator", "ORG_ADMIN": "Organization Administrator"}


@dataclass(slots=True)
class User:
    """One user of the organisation. `sessions` are browser sessions' ids, which no call lists."""

    id: str
    login: str
    email: str
    first: str
    last: str
    status: str = "ACTIVE"
    sessions: list[str] = field(default_factory=list)


@dataclass(slots=True)
class Grant:
    """One scope that a user consented to for one client."""

    id: str
    user: str
    client: str
    scope: str


@dataclass(slots=True)
class RefreshToken:
    id: str
    user: str
    client: str
    scopes: tuple[str, ...] = ("openid", "offline_access")


@dataclass(slots=True)
class ApiToken:
    """One SSWS token. `value` is what a client sends: no call ever shows it again."""

    id: str
    user: str
    name: str
    value: str


@dataclass(slots=True)
class Role:
    """One assignment of an administrator's role; `assignment` is USER, or GROUP where a group gives it."""

    id: str
    user: str
    type: str
    assignment: str = "USER"


@dataclass
class State:
    """Everything that a call can change."""

    users: dict[str, User] = field(default_factory=dict)
    grants: dict[str, Grant] = field(default_factory=dict)
    refresh_tokens: dict[str, RefreshToken] = field(default_factory=dict)
    api_tokens: dict[str, ApiToken] = field(default_factory=dict)
    roles: dict[str, Role] = field(default_factory=dict)
    made: int = 0


def user_json(user: User, url: str) -> dict[str, Any]:
    """A user as the API shows it."""
    profile = {"firstName": user.first, "lastName": user.last, "login": user.login, "email": user.email}
    return {
        "id": user.id,
        "status": user.status,
        "created": CREATED,
        "activated": CREATED,
        "statusChanged": RECENT,
        "lastLogin": RECENT,
        "lastUpdated": RECENT,
        "passwordChanged": CREATED,
        "type": {"id": "otySimulated"},
        "profile": {**profile, "mobilePhone": None, "secondEmail": None},
        "credentials": {"provider": {"type": "OKTA", "name": "OKTA"}},
        "_links": {"self": {"href": f"{url}/api/v1/users/{user.id}"}},
    }


def grant_json(grant: Grant, url: str) -> dict[str, Any]:
    """A scope consent grant as the API shows it."""
    return {
        "id": grant.id,
        "status": "ACTIVE",
        "created": CREATED,
        "lastUpdated": RECENT,
        "issuer": url,
        "clientId": grant.client,
        "userId": grant.user,
        "scopeId": grant.scope,
        "source": "END_USER",
    }


def refresh_token_json(token: RefreshToken, url: str) -> dict[str, Any]:
    """A refresh token as the API shows it: never its value."""
    return {
        "id": token.id,
        "status": "ACTIVE",
        "created": CREATED,
        "lastUpdated": RECENT,
        "expiresAt": LATER,
        "issuer": url,
        "clientId": token.client,
        "userId": token.user,
        "scopes": list(token.scopes),
    }


def api_token_json(token: ApiToken) -> dict[str, Any]:
    """An API token's metadata: never its value."""
    return {
        "id": token.id,
        "name": token.name,
        "userId": token.user,
        "clientName": "Okta API",
        "tokenWindow": "P30D",
        "created": CREATED,
        "lastUpdated": RECENT,
        "expiresAt": LATER,
        "network": {"connection": "ANYWHERE"},
    }


def role_json(role: Role) -> dict[str, Any]:
    """A role assignment as the API shows it."""
    return {
        "id": role.id,
        "label": LABELS.get(role.type, role.type.replace("_", " ").title()),
        "type": role.type,
        "status": "ACTIVE",
        "created": CREATED,
        "lastUpdated": RECENT,
        "assignmentType": role.assignment,
    }
