"""The upstreams: one pool of connections, each with the key that only the proxy holds.

Redirects are never followed (the key would go with them), nothing is decompressed, no cookie is kept, no proxy is
taken from the environment, and paths are sent as the very bytes that were admitted.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import NoReturn

import aiohttp
from multidict import CIMultiDict, MultiMapping
from yarl import URL

from offboard_worker.config import ProxySettings, UpstreamSettings
from offboard_worker.errors import ConfigError
from offboard_worker.proxy.headers import to_upstream
from offboard_worker.proxy.redact import Mask
from offboard_worker.proxy.roles import Target

_NO_AUTOMATIC_HEADERS = ("User-Agent", "Accept", "Accept-Encoding", "Content-Type")
MAX_ANSWER_HEAD = 64 * 1024


class RedirectRefused(aiohttp.ClientError):
    """An upstream answered a WebSocket handshake with a redirect, which is not followed."""


class Upstream:
    """One configured upstream."""

    def __init__(self, name: str, settings: UpstreamSettings) -> None:
        self.name = name
        self.timeout = settings.timeout.total_seconds()
        self.limits = aiohttp.ClientTimeout(
            total=None,
            sock_connect=settings.connect_timeout.total_seconds(),
            sock_read=settings.idle_timeout.total_seconds(),
        )
        self.mask = Mask(settings.secret)
        self._header = settings.header
        self._secret = settings.secret
        self._base = URL(settings.url.rstrip("/"), encoded=True)
        self._prefix = "" if self._base.raw_path == "/" else self._base.raw_path
        if settings.secret is not None and any(ord(char) < 32 or ord(char) == 127 for char in settings.secret.reveal()):
            raise ConfigError(f"proxy.upstreams.{name}.secret holds a control character, so it can't be a header")

    def url(self, target: Target) -> URL | None:
        """The URL to call, None where it could not be sent byte for byte."""
        url = URL(f"{self._base.scheme}://{self._base.raw_authority}{self._prefix}{target.rest}", encoded=True)
        sent = self._prefix + (target.path if target.query == "" else target.rest)
        return url if url.raw_path_qs == sent else None

    def headers(self, received: MultiMapping[str], *, websocket: bool = False) -> CIMultiDict[str]:
        """The headers to send: what may pass, and the key."""
        headers = to_upstream(received, self._header, websocket=websocket)
        if self._secret is not None:
            headers[self._header] = self._secret.reveal()
        return headers


class Upstreams:
    """All upstreams and the client that calls them. `open` first, `close` last."""

    def __init__(self, settings: ProxySettings) -> None:
        self._by_name = {name: Upstream(name, upstream) for name, upstream in settings.upstreams.items()}
        self._connector: aiohttp.TCPConnector | None = None
        self._http: aiohttp.ClientSession | None = None
        self._websocket: aiohttp.ClientSession | None = None

    def __getitem__(self, name: str) -> Upstream:
        return self._by_name[name]

    def open(self) -> None:
        self._connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=20)
        self._http = self._session(self._connector, [])
        tracing = aiohttp.TraceConfig()
        tracing.on_request_redirect.append(_refuse_redirect)
        self._websocket = self._session(self._connector, [tracing])

    @property
    def http(self) -> aiohttp.ClientSession:
        if self._http is None:
            raise RuntimeError("open() comes first")
        return self._http

    @property
    def websocket(self) -> aiohttp.ClientSession:
        if self._websocket is None:
            raise RuntimeError("open() comes first")
        return self._websocket

    async def close(self) -> None:
        for session in (self._http, self._websocket):
            if session is not None:
                await session.close()
        if self._connector is not None:
            await self._connector.close()

    @staticmethod
    def _session(connector: aiohttp.TCPConnector, tracing: list[aiohttp.TraceConfig]) -> aiohttp.ClientSession:
        return aiohttp.ClientSession(
            connector=connector,
            connector_owner=False,
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            trust_env=False,
            skip_auto_headers=_NO_AUTOMATIC_HEADERS,
            requote_redirect_url=False,
            max_line_size=MAX_ANSWER_HEAD,
            max_field_size=MAX_ANSWER_HEAD,
            trace_configs=tracing,
        )


async def _refuse_redirect(
    session: aiohttp.ClientSession, context: SimpleNamespace, params: aiohttp.TraceRequestRedirectParams
) -> NoReturn:
    """`ws_connect` has no switch for this, and would take the key along."""
    raise RedirectRefused(f"the upstream answered {params.response.status}")
