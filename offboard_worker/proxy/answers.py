"""The answers that the proxy gives by itself, and the response that carries an upstream's answer unchanged."""

from __future__ import annotations

import json
from typing import Final

from aiohttp import hdrs, web
from multidict import CIMultiDict

from offboard_worker.proxy.admission import Refused
from offboard_worker.proxy.roles import Refusal

SERVER: Final = "offboard-proxy"


def refusal(refused: Refused, *, close: bool = False) -> web.Response:
    """Say why a request does not pass: small JSON with error, message and advice."""
    body = {"error": refused.error, "message": str(refused), "advice": refused.advice}
    response = web.Response(
        status=refused.status,
        body=json.dumps(body).encode(),
        content_type="application/json",
        headers={"Cache-Control": "no-store", "Server": SERVER},
    )
    if refused.status == 401:
        response.headers["WWW-Authenticate"] = _challenge(refused)
    if refused.retry_after:
        response.headers["Retry-After"] = str(refused.retry_after)
    if close:
        response.force_close()
    return response


def trouble(reason: str, status: int, message: str, *, advice: str = "", retry_after: int = 0) -> Refused:
    """The refusal for something that went wrong beyond the decision (an upstream, a body)."""
    return Refused(Refusal(reason, message, status), advice=advice, retry_after=retry_after)


def _challenge(refused: Refused) -> str:
    """RFC 6750 section 3: no error code where no token was sent."""
    if refused.error == "no-token":
        return 'Bearer realm="offboard-proxy"'
    description = str(refused).replace("\\", "").replace('"', "'")
    return f'Bearer realm="offboard-proxy", error="invalid_token", error_description="{description}"'


class Relayed(web.StreamResponse):
    """An upstream's answer on its way: aiohttp adds no header to it, and an answer that broke off is not rounded off."""

    def __init__(self, status: int, reason: str | None, headers: CIMultiDict[str]) -> None:
        super().__init__(status=status, reason=reason, headers=headers)
        self._own = {name for name in (hdrs.CONTENT_TYPE, hdrs.SERVER) if name not in headers}
        self.broken = False

    async def _prepare_headers(self) -> None:
        await super()._prepare_headers()
        for name in self._own:
            self.headers.popall(name, None)

    async def write_eof(self, data: bytes = b"") -> None:
        if not self.broken:
            await super().write_eof(data)
