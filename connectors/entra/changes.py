"""What is changed in a tenant: one function per call that takes power away or gives it back.

Groups are left only by DELETE /groups/{g}/members/{u}/$ref. Without /$ref the same call deletes the *person*, by
Microsoft's own documentation (https://learn.microsoft.com/graph/api/group-delete-members). No decision is taken here:
connector.py has asked whether it may. It imports the SDK: when opened.
"""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Any
from uuid import UUID

from msgraph.generated.applications.item.remove_password.remove_password_post_request_body import (
    RemovePasswordPostRequestBody as OfApplication,
)
from msgraph.generated.models.app_role_assignment import AppRoleAssignment
from msgraph.generated.models.o_auth2_permission_grant import OAuth2PermissionGrant
from msgraph.generated.models.reference_create import ReferenceCreate
from msgraph.generated.models.unified_role_assignment import UnifiedRoleAssignment
from msgraph.generated.models.user import User
from msgraph.generated.service_principals.item.remove_password.remove_password_post_request_body import (
    RemovePasswordPostRequestBody as OfServicePrincipal,
)

from connectors.entra.graph import Graph, Missing, options
from connectors.entra.reading import app_path, exact
from offboard_worker.core.credential import Credential, CredentialKind, Outcome
from offboard_worker.errors import Fatal, NeedsHuman


class Changes:
    """Changes one tenant. "Isn't there" is an Outcome; everything else is raised by `Graph.call`."""

    def __init__(self, instance: str, graph: Graph, base_url: str) -> None:
        self._instance = instance
        self._graph = graph
        self._client = graph.client
        self._base_url = base_url

    async def enable(self, user_id: str, *, enabled: bool) -> Outcome:
        return await self._done(self._user(user_id).patch(User(account_enabled=enabled)))

    async def delete_user(self, user_id: str) -> Outcome:
        """Move a user to the deleted items, from where Graph purges them after 30 days."""
        return await self._done(self._user(user_id).delete())

    async def undelete_user(self, user_id: str) -> Outcome:
        item = self._client.directory.deleted_items.by_directory_object_id(exact(user_id))
        return await self._done(item.restore.post(options()))

    async def end_sessions(self, user_id: str) -> Outcome:
        try:
            answer = await self._graph.call(self._user(user_id).revoke_sign_in_sessions.post(options()))
        except Missing:
            return Outcome.ALREADY
        if answer is not None and answer.get("value") is False:
            raise Fatal("Graph says that it revoked no session", connector=self._instance)
        return Outcome.DONE

    async def take_away(self, credential: Credential) -> Outcome:
        """Remove a role, a membership, an app assignment or a grant."""
        match credential.kind:
            case CredentialKind.ROLE:
                rows = self._client.role_management.directory.role_assignments
                return await self._done(rows.by_unified_role_assignment_id(_some(credential.id)).delete())
            case CredentialKind.GROUP_MEMBERSHIP:
                members = self._client.groups.by_group_id(exact(credential.id)).members
                return await self._done(members.by_directory_object_id(exact(credential.owner)).ref.delete())
            case CredentialKind.APP_ASSIGNMENT:
                rows = self._user(credential.owner).app_role_assignments
                return await self._done(rows.by_app_role_assignment_id(_some(credential.id)).delete())
            case CredentialKind.OAUTH_GRANT:
                rows = self._client.oauth2_permission_grants
                return await self._done(rows.by_o_auth2_permission_grant_id(_some(credential.id)).delete())
        raise Fatal(f"entra takes away no {credential.kind}", connector=self._instance)

    async def remove_password(self, path: str, key_id: str) -> Outcome:
        """Remove a client secret of "applications/{id}…" or "servicePrincipals/{id}…"."""
        collection, object_id = app_path(path)
        if collection == "applications":
            app = self._client.applications.by_application_id(object_id)
            return await self._done(app.remove_password.post(OfApplication(key_id=UUID(key_id))))
        principal = self._client.service_principals.by_service_principal_id(object_id)
        return await self._done(principal.remove_password.post(OfServicePrincipal(key_id=UUID(key_id))))

    async def give_back(self, credential: Credential) -> None:
        """Grant anew what `take_away` took, from the snapshot. It gets another id at Graph."""
        kept, owner = credential.snapshot, exact(credential.owner)
        try:
            match credential.kind:
                case CredentialKind.GROUP_MEMBERSHIP:
                    reference = ReferenceCreate(odata_id=f"{self._base_url}/directoryObjects/{owner}")
                    work = self._client.groups.by_group_id(exact(credential.id)).members.ref.post(reference, options())
                case CredentialKind.ROLE:
                    work = self._client.role_management.directory.role_assignments.post(
                        UnifiedRoleAssignment(
                            odata_type="#microsoft.graph.unifiedRoleAssignment",
                            principal_id=owner,
                            role_definition_id=kept["roleDefinitionId"],
                            directory_scope_id=kept.get("directoryScopeId", "/"),
                        ),
                        options(),
                    )
                case CredentialKind.APP_ASSIGNMENT:
                    work = self._user(owner).app_role_assignments.post(
                        AppRoleAssignment(
                            principal_id=UUID(owner),
                            resource_id=UUID(kept["resourceId"]),
                            app_role_id=UUID(kept["appRoleId"]),
                        ),
                        options(),
                    )
                case CredentialKind.OAUTH_GRANT:
                    work = self._client.oauth2_permission_grants.post(
                        OAuth2PermissionGrant(
                            client_id=kept["clientId"],
                            resource_id=kept["resourceId"],
                            scope=kept.get("scope", ""),
                            consent_type="Principal",
                            principal_id=owner,
                        ),
                        options(),
                    )
                case kind:
                    raise Fatal(f"entra gives back no {kind}", connector=self._instance)
            await self._graph.call(work)
        except (KeyError, Missing) as error:
            raise NeedsHuman(
                f"{credential.label or credential.ref} can't be granted again: it, the person or what was noted is gone",
                advice="Grant it by hand in the Entra admin center, if the person still needs it.",
                connector=self._instance,
                credential=credential.ref,
            ) from error

    def _user(self, user_id: str) -> Any:
        return self._client.users.by_user_id(exact(user_id))

    async def _done(self, answer: Awaitable[Any]) -> Outcome:
        try:
            await self._graph.call(answer)
        except Missing:
            return Outcome.ALREADY
        return Outcome.DONE


def _some(row_id: str) -> str:
    """Return the id, or refuse an empty one: the path would address the whole collection."""
    if not row_id or "/" in row_id:
        raise Fatal(f"{row_id!r} is not the id of one object")
    return row_id
