"""One connection to the receiver, and answers that refuse: no error repeats what was received.

It knows nothing of sources.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable, Mapping

from aiohttp import web
from aiohttp.web_protocol import RequestHandler

from offboard_worker.config import ReceiverSettings
from offboard_worker.http_connection import TimedConnection

log = logging.getLogger("offboard_worker.receiver")

LINGER = 1.0
"""Seconds for which a body that is not wanted is read away, so that the sender sees the answer before the reset."""
MAX_HEAD = 16 * 1024

Endpoint = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]


class Entrance(web.Server):
    """Makes a `Connection` for each client."""

    def __init__(self, endpoint: Endpoint, settings: ReceiverSettings) -> None:
        super().__init__(endpoint)
        self._settings = settings

    def __call__(self) -> RequestHandler:
        return Connection(
            self,
            loop=asyncio.get_running_loop(),
            head_timeout=self._settings.head_timeout.total_seconds(),
            keepalive_timeout=self._settings.keepalive.total_seconds(),
            max_line_size=MAX_HEAD,
            max_field_size=MAX_HEAD,
            lingering_time=LINGER,
            auto_decompress=False,  # signatures are over the raw bytes
            access_log=None,
        )

    def close_idle(self) -> None:
        """Close connections on which nothing is being answered."""
        for connection in self.connections:
            if isinstance(connection, Connection):
                connection.close_if_idle()


class Connection(TimedConnection):
    """One connection of a sender's."""

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Answer a head that is not HTTP, or a fault of ours, without a word of what was received."""
        if request.writer.output_size > 0:
            raise ConnectionError("the answer had begun")
        if status == 400:
            return refusal(400, "malformed-http", "the request is not valid HTTP", "Send HTTP/1.1.", close=True)
        log.error("a request failed: %s", type(exc).__name__)
        return refusal(503, "fault", "the receiver failed", "Send it again.", retry_after=5, close=True)


def refusal(
    status: int,
    error: str,
    message: str,
    advice: str,
    *,
    retry_after: float | None = None,
    headers: Mapping[str, str] | None = None,
    close: bool = False,
) -> web.Response:
    """Build the answer that refuses: small JSON with what happened and what to do."""
    body = json.dumps({"error": error, "message": message, "advice": advice}).encode()
    fields = {"Server": "offboard-worker", **(headers or {})}
    if retry_after is not None:
        fields["Retry-After"] = str(max(1, round(retry_after)))
    response = web.Response(status=status, body=body, content_type="application/json", headers=fields)
    if close:
        response.force_close()
    return response
