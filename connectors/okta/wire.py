"""How the Okta connector reaches Okta: the official SDK builds each request, and this file sends it and reads the answer.

The SDK lets its HTTP client be replaced, and ours is needed: the SDK's own reports an empty 502 as success, raises
AttributeError on a refused connection, raises on answers that it can't model although the deed is done, follows only
the last `Link` header, retries by itself, takes settings from the environment and from files, and prints the token at
DEBUG. Here every answer's status is looked at, and becomes one of our errors in one place, `refuse`.
"""

from __future__ import annotations

import asyncio
import json
import ssl
import time
from collections.abc import AsyncIterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final, NoReturn, Self

from yarl import URL

from offboard_worker.errors import AccessRefused, Fatal, Retryable
from offboard_worker.secret import Secret

if TYPE_CHECKING:
    import aiohttp

APIS: Final = {
    "UserApi": "okta.api.user_api",
    "UserLifecycleApi": "okta.api.user_lifecycle_api",
    "UserSessionsApi": "okta.api.user_sessions_api",
    "UserGrantApi": "okta.api.user_grant_api",
    "UserOAuthApi": "okta.api.user_o_auth_api",
    "UserResourcesApi": "okta.api.user_resources_api",
    "ApiTokenApi": "okta.api.api_token_api",
    "RoleAssignmentAUserApi": "okta.api.role_assignment_a_user_api",
}

# What the SDK raises on an answer that it can't model (JSONDecodeError and pydantic's ValidationError are ValueErrors).
UNREADABLE: Final = (ValueError, TypeError, AttributeError, KeyError)


class Gone(Fatal):
    """Okta itself says that the resource doesn't exist: for the connector a result, not an error."""


@dataclass(frozen=True, slots=True)
class Reply:
    """One answer of Okta with a 2xx status. `next` is the path and query of the next page."""

    status: int
    text: str
    next: str | None

    def json(self) -> Any:
        """The document. Raises Retryable where the body is empty or no JSON: the answer was cut or made by a proxy."""
        try:
            return json.loads(self.text)
        except ValueError:
            raise Retryable(
                f"Okta answered {self.status} with a body that is no JSON", connector="okta", status=self.status
            ) from None


_reply: ContextVar[Reply | None] = ContextVar("okta_reply", default=None)


def load_sdk() -> dict[str, Any]:
    """Import the few API classes that are used: `okta.client` would cost 2.4 s and 110 MB."""
    return {name: getattr(import_module(module), name) for name, module in APIS.items()}


class Wire:
    """The SDK's API classes over one HTTP session, which lives as long as `async with` does."""

    def __init__(
        self, base_url: str, token: Secret, *, timeout: float, concurrency: int, proxy: str | None = None
    ) -> None:
        self._base_url = base_url
        self._token = token
        self._timeout = timeout
        self._concurrency = concurrency
        self._proxy = proxy
        self._apis: dict[str, Any] = {}

    def __repr__(self) -> str:
        return f"Wire({self._base_url})"

    async def __aenter__(self) -> Self:
        import aiohttp

        self._classes = load_sdk()
        self._session = aiohttp.ClientSession(
            timeout=aiohttp.ClientTimeout(total=self._timeout),
            cookie_jar=aiohttp.DummyCookieJar(),
        )
        self._executor = self._new_executor()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self._session.close()

    def _new_executor(self) -> Any:
        """Build the SDK's executor from a dictionary that is complete, so that no OKTA_* and no okta.yaml is read."""
        executor = import_module("okta.request_executor").RequestExecutor
        no_cache = import_module("okta.cache.no_op_cache").NoOpCache
        self._config = {
            "client": {
                "orgUrl": self._base_url,
                "token": self._token.reveal(),
                "authorizationMode": "SSWS",
                "requestTimeout": 0,  # the session has the timeout
                "rateLimit": {"maxRetries": 0},  # retries are the job's
                "cache": {"enabled": False},
                "logging": {"enabled": False},
                "userAgent": "offboard-worker",
                "raiseException": False,
            }
        }
        transport = Transport(self._session, self._proxy, self._concurrency)
        return executor(self._config, no_cache(), lambda _: transport)

    def _api(self, name: str) -> Any:
        if name not in self._apis:
            api = self._classes[name](self._config)
            api._request_executor = self._executor  # as okta.client.Client does, which is too dear to import
            self._apis[name] = api
        return self._apis[name]

    async def call(self, api: str, method: str, *args: str, **options: Any) -> Reply:
        """Make one call through the SDK. Raises Retryable, AccessRefused, Gone or Fatal."""
        return await self._fire(getattr(self._api(api), method), *args, **options)

    async def pages(self, api: str, method: str, *args: str, **options: Any) -> AsyncIterator[Any]:
        """Yield the items of every page, following the raw Link headers."""
        reply = await self.call(api, method, *args, **options)
        while True:
            items = reply.json()
            if not isinstance(items, list):
                raise Fatal(f"Okta answered {api}.{method} with no list", connector="okta", status=reply.status)
            for item in items:
                yield item
            if reply.next is None:
                return
            reply = await self.get(reply.next)

    async def get(self, path: str) -> Reply:
        """GET a path that Okta itself gave: the next page. Only ever from the configured host."""
        request, error = await self._executor.create_request("GET", path, {}, {})
        if error is not None:
            raise Fatal(f"the SDK could not build GET {path}: {error}", connector="okta")
        return await self._fire(self._executor.execute, request)

    async def _fire(self, send: Any, *args: Any, **options: Any) -> Reply:
        _reply.set(None)
        try:
            await send(*args, **options)
        except UNREADABLE as error:
            if _reply.get() is None:
                raise Fatal(f"the SDK refused the call: {type(error).__name__}", connector="okta") from error
        reply = _reply.get()
        if reply is None:
            raise Fatal("the SDK returned without sending the request", connector="okta")
        return reply


