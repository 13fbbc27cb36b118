"""The simulated directory behind `GraphSimulator`: its objects, in Graph's own JSON, and what calls do to them.

It knows the rules of Microsoft Graph v1.0 (https://learn.microsoft.com/graph/api/overview) and nothing of HTTP beyond
the status of an error. Everything lives in plain attributes, so that `Faults` can let a lie happen on a copy.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

Json = dict[str, Any]

GLOBAL_ADMINISTRATOR = "62e90394-69f5-4237-9190-012177145e10"
USER_ADMINISTRATOR = "fe930be7-5e62-47db-91af-98c3a49a38b1"
DEFAULT_APP_ROLE = "00000000-0000-0000-0000-000000000000"


class GraphError(Exception):
    """An error answer of Graph."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.code = code


def missing(object_id: str) -> GraphError:
    return GraphError(
        404,
        "Request_ResourceNotFound",
        f"Resource '{object_id}' does not exist or one of its queried reference-property objects are not present.",
    )


def bad_request(message: str, code: str = "Request_BadRequest") -> GraphError:
    return GraphError(400, code, message)


def now() -> str:
    """The present as Graph writes it. Microseconds, so that one revocation is later than the one before."""
    return datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def new_id() -> str:
    return str(uuid.uuid4())


@dataclass(frozen=True, slots=True)
class Change:
    """One change to a user, for delta."""

    user: str


