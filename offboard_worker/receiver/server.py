"""The receiver: `/webhooks/{source}`, `/healthz`, `/readyz`, and the metrics on a listener of their own.

Per delivery (DESIGN section 4): size limit → handshake → verify over the raw bytes → parse → one durable transaction,
shared with whoever arrives beside it → contain → enqueue → answer in the source's own way. Our own trouble is a 503 with
Retry-After and never a 4xx, since senders don't repeat what was refused. No answer and no log line holds a header or a
body. What a delivery means is the source's word, and what is done about it is intake's: this file knows neither, imports
no vendor's SDK, and knows the queue only as `enqueue`.
"""

from __future__ import annotations

import asyncio
import logging
import time
import traceback
from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime
from typing import Any, Final, Self
from urllib.parse import unquote

from aiohttp import web
from aiohttp.web_protocol import RequestPayloadError
from multidict import CIMultiDictProxy
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from offboard_worker.config import ReceiverSettings, split_listen
from offboard_worker.errors import DeliveryError, SourceUnavailable, StoreUnavailable
from offboard_worker.jobs.intake import Arrival
from offboard_worker.jobs.rulebook import Accepted, Rulebook
from offboard_worker.receiver.acceptance import Acceptance
from offboard_worker.receiver.connection import Entrance, refusal
from offboard_worker.receiver.metrics import Metrics, write_access
from offboard_worker.sources.source import Answer, Delivery, Source
from offboard_worker.store.database import Store
from offboard_worker.store.inbox import Received

log = logging.getLogger("offboard_worker.receiver")

PREFIX: Final = "/webhooks/"
RETRY_AFTER: Final = 5.0
READY_FOR: Final = 1.0
"""Seconds for which the last look at the store answers /readyz: anybody may ask, and each look is a write."""
READY_WAIT: Final = 3.0


class _Refused(Exception):
    """A request that the receiver itself refuses, whatever the source."""

    def __init__(self, status: int, error: str, message: str, advice: str, **options: Any) -> None:
        super().__init__(error)
        self.error = error
        self.response = refusal(status, error, message, advice, **options)


