"""The servers that tests share come empty to each of them."""

from __future__ import annotations

import pytest

from offboard_worker.denylist.connection import open_client
from offboard_worker.denylist.embedded import EmbeddedValkey
from offboard_worker.store import audit
from offboard_worker.store.database import Store


@pytest.mark.integration
@pytest.mark.parametrize("time", [1, 2])
async def test_the_valkey_is_empty(valkey: EmbeddedValkey, time: int) -> None:
    client = open_client(valkey.url, 2.0)
    assert await client.dbsize() == 0
    await client.set("left-behind", time)
    await client.aclose()


@pytest.mark.parametrize("time", [1, 2])
async def test_the_store_is_empty(store: Store, time: int) -> None:
    assert await audit.verify(store, {}) == (0, 0)
    async with store.write() as tx:
        tx.record("left-behind", "test", str(time))
