"""What is read from a tenant: who somebody is, what one user holds, and everything that there is.

Each list is one vendor page: /users, /users/{id}/memberOf, …/appRoleAssignments, …/oauth2PermissionGrants,
…/ownedObjects, /roleManagement/directory/roleAssignments. It changes nothing. It imports the SDK: when opened.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

from connectors.entra import credentials as seen
from connectors.entra.graph import Graph, Missing, Query, options
from offboard_worker.connector import drained, foremost, side_by_side
from offboard_worker.core.credential import Credential, CredentialKind
from offboard_worker.core.person import normal_email
from offboard_worker.errors import Fatal, Retryable

Listing = Callable[[str], AsyncIterator[Credential]]

FULL_PAGE = 999  # the most that Graph gives at once
APP_FIELDS = ["id", "appId", "displayName", "passwordCredentials", "keyCredentials"]
COLLECTIONS: Mapping[str, str] = {
    "#microsoft.graph.application": "applications",
    "#microsoft.graph.servicePrincipal": "servicePrincipals",
}


class Reader:
    """Reads one tenant. Everything may raise the errors of `Graph.call`; Missing is a result here."""

    def __init__(self, instance: str, graph: Graph) -> None:
        self._instance = instance
        self._graph = graph
        self._client = graph.client
        self.listings: Mapping[CredentialKind, Listing] = {
            CredentialKind.ROLE: self._roles_of,
            CredentialKind.GROUP_MEMBERSHIP: self._groups_of,
            CredentialKind.APP_ASSIGNMENT: self._app_assignments_of,
            CredentialKind.OAUTH_GRANT: self._grants_of,
            CredentialKind.APP_SECRET: self._app_secrets_of,
        }

    async def any_user(self) -> None:
        """Read one user: proof that Graph takes our token."""
        async for _ in self._graph.pages(self._client.users, Query(select=["id"], top=1)):
            return

    async def matching(self, attribute: str, value: str) -> list[str]:
        """The ids of the users whose attribute is exactly this address: the filter's answer is compared again."""
        escaped = value.replace("'", "''")
        query = Query(select=["id", "mail", "userPrincipalName"], filter=f"{attribute} eq '{escaped}'")
        users = self._graph.pages(self._client.users, query)
        return [user["id"] async for user in users if normal_email(user.get(attribute) or "") == normal_email(value)]

    async def user(self, user_id: str) -> Any:
        """Read a user with what we need of them; None where Graph says that there is none."""
        item = self._client.users.by_user_id(exact(user_id))
        return await self._one(item.get(options(Query(select=seen.USER_FIELDS))), "a user")

    async def app(self, path: str) -> Any:
        """Read an application or service principal by its path ("applications/{id}…"); None where it is gone."""
        collection, object_id = app_path(path)
        if collection == "applications":
            item = self._client.applications.by_application_id(object_id)
        else:
            item = self._client.service_principals.by_service_principal_id(object_id)
        return await self._one(item.get(options(Query(select=APP_FIELDS))), "an application")

    async def secrets_of(self, path: str, owner: str) -> list[Credential]:
        """The secrets and certificates of one application now."""
        app = await self.app(path)
        return [] if app is None else list(seen.app_secrets(self._instance, app, app_path(path)[0], owner))

    async def held_now(self, kind: CredentialKind, user_id: str) -> AsyncIterator[Credential]:
        """Everything of one kind that a user holds now."""
        try:
            async for credential in self.listings[kind](exact(user_id)):
                yield credential
        except Missing:  # the user themselves: nobody holds nothing
            return

    async def held_by(self, user_id: str) -> AsyncIterator[Credential]:
        """Everything of one user that can be read, login first; then raises. All lists are asked for at once."""
        exact(user_id)
        others = [self.held_now(kind, user_id) for kind in self.listings if kind is not CredentialKind.ROLE]
        async for credential in side_by_side(self._login_and_roles(user_id), *others):
            yield credential

    async def _login_and_roles(self, user_id: str) -> AsyncIterator[Credential]:
        """Account and sessions, then the roles, which say whether the account is an owner's."""
        (logins, no_login), (roles, no_roles) = await asyncio.gather(
            drained(self._login(user_id)), drained(self.held_now(CredentialKind.ROLE, user_id))
        )
        for login in logins:
            if isinstance(login, Credential):
                yield login
                roles = []  # nobody can use the roles of the deleted
                continue
            owner = any(seen.is_global_administrator(role.snapshot) for role in roles)
            yield seen.account(self._instance, login, administrator=owner or (None if no_roles else False))
            yield seen.sessions(self._instance, login)
        if logins or no_login:
            for role in roles:
                yield role
        failed = foremost(no_login, no_roles)
        if failed is not None:
            raise failed

    async def last_global_administrator(self, user_id: str, *, known: bool) -> bool:
        """Say whether a user owns the tenant and nobody else does who can sign in. Groups and applications don't count.

        Where it isn't `known` from before that the user does, it is read here.
        """
        rows = self._client.role_management.directory.role_assignments
        wanted = Query(filter=f"roleDefinitionId eq '{seen.GLOBAL_ADMINISTRATOR}'")
        owns = known
        async for row in self._graph.pages(rows, wanted):
            if not seen.is_global_administrator(row):
                continue
            if row.get("principalId") == user_id:
                owns = True
                continue
            other = await self.user(row["principalId"])
            if other is not None and other.get("accountEnabled"):
                return False
        return owns

    async def everything(self) -> AsyncIterator[Credential]:
        """Every credential of every user of the tenant."""
        rows = self._client.role_management.directory.role_assignments
        roles = [row async for row in self._graph.pages(rows, Query(expand=["roleDefinition"]))]
        owners = {row["principalId"] for row in roles if seen.is_global_administrator(row)}
        users: set[str] = set()
        async for user in self._graph.pages(self._client.users, Query(select=seen.USER_FIELDS, top=FULL_PAGE)):
            users.add(user["id"])
            yield seen.account(self._instance, user, administrator=user["id"] in owners)
            yield seen.sessions(self._instance, user)
        for row in roles:
            if row.get("principalId") in users:
                yield seen.role(self._instance, row)
        async for row in self._graph.pages(self._client.oauth2_permission_grants):
            if row.get("principalId") in users:  # none for a grant to everybody by an administrator
                yield seen.grant(self._instance, row)
        async for group in self._graph.pages(self._client.groups, Query(top=FULL_PAGE)):
            members = self._client.groups.by_group_id(exact(group["id"])).members
            async for member in self._graph.pages(members, Query(top=FULL_PAGE)):
                if member["id"] in users:
                    yield seen.membership(self._instance, group, member["id"])
        async for credential in self._of_applications(users):
            yield credential

    async def _of_applications(self, users: set[str]) -> AsyncIterator[Credential]:
        query = Query(select=APP_FIELDS, top=FULL_PAGE)
        async for app in self._graph.pages(self._client.applications, query):
            item = self._client.applications.by_application_id(exact(app["id"]))
            async for credential in self._owned(app, "applications", item, users):
                yield credential
        async for app in self._graph.pages(self._client.service_principals, query):
            item = self._client.service_principals.by_service_principal_id(exact(app["id"]))
            async for credential in self._owned(app, "servicePrincipals", item, users):
                yield credential
            async for row in self._graph.pages(item.app_role_assigned_to):
                if row.get("principalId") in users:
                    yield seen.app_assignment(self._instance, row)

    async def _owned(self, app: Any, collection: str, item: Any, users: set[str]) -> AsyncIterator[Credential]:
        if not (app.get("passwordCredentials") or app.get("keyCredentials")):
            return
        async for owner in self._graph.pages(item.owners):
            if owner["id"] in users:
                for secret in seen.app_secrets(self._instance, app, collection, owner["id"]):
                    yield secret

    async def _login(self, user_id: str) -> AsyncIterator[Any]:
        """The user; a gone account where they are among the deleted items; nothing where they never were."""
        user = await self.user(user_id)
        if user is not None:
            yield user
            return
        deleted = self._client.directory.deleted_items.by_directory_object_id(user_id)
        item = await self._one(deleted.get(options()), "a deleted item")
        if item is not None:
            yield seen.deleted_account(self._instance, item)

    async def _roles_of(self, user_id: str) -> AsyncIterator[Credential]:
        rows = self._client.role_management.directory.role_assignments
        query = Query(filter=f"principalId eq '{user_id}'", expand=["roleDefinition"])
        async for row in self._graph.pages(rows, query):
            if row.get("principalId") == user_id:
                yield seen.role(self._instance, row)

    async def _groups_of(self, user_id: str) -> AsyncIterator[Credential]:
        groups = self._client.users.by_user_id(user_id).member_of.graph_group
        async for group in self._graph.pages(groups, Query(top=FULL_PAGE)):
            yield seen.membership(self._instance, group, user_id)

    async def _app_assignments_of(self, user_id: str) -> AsyncIterator[Credential]:
        # Graph lists the assignments of the user's groups too: to remove these would end a whole group's access.
        async for row in self._graph.pages(self._client.users.by_user_id(user_id).app_role_assignments):
            if row.get("principalId") == user_id:
                yield seen.app_assignment(self._instance, row)

    async def _grants_of(self, user_id: str) -> AsyncIterator[Credential]:
        async for row in self._graph.pages(self._client.users.by_user_id(user_id).oauth2_permission_grants):
            if row.get("principalId") == user_id:
                yield seen.grant(self._instance, row)

    async def _app_secrets_of(self, user_id: str) -> AsyncIterator[Credential]:
        async for item in self._graph.pages(self._client.users.by_user_id(user_id).owned_objects):
            collection = COLLECTIONS.get(item.get("@odata.type", ""))
            if collection is not None:
                for secret in await self.secrets_of(f"{collection}/{item['id']}", user_id):
                    yield secret

    async def _one(self, answer: Any, what: str) -> Any:
        """Wait for one object; None where Graph says that there is none. An empty answer is neither."""
        try:
            found = await self._graph.call(answer)
        except Missing:
            return None
        if found is None or not found.get("id"):
            raise Retryable(f"Graph answered nothing about {what}", connector=self._instance)
        return found


def app_path(path: str) -> tuple[str, str]:
    """Split the scope of a secret into the collection and the id of the object that has it."""
    collection, _, rest = path.partition("/")
    return collection, exact(rest.partition("/")[0])


def exact(object_id: str) -> str:
    """Return the id, or refuse: an empty or odd one would address something else than one object."""
    if not seen.exact(object_id):
        raise Fatal(f"{object_id!r} is not an object id")
    return object_id