class Receiver:
    """The receiver, from `async with` until `close`. `url` and `metrics_url` are the addresses that were bound."""

    def __init__(
        self,
        settings: ReceiverSettings,
        *,
        store: Store,
        sources: Mapping[str, Source[Any]],
        book: Rulebook,
        push: Callable[[], Awaitable[int]],
        enqueue: Callable[[Accepted], Awaitable[None]],
        contained: Callable[[], None],
        ready: Callable[[], Awaitable[list[str]]],
    ) -> None:
        """`push` brings Redis up to the store, `contained` nudges whoever measures the refusal, `ready` says what lacks."""
        self.metrics = Metrics()
        self._settings = settings
        self._store = store
        self._sources = sources
        self._ready = ready
        wait = settings.push_wait.total_seconds()
        self._acceptance = Acceptance(store, book, self.metrics, push, enqueue, contained, wait)
        self._body_timeout = settings.body_timeout.total_seconds()
        self._in_flight = 0
        self._idle = asyncio.Event()
        self._closing = False
        self._looked: tuple[float, list[str]] = (float("-inf"), [])
        self._looking = asyncio.Lock()
        self._runners: list[web.ServerRunner] = []
        self._entrance: Entrance | None = None
        self.url = self.metrics_url = ""

    async def __aenter__(self) -> Self:
        self._entrance = Entrance(self._serve, self._settings)
        try:
            self.metrics_url = await self._listen(web.Server(self._metrics, access_log=None), self._settings.metrics)
            self.url = await self._listen(self._entrance, self._settings.listen)
        except BaseException:
            await self.close()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def _listen(self, server: web.Server, address: str) -> str:
        runner = web.ServerRunner(server, shutdown_timeout=1.0)
        await runner.setup()
        self._runners.append(runner)
        host, port = split_listen(address)
        await web.TCPSite(runner, host, port, backlog=1024).start()
        bound = runner.addresses[0]
        return f"http://[{bound[0]}]:{bound[1]}" if ":" in bound[0] else f"http://{bound[0]}:{bound[1]}"

    async def close(self) -> None:
        """Take no new connection, finish what is being received and accepted, then end. Safe to call twice."""
        self._closing = True
        for runner in self._runners:
            for site in list(runner.sites):
                await site.stop()
        if self._entrance is not None:
            self._entrance.close_idle()
        if self._in_flight:
            self._idle.clear()
            try:
                async with asyncio.timeout(self._settings.drain.total_seconds()):
                    await self._idle.wait()
            except TimeoutError:
                log.warning("stopped with %d requests that did not come to their end", self._in_flight)
        await self._acceptance.close()
        for runner in self._runners:
            await runner.cleanup()
        self._runners.clear()

    # -- one request ---------------------------------------------------------------------------------------------

    async def _serve(self, request: web.BaseRequest) -> web.StreamResponse:
        started = time.perf_counter()
        self._in_flight += 1
        path = request.path
        name, outcome = "", "ok"
        try:
            if path.startswith(PREFIX):
                name = path[len(PREFIX) :]
                response, outcome = await self._webhook(request, name)
            else:
                response = await self._operators(request, path)
        except _Refused as refused:
            response, outcome = refused.response, refused.error
        finally:
            self._in_flight -= 1
            if not self._in_flight:
                self._idle.set()
        if self._closing:
            response.force_close()
        if path.startswith(PREFIX):
            seconds = time.perf_counter() - started
            known = name if name in self._sources else "unknown"
            self.metrics.answered(known, outcome, seconds)
            write_access(known, request.method, response.status, outcome, request.content_length or 0, seconds)
        return response

    async def _webhook(self, request: web.BaseRequest, name: str) -> tuple[web.Response, str]:
        """Take one delivery and say how it ended, in the access log's word."""
        source = self._sources.get(name) or self._sources.get(unquote(name))
        if source is None:
            raise _Refused(
                404,
                "unknown-source",
                "no source of this name is configured",
                "Compare the URL with sources:",
                close=True,
            )
        if request.method not in source.methods:
            allowed = ", ".join(sorted(source.methods))
            raise _Refused(
                405,
                "wrong-method",
                f"{source.title} uses {allowed}",
                "Check how the sender is set up.",
                headers={"Allow": allowed},
                close=request.can_read_body,
            )
        try:
            return await self._deliver(request, source)
        except DeliveryError as error:
            log.warning("%s: a delivery was refused: %s", source.instance, error.message)
            return refusal(error.status, error.reason, error.message, error.advice), error.reason
        except SourceUnavailable as error:
            log.warning("%s: a delivery could not be verified now: %s", source.instance, error.message)
            return _later(error.reason, "the sender could not be verified now", error.retry_after), error.reason
        except StoreUnavailable as error:
            log.error("%s: a delivery could not be stored: %s", source.instance, error.message)
            return _later(error.reason, "the delivery could not be stored"), error.reason
        except (_Refused, ConnectionError):
            raise
        except Exception as error:
            log.error("%s: a delivery met a bug: %s at %s", source.instance, type(error).__name__, _where(error))
            return _later("fault", "the receiver failed"), "fault"

    async def _deliver(self, request: web.BaseRequest, source: Source[Any]) -> tuple[web.Response, str]:
        now = datetime.now(UTC)
        body = await self._body(request)
        delivery = Delivery(
            source.instance, request.method, _lower(request.headers), dict(request.query), body, received_at=now
        )
        answer = source.handshake(delivery)
        if answer is not None:
            return _response(answer), "handshake"
        await source.verify(delivery, now)
        statements = tuple(source.parse(delivery))
        kept = source.keepable(body)
        received = Received(source.instance, delivery.method, delivery.headers, kept, now.timestamp())
        await self._acceptance.take(Arrival(received, statements))
        return _response(source.answer(delivery)), "accepted"

    async def _body(self, request: web.BaseRequest) -> bytes:
        """Read the body, at most `max_body` bytes of it and for at most `body_timeout`."""
        limit = self._settings.max_body
        if (request.content_length or 0) > limit:
            raise _too_large(limit)
        if "Expect" in request.headers:
            await _expected(request)
        content = request.content
        if content.is_eof():  # the usual: it came with the head, or there is none
            body = content.read_nowait()
        else:
            body = await self._slowly(request, limit)
        if len(body) > limit:
            raise _too_large(limit)
        return body

    async def _slowly(self, request: web.BaseRequest, limit: int) -> bytes:
        parts, size = [], 0
        try:
            async with asyncio.timeout(self._body_timeout):
                while size <= limit and (part := await request.content.readany()):
                    parts.append(part)
                    size += len(part)
        except TimeoutError:
            raise _Refused(
                408, "slow-body", f"the body took more than {self._body_timeout:g} s", "Send it again.", close=True
            ) from None
        except RequestPayloadError:
            raise _Refused(
                400, "malformed-http", "the body's framing is not valid HTTP", "Send it again.", close=True
            ) from None
        return b"".join(parts)

    # -- operators -----------------------------------------------------------------------------------------------

    async def _operators(self, request: web.BaseRequest, path: str) -> web.Response:
        if path not in ("/healthz", "/readyz"):
            raise _Refused(404, "not-found", "there is nothing here", f"Deliveries go to {PREFIX}NAME.", close=True)
        if request.method not in ("GET", "HEAD"):
            raise _Refused(
                405, "wrong-method", "this is only read", "Use GET.", headers={"Allow": "GET, HEAD"}, close=True
            )
        if path == "/healthz":
            return _response(Answer.json({"status": "alive"}))
        reasons = await self._reasons()
        if not reasons:
            return _response(Answer.json({"status": "ready"}))
        answer = Answer.json({"status": "not-ready", "reasons": reasons}, status=503)
        return _response(Answer(answer.status, answer.body, answer.content_type, {"Retry-After": "1"}))

    async def _reasons(self) -> list[str]:
        """Why deliveries can't be taken now."""
        if self._closing:
            return ["the receiver is stopping"]
        async with self._looking:
            when, reasons = self._looked
            if time.monotonic() - when >= READY_FOR:
                reasons = await self._look()
                self._looked = (time.monotonic(), reasons)
        return reasons

    async def _look(self) -> list[str]:
        try:
            async with asyncio.timeout(READY_WAIT):
                await self._store.probe()
                return list(await self._ready())
        except StoreUnavailable as error:
            return [error.message]
        except TimeoutError:
            return [f"the store or Redis did not answer within {READY_WAIT:g} s"]
        except Exception as error:
            log.error("/readyz failed: %s at %s", type(error).__name__, _where(error))
            return [f"the check itself failed: {type(error).__name__}"]

    async def _metrics(self, request: web.BaseRequest) -> web.StreamResponse:
        if request.path != "/metrics" or request.method not in ("GET", "HEAD"):
            return refusal(404, "not-found", "there is nothing here", "Use GET /metrics.", close=True)
        body = generate_latest(self.metrics.registry)
        return web.Response(body=body, headers={"Content-Type": CONTENT_TYPE_LATEST, "Server": "offboard-worker"})


