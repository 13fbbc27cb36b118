"""The store opens, migrates, serialises its writers, and says so where it can't: on both databases alike."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import select, text

from offboard_worker.core.chain import GENESIS
from offboard_worker.denylist.facts import Fact, compact
from offboard_worker.errors import ConfigError, StoreUnavailable
from offboard_worker.store import audit
from offboard_worker.store.database import RowRefused, Store, new_id
from offboard_worker.store.denials import StoredLog
from offboard_worker.store.schema import REVISION, cases, counters, denials, metadata, people
from offboard_worker.store.schema import audit as audit_table


async def counts(store: Store) -> dict[str, int]:
    async with store.read() as conn:
        return {row.name: row.value for row in await conn.execute(select(counters))}


async def test_the_migrations_make_exactly_the_schema(store: Store) -> None:
    async with store.engine.connect() as conn:

        def differences(sync: Any) -> list[Any]:
            return list(compare_metadata(MigrationContext.configure(sync, opts={"compare_type": True}), metadata))

        assert await conn.run_sync(differences) == []


async def test_a_new_store_starts_at_nothing(store: Store) -> None:
    async with store.read() as conn:
        rows = {row.name: (row.value, row.text) for row in await conn.execute(select(counters))}
    assert rows["audit"] == (0, GENESIS)
    assert rows["denials"][0] == 0
    assert len(rows["denials"][1]) == 16
    assert await audit.verify(store, {}) == (0, 0)


async def test_opening_an_empty_database_makes_the_schema_and_opening_again_changes_nothing(empty_url: str) -> None:
    ids = set()
    for _ in range(2):
        store = await Store.open(empty_url)
        ids.add(await StoredLog(store).log_id())
        await store.close()
    assert len(ids) == 1


def _start(program: str, *arguments: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-c", program, *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


OPEN = """
import asyncio, sys
from offboard_worker.store.database import Store
async def main():
    store = await Store.open(sys.argv[1])
    async with store.write() as tx:
        tx.record("opened", sys.argv[2], "")
    print(tx.log_id)
    await store.close()
asyncio.run(main())
"""


@pytest.mark.integration
async def test_processes_that_open_an_empty_database_at_once_share_one_log(empty_url: str) -> None:
    started = [_start(OPEN, empty_url, str(number)) for number in range(3)]
    done = [await asyncio.to_thread(process.communicate, timeout=60) for process in started]
    assert [process.returncode for process in started] == [0, 0, 0], b"".join(err for _, err in done).decode()
    assert len({out for out, _ in done}) == 1
    store = await Store.open(empty_url)
    assert await audit.verify(store, {}) == (3, 0)
    await store.close()


async def test_a_store_of_a_newer_version_is_refused_with_advice(store: Store, store_url: str) -> None:
    async with store.write() as tx:
        await tx.conn.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(ConfigError, match="revision that this version doesn't know") as refused:
        await Store.open(store_url)
    assert "newer offboard-worker" in refused.value.advice
    async with store.read() as conn:
        assert (await conn.execute(text("SELECT version_num FROM alembic_version"))).scalar_one() == "9999"


def test_the_newest_migration_is_the_one_that_the_schema_names() -> None:
    from alembic.config import Config
    from alembic.script import ScriptDirectory

    from offboard_worker.store import migrations

    config = Config()
    config.set_main_option("script_location", str(Path(migrations.__file__).parent))
    assert ScriptDirectory.from_config(config).get_current_head() == REVISION


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("mysql://db.example.com/x", "mysql is not supported"),
        ("hunter2", "is no SQLAlchemy URL"),
        ("sqlite://", "names no file"),
        ("sqlite:///:memory:", "names no file"),
    ],
)
async def test_a_url_that_is_no_store_is_a_configuration_error(url: str, expected: str) -> None:
    with pytest.raises(ConfigError, match=expected) as refused:
        await Store.open(url)
    assert "hunter2" not in refused.value.message
    assert refused.value.advice


@pytest.mark.parametrize("url", ["sqlite:////proc/nowhere/x.db", "postgresql://u:hunter2@127.0.0.1:1/x"])
async def test_a_database_that_is_not_there_is_unavailable(url: str) -> None:
    with pytest.raises(StoreUnavailable) as refused:
        await Store.open(url)
    assert "hunter2" not in refused.value.message
    assert "store:" in refused.value.advice


async def test_writers_of_several_connections_follow_one_another(store: Store, open_store: Callable[[], Any]) -> None:
    stores = [store, await open_store(), await open_store()]
    order: list[tuple[int, int]] = []

    async def write(number: int) -> None:
        async with stores[number % 3].write() as tx:
            tx.record("wrote", "test", str(number))
            seq = tx.append_denial("deny", [Fact(f"person|{number}", True)], who="test", reason="r")
            if number % 2:
                tx.record("and-more", "test", str(number))
        order.append((seq, number))

    await asyncio.gather(*(write(number) for number in range(20)))
    assert sorted(seq for seq, _ in order) == list(range(1, 21))
    async with store.read() as conn:
        rows = (await conn.execute(select(denials.c.seq, denials.c.facts).order_by(denials.c.seq))).all()
        records = (await conn.execute(select(audit_table).order_by(audit_table.c.seq))).all()
    assert [row.seq for row in rows] == list(range(1, 21))
    assert {seq: f"person|{number}" in rows[seq - 1].facts for seq, number in order} == dict.fromkeys(
        range(1, 21), True
    )
    assert [row.seq for row in records] == list(range(1, len(records) + 1))
    # Order of commit is order of both sequences: the audit tells of the denials in their order.
    told = [row.detail for row in records if row.what == "denylist.deny"]
    assert [f'"seq":{n}' in detail for n, detail in enumerate(told, 1)] == [True] * 20
    assert await audit.verify(store, {}) == (50, 0)
    assert await counts(store) == {"audit": 50, "denials": 20}


WRITE = """
import asyncio, sys
from offboard_worker.denylist.facts import Fact
from offboard_worker.store.database import Store
async def main():
    store = await Store.open(sys.argv[1])
    for number in range(25):
        async with store.write() as tx:
            tx.append_denial("deny", [Fact(f"person|{sys.argv[2]}-{number}", True)], who=sys.argv[2], reason="r")
    await store.close()
