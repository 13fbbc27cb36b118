"""A stateful Okta organisation on loopback: what the connector and the sources call of the management API, and no more.

https://developer.okta.com/docs/api/. Status codes, error bodies, Link headers and rate-limit headers are Okta's; state
changes are the ones that Okta documents (a deactivation ends the user's API tokens, DELETE on a user who isn't
deactivated only deactivates, the user list omits DEPROVISIONED users unless it is searched or filtered). It must know
nothing of connectors: it is the other side. Faults come from `faults`.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Iterable
from types import TracebackType
from typing import Any, Self, TypeVar
from urllib.parse import urlencode

from aiohttp import web

from offboard_worker.demo.faults import Faults
from offboard_worker.demo.okta_filter import matches
from offboard_worker.demo.okta_records import (
    ApiToken,
    Grant,
    RefreshToken,
    Role,
    State,
    User,
    api_token_json,
    grant_json,
    refresh_token_json,
    role_json,
    user_json,
)

Held = TypeVar("Held", Grant, RefreshToken, Role)

OWNER = web.RequestKey("owner", User)  # the user whose API token the request carries
SUMMARIES = {
    "E0000001": "Api validation failed: {}",
    "E0000006": "You do not have permission to perform the requested action",
    "E0000007": "Not found: Resource not found: {}",
    "E0000011": "Invalid token provided",
    "E0000016": "Activation failed because the user is already active",
    "E0000022": "The endpoint does not support the provided HTTP method",
    "E0000047": "API call exceeded rate limit due to too many requests.",
}


class OktaError(Exception):
    """An answer in Okta's own error shape."""

    def __init__(self, status: int, code: str, about: str = "") -> None:
        super().__init__(code)
        self.status, self.code, self.about = status, code, about

    def answer(self) -> web.Response:
        summary = SUMMARIES[self.code].format(self.about)
        body = {"errorCode": self.code, "errorSummary": summary, "errorLink": self.code, "errorId": "oaeSimulated"}
        return web.json_response({**body, "errorCauses": []}, status=self.status)