def _lower(headers: CIMultiDictProxy[str]) -> dict[str, str]:
    """Headers by lower-case name. One that came twice is joined, so that neither of its values passes for the only one."""
    found: dict[str, str] = {}
    for name, value in headers.items():
        name = name.lower()
        found[name] = f"{found[name]}, {value}" if name in found else value
    return found


def _response(answer: Answer) -> web.Response:
    headers = {"Server": "offboard-worker", **answer.headers}
    if answer.content_type:
        headers["Content-Type"] = answer.content_type
    return web.Response(status=answer.status, body=answer.body, headers=headers)


def _later(error: str, message: str, retry_after: float | None = None) -> web.Response:
    advice = "Send it again: nothing of it was kept."
    return refusal(503, error, message, advice, retry_after=RETRY_AFTER if retry_after is None else retry_after)


def _too_large(limit: int) -> _Refused:
    return _Refused(
        413, "too-large", f"the body has more than {limit} bytes", "Send fewer events in one delivery.", close=True
    )


async def _expected(request: web.BaseRequest) -> None:
    """Answer `Expect: 100-continue` (RFC 9110, section 10.1.1), which senders use before a longer body."""
    if request.headers["Expect"].lower() != "100-continue":
        raise _Refused(417, "unknown-expectation", "only 100-continue is known", "Leave Expect away.", close=True)
    await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
    request.writer.output_size = 0  # so that the real answer counts as the first


def _where(error: BaseException) -> str:
    """The last places in the code, without the error's words: these may quote the body."""
    frames = traceback.extract_tb(error.__traceback__)[-3:]
    return " < ".join(f"{frame.filename.rpartition('/')[2]}:{frame.lineno}" for frame in reversed(frames))
