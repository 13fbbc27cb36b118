"""What breaks around the receiver, and what the sender hears then."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

import pytest
from aiohttp import ClientSession, ClientTimeout
from sqlalchemy import Connection, event

from offboard_worker.errors import DenylistUnavailable, StoreUnavailable
from offboard_worker.jobs import intake
from offboard_worker.jobs.intake import Arrival
from offboard_worker.jobs.rulebook import Accepted, Rulebook
from offboard_worker.store.database import Store, Transaction
from tests.receiver.conftest import SECRET, Build, World, leaver

pytestmark = pytest.mark.integration


class BrokenStore(Store):
    """A store that fails its writes, or holds them up, when told to."""

    broken = False
    gate: asyncio.Event | None = None

    @asynccontextmanager
    async def write(self) -> AsyncIterator[Transaction]:
        if self.broken:
            raise StoreUnavailable("the store refused: disk I/O error")
        async with super().write() as tx:
            yield tx
            if self.gate is not None:
                await self.gate.wait()


async def until(condition: Callable[[], object]) -> None:
    """Wait until something that no event tells is so."""
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


def broken(world: World) -> BrokenStore:
    assert isinstance(world.store, BrokenStore)
    return world.store


async def test_a_store_that_fails_is_503_until_it_is_back(build: Build) -> None:
    world = await build(store_kind=BrokenStore)
    broken(world).broken = True
    body = leaver()
    status, answer, headers = await world.okta_event(body)
    assert (status, json.loads(answer)["error"]) == (503, "store-unavailable")
    assert int(headers["Retry-After"]) >= 1
    assert (world.pushes, world.enqueued) == (0, [])
    broken(world).broken = False
    assert (await world.okta_event(body))[0] == 200
    assert await world.count("cases") == 1


async def test_a_full_disk_is_503_and_nothing_of_the_delivery_stays(world: World) -> None:
    """SQLite's own limit on its pages: the real error at the real place."""
    assert (await world.okta_event())[0] == 200
    limit = 1

    def begin(connection: Connection) -> None:
        connection.exec_driver_sql(f"PRAGMA max_page_count={limit}")

    event.listen(world.store.engine.sync_engine, "begin", begin)
    bodies = [leaver().ljust(100_000) for _ in range(5)]
    for status, answer, headers in await asyncio.gather(*(world.okta_event(body) for body in bodies)):
        assert (status, json.loads(answer)["error"]) == (503, "store-unavailable")
        assert "Retry-After" in headers
    assert await world.count("deliveries") == await world.count("people") == 1
    limit = 1_000_000
    assert {status for status, *_ in await asyncio.gather(*(world.okta_event(body) for body in bodies))} == {200}
    assert await world.count("cases") == 6


