"""Where a developer's request comes in: its head is checked, admission decides, and a lane carries it.

`Door` is aiohttp's low-level server with what that lacks: a limit on how long a head may take to arrive, and errors
that neither log nor echo what was received (a broken head may hold a token).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import time
import traceback
from collections.abc import Callable
from typing import Any

from aiohttp import hdrs, web
from aiohttp.http_parser import HttpRequestParser, HttpRequestParserPy
from aiohttp.web_protocol import RequestHandler

from offboard_worker.config import ProxySettings
from offboard_worker.errors import ConfigError
from offboard_worker.http_connection import TimedConnection
from offboard_worker.proxy.admission import Admission, Flight, Refused
from offboard_worker.proxy.answers import SERVER, refusal, trouble
from offboard_worker.proxy.forward import Exchange, Forwarder
from offboard_worker.proxy.headers import framing_problem
from offboard_worker.proxy.keys import SigningKeys
from offboard_worker.proxy.observe import AccessLine, Metrics
from offboard_worker.proxy.websocket import Tunnels, is_websocket

log = logging.getLogger(__name__)

JWKS_PATH = "/.well-known/jwks.json"
LINGER = 1.0
"""Seconds that a refused upload is read on, so that its sender gets to see the answer."""
_STATUS = {"bad-version": 505, "bad-expect": 417}


class Entrance:
    """Answers every request."""

    def __init__(
        self, admission: Admission, forwarder: Forwarder, tunnels: Tunnels, metrics: Metrics, keys: SigningKeys
    ) -> None:
        self._admission = admission
        self._forwarder = forwarder
        self._tunnels = tunnels
        self._metrics = metrics
        self._keys = keys
        self._draining = False
        self._busy = 0
        self._idle = asyncio.Event()

    async def __call__(self, request: web.BaseRequest) -> web.StreamResponse:
        task = asyncio.current_task()
        if task is None:
            raise RuntimeError("aiohttp runs each request in a task")
        raw = request.raw_path
        line = AccessLine(request.method, raw.partition("?")[0], time.monotonic())
        exchange = Exchange(request, line, task)
        self._busy += 1
        try:
            response = await self._answer(exchange)
        except asyncio.CancelledError:
            if line.decision != "cut":
                line.reason = "client-left"
            raise
        except Exception:
            line.decision, line.reason, line.status = "failed", "fault", 500
            raise
        finally:
            self._busy -= 1
            if not self._busy:
                self._idle.set()
            self._metrics.decisions.labels(line.decision, line.reason).inc()
            line.write(time.monotonic())
        if self._draining:
            response.force_close()
        return response

    def malformed(self) -> None:
        """Count a head that the parser refused: it never became a request."""
        self._metrics.decisions.labels("refused", "malformed").inc()

    async def drained(self, timeout: float) -> None:
        """Wait until no request is in flight, at most `timeout` seconds; from now on connections are not kept."""
        self._draining = True
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                while self._busy:
                    self._idle.clear()
                    await self._idle.wait()

    async def _answer(self, exchange: Exchange) -> web.StreamResponse:
        request, line = exchange.request, exchange.line
        flight = Flight(exchange.stop)
        try:
            problem = framing_problem(request.raw_headers, (request.version[0], request.version[1]), request.method)
            if problem is not None:
                raise trouble(problem, _STATUS.get(problem, 400), "the request's head is not plain HTTP/1.1")
            if request.raw_path == JWKS_PATH:
                return self._jwks(exchange)
            authorization = request.headers.getall(hdrs.AUTHORIZATION, ())
            target = await self._admission.admit(flight, list(authorization), request.method, request.raw_path)
            self._describe(line, flight)
            if is_websocket(request):
                return await self._tunnels.carry(exchange, flight, target)
            return await self._forwarder.forward(exchange, flight, target)
        except Refused as refused:
            self._describe(line, flight)
            line.decision = "failed" if refused.reason.startswith("upstream-") else "refused"
            line.reason, line.status = refused.reason, refused.status
            unread = exchange.has_body and not request.content.is_eof()
            return refusal(refused, close=unread or refused.status in (400, 405, 417, 505) or is_websocket(request))
        finally:
            self._admission.leave(flight)

    def _jwks(self, exchange: Exchange) -> web.Response:
        if exchange.request.method not in ("GET", "HEAD"):
            raise trouble("bad-method", 405, "the key set is only read")
        self._keys.reload()
        line = exchange.line
        line.decision, line.reason, line.status = "allowed", "jwks", 200
        headers = {"Content-Type": "application/jwk-set+json", "Cache-Control": "max-age=60", "Server": SERVER}
        return web.Response(body=json.dumps(self._keys.jwks()).encode(), headers=headers)

    @staticmethod
    def _describe(line: AccessLine, flight: Flight) -> None:
        if flight.token is not None:
            line.person = flight.token.subject
        if flight.rule is not None:
            line.role, line.upstream = flight.rule.role, flight.rule.upstream


class Door(web.Server):
    """The low-level server that makes a `DoorProtocol` for each connection."""

    def __init__(self, entrance: Entrance, settings: ProxySettings) -> None:
        if HttpRequestParser is HttpRequestParserPy:
            raise ConfigError(
                "aiohttp runs without its C parser, whose strictness the proxy relies on",
                advice="Install an aiohttp wheel for this platform, and unset AIOHTTP_NO_EXTENSIONS.",
            )
        super().__init__(entrance, handler_cancellation=True)
        self._settings = settings
        self._entrance = entrance

    def __call__(self) -> RequestHandler:
        settings = self._settings
        return DoorProtocol(
            self,
            loop=asyncio.get_running_loop(),
            on_malformed=self._entrance.malformed,
            head_timeout=settings.head_timeout.total_seconds(),
            keepalive_timeout=settings.keepalive.total_seconds(),
            max_line_size=settings.max_header,
            max_field_size=settings.max_header,
            lingering_time=LINGER,
            auto_decompress=False,
            access_log=None,
        )


class DoorProtocol(TimedConnection):
    """One connection of a developer's."""

    __slots__ = ("_on_malformed",)

    def __init__(self, manager: web.Server, *, on_malformed: Callable[[], None], **settings: Any) -> None:
        super().__init__(manager, **settings)
        self._on_malformed = on_malformed

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Answer a head that could not be parsed, or a fault of ours, without a word of what was received."""
        if status < 500:
            self._on_malformed()
        elif exc is not None:  # where it happened, without the exception's own words: they could hold a secret
            log.error("a request failed: %s\n%s", type(exc).__name__, "".join(traceback.format_tb(exc.__traceback__)))
        if request.writer.output_size > 0:
            raise ConnectionError("the answer had begun")
        text = "the request is not valid HTTP" if status < 500 else "the proxy failed"
        return refusal(trouble("malformed" if status < 500 else "fault", status, text), close=True)
