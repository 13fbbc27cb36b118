"""The fault machinery that all simulators share, on a vendor of two calls."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import aiohttp
import pytest
from aiohttp import web

from offboard_worker.demo.faults import Faults

pytestmark = pytest.mark.integration


@dataclass
class Lamps:
    lit: dict[str, bool] = field(default_factory=lambda: {"a": True, "b": True})


class World:
    """Lamps that can be read and put out."""

    def __init__(self) -> None:
        self.lamps = Lamps()
        self.faults = Faults(self.lamps)
        self.url = ""

    async def get(self, request: web.Request) -> web.Response:
        return web.json_response({"lit": self.lamps.lit[request.match_info["id"]]})

    async def put_out(self, request: web.Request) -> web.Response:
        self.lamps.lit[request.match_info["id"]] = False
        return web.json_response({"lit": self.lamps.lit[request.match_info["id"]]})


@pytest.fixture
async def world() -> AsyncIterator[World]:
    world = World()
    app = web.Application(middlewares=[world.faults.middleware])
    app.add_routes([web.get("/lamps/{id}", world.get), web.delete("/lamps/{id}", world.put_out)])
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    world.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    yield world
    await runner.cleanup()


@pytest.fixture
async def client(world: World) -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(world.url) as session:
        yield session


async def test_an_answer_is_given_as_often_as_told_and_nothing_is_done(
    world: World, client: aiohttp.ClientSession
) -> None:
    world.faults.answer("DELETE /lamps/*", status=429, headers={"Retry-After": "1"}, times=2)
    for expected in (429, 429, 200):
        assert world.lamps.lit["a"]
        async with client.delete("/lamps/a") as response:
            assert response.status == expected
            assert response.headers.get("Retry-After") == ("1" if expected == 429 else None)
    assert not world.lamps.lit["a"]


async def test_an_answer_can_hide_that_the_deed_was_done(world: World, client: aiohttp.ClientSession) -> None:
    world.faults.answer("DELETE /lamps/a", status=502, performed=True)
    async with client.delete("/lamps/a") as response:
        assert response.status == 502
    assert world.lamps.lit == {"a": False, "b": True}


async def test_a_lie_looks_exactly_like_the_truth_and_changes_nothing(
    world: World, client: aiohttp.ClientSession
) -> None:
    world.faults.lie("DELETE /lamps/*", times=1)
    async with client.delete("/lamps/a") as response:
        assert (response.status, await response.json()) == (200, {"lit": False})
    assert world.lamps.lit["a"]
    async with client.delete("/lamps/a") as response:
        assert await response.json() == {"lit": False}
    assert not world.lamps.lit["a"]


async def test_a_drop_cuts_the_body_in_half(world: World, client: aiohttp.ClientSession) -> None:
    world.faults.drop("GET /lamps/*")
    async with client.get("/lamps/a") as response:
        assert response.status == 200
        with pytest.raises(aiohttp.ClientPayloadError):
            await response.read()
    assert world.faults.calls[-1].status == 0


async def test_a_hang_says_nothing_until_the_client_gives_up(world: World, client: aiohttp.ClientSession) -> None:
    world.faults.hang("GET /lamps/*", seconds=30)
    with pytest.raises(TimeoutError):
        async with client.get("/lamps/a", timeout=aiohttp.ClientTimeout(total=0.2)):
            pass
    async with client.get("/lamps/a") as response:
        assert response.status == 200


async def test_latency_is_added_to_every_call(world: World, client: aiohttp.ClientSession) -> None:
    world.faults.latency = 0.1
    started = time.monotonic()
    await asyncio.gather(*(client.get("/lamps/a") for _ in range(3)))
    assert 0.1 <= time.monotonic() - started < 0.3, "the calls wait side by side"


async def test_a_star_is_one_segment_and_two_are_any(world: World, client: aiohttp.ClientSession) -> None:
    world.faults.answer("GET /*", status=500, times=None)
    async with client.get("/lamps/a") as response:
        assert response.status == 200
    world.faults.answer("* /**", status=500, times=None)
    async with client.delete("/lamps/a") as response:
        assert response.status == 500
    world.faults.clear()
    async with client.get("/lamps/a") as response:
        assert response.status == 200


async def test_the_log_holds_what_was_said_and_no_credentials(world: World, client: aiohttp.ClientSession) -> None:
    headers = {"Authorization": "Bearer hush", "Cookie": "sid=hush", "X-Other": "1"}
    async with client.get("/lamps/a", params={"q": "x y"}, headers=headers):
        pass
    async with client.get("/nowhere") as response:
        assert response.status == 404
    known, unknown = world.faults.calls
    assert known.line == "GET /lamps/a"
    assert known.query == (("q", "x y"),)
    assert known.headers["x-other"] == "1"
    assert "hush" not in repr(known)
    assert (known.status, known.answer_json()) == (200, {"lit": True})
    assert (unknown.status, world.faults.count("GET /**")) == (404, 2)
