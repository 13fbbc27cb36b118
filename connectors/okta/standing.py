"""What our own API token may do: reads are tried, writes are told by the administrator's roles of its owner.

A write can't be tried without doing it. An SSWS token has the rights of the user who made it, and these are the roles.
https://help.okta.com/en-us/content/topics/security/administrators-admin-comparison.htm
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any, Final

from connectors.okta.config import ABILITIES
from connectors.okta.holdings import Document, attribute
from connectors.okta.wire import Wire
from offboard_worker.connector import Standing
from offboard_worker.errors import AccessRefused

NEEDED: Final = tuple(dict.fromkeys(ability.permission for ability in ABILITIES.values()))

# What a standard role can manage of what we need. None of the others can manage users who are administrators.
GIVEN: Final[Mapping[str, frozenset[str]]] = {
    "SUPER_ADMIN": frozenset(NEEDED),
    "ORG_ADMIN": frozenset({"okta.users.manage"}),
    "USER_ADMIN": frozenset({"okta.users.manage"}),
}

READS: Final[Mapping[str, tuple[str, str, Mapping[str, Any]]]] = {
    "okta.users.read": ("UserApi", "list_users", {"limit": 1}),
    "okta.apiTokens.read": ("ApiTokenApi", "list_api_tokens", {}),
    "okta.roles.read": ("RoleAssignmentAUserApi", "list_users_with_role_assignments", {"limit": 1}),
}


async def standing(wire: Wire, me: Document) -> Standing:
    """Say who we are to Okta and what we lack. Raises AccessRefused where the token itself is bad."""
    readable = await asyncio.gather(*(_allowed(wire, *read) for read in READS.values()))
    missing = [permission for permission, allowed in zip(READS, readable, strict=True) if not allowed]
    roles = await _roles(wire, me["id"])
    notes = []
    if roles is None:
        notes.append("Our own roles can't be read, so what we may write is not known.")
    elif "CUSTOM" in roles:
        notes.append(f"A custom role can't be looked into: make sure that it gives {', '.join(NEEDED)}.")
    else:
        given = frozenset().union(*(GIVEN.get(role, frozenset()) for role in roles))
        missing += [permission for permission in NEEDED if permission not in given]
    if roles is not None and "SUPER_ADMIN" not in roles:
        notes.append("Without the role SUPER_ADMIN, leavers who are administrators can't be ended.")
    return Standing(f"{attribute(me, 'login')} ({me['id']})", tuple(missing), tuple(notes))


async def _allowed(wire: Wire, api: str, method: str, options: Mapping[str, Any]) -> bool:
    try:
        await wire.call(api, method, **options)
    except AccessRefused as refusal:
        if refusal.status == 401:
            raise
        return False
    return True


async def _roles(wire: Wire, user_id: str) -> frozenset[str] | None:
    """The types of our own roles, or None where we may not read them."""
    try:
        reply = await wire.call("RoleAssignmentAUserApi", "list_assigned_roles_for_user", user_id)
    except AccessRefused as refusal:
        if refusal.status == 401:
            raise
        return None
    return frozenset(str(role.get("type", "")) for role in reply.json())
