"""An upstream that remembers what reached it and answers in every way that a proxy can get wrong."""

from __future__ import annotations

import asyncio
import hashlib
from dataclasses import dataclass, field
from typing import Self

from aiohttp import WSMsgType, web


@dataclass
class Seen:
    """One request as the upstream saw it."""

    method: str
    target: str
    headers: list[tuple[str, str]]
    body: bytes = b""

    def header(self, name: str) -> list[str]:
        return [value for found, value in self.headers if found.lower() == name.lower()]


@dataclass
class FakeUpstream:
    seen: list[Seen] = field(default_factory=list)
    url: str = ""
    open_streams: int = 0
    websockets: int = 0
    uploaded: int = 0
    close_codes: list[int | None] = field(default_factory=list)
    release: asyncio.Event = field(default_factory=asyncio.Event)

    async def __aenter__(self) -> Self:
        server = web.Server(self._answer, handler_cancellation=True, auto_decompress=False)
        self._runner = web.ServerRunner(server, shutdown_timeout=0.2)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        host, port = self._runner.addresses[0][:2]
        self.url = f"http://{host}:{port}"
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._runner.cleanup()

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        headers = [(name.decode(), value.decode("latin-1")) for name, value in request.raw_headers]
        seen = Seen(request.method, request.raw_path, headers)
        self.seen.append(seen)
        name = request.raw_path.partition("?")[0].rsplit("/", 1)[-1]
        answer = getattr(self, f"_{name.replace('-', '_')}", None)
        if answer is not None:
            response: web.StreamResponse = await answer(request)
            return response
        seen.body = await request.content.read()
        return web.Response(text=f"{request.method} {request.raw_path}", headers={"X-Upstream": "yes"})

    async def _sse(self, request: web.BaseRequest) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        self.open_streams += 1
        try:
            while True:
                await response.write(b"data: tick\n\n")
                await asyncio.sleep(0.01)
        finally:
            self.open_streams -= 1

    async def _upload(self, request: web.BaseRequest) -> web.StreamResponse:
        self.open_streams += 1
        digest = hashlib.sha256()
        try:
            async for piece in request.content.iter_any():
                self.uploaded += len(piece)
                digest.update(piece)
            return web.Response(text=digest.hexdigest())
        finally:
            self.open_streams -= 1

    async def _big(self, request: web.BaseRequest) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Length": str(64 * 1024 * 1024)})
        await response.prepare(request)
        for _ in range(1024):
            await response.write(b"x" * 65536)
            self.uploaded += 65536
        return response

    async def _silent(self, request: web.BaseRequest) -> web.StreamResponse:
        self.open_streams += 1
        try:
            await self.release.wait()
            return web.Response(text="late")
        finally:
            self.open_streams -= 1

    async def _redirect(self, request: web.BaseRequest) -> web.StreamResponse:
        return web.Response(status=302, headers={"Location": f"{self.url}/v1/stolen?k={request.headers['X-Api-Key']}"})

    async def _echo(self, request: web.BaseRequest) -> web.StreamResponse:
        text = "\n".join(f"{name}: {value}" for name, value in request.headers.items())
        return web.Response(text=text, headers={"X-Echo": request.headers.get("X-Api-Key", "")})

    async def _gzip(self, request: web.BaseRequest) -> web.StreamResponse:
        return web.Response(body=b"\x1f\x8bnot really", headers={"Content-Encoding": "gzip"})

    async def _nothing(self, request: web.BaseRequest) -> web.StreamResponse:
        return web.Response(status=204)

    async def _unchanged(self, request: web.BaseRequest) -> web.StreamResponse:
        return web.Response(status=304, headers={"ETag": '"1"'})

    async def _truncated(self, request: web.BaseRequest) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Length": "1000"})
        await response.prepare(request)
        await response.write(b"half")
        await asyncio.sleep(0.05)
        assert request.transport is not None
        request.transport.close()
        return response

    async def _truncated_chunked(self, request: web.BaseRequest) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(b"half")
        await asyncio.sleep(0.05)
        assert request.transport is not None
        request.transport.abort()
        return response

    async def _ws(self, request: web.BaseRequest) -> web.StreamResponse:
        socket = web.WebSocketResponse(protocols=("chat.v2",), timeout=1)
        await socket.prepare(request)
        self.websockets += 1
        try:
            async for message in socket:
                if message.type is WSMsgType.TEXT:
                    if message.data == "bye":
                        await socket.close(code=4001, message=b"enough")
                        break
                    await socket.send_str(f"echo {message.data}")
                elif message.type is WSMsgType.BINARY:
                    await socket.send_bytes(message.data)
            self.close_codes.append(socket.close_code)
            return socket
        finally:
            self.websockets -= 1

    async def _ws_redirect(self, request: web.BaseRequest) -> web.StreamResponse:
        return web.Response(status=302, headers={"Location": f"{self.url}/v1/stolen"})


__all__ = ["FakeUpstream", "Seen"]
