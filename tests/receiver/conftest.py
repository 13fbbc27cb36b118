"""A receiver on loopback with a real SQLite store, a real Okta source, and one small source that tests can steer."""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, ClassVar

import pytest
from aiohttp import ClientSession
from sqlalchemy import func, select

from offboard_worker.config import ReceiverSettings
from offboard_worker.core.event import EventKind, IdentityEvent
from offboard_worker.core.person import Subject
from offboard_worker.core.policy import Rules
from offboard_worker.errors import BadSignature
from offboard_worker.jobs.rulebook import Accepted, Rulebook, SourceFacts
from offboard_worker.receiver import Receiver
from offboard_worker.secret import Secret
from offboard_worker.sources.okta import OktaConfig, OktaHook
from offboard_worker.sources.source import Answer, Delivery, Source, SourceConfig, Statement
from offboard_worker.store import schema
from offboard_worker.store.database import Store

SECRET = "canary-hook-secret-7f3a"
ISSUER = "https://example.okta.com"
FIXTURES = Path(__file__).parents[1] / "fixtures"


class PlainConfig(SourceConfig):
    pass


class Plain(Source[PlainConfig]):
    """Takes `{"key", "person", "kind"}`; `trouble` is raised by whichever step it names."""

    name: ClassVar[str] = "plain"
    title: ClassVar[str] = "plain test source"
    Config: ClassVar[type[SourceConfig]] = PlainConfig

    def __init__(self, instance: str, config: PlainConfig) -> None:
        super().__init__(instance, config)
        self.trouble: dict[str, Exception] = {}

    def _may_raise(self, step: str) -> None:
        if step in self.trouble:
            raise self.trouble[step]

    async def verify(self, delivery: Delivery, now: datetime) -> None:
        self._may_raise("verify")
        if delivery.headers.get("x-secret") != SECRET:
            raise BadSignature("the X-Secret header is missing or wrong")

    def parse(self, delivery: Delivery) -> Iterable[Statement]:
        self._may_raise("parse")
        said = json.loads(delivery.body)
        subject = Subject(self.system, id=said["person"], name=said.get("name", ""))
        yield IdentityEvent(self.instance, said["key"], EventKind(said["kind"]), subject, delivery.received_at)

    def answer(self, delivery: Delivery) -> Answer:
        return Answer.json({"taken": True}, status=202)


@dataclass
class World:
    """One receiver and everything around it."""

    store: Store
    okta: OktaHook
    plain: Plain
    receiver: Receiver
    http: ClientSession
    push: Callable[[], Awaitable[int]]
    enqueue: Callable[[Accepted], Awaitable[None]]
    pushes: int = 0
    nudges: int = 0
    lacking: list[str] = field(default_factory=list)
    enqueued: list[Accepted] = field(default_factory=list)

    async def okta_event(self, body: bytes | None = None, **headers: str) -> tuple[int, bytes, dict[str, str]]:
        return await self.post("okta-main", leaver() if body is None else body, Authorization=SECRET, **headers)

    async def say(self, person: str, key: str | None = None, kind: str = "account-disabled", **more: str) -> int:
        body = json.dumps({"person": person, "key": key or uuid.uuid4().hex, "kind": kind, **more}).encode()
        return (await self.post("plain", body, **{"X-Secret": SECRET}))[0]

    async def post(self, source: str, body: Any, **headers: str) -> tuple[int, bytes, dict[str, str]]:
        return await self.ask("POST", f"/webhooks/{source}", data=body, headers=headers)

    async def ask(self, method: str, path: str, **options: Any) -> tuple[int, bytes, dict[str, str]]:
        async with self.http.request(method, self.receiver.url + path, **options) as answer:
            return answer.status, await answer.read(), dict(answer.headers)

    async def count(self, table: str) -> int:
        async with self.store.read() as conn:
            found = await conn.execute(select(func.count()).select_from(schema.metadata.tables[table]))
            return int(found.scalar_one())

    async def metric(self, name: str) -> float:
        async with self.http.get(f"{self.receiver.metrics_url}/metrics") as answer:
            lines = (await answer.text()).splitlines()
        return sum(float(line.rpartition(" ")[2]) for line in lines if line.partition(" ")[0].partition("{")[0] == name)


def leaver(unique: str | None = None) -> bytes:
    """An Okta event hook that deactivates somebody new."""
    unique = unique or uuid.uuid4().hex
    text = (FIXTURES / "okta" / "deactivate.json").read_text()
    text = text.replace("11111111-0000-11ef-8000-000000000001", str(uuid.UUID(unique)))
    return text.replace("00uROBIN0001", f"00u{unique[:17]}").replace("robin.leaver@", f"p{unique[:12]}@").encode()


Build = Callable[..., Awaitable[World]]


def rulebook() -> Rulebook:
    return Rulebook(
        Rules(frozenset({"account-disabled", "account-purged"}), max_leavers=10_000),
        timedelta(hours=1),
        timedelta(seconds=5),
        {"aws-prod": "aws-prod", "okta-main": "okta-main"},
        {"okta-main": SourceFacts("okta-main"), "plain": SourceFacts("plain")},
        {"okta-main": (ISSUER,)},
    )


@pytest.fixture
async def build(tmp_path: Path) -> AsyncIterator[Build]:
    """Build a world; the settings given go to the receiver."""
    async with AsyncExitStack() as stack:

        async def make(*, store_kind: type[Store] = Store, **settings: Any) -> World:
            store = await store_kind.open(f"sqlite:///{tmp_path}/store.db", clock=lambda: datetime.now(UTC).timestamp())
            stack.push_async_callback(store.close)
            okta = OktaHook("okta-main", OktaConfig(type="okta", secret=Secret(SECRET), issuers=(ISSUER,)))
            plain = Plain("plain", PlainConfig(type="plain"))
            world: World

            async def push() -> int:
                world.pushes += 1
                return await world.push()

            async def enqueue(accepted: Accepted) -> None:
                await world.enqueue(accepted)
                world.enqueued.append(accepted)

            async def ready() -> list[str]:
                return world.lacking

            def contained() -> None:
                world.nudges += 1

            async def seq() -> int:
                return int(await world.count("denials"))

            async def nothing(_accepted: Accepted) -> None:
                await asyncio.sleep(0)

            receiver = Receiver(
                ReceiverSettings(listen="127.0.0.1:0", **settings),
                store=store,
                sources={"okta-main": okta, "plain": plain},
                book=rulebook(),
                push=push,
                enqueue=enqueue,
                contained=contained,
                ready=ready,
            )
            http = await stack.enter_async_context(ClientSession())
            world = World(store, okta, plain, receiver, http, seq, nothing)
            await stack.enter_async_context(receiver)
            return world

        yield make


@pytest.fixture
async def world(build: Build) -> World:
    return await build()
