"""Carries an admitted WebSocket (RFC 6455): upstream first, then the client, message by message in both directions.

Subprotocols are the upstream's choice among the client's; close codes pass; extensions are not offered. A cut says
1008 to both sides. It decides nothing: admission does.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import Final

import aiohttp
from aiohttp import WSMsgType, hdrs, web

from offboard_worker.proxy.admission import Admission, Flight
from offboard_worker.proxy.answers import trouble
from offboard_worker.proxy.forward import Exchange, abort
from offboard_worker.proxy.observe import Metrics
from offboard_worker.proxy.redact import Mask
from offboard_worker.proxy.roles import Target
from offboard_worker.proxy.upstreams import RedirectRefused, Upstream, Upstreams

MAX_MESSAGE: Final = 16 * 1024 * 1024
GOODBYE: Final = 1.0
"""Seconds that a peer gets to answer a close."""
POLICY: Final = 1008
GOING_AWAY: Final = 1001
logging.getLogger("aiohttp.websocket").setLevel(logging.ERROR)
"""Its warning about subprotocols prints them, and some applications put tokens there."""

Side = aiohttp.ClientWebSocketResponse | web.WebSocketResponse


def is_websocket(request: web.BaseRequest) -> bool:
    """Say whether a request (whose head has been checked) asks for a WebSocket."""
    return hdrs.UPGRADE in request.headers


class Tunnels:
    """Opens and carries WebSockets."""

    def __init__(self, upstreams: Upstreams, admission: Admission, metrics: Metrics) -> None:
        self._upstreams = upstreams
        self._admission = admission
        self._metrics = metrics

    async def carry(self, exchange: Exchange, flight: Flight, target: Target) -> web.StreamResponse:
        """Carry one WebSocket to its end. Raises Refused."""
        upstream = self._upstreams[target.upstream]
        protocols = _protocols(exchange.request)
        if not web.WebSocketResponse().can_prepare(exchange.request).ok:
            raise trouble("bad-upgrade", 400, "the WebSocket handshake is not as RFC 6455 wants it")
        far = await self._dial(exchange, upstream, target, protocols)
        near = web.WebSocketResponse(
            timeout=GOODBYE,
            autoclose=False,
            autoping=False,
            protocols=(far.protocol,) if far.protocol else (),
            compress=False,
            max_msg_size=MAX_MESSAGE,
        )
        try:
            self._admission.check(flight)
            exchange.websocket = True
            await near.prepare(exchange.request)
            line = exchange.line
            line.status, line.decision, line.reason = 101, "allowed", flight.allowed_as
            await self._both_ways(exchange, flight, near, far, upstream.mask)
        except asyncio.CancelledError:
            if flight.cut is not None and near.prepared:
                code, why = _farewell(flight), flight.cut.encode()
                await asyncio.gather(_close(near, code, why), _close(far, code, b""))
                abort(exchange.request)
            raise
        finally:
            await _close(far, _farewell(flight), b"")
        return near

    async def _dial(
        self, exchange: Exchange, upstream: Upstream, target: Target, protocols: Sequence[str]
    ) -> aiohttp.ClientWebSocketResponse:
        url = upstream.url(target)
        if url is None:
            raise trouble("bad-path", 400, "the target can't be forwarded byte for byte")
        try:
            async with asyncio.timeout(upstream.timeout):
                return await self._upstreams.websocket.ws_connect(
                    url,
                    protocols=protocols,
                    headers=upstream.headers(exchange.request.headers, websocket=True),
                    autoclose=False,
                    autoping=False,
                    compress=0,
                    max_msg_size=MAX_MESSAGE,
                    timeout=aiohttp.ClientWSTimeout(ws_close=GOODBYE),
                )
        except TimeoutError:
            reason, status, message = "upstream-timeout", 504, "the upstream did not answer in time"
        except RedirectRefused:
            reason, status, message = "upstream-redirects", 502, "the upstream redirects a WebSocket"
        except aiohttp.WSServerHandshakeError as error:
            refused = 400 <= error.status < 600
            reason, status, message = "upstream-refused", error.status if refused else 502, "the upstream refused"
        except (aiohttp.ClientError, ValueError, OSError):
            reason, status, message = "upstream-unreachable", 502, "the upstream can't be reached"
        self._metrics.upstream_errors.labels(upstream.name, reason).inc()
        raise trouble(reason, status, message)

    async def _both_ways(
        self,
        exchange: Exchange,
        flight: Flight,
        near: web.WebSocketResponse,
        far: aiohttp.ClientWebSocketResponse,
        mask: Mask,
    ) -> None:
        """Carry messages until one side closes, then close the other in the same way."""
        up = asyncio.create_task(self._pump(exchange, flight, near, far, None))
        down = asyncio.create_task(self._pump(exchange, flight, far, near, mask))
        try:
            done, _ = await asyncio.wait({up, down}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (up, down):
                task.cancel()
            await asyncio.gather(up, down, return_exceptions=True)
        closing = next(iter(done)).result()
        if closing is None:  # the side broke off: so does the other
            await _close(far, GOING_AWAY, b"")
            abort(exchange.request)
            return
        code, reason = closing
        await _close(far, code, reason)
        await _close(near, code, reason)

    async def _pump(
        self, exchange: Exchange, flight: Flight, source: Side, sink: Side, mask: Mask | None
    ) -> tuple[int, bytes] | None:
        """Carry one direction; return the close code and reason, None if the source broke off."""
        while True:
            message = await source.receive()
            if not self._admission.still(flight):
                return None
            match message.type:
                case WSMsgType.TEXT:
                    text = mask.text(message.data) if mask else message.data
                    exchange.line.bytes += len(text) if mask else 0
                    await sink.send_str(text)
                case WSMsgType.BINARY:
                    data = mask.data(message.data) if mask else message.data
                    exchange.line.bytes += len(data) if mask else 0
                    await sink.send_bytes(data)
                case WSMsgType.PING:
                    await sink.ping(message.data)
                case WSMsgType.PONG:
                    await sink.pong(message.data)
                case WSMsgType.CLOSE:
                    return _sendable(message.data), str(message.extra or "").encode()[:123]
                case _:
                    return None


def _protocols(request: web.BaseRequest) -> tuple[str, ...]:
    offered = ",".join(request.headers.getall(hdrs.SEC_WEBSOCKET_PROTOCOL, ()))
    return tuple(name.strip() for name in offered.split(",") if name.strip())


def _sendable(code: object) -> int:
    """Codes that may stand in a frame (RFC 6455 section 7.4); a close without one becomes a normal close."""
    if isinstance(code, int) and ((1000 <= code <= 1014 and code not in (1004, 1005, 1006)) or 3000 <= code <= 4999):
        return code
    return 1000


def _farewell(flight: Flight) -> int:
    return GOING_AWAY if flight.cut in (None, "shutdown") else POLICY


async def _close(side: Side, code: int, reason: bytes) -> None:
    """Say goodbye, within GOODBYE: a peer that doesn't read can't hold us."""
    try:
        async with asyncio.timeout(GOODBYE):
            await side.close(code=code, message=reason)
    except (aiohttp.ClientError, TimeoutError, OSError):
        return
