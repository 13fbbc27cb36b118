"""How we talk to Graph: the SDK's client, our token, and the one place where Graph's errors become ours.

The SDK is told to do less than it would. Its retry handler would sleep up to three minutes inside a call and chokes on
a fractional Retry-After, and its redirect handler would carry our requests elsewhere; both are left out. The retries
are the job's. What remains of a 3xx would pass for a success, so that any answer but 2xx is an error here, before the
SDK sees it. Imported only when a connector is opened: it imports the SDK.
"""

from __future__ import annotations

import asyncio
import base64
import json
import re
import ssl
from collections.abc import AsyncIterator, Awaitable
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import cache
from time import monotonic
from typing import Any, TypeVar
from urllib.parse import urlsplit

import httpx
from kiota_abstractions.authentication import AuthenticationProvider
from kiota_abstractions.base_request_configuration import RequestConfiguration
from kiota_abstractions.request_option import RequestOption
from kiota_abstractions.response_handler import ResponseHandler
from kiota_http.kiota_client_factory import KiotaClientFactory
from kiota_http.middleware import BaseMiddleware, ParametersNameDecodingHandler
from kiota_http.middleware.middleware import REQUEST_OPTIONS_KEY
from kiota_http.middleware.options import ResponseHandlerOption
from msgraph.graph_request_adapter import GraphRequestAdapter
from msgraph.graph_service_client import GraphServiceClient

from connectors.entra.config import EntraConfig
from offboard_worker.errors import AccessRefused, ConnectorError, Fatal, Retryable

T = TypeVar("T")

MISSING = re.compile(r"NotFound$")
EARLY = 300.0  # seconds before its expiry in which a token is no longer used
CONSENT = "Give the app registration the permission in Entra, grant admin consent, then run `offboard check`."
SIGN_IN = "Compare tenant_id, client_id and client_secret with the app registration; its secret may have expired."


class Missing(Fatal):
    """Graph itself says that the object isn't there. Whoever calls decides whether that is a result."""


class Graph:
    """One open connection to a tenant. `client` is the SDK's; every call on it goes through `call` or `pages`."""

    def __init__(self, instance: str, config: EntraConfig) -> None:
        self._instance = instance
        self._timeout = config.timeout
        limits = httpx.Limits(max_connections=config.concurrency, max_keepalive_connections=config.concurrency)
        # No pool timeout: waiting for our own connections is no fault of Graph's. asyncio.timeout bounds the whole.
        self._http = httpx.AsyncClient(
            verify=trust(), timeout=httpx.Timeout(config.timeout, pool=None), limits=limits, follow_redirects=False
        )
        self.token = AccessToken(instance, config, self._http)
        KiotaClientFactory.create_with_custom_middleware(
            [Refusals(instance, self.token), ParametersNameDecodingHandler()], client=self._http
        )
        adapter = GraphRequestAdapter(self.token, client=self._http)
        adapter.base_url = config.base_url
        self.client: Any = GraphServiceClient(request_adapter=adapter)

    async def close(self) -> None:
        await self._http.aclose()

    async def call(self, answer: Awaitable[T]) -> T:
        """Wait for one call. Raises Missing, Retryable, AccessRefused or Fatal, and nothing else."""
        try:
            async with asyncio.timeout(self._timeout):
                return await answer
        except ConnectorError:
            raise
        except (TimeoutError, httpx.TimeoutException):
            raise Retryable(f"Graph gave no answer within {self._timeout:g} s", connector=self._instance) from None
        except httpx.TransportError as error:
            raise Retryable(f"the connection to Graph failed: {_said(error)}", connector=self._instance) from error
        except Exception as error:
            # The SDK raises whatever its parsers do on half a body or a gateway's page: nothing to be relied on.
            message = f"Graph's answer could not be read ({type(error).__name__})"
            raise Retryable(message, connector=self._instance) from error

    async def permissions(self) -> tuple[str, ...]:
        """Return the application permissions that our token holds."""
        return await self.call(self.token.roles())

    async def pages(self, builder: Any, query: Query | None = None) -> AsyncIterator[dict[str, Any]]:
        """Yield every item of a collection. A page that isn't one is an error: never "nothing found"."""
        page = await self.call(builder.get(options(query)))
        seen: set[str] = set()
        while True:
            if page is None or not isinstance(page.get("value"), list):
                raise Retryable("Graph answered a collection without a value", connector=self._instance)
            for item in page["value"]:
                if not isinstance(item, dict) or not item.get("id"):
                    raise Retryable("Graph answered a collection with an item that has no id", connector=self._instance)
                yield item
            link = page.get("@odata.nextLink")
            if not link:
                return
            if link in seen:
                raise Fatal("Graph's pages lead in a circle", connector=self._instance)
            seen.add(link)
            page = await self.call(builder.with_url(link).get(options()))


