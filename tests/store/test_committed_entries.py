"""What a process committed to the denial log itself is pushed without a read, and never with a gap."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from offboard_worker.denylist.facts import Entry, Fact
from offboard_worker.store.database import Store
from offboard_worker.store.denials import StoredLog


async def deny(store: Store, key: str) -> int:
    async with store.write() as tx:
        return tx.append_denial("deny", [Fact(key, True)], who="test", reason="test")


async def test_own_entries_are_the_same_as_those_in_the_store(store: Store, open_store: Callable[[], Any]) -> None:
    for number in range(3):
        await deny(store, f"person|p{number}")
    remembered = store.just_committed(0, 100)
    assert [entry.seq for entry in remembered] == [1, 2, 3]
    another = await open_store()
    assert another.just_committed(0, 100) == []
    assert list(await StoredLog(another).since(0, 100)) == remembered
    assert list(await StoredLog(store).since(2, 100)) == remembered[2:]


async def test_entries_of_another_process_in_between_are_read(store: Store, open_store: Callable[[], Any]) -> None:
    """Otherwise a push would end before the gap, and what was committed after it would wait for the next one."""
    another = await open_store()
    await deny(store, "person|a")
    await deny(another, "person|b")
    await deny(store, "person|c")
    assert store.just_committed(0, 100) == []
    assert [entry.seq for entry in await StoredLog(store).since(0, 100)] == [1, 2, 3]
    assert [entry.seq for entry in store.just_committed(2, 100)] == [3]


async def test_what_was_rolled_back_is_not_remembered(store: Store) -> None:
    async def stumble() -> None:
        async with store.write() as tx:
            tx.append_denial("deny", [Fact("person|a", True)], who="test", reason="test")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await stumble()
    assert store.just_committed(0, 100) == []
    assert list(await StoredLog(store).since(0, 100)) == []


async def test_only_the_latest_are_remembered(store: Store) -> None:
    for seq in range(1, 301):
        store._keep([Entry(seq, (), 0.0)])
    assert store.just_committed(0, 1000) == []
    assert len(store.just_committed(300 - 256, 1000)) == 256
