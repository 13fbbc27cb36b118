"""The write-ahead log is kept short beside the writers."""

from __future__ import annotations

import sqlite3
import time
from pathlib import Path

import pytest

from offboard_worker.store.wal import EVERY, LONG, short_log


def _write(db: sqlite3.Connection, size: int) -> None:
    for _ in range(size // 100_000):
        db.execute("INSERT INTO t VALUES (randomblob(100000))")
        db.commit()


@pytest.mark.integration
def test_a_long_log_is_moved_into_the_database_while_the_writer_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    db = sqlite3.connect(path)
    db.execute("PRAGMA journal_mode=WAL")
    db.execute("PRAGMA wal_autocheckpoint=0")
    db.execute("CREATE TABLE t (x)")
    with short_log(f"sqlite:///{path}"):
        _write(db, 2 * LONG)
        until = time.monotonic() + 10
        while path.stat().st_size < LONG and time.monotonic() < until:
            time.sleep(0.05)
        assert path.stat().st_size >= LONG  # checkpointed: the writer itself never does it
        time.sleep(4 * EVERY)  # all of it is moved now: the next writer begins at the log's start again
        size = (tmp_path / "store.db-wal").stat().st_size
        _write(db, LONG // 2)
        assert (tmp_path / "store.db-wal").stat().st_size == size
    db.close()


def test_a_store_that_is_not_sqlite_is_left_alone() -> None:
    with short_log("postgresql://nobody@127.0.0.1:1/none"):
        pass
