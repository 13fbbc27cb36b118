"""The office in which the tests of jobs work: a real store, a real Valkey, and a toy system."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from offboard_worker.denylist.connection import open_blocking_client
from offboard_worker.denylist.embedded import EmbeddedValkey
from offboard_worker.jobs.queue import Queues
from offboard_worker.store.database import Store
from tests.conftest import Clock
from tests.jobs.toy import QUICK, Office
from tests.jobs.toy import office as open_office


@pytest.fixture
def sqlite_url(sqlite_template: Path, tmp_path: Path) -> str:
    """A migrated SQLite store: for what doesn't depend on the database."""
    path = tmp_path / "offboard.db"
    path.write_bytes(sqlite_template.read_bytes())
    return f"sqlite:///{path}"


@pytest.fixture
async def office(sqlite_url: str, clock: Clock, valkey: EmbeddedValkey) -> AsyncIterator[Office]:
    store = await Store.open(sqlite_url, clock=clock)
    async with open_office(store, valkey.url) as opened:
        yield opened
    await store.close()


@pytest.fixture
def queues(valkey: EmbeddedValkey) -> Iterator[Queues]:
    client = open_blocking_client(valkey.url, 5.0)
    yield Queues(client, QUICK)
    client.close()
