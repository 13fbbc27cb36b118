"""Carries one admitted request to its upstream and the answer back, both streamed, nothing buffered or decoded.

It decides nothing: after each await it asks admission again. A client that leaves closes the upstream, an upstream
that breaks off leaves the client with a broken answer, and a cut ends both at once. WebSockets are websocket.py's.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass

import aiohttp
from aiohttp import hdrs, web
from yarl import URL

from offboard_worker.proxy.admission import Admission, Flight
from offboard_worker.proxy.answers import Relayed, trouble
from offboard_worker.proxy.headers import to_client
from offboard_worker.proxy.observe import AccessLine, Metrics
from offboard_worker.proxy.roles import Target
from offboard_worker.proxy.upstreams import Upstream, Upstreams

CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


@dataclass(slots=True)
class Exchange:
    """One request on its way through the proxy, and what its flight's `stop` has to close."""

    request: web.BaseRequest
    line: AccessLine
    task: asyncio.Task[object]
    answer: aiohttp.ClientResponse | None = None
    websocket: bool = False

    def stop(self, reason: str) -> None:
        """End everything now: abort the client's connection, close the upstream's, cancel the task."""
        self.line.decision, self.line.reason = "cut", reason
        if self.websocket:  # its task says 1008 to both sides first
            self.task.cancel()
            return
        abort(self.request)
        if self.answer is not None:
            self.answer.close()
        self.task.cancel()

    @property
    def has_body(self) -> bool:
        headers = self.request.headers
        return hdrs.TRANSFER_ENCODING in headers or headers.get(hdrs.CONTENT_LENGTH, "0").strip("0") != ""


def abort(request: web.BaseRequest) -> None:
    """Break the client's connection without a goodbye, so that what was sent so far does not look complete."""
    if request.transport is not None:
        request.transport.abort()


class Forwarder:
    """Forwards to every upstream."""

    def __init__(self, upstreams: Upstreams, admission: Admission, metrics: Metrics) -> None:
        self._upstreams = upstreams
        self._admission = admission
        self._metrics = metrics

    async def forward(self, exchange: Exchange, flight: Flight, target: Target) -> web.StreamResponse:
        """Return the answer, already streamed. Raises Refused."""
        upstream = self._upstreams[target.upstream]
        url = upstream.url(target)
        if url is None:
            raise trouble("bad-path", 400, "the target can't be forwarded byte for byte")
        answer = await self._call(exchange, upstream, url)
        exchange.answer = answer
        try:
            self._admission.check(flight)
            return await self._relay(exchange, flight, upstream, answer)
        finally:
            if not answer.closed and not answer.content.at_eof():
                answer.close()
            answer.release()

    async def _call(self, exchange: Exchange, upstream: Upstream, url: URL) -> aiohttp.ClientResponse:
        request = exchange.request
        headers = upstream.headers(request.headers)
        if not exchange.has_body and request.method in ("GET", "HEAD", "OPTIONS"):
            headers.popall(hdrs.CONTENT_LENGTH, None)
        deadline = asyncio.timeout(upstream.timeout)
        body = self._upload(request, deadline, upstream.timeout) if exchange.has_body else None
        if body is not None and request.headers.get(hdrs.EXPECT) and request.transport is not None:
            request.transport.write(CONTINUE)
        try:
            async with deadline:
                answer = await self._upstreams.http.request(
                    request.method,
                    url,
                    headers=headers,
                    data=body,
                    allow_redirects=False,
                    timeout=upstream.limits,
                )
        except TimeoutError:
            raise self._trouble(upstream, "upstream-timeout", 504, "the upstream did not answer in time") from None
        except aiohttp.ClientConnectorError:
            raise self._trouble(upstream, "upstream-unreachable", 502, "the upstream can't be reached") from None
        except (aiohttp.ClientError, ValueError, OSError):
            if request.content.exception() is not None:
                raise trouble("bad-body", 400, "the request's body is not what its head announced") from None
            raise self._trouble(upstream, "upstream-broken", 502, "the upstream broke the connection") from None
        if answer.status < 200:
            answer.close()
            raise self._trouble(upstream, "upstream-broken", 502, "the upstream switched protocols unasked")
        return answer

    def _trouble(self, upstream: Upstream, reason: str, status: int, message: str) -> Exception:
        self._metrics.upstream_errors.labels(upstream.name, reason).inc()
        return trouble(reason, status, message, advice="Try again; if it lasts, tell whoever runs the upstream.")

    async def _upload(
        self, request: web.BaseRequest, deadline: asyncio.Timeout, seconds: float
    ) -> AsyncIterator[bytes]:
        """Give the request's body piece by piece; waiting for the client never counts against the upstream."""
        loop = asyncio.get_running_loop()
        _reschedule(deadline, None)
        async for piece in request.content.iter_any():
            _reschedule(deadline, loop.time() + seconds)
            yield piece
            _reschedule(deadline, None)
        _reschedule(deadline, loop.time() + seconds)

    async def _relay(
        self, exchange: Exchange, flight: Flight, upstream: Upstream, answer: aiohttp.ClientResponse
    ) -> web.StreamResponse:
        try:
            headers = to_client((name, upstream.mask.data(value)) for name, value in answer.raw_headers)
        except ValueError:
            raise self._trouble(upstream, "upstream-broken", 502, "the upstream's answer has a bad head") from None
        response = Relayed(answer.status, upstream.mask.text(answer.reason or ""), headers)
        if exchange.has_body and not exchange.request.content.is_eof():
            response.force_close()  # answered before the upload's end
        line = exchange.line
        line.status, line.decision, line.reason = answer.status, "allowed", flight.allowed_as
        self._metrics.duration.labels(upstream.name).observe(time.monotonic() - line.started)
        await response.prepare(exchange.request)
        try:
            await self._stream(exchange, flight, upstream, answer, response)
            await response.write_eof()
        except (aiohttp.ClientError, TimeoutError):
            response.broken = True
            response.force_close()
            transport = exchange.request.transport
            if transport is None or transport.is_closing():
                line.reason = "client-left"
                return response
            self._metrics.upstream_errors.labels(upstream.name, "upstream-truncated").inc()
            line.reason = "upstream-truncated"
            abort(exchange.request)
        return response

    async def _stream(
        self,
        exchange: Exchange,
        flight: Flight,
        upstream: Upstream,
        answer: aiohttp.ClientResponse,
        response: Relayed,
    ) -> None:
        masked, sent = upstream.mask.stream(), self._metrics.bytes.labels(upstream.name)
        async for piece in answer.content.iter_any():
            if not self._admission.still(flight):
                await asyncio.sleep(0)  # where the cut's cancellation arrives
            out = masked.feed(piece)
            if out:
                exchange.line.bytes += len(out)
                sent.inc(len(out))
                await response.write(out)
        if out := masked.end():
            exchange.line.bytes += len(out)
            sent.inc(len(out))
            await response.write(out)


def _reschedule(deadline: asyncio.Timeout, when: float | None) -> None:
    """Move a deadline, unless the answer came meanwhile and it is over."""
    if deadline.when() is None and when is None:
        return
    try:
        deadline.reschedule(when)
    except RuntimeError:  # the block has been left
        return