class Directory:
    """Every object of one tenant, by object id."""

    def __init__(self) -> None:
        self.users: dict[str, Json] = {}
        self.deleted: dict[str, Json] = {}
        self.groups: dict[str, Json] = {}
        self.members: dict[str, list[str]] = {}
        self.grants: dict[str, Json] = {}
        self.app_assignments: dict[str, Json] = {}
        self.role_definitions: dict[str, Json] = {}
        self.role_assignments: dict[str, Json] = {}
        self.applications: dict[str, Json] = {}
        self.service_principals: dict[str, Json] = {}
        self.owners: dict[str, list[str]] = {}
        self.subscriptions: dict[str, Json] = {}
        self.changes: list[Change] = []
        for template, name in (
            (GLOBAL_ADMINISTRATOR, "Global Administrator"),
            (USER_ADMINISTRATOR, "User Administrator"),
        ):
            self.role_definitions[template] = {
                "@odata.type": "#microsoft.graph.unifiedRoleDefinition",
                "id": template,
                "templateId": template,
                "displayName": name,
                "isBuiltIn": True,
                "isEnabled": True,
            }

    # Users

    def user(self, name: str) -> Json:
        """Return a living user by object id or userPrincipalName."""
        found = self.users.get(name)
        if found is None:
            wanted = name.casefold()
            found = next((u for u in self.users.values() if str(u["userPrincipalName"]).casefold() == wanted), None)
        if found is None:
            raise missing(name)
        return found

    def update_user(self, name: str, patch: Json) -> None:
        user = self.user(name)
        wanted = {key: value for key, value in patch.items() if not key.startswith("@")}
        if "id" in wanted:
            raise bad_request("Property 'id' is read-only and cannot be set.")
        user.update(wanted)
        self.changes.append(Change(user["id"]))

    def revoke_sessions(self, name: str) -> bool:
        """Move the user's session watermark. A guest's sessions belong to the home tenant and don't end."""
        user = self.user(name)
        if user.get("userType") == "Guest":
            return False
        user["signInSessionsValidFromDateTime"] = now()
        user["refreshTokensValidFromDateTime"] = user["signInSessionsValidFromDateTime"]
        return True

    def soft_delete(self, name: str) -> None:
        """Move a user to the deleted items, from where they can be restored for 30 days."""
        user = self.user(name)
        del self.users[user["id"]]
        plain = user["id"].replace("-", "")
        self.deleted[user["id"]] = {
            **user,
            "deletedDateTime": now(),
            "userPrincipalName": f"{plain}{user['userPrincipalName']}",
        }
        self.changes.append(Change(user["id"]))

    def purge(self, user_id: str) -> None:
        """Delete a deleted user for good, and everything that hung on them."""
        if self.deleted.pop(user_id, None) is None:
            raise missing(user_id)
        for members in self.members.values():
            if user_id in members:
                members.remove(user_id)
        for table in (self.grants, self.app_assignments, self.role_assignments):
            for key in [key for key, row in table.items() if row.get("principalId") == user_id]:
                del table[key]
        self.changes.append(Change(user_id))

    def undelete(self, user_id: str) -> Json:
        user = self.deleted.pop(user_id, None)
        if user is None:
            raise missing(user_id)
        user["userPrincipalName"] = str(user["userPrincipalName"]).removeprefix(user_id.replace("-", ""))
        user["deletedDateTime"] = None
        self.users[user_id] = user
        self.changes.append(Change(user_id))
        return user

    # Groups

    def group(self, group_id: str) -> Json:
        try:
            return self.groups[group_id]
        except KeyError:
            raise missing(group_id) from None

    def groups_of(self, name: str) -> list[Json]:
        user = self.user(name)
        return [self.groups[g] for g, members in self.members.items() if user["id"] in members]

    def add_member(self, group_id: str, user_id: str) -> None:
        self._changeable(self.group(group_id))
        user = self.user(user_id)
        if user["id"] in self.members[group_id]:
            raise bad_request(
                "One or more added object references already exist for the following modified properties: 'members'."
            )
        self.members[group_id].append(user["id"])

    def remove_member(self, group_id: str, user_id: str) -> None:
        group = self.group(group_id)
        if user_id not in self.members[group_id]:
            raise missing(user_id)
        self._changeable(group)
        self.members[group_id].remove(user_id)

    def _changeable(self, group: Json) -> None:
        if group.get("onPremisesSyncEnabled"):
            raise bad_request(
                "Unable to update the specified properties for on-premises mastered Directory Sync objects or objects "
                "currently undergoing migration."
            )
        if "DynamicMembership" in group["groupTypes"]:
            raise GraphError(403, "Authorization_RequestDenied", "Insufficient privileges to complete the operation.")
        if group["mailEnabled"] and "Unified" not in group["groupTypes"]:
            raise bad_request("Cannot Update a mail-enabled security groups and or distribution list.")

    # Grants, assignments, roles

    def app_assignments_of(self, name: str) -> list[Json]:
        """The assignments a user holds, and those of the groups they are a direct member of: as Graph lists them."""
        user_id = self.user(name)["id"]
        holders = {user_id, *(g["id"] for g in self.groups_of(user_id))}
        return [row for row in self.app_assignments.values() if row["principalId"] in holders]

    def remove_app_assignment(self, assignment_id: str) -> None:
        if self.app_assignments.pop(assignment_id, None) is None:
            raise missing(assignment_id)

    def remove_grant(self, grant_id: str) -> None:
        if self.grants.pop(grant_id, None) is None:
            raise missing(grant_id)

    def remove_role_assignment(self, assignment_id: str) -> None:
        row = self.role_assignments.get(assignment_id)
        if row is None:
            raise missing(assignment_id)
        same = [r for r in self.role_assignments.values() if r["roleDefinitionId"] == row["roleDefinitionId"]]
        if row["roleDefinitionId"] == GLOBAL_ADMINISTRATOR and len(same) == 1:
            raise bad_request("Cannot remove the last member of the Global Administrator role.")
        del self.role_assignments[assignment_id]

    def create_grant(self, body: Json) -> Json:
        key = ("clientId", "resourceId", "principalId")
        if any(all(row[k] == body.get(k) for k in key) for row in self.grants.values()):
            raise GraphError(409, "Request_MultipleObjectsWithSameKeyValue", "Permission entry already exists.")
        return self._create(self.grants, "#microsoft.graph.oAuth2PermissionGrant", body)

    def create_app_assignment(self, principal: str, body: Json) -> Json:
        key = ("principalId", "resourceId", "appRoleId")
        if body.get("principalId") != principal:
            raise bad_request("The principalId does not match the principal of the request.")
        if any(all(row[k] == body.get(k) for k in key) for row in self.app_assignments.values()):
            raise bad_request("Permission being assigned already exists on the object", "InvalidUpdate")
        kind = "Group" if principal in self.groups else "User"
        holder = self.groups.get(principal) or self.user(principal)
        resource = self.service_principals.get(str(body.get("resourceId")))
        if resource is None:
            raise missing(str(body.get("resourceId")))
        return self._create(
            self.app_assignments,
            "#microsoft.graph.appRoleAssignment",
            {
                **body,
                "createdDateTime": now(),
                "principalType": kind,
                "principalDisplayName": holder["displayName"],
                "resourceDisplayName": resource["displayName"],
            },
        )

    def create_role_assignment(self, body: Json) -> Json:
        key = ("principalId", "roleDefinitionId", "directoryScopeId")
        if any(all(row[k] == body.get(k) for k in key) for row in self.role_assignments.values()):
            raise bad_request(
                "A conflicting object with one or more of the specified property values is present in the directory."
            )
        if body.get("roleDefinitionId") not in self.role_definitions:
            raise missing(str(body.get("roleDefinitionId")))
        return self._create(self.role_assignments, "#microsoft.graph.unifiedRoleAssignment", body)

    @staticmethod
    def _create(table: dict[str, Json], kind: str, body: Json) -> Json:
        row = {**body, "@odata.type": kind, "id": new_id()}
        table[row["id"]] = row
        return row

    # Applications

    def owned_by(self, name: str) -> list[Json]:
        user_id = self.user(name)["id"]
        owned = [object_id for object_id, owners in self.owners.items() if user_id in owners]
        return [self._owned(object_id) for object_id in owned]

    def _owned(self, object_id: str) -> Json:
        for table in (self.applications, self.service_principals, self.groups):
            if object_id in table:
                return table[object_id]
        raise missing(object_id)

    def remove_password(self, table: dict[str, Json], object_id: str, key_id: str) -> None:
        app = table.get(object_id)
        if app is None:
            raise missing(object_id)
        kept = [row for row in app["passwordCredentials"] if row["keyId"] != key_id]
        if len(kept) == len(app["passwordCredentials"]):
            raise bad_request("No password credential found with keyId.")
        app["passwordCredentials"] = kept

    # Seeding

    def add_user(
        self,
        upn: str,
        *,
        name: str = "",
        mail: str | None = None,
        object_id: str = "",
        enabled: bool = True,
        guest: bool = False,
    ) -> str:
        """Add a user and return the object id. `mail` is the userPrincipalName unless told otherwise ("" for none)."""
        object_id = object_id or new_id()
        self.users[object_id] = {
            "@odata.type": "#microsoft.graph.user",
            "id": object_id,
            "userPrincipalName": upn,
            "mail": (upn if mail is None else mail) or None,
            "displayName": name or upn.partition("@")[0],
            "accountEnabled": enabled,
            "userType": "Guest" if guest else "Member",
            "createdDateTime": "2024-03-01T08:00:00Z",
            "deletedDateTime": None,
            "signInSessionsValidFromDateTime": "2024-03-01T08:00:00Z",
            "onPremisesSyncEnabled": None,
        }
        self.changes.append(Change(object_id))
        return object_id

    def add_group(
        self,
        name: str,
        *,
        members: Iterable[str] = (),
        dynamic: bool = False,
        synced: bool = False,
        mail_enabled: bool = False,
    ) -> str:
        """Add a group and return its id. `mail_enabled` makes it a distribution list."""
        object_id = new_id()
        self.groups[object_id] = {
            "@odata.type": "#microsoft.graph.group",
            "id": object_id,
            "displayName": name,
            "groupTypes": ["DynamicMembership"] if dynamic else [],
            "membershipRule": '(user.department -eq "Engineering")' if dynamic else None,
            "onPremisesSyncEnabled": True if synced else None,
            "mailEnabled": mail_enabled,
            "mailNickname": name.replace(" ", "-").lower(),
            "securityEnabled": not mail_enabled,
            "createdDateTime": "2024-01-01T08:00:00Z",
            "deletedDateTime": None,
        }
        self.members[object_id] = list(members)
        return object_id

    def add_service_principal(
        self, name: str, *, owners: Iterable[str] = (), app_id: str = "", secrets: int = 0
    ) -> str:
        return self._add_app(
            self.service_principals, "#microsoft.graph.servicePrincipal", name, owners, app_id, secrets
        )

    def add_application(self, name: str, *, owners: Iterable[str] = (), app_id: str = "", secrets: int = 1) -> str:
        """Add an app registration with client secrets and return its object id."""
        return self._add_app(self.applications, "#microsoft.graph.application", name, owners, app_id, secrets)

    def _add_app(
        self, table: dict[str, Json], kind: str, name: str, owners: Iterable[str], app_id: str, secrets: int
    ) -> str:
        object_id = new_id()
        table[object_id] = {
            "@odata.type": kind,
            "id": object_id,
            "appId": app_id or new_id(),
            "displayName": name,
            "deletedDateTime": None,
            "keyCredentials": [],
            "passwordCredentials": [
                {
                    "@odata.type": "#microsoft.graph.passwordCredential",
                    "keyId": new_id(),
                    "displayName": f"secret {number + 1}",
                    "hint": "abc",
                    "startDateTime": "2024-05-01T08:00:00Z",
                    "endDateTime": "2027-05-01T08:00:00Z",
                    "secretText": None,
                    "customKeyIdentifier": None,
                }
                for number in range(secrets)
            ],
        }
        self.owners[object_id] = list(owners)
        return object_id

    def add_certificate(self, application: str) -> str:
        """Give an application a certificate and return its key id."""
        key_id = new_id()
        self.applications[application]["keyCredentials"].append(
            {
                "@odata.type": "#microsoft.graph.keyCredential",
                "keyId": key_id,
                "displayName": "CN=build",
                "type": "AsymmetricX509Cert",
                "usage": "Verify",
            }
        )
        return key_id

    def add_grant(self, user: str, client: str, resource: str, scope: str = "User.Read") -> str:
        body = {
            "clientId": client,
            "resourceId": resource,
            "principalId": user,
            "consentType": "Principal",
            "scope": scope,
        }
        return str(self.create_grant(body)["id"])

    def assign_app(self, principal: str, resource: str, role: str = DEFAULT_APP_ROLE) -> str:
        """Assign a user or a group to an application's role and return the assignment's id."""
        body = {"principalId": principal, "resourceId": resource, "appRoleId": role}
        return str(self.create_app_assignment(principal, body)["id"])

    def assign_role(self, principal: str, role: str = USER_ADMINISTRATOR, scope: str = "/") -> str:
        body = {"principalId": principal, "roleDefinitionId": role, "directoryScopeId": scope}
        return str(self.create_role_assignment(body)["id"])
