"""Keeps SQLite's write-ahead log short from a thread of its own, so that no commit has to stop for a checkpoint.

A passive checkpoint waits for nobody and holds nobody up. Where no process runs this, SQLite checkpoints by itself in
one of the commits, later (`wal_autocheckpoint`). https://www.sqlite.org/wal.html#application_initiated_checkpoints
"""

from __future__ import annotations

import contextlib
import logging
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from sqlalchemy.engine import make_url

log = logging.getLogger(__name__)

EVERY: Final = 0.2
"""Seconds between looks at the log."""
LONG: Final = 4 * 1024 * 1024
"""Bytes from which on the log is worth a checkpoint."""


@contextlib.contextmanager
def short_log(url: str) -> Iterator[None]:
    """Keep the log of a SQLite store short while the block runs; do nothing for any other store."""
    parsed = make_url(url)
    if parsed.get_backend_name() != "sqlite" or not parsed.database:
        yield
        return
    stop = threading.Event()
    keeper = threading.Thread(target=_keep, args=(Path(parsed.database), stop), name="sqlite checkpoints", daemon=True)
    keeper.start()
    try:
        yield
    finally:
        stop.set()
        keeper.join(5)


def _keep(database: Path, stop: threading.Event) -> None:
    wal = database.with_name(database.name + "-wal")
    trouble = ""
    while not stop.wait(EVERY):
        try:
            if wal.stat().st_size < LONG:
                continue
            with contextlib.closing(sqlite3.connect(database, timeout=1)) as db:
                while not stop.wait(EVERY):
                    db.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
        except (OSError, sqlite3.Error) as error:  # SQLite does it by itself, if need be
            if str(error) != trouble:
                log.warning("the store's log can't be checkpointed beside the writers: %s", error)
            trouble = str(error)