class AccessToken(AuthenticationProvider):
    """Our access token, by client credentials, and its use: towards Graph's own origin and nowhere else.

    https://learn.microsoft.com/entra/identity-platform/v2-oauth2-client-creds-grant-flow
    """

    def __init__(self, instance: str, config: EntraConfig, http: httpx.AsyncClient) -> None:
        self._instance = instance
        self._config = config
        self._http = http
        self._origin = origin(config.base_url)
        self._lock = asyncio.Lock()
        self._value = ""
        self._valid_until = 0.0
        self._worked = False

    def __repr__(self) -> str:
        return f"AccessToken(for {self._config.client_id})"

    async def authenticate_request(
        self, request: Any, additional_authentication_context: dict[str, Any] | None = None
    ) -> None:
        """Put the token on one request. Raises Fatal where it would leave Graph's origin (a page's next link)."""
        if origin(request.url) != self._origin:
            message = f"Graph's answer leads to {urlsplit(request.url).hostname}, which is not base_url: not followed"
            raise Fatal(message, advice="Check that base_url is Graph's own address.", connector=self._instance)
        request.headers.remove("Authorization")
        request.headers.add("Authorization", f"Bearer {await self.value()}")

    async def value(self) -> str:
        """Return a token that is good for some minutes yet."""
        async with self._lock:
            if monotonic() >= self._valid_until:
                await self._fetch()
            return self._value

    async def roles(self) -> tuple[str, ...]:
        """Return the application permissions in the token. It is ours and came from the issuer: no need to verify it."""
        try:
            part = (await self.value()).split(".")[1]
            claims = json.loads(base64.urlsafe_b64decode(part + "=" * (-len(part) % 4)))
            return tuple(claims.get("roles", ()))
        except (IndexError, ValueError, AttributeError):
            return ()

    def accepted(self) -> None:
        self._worked = True

    def refused(self) -> bool:
        """Forget a token that Graph refused, and say whether it had worked before (then a new one may)."""
        worked, self._worked = self._worked, False
        self._valid_until = 0.0
        return worked

    async def _fetch(self) -> None:
        form = {
            "grant_type": "client_credentials",
            "client_id": self._config.client_id,
            "client_secret": self._config.client_secret.reveal(),
            "scope": self._config.scope,
        }
        response = await self._http.post(self._config.token_url, data=form)
        if response.status_code == 429 or response.status_code >= 500:
            wait = retry_after(response)
            message = f"the token endpoint answered {response.status_code}"
            raise Retryable(message, retry_after=wait, connector=self._instance, status=response.status_code)
        body = _json(response)
        if response.status_code != 200:
            message = f"our sign-in was refused: {body.get('error', response.status_code)}{_aadsts(body)}"
            raise AccessRefused(message, advice=SIGN_IN, connector=self._instance, status=response.status_code)
        token, lifetime = body.get("access_token"), body.get("expires_in")
        if not isinstance(token, str) or not token or not str(lifetime).isdigit():
            raise Retryable("the token endpoint answered 200 without a token", connector=self._instance)
        seconds = float(str(lifetime))
        self._value, self._worked = token, False
        self._valid_until = monotonic() + max(seconds - EARLY, seconds / 2)


