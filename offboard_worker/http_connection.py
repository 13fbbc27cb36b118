"""One HTTP connection whose heads must come within their time: what receiver and proxy share.

It extends aiohttp's low-level server (https://docs.aiohttp.org/en/stable/web_lowlevel.html), which has a time limit for
idle connections alone: a head that trickles in would hold a slot for ever. It knows no route and answers nothing.
"""

from __future__ import annotations

import asyncio
import logging

from aiohttp import web
from aiohttp.web_protocol import RequestHandler

log = logging.getLogger(__name__)


class TimedConnection(RequestHandler):
    """One connection. Its head timer runs whenever no request is being answered. `head_timeout` is in seconds."""

    __slots__ = ("_head_timeout", "_head_timer")

    def __init__(self, manager: web.Server, *, head_timeout: float, **settings: object) -> None:
        super().__init__(manager, **settings)  # type: ignore[arg-type]
        self._head_timeout = head_timeout
        self._head_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._arm()

    def connection_lost(self, exc: BaseException | None) -> None:
        self._disarm()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        before = self._request_count
        super().data_received(data)
        if self._request_count > before:
            self._disarm()
        elif self._head_timer is None and data:
            self._arm()

    def close_if_idle(self) -> None:
        """Close the connection unless a request is being answered on it."""
        if self._current_request is None and not self._messages:
            self.close()

    def _arm(self) -> None:
        self._head_timer = self._loop.call_later(self._head_timeout, self._head_is_late)

    def _disarm(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _head_is_late(self) -> None:
        self._head_timer = None
        if self._current_request is not None or self._messages or self._payload_parser is not None:
            self._arm()  # a body or a WebSocket, which have their own limits; a head behind it has its time afterwards
        elif self.transport is not None:
            self.transport.abort()

    def log_exception(self, *args: object, **kwargs: object) -> None:
        """aiohttp's own words hold pieces of what was received."""
        log.warning("a connection failed: %s", type(kwargs.get("exc_info")).__name__)
