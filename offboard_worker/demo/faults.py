"""What can go wrong at a simulated vendor, on demand, and a log of every call that it got.

An aiohttp middleware that all simulators share. It knows HTTP and nothing of any vendor. Faults are matched by
"METHOD /path/glob": `*` is one path segment, `**` any number of them, a `*` for the method is any method. The latest
fault that matches wins, and one that has been used up `times` times is gone.
"""

from __future__ import annotations

import asyncio
import copy
import json as jsonlib
import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from aiohttp import hdrs, web
from aiohttp.typedefs import Middleware

Answering = Callable[[web.Request], Awaitable[web.StreamResponse]]

SENSITIVE = frozenset({"authorization", "cookie", "proxy-authorization"})


@dataclass(frozen=True, slots=True)
class Call:
    """One request that reached the simulator, and what it was told. Credentials in headers are left out.

    `query` keeps order and repetition; header names are lower case; `status` is 0 where no answer was completed.
    """

    method: str
    path: str
    query: tuple[tuple[str, str], ...]
    headers: Mapping[str, str]
    body: str
    status: int
    answer: str
    answer_headers: Mapping[str, str]
    faulty: bool = False  # the answer was made up by a fault

    @property
    def line(self) -> str:
        """Method and path, as a test writes them."""
        return f"{self.method} {self.path}"

    def json(self) -> Any:
        """The request's body, parsed."""
        return jsonlib.loads(self.body)

    def answer_json(self) -> Any:
        """The answer's body, parsed."""
        return jsonlib.loads(self.answer)


class _Way(Enum):
    ANSWER = "answer"
    LIE = "lie"
    HANG = "hang"
    DROP = "drop"


@dataclass(slots=True)
class _Fault:
    pattern: re.Pattern[str]
    way: _Way
    times: int | None
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    body: str = ""
    performed: bool = False
    seconds: float = 0.0


