"""A stateful Microsoft Graph v1.0 on loopback, with the token endpoint of Entra ID: for the demo and the tests.

It answers what the `entra` source and connector call, as https://learn.microsoft.com/graph/api documents it, traps
included: without $select a user comes without accountEnabled, and DELETE /groups/{g}/members/{u} without /$ref
deletes the *person*. State is in `directory`, what goes wrong on demand in `faults`.
"""

from __future__ import annotations

import json
import re
import time
from base64 import urlsafe_b64encode
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, Self
from uuid import uuid4

from aiohttp import web
from aiohttp.typedefs import Middleware

from offboard_worker.demo.faults import Faults
from offboard_worker.demo.graph_directory import Directory, GraphError, Json, bad_request, missing, now
from offboard_worker.demo.graph_query import filtered, page, projected
from offboard_worker.demo.graph_subscriptions import Subscriptions, delta

Answering = Callable[[web.Request], Awaitable[web.StreamResponse]]

ALL_ROLES = (
    "User.ReadWrite.All",
    "User.RevokeSessions.All",
    "DelegatedPermissionGrant.ReadWrite.All",
    "AppRoleAssignment.ReadWrite.All",
    "GroupMember.ReadWrite.All",
    "RoleManagement.ReadWrite.Directory",
    "Application.ReadWrite.All",
)

READERS = frozenset({"Directory.Read.All", "Directory.ReadWrite.All"})
# The first rule that matches says which application permissions (any one of them) the call needs.
PERMISSIONS: tuple[tuple[str, frozenset[str]], ...] = (
    (r"POST /users/[^/]+/revokeSignInSessions", frozenset({"User.RevokeSessions.All"})),
    (r"GET .*/appRole.*", READERS | {"AppRoleAssignment.ReadWrite.All"}),
    (r"\w+ .*/appRole.*", frozenset({"AppRoleAssignment.ReadWrite.All"})),
    (r"GET (/users/[^/]+)?/oauth2PermissionGrants.*", READERS | {"DelegatedPermissionGrant.ReadWrite.All"}),
    (r"\w+ (/users/[^/]+)?/oauth2PermissionGrants.*", frozenset({"DelegatedPermissionGrant.ReadWrite.All"})),
    (r"GET /roleManagement/.*", READERS | {"RoleManagement.ReadWrite.Directory", "RoleManagement.Read.Directory"}),
    (r"\w+ /roleManagement/.*", frozenset({"RoleManagement.ReadWrite.Directory"})),
    (r"DELETE /groups/[^/]+/members/[^/]+", frozenset({"User.ReadWrite.All"})),
    (r"GET (/groups.*|/users/[^/]+/memberOf.*)", READERS | {"GroupMember.Read.All", "GroupMember.ReadWrite.All"}),
    (r"\w+ /groups.*", frozenset({"GroupMember.ReadWrite.All"})),
    (r"GET /(applications|servicePrincipals).*", READERS | {"Application.Read.All", "Application.ReadWrite.All"}),
    (r"\w+ /(applications|servicePrincipals).*", frozenset({"Application.ReadWrite.All"})),
    (r"GET .*", READERS | {"User.Read.All", "User.ReadWrite.All"}),
    (r"\w+ /subscriptions.*", READERS | {"User.Read.All", "User.ReadWrite.All"}),
    (r".*", frozenset({"User.ReadWrite.All", "User.EnableDisableAccount.All"})),
)


