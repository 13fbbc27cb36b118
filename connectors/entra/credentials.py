"""What Graph's objects mean to us: each function turns one into a Credential, with what `restore` will need.

Pure: it takes Graph's JSON, under the names that Graph's documentation has, and imports no SDK.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any

from offboard_worker.core.credential import Credential, CredentialKind, CredentialState

Json = Mapping[str, Any]

GLOBAL_ADMINISTRATOR = "62e90394-69f5-4237-9190-012177145e10"  # the same template id in every tenant
GUID = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")

USER_FIELDS = [
    "id",
    "userPrincipalName",
    "mail",
    "accountEnabled",
    "userType",
    "createdDateTime",
    "onPremisesSyncEnabled",
    "signInSessionsValidFromDateTime",
]

# What makes two objects the same power, whatever their ids: what is granted again gets another id.
SAME_POWER: Mapping[CredentialKind, tuple[str, ...]] = {
    CredentialKind.ROLE: ("roleDefinitionId", "directoryScopeId"),
    CredentialKind.OAUTH_GRANT: ("clientId", "resourceId"),
    CredentialKind.APP_ASSIGNMENT: ("resourceId", "appRoleId"),
}


def same_power(one: Credential, other: Credential) -> bool:
    """Say whether two credentials of one person are the same thing, though one may have been granted anew."""
    if one.id == other.id:
        return True
    names = SAME_POWER.get(one.kind, ())
    known = all(one.snapshot.get(name) for name in names)
    return bool(names) and known and all(one.snapshot[name] == other.snapshot.get(name) for name in names)


def account(instance: str, user: Json, *, administrator: bool | None) -> Credential:
    """The login. `administrator`: holds Global Administrator for the whole tenant; None where that can't be read."""
    states = {True: CredentialState.ACTIVE, False: CredentialState.DISABLED}
    return Credential(
        instance,
        CredentialKind.ACCOUNT,
        user["id"],
        owner=user["id"],
        label=user.get("userPrincipalName") or "",
        state=states.get(user.get("accountEnabled", ""), CredentialState.UNKNOWN),
        created_at=moment(user.get("createdDateTime")),
        snapshot=_texts(
            accountEnabled=user.get("accountEnabled"),
            onPremisesSyncEnabled=user.get("onPremisesSyncEnabled"),
            globalAdministrator={True: True, False: None, None: "unknown"}[administrator],
        ),
    )


def deleted_account(instance: str, item: Json) -> Credential:
    """The login of somebody who is among the deleted items: gone, though it can be restored for 30 days."""
    return Credential(instance, CredentialKind.ACCOUNT, item["id"], owner=item["id"], state=CredentialState.GONE)


def sessions(instance: str, user: Json) -> Credential:
    """All sign-in sessions of a user as one: Graph neither lists them nor ends one alone."""
    return Credential(
        instance,
        CredentialKind.SESSION,
        user["id"],
        owner=user["id"],
        label="sign-in sessions",
        snapshot=_texts(userType=user.get("userType"), validFrom=user.get("signInSessionsValidFromDateTime")),
    )


def grant(instance: str, row: Json) -> Credential:
    return Credential(
        instance,
        CredentialKind.OAUTH_GRANT,
        row["id"],
        owner=row["principalId"],
        label=(row.get("scope") or "").strip(),
        state=CredentialState.ACTIVE,
        snapshot=_texts(**{name: row.get(name) for name in ("clientId", "resourceId", "scope", "consentType")}),
    )


def app_assignment(instance: str, row: Json) -> Credential:
    return Credential(
        instance,
        CredentialKind.APP_ASSIGNMENT,
        row["id"],
        owner=row["principalId"],
        label=row.get("resourceDisplayName") or "",
        state=CredentialState.ACTIVE,
        created_at=moment(row.get("createdDateTime")),
        snapshot=_texts(resourceId=row.get("resourceId"), appRoleId=row.get("appRoleId")),
    )


def membership(instance: str, group: Json, user_id: str) -> Credential:
    types = group.get("groupTypes") or ()
    return Credential(
        instance,
        CredentialKind.GROUP_MEMBERSHIP,
        group["id"],
        owner=user_id,
        scope=user_id,
        label=group.get("displayName") or "",
        state=CredentialState.ACTIVE,
        snapshot=_texts(
            dynamic="DynamicMembership" in types or None,
            synced=group.get("onPremisesSyncEnabled") or None,
            mailList=(group.get("mailEnabled") and "Unified" not in types) or None,
        ),
    )


def role(instance: str, row: Json) -> Credential:
    definition = row.get("roleDefinition") or {}
    return Credential(
        instance,
        CredentialKind.ROLE,
        row["id"],
        owner=row["principalId"],
        label=definition.get("displayName") or row.get("roleDefinitionId") or "",
        state=CredentialState.ACTIVE,
        snapshot=_texts(roleDefinitionId=row.get("roleDefinitionId"), directoryScopeId=row.get("directoryScopeId")),
    )


def is_global_administrator(row: Json) -> bool:
    """Say whether a role assignment makes its principal an owner of the whole tenant."""
    return row.get("roleDefinitionId") == GLOBAL_ADMINISTRATOR and row.get("directoryScopeId") in ("/", None)


def app_secrets(instance: str, app: Json, collection: str, owner: str) -> Iterator[Credential]:
    """The client secrets and certificates of one application (or service principal) that a person owns.

    `scope` is the object's path below the API and, since a secret has as many holders as the application has owners,
    whose knowledge of it this is.
    """
    for sort, name in (("secret", "passwordCredentials"), ("certificate", "keyCredentials")):
        for key in app.get(name) or ():
            yield Credential(
                instance,
                CredentialKind.APP_SECRET,
                key["keyId"],
                owner=owner,
                scope=f"{collection}/{app['id']}/owners/{owner}",
                label=f"{sort} of {app.get('displayName') or app['id']}",
                state=CredentialState.ACTIVE,
                created_at=moment(key.get("startDateTime")),
                expires_at=moment(key.get("endDateTime")),
                snapshot=_texts(sort=sort, appId=app.get("appId")),
            )


def moment(value: str | None) -> datetime | None:
    """Read a time as Graph writes it. Raises ValueError."""
    return datetime.fromisoformat(value) if value else None


def exact(user_id: str) -> bool:
    """Say whether an id is an object id: they are for ever, where a user name may be given to somebody else."""
    return GUID.fullmatch(user_id) is not None


def _texts(**values: object) -> dict[str, str]:
    """What is known, as text: a snapshot is kept as evidence and travels as JSON."""
    return {name: _text(value) for name, value in values.items() if value is not None}


def _text(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value)