class OktaSimulator:
    """`async with OktaSimulator() as okta:` listens on a free port of 127.0.0.1 until the block ends.

    It starts with one super administrator, `okta.service_user`, who owns `okta.token`, the token to configure.
    `page_size` caps every list; `next_before_self` orders the Link headers as some Okta cells do.
    """

    def __init__(self, *, page_size: int = 200, next_before_self: bool = False) -> None:
        self.state = State()
        self.faults = Faults(self.state)
        self.page_size = page_size
        self.next_before_self = next_before_self
        self.rate_limit: int | None = None  # calls a minute over all endpoints; None is Okta's default of 600, unused
        self.forbidden: set[str] = set()  # parts of paths for which our token lacks the permission
        self.url = ""
        self._window = (0, 0)
        self._runner: web.AppRunner | None = None
        self.service_user = self.add_user("offboard.worker@example.com", roles=("SUPER_ADMIN",), sessions=0)
        self.token = "00SimulatedOffboardWorkerToken"
        self._add_api_token(self.service_user.id, "offboard-worker", self.token)

    # Seeding and inspection

    @property
    def users(self) -> dict[str, User]:
        return self.state.users

    def add_user(
        self,
        login: str,
        *,
        email: str | None = None,
        first: str = "Ada",
        last: str = "Example",
        status: str = "ACTIVE",
        sessions: int = 1,
        grants: Iterable[tuple[str, str]] = (),
        refresh_tokens: Iterable[str] = (),
        api_tokens: Iterable[str] = (),
        roles: Iterable[str] = (),
    ) -> User:
        """Add a user: `grants` are (client, scope) pairs, `refresh_tokens` client ids, `api_tokens` names."""
        user = User(self._id("00u"), login, email or login, first, last, status)
        user.sessions = [self._id("102") for _ in range(sessions)]
        self.users[user.id] = user
        for client, scope in grants:
            grant = Grant(self._id("oag"), user.id, client, scope)
            self.state.grants[grant.id] = grant
        for client in refresh_tokens:
            token = RefreshToken(self._id("oar"), user.id, client)
            self.state.refresh_tokens[token.id] = token
        for name in api_tokens:
            self._add_api_token(user.id, name, self._id("00V"))
        for role in roles:
            self.add_role(user.id, role)
        return user

    def add_role(self, user_id: str, role: str, assignment: str = "USER") -> Role:
        """Make somebody an administrator, directly or (`assignment="GROUP"`) through a group."""
        made = Role(self._id("ra1"), user_id, role, assignment)
        self.state.roles[made.id] = made
        return made

    def purge(self, user_id: str) -> None:
        """Delete a user for good, with everything that they hold."""
        del self.users[user_id]
        self._drop_held(user_id)

    def of(self, user_id: str, kind: str) -> list[str]:
        """The ids of a user's `grants`, `refresh_tokens`, `api_tokens` or `roles`."""
        return [item.id for item in getattr(self.state, kind).values() if item.user == user_id]

    def _add_api_token(self, user_id: str, name: str, value: str) -> None:
        token = ApiToken(self._id("00T"), user_id, name, value)
        self.state.api_tokens[token.id] = token

    def _id(self, prefix: str) -> str:
        self.state.made += 1
        return f"{prefix}sim{self.state.made:014x}"

    # The server

    async def __aenter__(self) -> Self:
        app = web.Application(middlewares=[self.faults.middleware, self._gate])
        app.add_routes(self._routes())
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}"
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._runner is not None:
            await self._runner.cleanup()

    @web.middleware
    async def _gate(
        self, request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        """Authorise, count against the rate limit, and turn errors into Okta's shape."""
        headers = self._rate_headers()
        try:
            self._authorise(request)
            if self.rate_limit is not None and self._window[1] > self.rate_limit:
                raise OktaError(429, "E0000047")
            response = await handler(request)
        except OktaError as error:
            response = error.answer()
        except web.HTTPMethodNotAllowed:
            response = OktaError(405, "E0000022").answer()
        except web.HTTPNotFound:
            response = OktaError(404, "E0000007", request.path).answer()
        response.headers.update(headers)
        return response

    def _rate_headers(self) -> dict[str, str]:
        minute = int(time.time()) // 60
        self._window = (minute, self._window[1] + 1 if self._window[0] == minute else 1)
        limit = 600 if self.rate_limit is None else self.rate_limit
        return {
            "X-Rate-Limit-Limit": str(limit),
            "X-Rate-Limit-Remaining": str(max(0, limit - self._window[1])),
            "X-Rate-Limit-Reset": str((minute + 1) * 60),
        }

    def _authorise(self, request: web.Request) -> None:
        # Okta documents "SSWS token"; the SDK has sent "SSWStoken" as well, and Okta takes both.
        sent = request.headers.get("Authorization", "")
        value = sent.removeprefix("SSWS").strip() if sent.startswith("SSWS") else ""
        token = next((t for t in self.state.api_tokens.values() if t.value == value), None)
        owner = self.users.get(token.user) if token else None
        if owner is None or owner.status != "ACTIVE":
            raise OktaError(401, "E0000011")
        if any(part in request.path for part in self.forbidden):
            raise OktaError(403, "E0000006")
        request[OWNER] = owner

    def _routes(self) -> list[web.RouteDef]:
        user, client = "/api/v1/users/{user}", "/api/v1/users/{user}/clients/{client}"
        return [
            web.get("/api/v1/users", self._list_users),
            web.get(user, self._get_user),
            web.delete(user, self._delete_user),
            web.post(user + "/lifecycle/{step}", self._lifecycle),
            web.delete(user + "/sessions", self._clear_sessions),
            web.get(user + "/grants", self._list_grants),
            web.get(user + "/grants/{id}", self._get_grant),
            web.delete(user + "/grants/{id}", self._delete_grant),
            web.get(user + "/clients", self._list_clients),
            web.get(client + "/tokens", self._list_refresh_tokens),
            web.get(client + "/tokens/{id}", self._get_refresh_token),
            web.delete(client + "/tokens/{id}", self._delete_refresh_token),
            web.get(user + "/roles", self._list_roles),
            web.get(user + "/roles/{id}", self._get_role),
            web.delete(user + "/roles/{id}", self._delete_role),
            web.get("/api/v1/iam/assignees/users", self._list_assignees),
            web.get("/api/v1/api-tokens", self._list_api_tokens),
            web.get("/api/v1/api-tokens/{id}", self._get_api_token),
            web.delete("/api/v1/api-tokens/{id}", self._delete_api_token),
        ]

    # Users

    def _user(self, request: web.Request) -> User:
        """Find by id, login, or unambiguous login short name, as Okta does; `me` is the token's owner."""
        wanted = request.match_info["user"]
        if wanted == "me":
            return request[OWNER]
        for user in self.users.values():
            if user.id == wanted or user.login.casefold() == wanted.casefold():
                return user
        short = [u for u in self.users.values() if u.login.partition("@")[0].casefold() == wanted.casefold()]
        if len(short) == 1:
            return short[0]
        raise OktaError(404, "E0000007", f"{wanted} (User)")

    async def _list_users(self, request: web.Request) -> web.Response:
        search, filtered = request.query.get("search"), request.query.get("filter")
        users = [user_json(user, self.url) for user in self.users.values()]
        if search is not None:
            users = [user for user in users if matches(search, user, fold_case=True)]
        elif filtered is not None:
            users = [user for user in users if matches(filtered, user, fold_case=False)]
        else:
            users = [user for user in users if user["status"] != "DEPROVISIONED"]
        return self._page(request, users)

    async def _get_user(self, request: web.Request) -> web.Response:
        return web.json_response(user_json(self._user(request), self.url))

    async def _delete_user(self, request: web.Request) -> web.Response:
        user = self._user(request)
        if user.status != "DEPROVISIONED":
            self._deactivate(user)
        else:
            self.purge(user.id)
        return web.Response(status=204)

    async def _lifecycle(self, request: web.Request) -> web.Response:
        user, step = self._user(request), request.match_info["step"]
        before = user.status
        if step == "suspend" and before == "ACTIVE":
            user.status = "SUSPENDED"
            user.sessions.clear()
        elif step == "unsuspend" and before == "SUSPENDED":
            user.status = "ACTIVE"
        elif step == "deactivate" and before != "DEPROVISIONED":
            self._deactivate(user)
        elif step == "activate" and before in ("STAGED", "DEPROVISIONED"):
            user.status = "PROVISIONED"
            link = {"activationUrl": f"{self.url}/welcome/simulated", "activationToken": "simulated"}
            return web.json_response(link)
        elif step == "activate":
            raise OktaError(403, "E0000016")
        elif step == "deactivate":
            raise OktaError(404, "E0000007", f"{user.id} (User)")
        elif step in ("suspend", "unsuspend"):
            raise OktaError(400, "E0000001", f"Cannot {step} a user that is {before}")
        else:
            raise OktaError(404, "E0000007", request.path)
        return web.Response(status=200)

    def _deactivate(self, user: User) -> None:
        user.status = "DEPROVISIONED"
        user.sessions.clear()
        self._drop_held(user.id)

    def _drop_held(self, user_id: str) -> None:
        for kind in (self.state.grants, self.state.refresh_tokens, self.state.api_tokens, self.state.roles):
            _drop(kind, user_id)

    async def _clear_sessions(self, request: web.Request) -> web.Response:
        user = self._user(request)
        user.sessions.clear()
        if request.query.get("oauthTokens") == "true":
            _drop(self.state.refresh_tokens, user.id)
        return web.Response(status=204)

    # What users hold

    async def _list_grants(self, request: web.Request) -> web.Response:
        user = self._user(request)
        return self._page(request, [grant_json(g, self.url) for g in self.state.grants.values() if g.user == user.id])

    async def _get_grant(self, request: web.Request) -> web.Response:
        return web.json_response(grant_json(self._held(request, self.state.grants, "Grant"), self.url))

    async def _delete_grant(self, request: web.Request) -> web.Response:
        del self.state.grants[self._held(request, self.state.grants, "Grant").id]
        return web.Response(status=204)

    async def _list_clients(self, request: web.Request) -> web.Response:
        user = self._user(request)
        held = {(g.user, g.client) for g in self.state.grants.values()}
        held |= {(t.user, t.client) for t in self.state.refresh_tokens.values()}
        clients = sorted(client for owner, client in held if owner == user.id)
        return self._page(request, [{"client_id": client, "client_name": f"App {client}"} for client in clients])

    async def _list_refresh_tokens(self, request: web.Request) -> web.Response:
        user, client = self._user(request), request.match_info["client"]
        tokens = [t for t in self.state.refresh_tokens.values() if (t.user, t.client) == (user.id, client)]
        return self._page(request, [refresh_token_json(token, self.url) for token in tokens])

    def _refresh_token(self, request: web.Request) -> RefreshToken:
        token = self._held(request, self.state.refresh_tokens, "OAuth2RefreshToken")
        if token.client != request.match_info["client"]:
            raise OktaError(404, "E0000007", f"{token.id} (OAuth2RefreshToken)")
        return token

    async def _get_refresh_token(self, request: web.Request) -> web.Response:
        return web.json_response(refresh_token_json(self._refresh_token(request), self.url))

    async def _delete_refresh_token(self, request: web.Request) -> web.Response:
        del self.state.refresh_tokens[self._refresh_token(request).id]
        return web.Response(status=204)

    async def _list_roles(self, request: web.Request) -> web.Response:
        user = self._user(request)
        # Okta does not page this list.
        return web.json_response([role_json(role) for role in self.state.roles.values() if role.user == user.id])

    async def _get_role(self, request: web.Request) -> web.Response:
        return web.json_response(role_json(self._held(request, self.state.roles, "Role")))

    async def _delete_role(self, request: web.Request) -> web.Response:
        role = self._held(request, self.state.roles, "Role")
        if role.assignment == "GROUP":
            raise OktaError(404, "E0000007", f"{role.id} (Role)")
        del self.state.roles[role.id]
        return web.Response(status=204)

    async def _list_assignees(self, request: web.Request) -> web.Response:
        """Users with a role of their own; this one list pages by a link in its body."""
        ids = sorted({role.user for role in self.state.roles.values()})
        start, end = self._slice(request, len(ids))
        links = {"next": {"href": self._next_url(request, end)}} if end < len(ids) else {}
        return web.json_response({"value": [{"id": one} for one in ids[start:end]], "_links": links})

    async def _list_api_tokens(self, request: web.Request) -> web.Response:
        return self._page(request, [api_token_json(token) for token in self.state.api_tokens.values()])

    def _api_token(self, request: web.Request) -> ApiToken:
        token = self.state.api_tokens.get(request.match_info["id"])
        if token is None:
            raise OktaError(404, "E0000007", f"{request.match_info['id']} (ApiToken)")
        return token

    async def _get_api_token(self, request: web.Request) -> web.Response:
        return web.json_response(api_token_json(self._api_token(request)))

    async def _delete_api_token(self, request: web.Request) -> web.Response:
        del self.state.api_tokens[self._api_token(request).id]
        return web.Response(status=204)

    def _held(self, request: web.Request, kind: dict[str, Held], what: str) -> Held:
        user, wanted = self._user(request), request.match_info["id"]
        item = kind.get(wanted)
        if item is None or item.user != user.id:
            raise OktaError(404, "E0000007", f"{wanted} ({what})")
        return item

    # Paging

    def _slice(self, request: web.Request, total: int) -> tuple[int, int]:
        start = int(request.query.get("after", "0"))
        size = min(int(request.query.get("limit", self.page_size)), self.page_size)
        return start, min(start + size, total)

    def _next_url(self, request: web.Request, after: int) -> str:
        query = {**request.query, "after": str(after)}
        return f"{self.url}{request.path}?{urlencode(query)}"

    def _page(self, request: web.Request, items: list[dict[str, Any]]) -> web.Response:
        start, end = self._slice(request, len(items))
        response = web.json_response(items[start:end])
        links = [f'<{self.url}{request.path_qs}>; rel="self"']
        if end < len(items):
            links.append(f'<{self._next_url(request, end)}>; rel="next"')
        for link in reversed(links) if self.next_before_self else links:
            response.headers.add("Link", link)
        return response


def _drop(kind: dict[str, Any], user_id: str) -> None:
    for item in [item for item in kind.values() if item.user == user_id]:
        del kind[item.id]