asyncio.run(main())
"""


@pytest.mark.integration
async def test_writers_of_two_processes_follow_one_another(store: Store, store_url: str) -> None:
    started = [_start(WRITE, store_url, name) for name in ("a", "b")]
    done = [await asyncio.to_thread(process.communicate, timeout=60) for process in started]
    assert [process.returncode for process in started] == [0, 0], b"".join(err for _, err in done).decode()
    entries = await StoredLog(store).since(0, 100)
    assert [entry.seq for entry in entries] == list(range(1, 51))
    assert len({entry.facts[0].key for entry in entries}) == 50
    assert await audit.verify(store, {}) == (50, 0)


async def test_a_transaction_that_fails_leaves_no_trace(store: Store) -> None:
    async def half_way() -> None:
        async with store.write() as tx:
            tx.record("wrote", "test", "x")
            tx.append_denial("deny", [Fact("person|x", True)], who="test", reason="r")
            await tx.flush()
            raise RuntimeError("half way")

    with pytest.raises(RuntimeError, match="half way"):
        await half_way()
    assert await counts(store) == {"audit": 0, "denials": 0}
    async with store.read() as conn:
        assert (await conn.execute(select(denials))).all() == []
        assert (await conn.execute(select(audit_table))).all() == []
    async with store.write() as tx:
        assert tx.append_denial("deny", [], who="test", reason="r") == 1


async def test_a_row_that_the_database_refuses_is_told_apart_without_its_values(store: Store) -> None:
    row = {"id": "p-hunter2", "name": "", "state": "active", "generation": 0, "protected": False, "created_at": 0.0}
    with pytest.raises(RowRefused) as refused:
        async with store.write() as tx:
            await tx.conn.execute(people.insert(), [row, row])
    assert isinstance(refused.value, StoreUnavailable)
    assert "hunter2" not in refused.value.message
    assert refused.value.__cause__ is not None


async def test_a_reference_to_nobody_is_refused(store: Store) -> None:
    """Foreign keys are on, in SQLite as well."""
    row = {"id": "c-1", "person_id": "p-nobody", "state": "open", "reason": "", "opened_by": "x", "opened_at": 0.0}
    row |= {"accepted_at": 0.0, "refused_by": "{}", "approved_by": "", "updated_at": 0.0}
    with pytest.raises(RowRefused):
        async with store.write() as tx:
            await tx.conn.execute(cases.insert(), [row])


async def test_a_read_sees_one_moment(store: Store) -> None:
    async with store.read() as conn:
        before = (await conn.execute(select(counters.c.value).where(counters.c.name == "audit"))).scalar_one()
        async with store.write() as tx:
            tx.record("wrote", "test", "x")
        again = (await conn.execute(select(counters.c.value).where(counters.c.name == "audit"))).scalar_one()
    assert (before, again) == (0, 0)
    assert (await counts(store))["audit"] == 1


async def test_sqlite_is_synced_at_each_commit(tmp_path: Path, sqlite_template: Path) -> None:
    store = await Store.open(f"sqlite:///{sqlite_template}")
    async with store.read() as conn:
        assert (await conn.execute(text("PRAGMA journal_mode"))).scalar_one() == "wal"
        assert (await conn.execute(text("PRAGMA synchronous"))).scalar_one() == 2
    await store.close()


async def test_the_folded_facts_are_what_the_log_says(store: Store) -> None:
    async with store.write() as tx:
        tx.append_denial("deny", [Fact("person|a", True, 1), Fact("email|a@example.com", True, 5)], who="t", reason="r")
        tx.append_denial("lift", [Fact("person|a", False, 2)], who="t", reason="r")
    async with store.write() as tx:
        tx.append_denial("deny", [Fact("person|b", True, 1)], who="t", reason="r")
    log = StoredLog(store)
    head, facts = await log.facts()
    assert head == 3 == await log.head()
    assert {fact.key: fact for fact in facts} == compact(await log.since(0, 100), now=0.0)


async def test_the_log_is_read_from_anywhere(store: Store) -> None:
    async with store.write() as tx:
        for number in range(5):
            tx.append_denial("deny", [Fact(f"person|{number}", True)], who="t", reason="r")
    log = StoredLog(store)
    assert [entry.seq for entry in await log.since(0, 2)] == [1, 2]
    assert [entry.seq for entry in await log.since(2, 2)] == [3, 4]
    assert await log.since(5, 2) == []


def test_ids_are_unique_sort_by_time_and_are_safe_in_urls() -> None:
    ids = [new_id("c") for _ in range(1000)]
    assert len(set(ids)) == 1000
    assert all(part.isalnum() for one in ids for part in [one.removeprefix("c-")])
    assert ids[0][:10] <= ids[-1][:10]
    assert max(map(len, ids)) <= 32