async def test_one_poisonous_delivery_does_not_hurt_its_neighbours(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    genuine = intake.accept

    async def accept(tx: Transaction, arrivals: Sequence[Arrival], book: Rulebook) -> Accepted:
        if any(b"poison" in arrival.received.body for arrival in arrivals):
            raise ValueError("canary: poison")
        return await genuine(tx, arrivals, book)

    monkeypatch.setattr("offboard_worker.receiver.acceptance.accept", accept)
    people = [f"p{n}" for n in range(20)]
    statuses = await asyncio.gather(*(world.say(person) for person in [*people, "poison", *people]))
    assert statuses == [202] * 20 + [503] + [202] * 20
    assert await world.count("people") == 20
    assert "canary" not in caplog.text


async def test_a_row_that_the_database_refuses_hurts_only_its_own_delivery(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A real IntegrityError from the driver, in the middle of a shared transaction."""
    async with world.store.engine.begin() as conn:
        await conn.exec_driver_sql(
            "CREATE TRIGGER refuse BEFORE INSERT ON people WHEN NEW.name = 'poison' "
            "BEGIN SELECT RAISE(ABORT, 'refused by the test'); END"
        )
    statuses = await asyncio.gather(
        *(world.say(f"p{n}", name="poison" if n == 7 else "Robin") for n in range(20)),
    )
    assert statuses == [202] * 7 + [503] + [202] * 12
    assert await world.count("people") == 19


async def test_redis_away_does_not_change_the_answer_and_is_pushed_later(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    genuine = world.push

    async def away() -> int:
        raise DenylistUnavailable("Redis does not answer")

    world.push = away
    status, *_ = await world.okta_event()
    assert status == 200
    assert await world.count("denials") == 1
    assert world.nudges == 1, "whoever measures must know that a refusal is due"
    assert [len(accepted.cases) for accepted in world.enqueued] == [1]
    assert await world.metric("offboard_receiver_push_failures_total") == 1
    assert await world.metric("offboard_receiver_containment_pending") == 1
    assert "containment of denial 1 is pending: Redis does not answer" in caplog.text
    world.push = genuine
    async with asyncio.timeout(10):
        while await world.metric("offboard_receiver_containment_pending"):  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    assert world.nudges == 2


async def test_a_redis_that_hangs_holds_up_an_answer_for_push_wait_only(build: Build) -> None:
    world = await build(push_wait=0.2)

    async def hang() -> int:
        await asyncio.sleep(60)
        return 0

    world.push = hang
    started = time.monotonic()
    answers = await asyncio.gather(*(world.okta_event() for _ in range(5)))
    assert {status for status, *_ in answers} == {200}
    assert time.monotonic() - started < 5
    assert world.pushes <= 2, "hanging pushes pile up"
    assert await world.count("denials") == 5


async def test_a_queue_that_fails_or_hangs_does_not_change_the_answer(
    build: Build, caplog: pytest.LogCaptureFixture
) -> None:
    world = await build(push_wait=0.2)

    async def fail(_accepted: Accepted) -> None:
        raise ConnectionError("canary: redis://:password@queue.example.org")

    async def hang(_accepted: Accepted) -> None:
        await asyncio.sleep(60)

    for trouble in (fail, hang):
        world.enqueue = trouble
        assert (await world.okta_event())[0] == 200
    assert await world.count("cases") == 2
    assert await world.metric("offboard_receiver_enqueue_failures_total") == 2
    assert "canary" not in caplog.text


async def test_a_sender_that_goes_away_loses_nothing(build: Build) -> None:
    world = await build(store_kind=BrokenStore)
    broken(world).gate = gate = asyncio.Event()
    async with ClientSession(timeout=ClientTimeout(total=0.3)) as http:
        url = f"{world.receiver.url}/webhooks/okta-main"
        with pytest.raises(TimeoutError):
            await http.post(url, data=leaver(), headers={"Authorization": SECRET})
    gate.set()
    await until(lambda: world.enqueued)
    assert await world.count("cases") == 1
    assert world.pushes == 1


async def test_close_finishes_what_was_accepted_and_takes_nothing_more(build: Build) -> None:
    world = await build(store_kind=BrokenStore)
    broken(world).gate = gate = asyncio.Event()
    sending = [asyncio.create_task(world.okta_event()) for _ in range(10)]
    await until(lambda: world.receiver._in_flight == 10)
    closing = asyncio.create_task(world.receiver.close())
    await asyncio.sleep(0.1)
    with pytest.raises(OSError, match=r"[Cc]onnect"):
        await world.okta_event()
    assert not closing.done()
    gate.set()
    answers = await asyncio.gather(*sending)
    assert {status for status, *_ in answers} == {200}
    assert {headers.get("Connection") for *_, headers in answers} == {"close"}
    started = time.monotonic()
    await closing
    assert time.monotonic() - started < 5
    assert await world.count("cases") == 10
    assert sum(len(accepted.cases) for accepted in world.enqueued) == 10


async def test_close_waits_no_longer_than_drain_for_a_body_that_does_not_come(build: Build) -> None:
    world = await build(drain=0.3, body_timeout=60)
    host, port = world.receiver.url.removeprefix("http://").split(":")
    _, writer = await asyncio.open_connection(host, int(port))
    writer.write(
        f"POST /webhooks/okta-main HTTP/1.1\r\nHost: x\r\nAuthorization: {SECRET}\r\nContent-Length: 9\r\n\r\n".encode()
    )
    await until(lambda: world.receiver._in_flight)
    async with asyncio.timeout(8):
        await world.receiver.close()
    writer.close()
    with contextlib.suppress(ConnectionError):
        await writer.wait_closed()


async def test_idle_connections_do_not_hold_up_the_end(world: World) -> None:
    assert (await world.okta_event())[0] == 200  # its connection stays open in the client's pool
    async with asyncio.timeout(3):
        await world.receiver.close()
    await world.receiver.close()


async def test_healthz_lives_and_readyz_names_what_lacks(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("offboard_worker.receiver.server.READY_FOR", 0.0)
    world = await build(store_kind=BrokenStore)
    assert (await world.ask("GET", "/healthz"))[0] == 200
    status, body, _ = await world.ask("GET", "/readyz")
    assert (status, json.loads(body)) == (200, {"status": "ready"})
    world.lacking = ["redis does not answer"]
    status, body, headers = await world.ask("GET", "/readyz")
    assert (status, json.loads(body)["reasons"], headers["Retry-After"]) == (503, ["redis does not answer"], "1")
    broken(world).broken = True
    status, body, _ = await world.ask("GET", "/readyz")
    assert (status, json.loads(body)["reasons"]) == (503, ["the store refused: disk I/O error"])
    assert (await world.ask("GET", "/healthz"))[0] == 200


async def test_readyz_asks_the_store_once_a_second_however_often_it_is_asked(build: Build) -> None:
    world = await build(store_kind=BrokenStore)
    await world.ask("GET", "/readyz")
    broken(world).broken = True
    assert (await world.ask("GET", "/readyz"))[0] == 200


async def test_importing_the_receiver_imports_no_sdk_and_no_queue() -> None:
    code = (
        "import sys, offboard_worker.receiver\n"
        "print([m for m in ('boto3', 'botocore', 'okta', 'msgraph', 'azure', 'rq', 'alembic') if m in sys.modules])"
    )
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", code, stdout=asyncio.subprocess.PIPE)
    output, _ = await process.communicate()
    assert output.decode().strip() == "[]"