class Transport:
    """The HTTP client that the SDK is given. An answer that isn't 2xx never gets back into the SDK."""

    def __init__(self, session: aiohttp.ClientSession, proxy: str | None, concurrency: int) -> None:
        self._session = session
        self._proxy = proxy
        # Not the connection pool's limit: a call that waits for its turn there would spend its own timeout.
        self._turns = asyncio.Semaphore(concurrency)

    async def send_request(self, request: Mapping[str, Any]) -> tuple[Any, Any, str, None]:
        """Send what the SDK built. Raises Retryable where no whole answer came, else what `refuse` says."""
        import aiohttp

        method, url = request["method"], URL(request["url"], encoded=True)
        what = f"{method} {url.path}"
        try:
            async with (
                self._turns,
                self._session.request(
                    method,
                    url,
                    headers=request["headers"],
                    data=json.dumps(request["data"]) if request["data"] else None,
                    proxy=self._proxy,
                    allow_redirects=False,  # the token must not follow to another host
                ) as response,
            ):
                text = await response.text("utf-8", "replace")
                if not 200 <= response.status < 300:
                    refuse(what, response.status, response.headers, text)
                link = response.links.get("next")
                _reply.set(Reply(response.status, text, URL(link["url"]).raw_path_qs if link else None))
                return response.request_info, response, text, None
        except TimeoutError:
            raise Retryable(f"{what}: no answer in time", connector="okta") from None
        except (aiohttp.ClientConnectorCertificateError, ssl.SSLCertVerificationError):
            raise Fatal(
                f"{what}: the server's certificate is not trusted",
                connector="okta",
                advice="Check base_url, or set SSL_CERT_FILE where a private authority signs for it.",
            ) from None
        except aiohttp.ClientError as error:
            raise Retryable(f"{what}: {type(error).__name__}", connector="okta") from None

    def check_response_for_error(self, url: str, response: Any, body: str) -> tuple[None, None]:
        """The SDK asks whether the answer is an error: those have been raised already."""
        return None, None

    async def close_session(self) -> None:
        """The SDK may close what it was given; the session is Wire's, which closes it."""


def refuse(what: str, status: int, headers: Mapping[str, str], text: str) -> NoReturn:
    """Say in our words what an answer other than 2xx means: the one place where Okta's errors become ours."""
    code, summary = _okta_error(text)
    message = f"{what}: {status} {code} {summary}".rstrip()
    if status in (408, 429) or status >= 500:
        raise Retryable(message, retry_after=_retry_after(headers), connector="okta", status=status)
    if status in (401, 403):
        raise AccessRefused(message, connector="okta", status=status)
    if status == 404 and code == "E0000007":
        raise Gone(message, connector="okta", status=status)
    if status == 404 or 300 <= status < 400:
        # A 404 of somebody else (a proxy, a wrong host) must never be taken for "already gone".
        advice = "Check that base_url is the organisation's own address: this answer is not Okta's."
        raise Fatal(message, connector="okta", status=status, advice=advice)
    raise Fatal(message, connector="okta", status=status)


def _okta_error(text: str) -> tuple[str, str]:
    try:
        body = json.loads(text)
    except ValueError:
        return "", ""
    if not isinstance(body, dict):
        return "", ""
    return str(body.get("errorCode", "")), str(body.get("errorSummary", ""))[:200]


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds to wait: `Retry-After` (seconds or a date), else until `X-Rate-Limit-Reset` by Okta's own clock."""
    now = _epoch(headers.get("Date", "")) or time.time()
    given = headers.get("Retry-After", "").strip()
    if given:
        try:
            return max(0.0, float(given))
        except ValueError:
            when = _epoch(given)
            if when is not None:
                return max(0.0, when - now)
    try:
        return max(0.0, float(headers.get("X-Rate-Limit-Reset", "")) - now) if _limited(headers) else None
    except ValueError:
        return None


def _limited(headers: Mapping[str, str]) -> bool:
    """Whether the rate limit is what stopped us: a reset time comes with every answer, a 500 included."""
    return headers.get("X-Rate-Limit-Remaining", "0").strip() == "0"


def _epoch(date: str) -> float | None:
    try:
        return parsedate_to_datetime(date).timestamp()
    except ValueError:
        return None