class GraphSimulator:
    """`async with GraphSimulator() as graph:` serves at `graph.url`; the API is below `graph.api`.

    `page_size` caps every page. `roles` are the application permissions in the tokens that it issues.
    """

    def __init__(
        self,
        *,
        tenant_id: str = "72f988bf-0000-4000-8000-2d7cd011db47",
        client_id: str = "0b5e1d4e-0000-4000-8000-5e1f5e1f5e1f",
        client_secret: str = "graph-simulator-secret",  # noqa: S107 - opens a simulator on loopback
        roles: Iterable[str] = ALL_ROLES,
        page_size: int = 100,
    ) -> None:
        self.tenant_id = tenant_id
        self.client_id = client_id
        self.client_secret = client_secret
        self.roles = tuple(roles)
        self.page_size = page_size
        self.directory = Directory()
        self.faults = Faults(self.directory)
        self.subscriptions = Subscriptions(self.directory, tenant_id)
        self.url = ""
        self._tokens: dict[str, tuple[float, tuple[str, ...]]] = {}
        self._runner: web.AppRunner | None = None

    @property
    def api(self) -> str:
        return f"{self.url}/v1.0"

    async def __aenter__(self) -> Self:
        middlewares: list[Middleware] = [self.faults.middleware, self._guarded]
        app = web.Application(middlewares=middlewares)
        self._routes(app.router)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.2)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        host, port = self._runner.addresses[0][:2]
        self.url = f"http://{host}:{port}"
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._runner is not None:
            await self._runner.cleanup()

    def throttle(self, pattern: str, retry_after: str | None, *, times: int | None = 1) -> None:
        """Answer 429 as Graph does, with `retry_after` in the header (a fraction if wanted, None for no header)."""
        body = _error("TooManyRequests", "Too many requests: throttled.")
        headers = {} if retry_after is None else {"Retry-After": retry_after}
        self.faults.answer(pattern, status=429, headers=headers, json=body, times=times)

    def fail(self, pattern: str, status: int, code: str, message: str = "", *, times: int | None = 1) -> None:
        """Answer with an error in Graph's shape, and do nothing."""
        self.faults.answer(pattern, status=status, json=_error(code, message or code), times=times)

    def expire_tokens(self) -> None:
        """Refuse every access token issued so far."""
        self._tokens.clear()

    # The token endpoint

    async def _token(self, request: web.Request) -> web.Response:
        form = await request.post()
        if request.match_info["tenant"] != self.tenant_id:
            return _oauth_error(
                400, "invalid_request", f"AADSTS90002: Tenant '{request.match_info['tenant']}' not found."
            )
        if form.get("grant_type") != "client_credentials":
            return _oauth_error(
                400, "unsupported_grant_type", "AADSTS70003: The app requested an unsupported grant type."
            )
        if not str(form.get("scope", "")).endswith("/.default"):
            return _oauth_error(400, "invalid_scope", "AADSTS1002012: The provided value for scope is not valid.")
        if form.get("client_id") != self.client_id:
            return _oauth_error(401, "unauthorized_client", "AADSTS700016: Application was not found in the directory.")
        if form.get("client_secret") != self.client_secret:
            return _oauth_error(401, "invalid_client", "AADSTS7000215: Invalid client secret provided.")
        return web.json_response({"token_type": "Bearer", "expires_in": 3599, "access_token": self._issue()})

    def _issue(self) -> str:
        expiry = time.time() + 3599
        claims = {
            "aud": "https://graph.microsoft.com",
            "iss": f"https://sts.windows.net/{self.tenant_id}/",
            "appid": self.client_id,
            "tid": self.tenant_id,
            "exp": int(expiry),
            "jti": uuid4().hex,
            "roles": list(self.roles),
        }
        parts = ({"alg": "RS256", "typ": "JWT"}, claims, "not-a-real-signature")
        token = ".".join(urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=").decode() for part in parts)
        self._tokens[token] = (expiry, self.roles)
        return token

    @property
    def _guarded(self) -> Middleware:
        @web.middleware
        async def guarded(request: web.Request, handler: Answering) -> web.StreamResponse:
            try:
                if request.path.startswith("/v1.0/"):
                    self._authorise(request)
                response = await handler(request)
            except GraphError as error:
                response = web.json_response(_error(error.code, str(error)), status=error.status)
                if error.status == 401:
                    response.headers["WWW-Authenticate"] = 'Bearer realm="", authorization_uri="https://login.example/"'
            except web.HTTPNotFound:
                message = f"Resource not found for the segment '{request.path.rpartition('/')[2]}'."
                response = web.json_response(_error("BadRequest", message), status=400)
            response.headers["request-id"] = str(uuid4())
            return response

        return guarded

    def _authorise(self, request: web.Request) -> None:
        scheme, _, token = request.headers.get("Authorization", "").partition(" ")
        expiry, roles = self._tokens.get(token, (0.0, ()))
        if scheme != "Bearer" or expiry < time.time():
            raise GraphError(401, "InvalidAuthenticationToken", "Access token is empty, invalid or has expired.")
        line = f"{request.method} {request.path.removeprefix('/v1.0')}"
        wanted = next(permissions for rule, permissions in PERMISSIONS if re.fullmatch(rule, line))
        if wanted.isdisjoint(roles):
            raise GraphError(403, "Authorization_RequestDenied", "Insufficient privileges to complete the operation.")

    # The API

    def _routes(self, router: web.UrlDispatcher) -> None:
        v, d = "/v1.0", self.directory
        router.add_post("/{tenant}/oauth2/v2.0/token", self._token)
        # The fixed paths come before /users/{user}, which would match them.
        for path in ("delta", "delta()", "microsoft.graph.delta", "microsoft.graph.delta()"):
            router.add_get(f"{v}/users/{path}", self._delta)
        router.add_get(f"{v}/users", self._listing(lambda r: d.users.values()))
        router.add_get(f"{v}/users/{{user}}", self._one(lambda r: d.user(r["user"])))
        router.add_patch(f"{v}/users/{{user}}", self._patch_user)
        router.add_delete(f"{v}/users/{{user}}", self._act(lambda r: d.soft_delete(r["user"])))
        router.add_post(f"{v}/users/{{user}}/revokeSignInSessions", self._revoke)
        for type_cast in ("graph.group", "microsoft.graph.group"):
            router.add_get(f"{v}/users/{{user}}/memberOf/{type_cast}", self._listing(lambda r: d.groups_of(r["user"])))
        router.add_get(f"{v}/users/{{user}}/memberOf", self._listing(lambda r: d.groups_of(r["user"])))
        router.add_get(f"{v}/users/{{user}}/ownedObjects", self._listing(lambda r: d.owned_by(r["user"])))
        router.add_get(f"{v}/users/{{user}}/oauth2PermissionGrants", self._listing(self._grants_of))
        assigned = f"{v}/users/{{user}}/appRoleAssignments"
        router.add_get(assigned, self._listing(lambda r: d.app_assignments_of(r["user"])))
        router.add_post(assigned, self._create(lambda r, body: d.create_app_assignment(d.user(r["user"])["id"], body)))
        router.add_get(f"{assigned}/{{id}}", self._one(lambda r: _row(d.app_assignments, r["id"])))
        router.add_delete(f"{assigned}/{{id}}", self._act(lambda r: d.remove_app_assignment(r["id"])))
        self._group_routes(router)
        self._role_and_app_routes(router)
        self._deleted_routes(router)
        self.subscriptions.add_routes(router)

    def _group_routes(self, router: web.UrlDispatcher) -> None:
        v, d = "/v1.0", self.directory
        router.add_get(f"{v}/groups", self._listing(lambda r: d.groups.values()))
        router.add_get(f"{v}/groups/{{group}}", self._one(lambda r: d.group(r["group"])))
        router.add_get(f"{v}/groups/{{group}}/members", self._listing(self._members))
        router.add_post(f"{v}/groups/{{group}}/members/$ref", self._add_member)
        ref = self._act(lambda r: d.remove_member(r["group"], r["user"]))
        router.add_delete(f"{v}/groups/{{group}}/members/{{user}}/$ref", ref)
        # Without /$ref the call addresses the user through the group, and deletes the user: so says Microsoft.
        router.add_delete(f"{v}/groups/{{group}}/members/{{user}}", self._act(lambda r: d.soft_delete(r["user"])))

    def _role_and_app_routes(self, router: web.UrlDispatcher) -> None:
        v, d = "/v1.0", self.directory
        grants, roles = f"{v}/oauth2PermissionGrants", f"{v}/roleManagement/directory/roleAssignments"
        router.add_get(grants, self._listing(lambda r: d.grants.values()))
        router.add_post(grants, self._create(lambda r, body: d.create_grant(body)))
        router.add_get(f"{grants}/{{id}}", self._one(lambda r: _row(d.grants, r["id"])))
        router.add_delete(f"{grants}/{{id}}", self._act(lambda r: d.remove_grant(r["id"])))
        router.add_get(roles, self._role_assignments)
        router.add_post(roles, self._create(lambda r, body: d.create_role_assignment(body)))
        router.add_get(f"{roles}/{{id}}", self._one(lambda r: _row(d.role_assignments, r["id"])))
        router.add_delete(f"{roles}/{{id}}", self._act(lambda r: d.remove_role_assignment(r["id"])))
        definitions = f"{v}/roleManagement/directory/roleDefinitions"
        router.add_get(definitions, self._listing(lambda r: d.role_definitions.values()))
        self._app_routes(router, "applications")
        self._app_routes(router, "servicePrincipals")
        assigned = f"{v}/servicePrincipals/{{id}}/appRoleAssignedTo"
        router.add_get(
            assigned, self._listing(lambda r: [a for a in d.app_assignments.values() if a["resourceId"] == r["id"]])
        )

    def _app_routes(self, router: web.UrlDispatcher, kind: str) -> None:
        def table() -> dict[str, Json]:
            return self.directory.applications if kind == "applications" else self.directory.service_principals

        router.add_get(f"/v1.0/{kind}", self._listing(lambda r: table().values()))
        router.add_get(f"/v1.0/{kind}/{{id}}", self._one(lambda r: _row(table(), r["id"])))
        router.add_get(f"/v1.0/{kind}/{{id}}/owners", self._listing(self._owners))

        async def remove_password(request: web.Request) -> web.Response:
            body = await request.json()
            self.directory.remove_password(table(), request.match_info["id"], str(body.get("keyId")))
            return web.Response(status=204)

        router.add_post(f"/v1.0/{kind}/{{id}}/removePassword", remove_password)

    def _deleted_routes(self, router: web.UrlDispatcher) -> None:
        deleted, d = "/v1.0/directory/deletedItems", self.directory
        for type_cast in ("graph.user", "microsoft.graph.user"):
            router.add_get(f"{deleted}/{type_cast}", self._listing(lambda r: d.deleted.values()))
        router.add_get(f"{deleted}/{{id}}", self._one(lambda r: _row(d.deleted, r["id"])))
        router.add_delete(f"{deleted}/{{id}}", self._act(lambda r: d.purge(r["id"])))

        async def restore(request: web.Request) -> web.Response:
            return web.json_response(projected(d.undelete(request.match_info["id"]), None))

        router.add_post(f"{deleted}/{{id}}/restore", restore)

    # Kinds of handler

    def _listing(self, rows: Callable[[Any], Iterable[Json]]) -> Answering:
        async def answer(request: web.Request) -> web.Response:
            query = request.query
            found = filtered(rows(request.match_info), query.get("$filter"))
            shown = [projected(row, query.get("$select")) for row in found]
            return web.json_response(page(shown, request.url, query, self.page_size, self._context(request)))

        return answer

    def _one(self, row: Callable[[Any], Json]) -> Answering:
        async def answer(request: web.Request) -> web.Response:
            shown = projected(row(request.match_info), request.query.get("$select"))
            return web.json_response({"@odata.context": self._context(request), **shown})

        return answer

    def _act(self, act: Callable[[Any], None]) -> Answering:
        async def answer(request: web.Request) -> web.Response:
            act(request.match_info)
            return web.Response(status=204)

        return answer

    def _create(self, create: Callable[[Any, Json], Json]) -> Answering:
        async def answer(request: web.Request) -> web.Response:
            return web.json_response(create(request.match_info, await request.json()), status=201)

        return answer

    def _context(self, request: web.Request) -> str:
        return f"{self.api}/$metadata#{request.path.removeprefix('/v1.0/')}"

    # What doesn't fit them

    def _grants_of(self, match: Any) -> list[Json]:
        user_id = self.directory.user(match["user"])["id"]
        return [row for row in self.directory.grants.values() if row.get("principalId") == user_id]

    def _members(self, match: Any) -> list[Json]:
        self.directory.group(match["group"])
        members = self.directory.members[match["group"]]
        return [self.directory.users[user] for user in members if user in self.directory.users]

    def _owners(self, match: Any) -> list[Json]:
        owners = self.directory.owners.get(match["id"])
        if owners is None:
            raise missing(match["id"])
        return [self.directory.users[user] for user in owners if user in self.directory.users]

    async def _patch_user(self, request: web.Request) -> web.Response:
        self.directory.update_user(request.match_info["user"], await request.json())
        return web.Response(status=204)

    async def _revoke(self, request: web.Request) -> web.Response:
        done = self.directory.revoke_sessions(request.match_info["user"])
        return web.json_response({"@odata.context": f"{self.api}/$metadata#Edm.Boolean", "value": done})

    async def _add_member(self, request: web.Request) -> web.Response:
        reference = str((await request.json()).get("@odata.id", ""))
        if not reference.startswith((self.api, "https://graph.microsoft.com/v1.0/")):
            raise bad_request("Invalid URL specified for the reference.")
        self.directory.add_member(request.match_info["group"], reference.rpartition("/")[2])
        return web.Response(status=204)

    async def _role_assignments(self, request: web.Request) -> web.Response:
        query = request.query
        rows = filtered(self.directory.role_assignments.values(), query.get("$filter"))
        if query.get("$expand") == "roleDefinition":
            definitions = self.directory.role_definitions
            rows = [{**row, "roleDefinition": definitions.get(row["roleDefinitionId"])} for row in rows]
        shown = [projected(row, query.get("$select")) for row in rows]
        return web.json_response(page(shown, request.url, query, self.page_size, self._context(request)))

    async def _delta(self, request: web.Request) -> web.Response:
        return web.json_response(delta(self.directory, request.url, request.query, self.page_size))


def _row(table: dict[str, Json], row_id: str) -> Json:
    try:
        return table[row_id]
    except KeyError:
        raise missing(row_id) from None


def _error(code: str, message: str) -> Json:
    inner = {"date": now()[:19], "request-id": str(uuid4()), "client-request-id": str(uuid4())}
    return {"error": {"code": code, "message": message, "innerError": inner}}


def _oauth_error(status: int, error: str, description: str) -> web.Response:
    body = {"error": error, "error_description": description, "trace_id": str(uuid4()), "timestamp": now()}
    return web.json_response(body, status=status)