class Refusals(BaseMiddleware):
    """Turns every answer of Graph that is not 2xx into one of our errors."""

    def __init__(self, instance: str, token: AccessToken) -> None:
        super().__init__()
        self._instance = instance
        self._token = token

    async def send(self, request: httpx.Request, transport: httpx.AsyncBaseTransport) -> httpx.Response:
        from_sdk = REQUEST_OPTIONS_KEY in request.extensions  # our own token request is none
        response = await super().send(request, transport)
        if not from_sdk:
            return response
        if response.is_success:
            self._token.accepted()
            return response
        await response.aread()
        raise self._translated(request, response)

    def _translated(self, request: httpx.Request, response: httpx.Response) -> ConnectorError:
        status = response.status_code
        code, message = _error(response)
        said = f"{request.method} {request.url.path}: Graph answered {status} {code}".rstrip()
        said = f"{said}: {message}" if message else said
        about: dict[str, Any] = {"connector": self._instance, "status": status}
        if status == 429 or status in (408, 409, 423) or status >= 500:
            return Retryable(said, retry_after=retry_after(response), **about)
        if status == 401:
            if self._token.refused():
                return Retryable(said, retry_after=0.0, **about)
            return AccessRefused(said, advice=SIGN_IN, **about)
        if status == 403:
            return AccessRefused(said, advice=CONSENT, **about)
        if status in (404, 410) and MISSING.search(code):
            return Missing(said, **about)
        return Fatal(said, **about)


@dataclass
class Query:
    """Query parameters. The SDK reads the fields of a dataclass and asks it for the names in its URL templates."""

    select: list[str] | None = None
    filter: str | None = None
    expand: list[str] | None = None
    top: int | None = None

    def get_query_parameter(self, name: str) -> str:
        return f"%24{name}"


class AsJson(ResponseHandler):
    """Hands the answer to us as Graph wrote it.

    The SDK's own models take 15 ms each to build (each imports hundreds of modules by name again): a person in 60
    groups would cost a minute of CPU. It also makes None of an empty body, and an empty list of a missing one.
    """

    async def handle_response_async(self, response: Any, error_map: Any) -> dict[str, Any] | None:
        if not response.content:
            return None
        body = response.json()
        if not isinstance(body, dict):
            raise ValueError("not an object")
        return body


def options(query: Query | None = None) -> Any:
    """Return the SDK's configuration of a request whose answer we want as JSON."""
    as_json: list[RequestOption] = [ResponseHandlerOption(AsJson())]
    if query is None:
        return RequestConfiguration(options=as_json)
    return RequestConfiguration(query_parameters=query, options=as_json)


@cache
def trust() -> ssl.SSLContext:
    """Read the trusted certificates once a process (SSL_CERT_FILE is honoured): it takes longer than a call."""
    return httpx.create_ssl_context()


def origin(url: str) -> tuple[str, str, int]:
    """Return scheme, host and port of a URL, in one spelling."""
    parts = urlsplit(url)
    return parts.scheme, (parts.hostname or "").lower(), parts.port or (443 if parts.scheme == "https" else 80)


def retry_after(response: httpx.Response) -> float | None:
    """Return the seconds that Retry-After asks for: whole, a fraction, or until a date. None where it says nothing."""
    value = response.headers.get("retry-after", "").strip()
    if re.fullmatch(r"\d+(\.\d+)?", value):
        return float(value)
    try:
        return max(0.0, (parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds()) if value else None
    except (TypeError, ValueError):
        return None


def _error(response: httpx.Response) -> tuple[str, str]:
    """Return code and message of Graph's error body; empty where the body is nobody's (a gateway's page)."""
    error = _json(response).get("error")
    if not isinstance(error, dict):
        return "", ""
    return str(error.get("code") or ""), str(error.get("message") or "")[:300]


def _json(response: httpx.Response) -> dict[str, Any]:
    try:
        body = response.json()
    except ValueError:
        return {}
    return body if isinstance(body, dict) else {}


def _aadsts(body: dict[str, Any]) -> str:
    """The error number alone: the description repeats ids, a trace and sometimes what was sent."""
    found = re.search(r"AADSTS\d+", str(body.get("error_description", "")))
    return f" ({found[0]})" if found else ""


def _said(error: Exception) -> str:
    return str(error) or type(error).__name__