class Faults:
    """The faults of one simulator and its request log.

    `state` is the object whose attributes hold everything the simulator can change: a lie lets the vendor's own code
    answer over a copy of it, so that the answer is exactly right and nothing has happened.
    """

    def __init__(self, state: object) -> None:
        self._state = state
        self._queue: list[_Fault] = []
        self.latency = 0.0  # seconds, before every answer
        self.calls: list[Call] = []

    def answer(
        self,
        pattern: str,
        *,
        status: int,
        headers: Mapping[str, str] | None = None,
        json: Any = None,
        text: str = "",
        content_type: str = "",
        times: int | None = 1,
        performed: bool = False,
    ) -> None:
        """Answer with `status` and a body; with `performed` the deed is done all the same. `times=None` is for ever."""
        body = text if json is None else jsonlib.dumps(json)
        kind = content_type or ("application/json" if json is not None else "text/plain")
        sent = {**(headers or {}), hdrs.CONTENT_TYPE: kind}
        self._add(pattern, _Way.ANSWER, times, status=status, headers=sent, body=body, performed=performed)

    def lie(self, pattern: str, *, times: int | None = None) -> None:
        """Answer success and change nothing, for ever unless told otherwise."""
        self._add(pattern, _Way.LIE, times)

    def hang(self, pattern: str, seconds: float, *, times: int | None = 1, performed: bool = False) -> None:
        """Say nothing for `seconds`, then cut the connection; with `performed` the deed was done at once."""
        self._add(pattern, _Way.HANG, times, seconds=seconds, performed=performed)

    def drop(self, pattern: str, *, times: int | None = 1, performed: bool = False) -> None:
        """Send a status line, headers and half of the body, then cut the connection."""
        self._add(pattern, _Way.DROP, times, performed=performed)

    def clear(self) -> None:
        """Forget every fault and the latency; the log stays."""
        self._queue.clear()
        self.latency = 0.0

    @property
    def prepared(self) -> int:
        """How many faults are still waiting for their call."""
        return len(self._queue)

    def count(self, pattern: str) -> int:
        """How many calls so far match the pattern."""
        compiled = _compiled(pattern)
        return sum(1 for call in self.calls if compiled.fullmatch(call.line))

    def _add(self, pattern: str, way: _Way, times: int | None, **what: Any) -> None:
        self._queue.append(_Fault(_compiled(pattern), way, times, **what))

    def _take(self, line: str) -> _Fault | None:
        for fault in reversed(self._queue):
            if fault.pattern.fullmatch(line):
                if fault.times is not None:
                    fault.times -= 1
                    if fault.times <= 0:
                        self._queue.remove(fault)
                return fault
        return None

    @property
    def middleware(self) -> Middleware:
        """What the simulator's Application lists among its middlewares: first, so that it sees everything."""

        @web.middleware
        async def faulty(request: web.Request, handler: Answering) -> web.StreamResponse:
            # Read whole before anything is answered: from here to the answer a simulator never waits, so that no other
            # call can see the copy of the state over which a lie is told.
            body = (await request.read()).decode("utf-8", "replace")
            if self.latency:
                await asyncio.sleep(self.latency)
            fault = self._take(f"{request.method} {request.path}")
            response: web.StreamResponse | None = None
            try:
                response = await self._respond(request, handler, fault)
                return response
            finally:
                self._log(request, body, response, fault)

        return faulty

    async def _respond(self, request: web.Request, handler: Answering, fault: _Fault | None) -> web.StreamResponse:
        if fault is None:
            return await _answered(handler, request)
        if fault.way is _Way.LIE:
            return await self._pretend(request, handler)
        if fault.performed:
            await _answered(handler, request)
        if fault.way is _Way.HANG:
            await asyncio.sleep(fault.seconds)
            return await _cut(request)
        if fault.way is _Way.DROP:
            return await _cut(request, half=b'{"half":')
        return web.Response(status=fault.status, text=fault.body, headers=fault.headers)

    async def _pretend(self, request: web.Request, handler: Answering) -> web.StreamResponse:
        attributes = vars(self._state)
        kept = dict(attributes)
        attributes.update(copy.deepcopy(kept))
        try:
            return await _answered(handler, request)
        finally:
            attributes.clear()
            attributes.update(kept)

    def _log(self, request: web.Request, body: str, response: web.StreamResponse | None, fault: _Fault | None) -> None:
        whole = isinstance(response, web.Response)
        self.calls.append(
            Call(
                method=request.method,
                path=request.path,
                query=tuple(request.query.items()),
                headers={k.lower(): v for k, v in request.headers.items() if k.lower() not in SENSITIVE},
                body=body,
                status=response.status if response is not None and whole else 0,
                answer=(response.text or "") if isinstance(response, web.Response) else "",
                answer_headers={k.lower(): v for k, v in response.headers.items()} if response is not None else {},
                faulty=fault is not None and fault.way is not _Way.LIE,
            )
        )


async def _answered(handler: Answering, request: web.Request) -> web.StreamResponse:
    """Run the simulator's own code; aiohttp's HTTP exceptions (404, 405) are answers like any other."""
    try:
        return await handler(request)
    except web.HTTPException as answer:
        return web.Response(status=answer.status, text=answer.text, headers=answer.headers)


async def _cut(request: web.Request, half: bytes = b"") -> web.StreamResponse:
    """End the connection, after half of a promised body where one is given."""
    response = web.StreamResponse(headers={hdrs.CONTENT_TYPE: "application/json"})
    if half:
        response.content_length = len(half) * 2
        await response.prepare(request)
        await response.write(half)
    if request.transport is not None:
        request.transport.abort()
    return response


def _compiled(pattern: str) -> re.Pattern[str]:
    """Turn "METHOD /path/glob" into the regular expression of a call's line."""
    method, _, path = pattern.partition(" ")
    parts = (re.escape(part).replace(r"\*\*", ".*").replace(r"\*", "[^/]+") for part in path.split("/"))
    return re.compile(("[A-Z]+" if method == "*" else re.escape(method)) + " " + "/".join(parts))
