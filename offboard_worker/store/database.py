"""The engine and its transactions.

Every write takes the counters' row first, so that writers of all processes follow one another: order of commit is
order of `seq`, in the denial log and in the audit chain alike. Throughput comes from group commit, not from writers
side by side. SQLite runs in WAL mode with synchronous=FULL: what was committed survives the machine's death.
"""

from __future__ import annotations

import json
import os
import secrets
import sqlite3
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from sqlalchemy import event, insert, select, update
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, DataError, DBAPIError, IntegrityError, SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from offboard_worker.core.chain import GENESIS, canonical_text, seal
from offboard_worker.denylist.facts import Entry, Fact
from offboard_worker.errors import ConfigError, StoreUnavailable
from offboard_worker.store.direct import Insert, Query, Row, begin_write, has_ended, insert_all
from offboard_worker.store.schema import REVISION, audit, counters, denial_facts, denials

_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"
_PAIRS = [first + second for first in _ALPHABET for second in _ALPHABET]


def new_id(prefix: str) -> str:
    """Return a fresh id such as `c-1m86hqch5whv5xakp`: sorts by time, safe in URLs, hard to guess."""
    number = (int(time.time() * 1000) << 40) | int.from_bytes(os.urandom(5))
    pairs = _PAIRS  # ten bits a look-up: hundreds of ids are made per commit
    return (
        f"{prefix}-{pairs[number >> 80 & 1023]}{pairs[number >> 70 & 1023]}{pairs[number >> 60 & 1023]}"
        f"{pairs[number >> 50 & 1023]}{pairs[number >> 40 & 1023]}{pairs[number >> 30 & 1023]}"
        f"{pairs[number >> 20 & 1023]}{pairs[number >> 10 & 1023]}{pairs[number & 1023]}"
    )


def rfc3339(at: float) -> str:
    """Return Unix seconds as an RFC 3339 UTC text with microseconds."""
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def dumps(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)


_POSTGRES = {"enable_seqscan": "off", "enable_hashjoin": "off", "enable_mergejoin": "off", "jit": "off"}
"""Plans are kept for a connection's life. Those made while the tables were small would read whole tables, for each
foreign key too, until an ANALYZE comes by; everything that is asked often has an index."""


def engine_for(url: str, *, durable: bool = True) -> AsyncEngine:
    """Build the engine for a SQLAlchemy URL (sqlite:///… or postgresql://…). Raises ConfigError."""
    try:
        parsed = make_url(url)
    except ArgumentError:  # its text may hold the URL, and that a password
        raise ConfigError("store: is no SQLAlchemy URL", advice="Use sqlite:///PATH or postgresql://…") from None
    match parsed.get_backend_name():
        case "sqlite":
            if not parsed.database or parsed.database == ":memory:":
                raise ConfigError("store: names no file: all would be lost", advice="Use sqlite:///PATH.")
            Path(parsed.database).parent.mkdir(parents=True, exist_ok=True)
            engine = create_async_engine(
                parsed.set(drivername="sqlite+aiosqlite"), connect_args={"timeout": 15, "cached_statements": 512}
            )
            _tune_sqlite(engine, durable)
        case "postgresql":
            if find_spec("asyncpg") is None:
                raise ConfigError("store: asyncpg is not installed", advice="pip install 'offboard-worker[postgres]'")
            engine = create_async_engine(
                parsed.set(drivername="postgresql+asyncpg"),
                pool_pre_ping=False,
                pool_size=4,
                connect_args={"timeout": 5, "server_settings": _POSTGRES},
            )
            if not durable:
                _tune_postgres_for_benchmark(engine)
        case other:
            raise ConfigError(f"store: {other} is not supported", advice="Use sqlite:///PATH or postgresql://…")
    return engine


def _tune_sqlite(engine: AsyncEngine, durable: bool) -> None:
    @event.listens_for(engine.sync_engine, "connect")
    def connect(connection: Any, _record: Any) -> None:
        connection.isolation_level = None  # we say BEGIN ourselves: the driver's own would be too late and too weak
        cursor = connection.cursor()
        cursor.execute("PRAGMA journal_mode=WAL")
        cursor.execute(f"PRAGMA synchronous={'FULL' if durable else 'OFF'}")
        cursor.execute("PRAGMA foreign_keys=ON")
        cursor.execute("PRAGMA wal_autocheckpoint=16000")  # only where nobody keeps the log short beside: store/wal.py
        cursor.execute("PRAGMA busy_timeout=15000")
        cursor.close()

    @event.listens_for(engine.sync_engine, "begin")
    def begin(connection: Any) -> None:
        writes = connection.get_execution_options().get("offboard_writes")
        if writes != "direct":  # `Store.write` begins by itself
            connection.connection.driver_connection.offboard_ended = False
            connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

    # `Store.write` commits together with its last rows. What SQLAlchemy and its pool say after that would be two more
    # visits to the driver's thread for nothing; after anything else (an error, a cancellation) they are made.
    dialect: Any = engine.sync_engine.dialect
    for name in ("do_commit", "do_rollback"):
        setattr(dialect, name, _unless_ended(getattr(dialect, name)))


def _unless_ended(act: Callable[[Any], None]) -> Callable[[Any], None]:
    def run(connection: Any) -> None:
        if not has_ended(connection.driver_connection):
            act(connection)

    return run


def _tune_postgres_for_benchmark(engine: AsyncEngine) -> None:
    @event.listens_for(engine.sync_engine, "connect")
    def connect(connection: Any, _record: Any) -> None:
        cursor = connection.cursor()
        cursor.execute("SET synchronous_commit TO OFF")
        cursor.close()
        connection.commit()


class Transaction:
    """One write. Audit records and denials are gathered here, and written with everything else at the commit."""

    def __init__(self, conn: AsyncConnection, now: float, heads: Mapping[str, tuple[int, str]]) -> None:
        self.conn = conn
        self.now = now
        self.denial_seq, self.log_id = heads["denials"]
        self._audit_seq, self._audit_hash = heads["audit"]
        self._at = rfc3339(now)
        self._writes: list[tuple[Insert, Sequence[Row]]] = []
        self._records: list[Row] = []
        self._denials: list[Row] = []
        self.entries: list[Entry] = []
        """What this transaction adds to the denial log."""
        self._facts: dict[str, tuple[Fact, int]] = {}

    @property
    def audit_head(self) -> tuple[int, str]:
        """Number and hash of the last audit record, those of this transaction included."""
        return self._audit_seq, self._audit_hash

    def record(self, what: str, who: str, subject: str, detail: Mapping[str, Any] | None = None) -> None:
        """Append one audit record. `detail` holds ids and words, never a secret, and is JSON."""
        text = canonical_text(detail or {})
        seq, before = self._audit_seq + 1, self._audit_hash
        sealed = seal(seq, before, self._at, what, who, subject, text)
        self._records.append((seq, self._at, what, who, subject, text, before, sealed))
        self._audit_seq, self._audit_hash = seq, sealed

    def append_denial(
        self,
        effect: str,
        facts: Sequence[Fact],
        *,
        who: str,
        reason: str,
        person_id: str | None = None,
        case_id: str | None = None,
    ) -> int:
        """Append one entry to the denial log and return its seq, which is final once this transaction commits."""
        self.denial_seq += 1
        entry = Entry(self.denial_seq, tuple(facts), self.now)
        self.entries.append(entry)
        self._denials.append((entry.seq, entry.at, entry.wire(), effect, person_id, case_id, who, reason))
        self._facts.update((fact.key, (fact, entry.seq)) for fact in facts)
        self.record(
            f"denylist.{effect}",
            who,
            person_id or (facts[0].key if facts else ""),
            {"seq": entry.seq, "facts": [fact.key for fact in facts], "reason": reason, "case": case_id or ""},
        )
        return entry.seq

    def defer(self, into: Insert, rows: Sequence[Row]) -> None:
        """Insert rows at the next `send`, in the order of these calls: many tables in one go."""
        if rows:
            self._writes.append((into, rows))

    async def send(self, *, last: bool = False) -> None:
        """Give the database what was deferred: from then on this transaction's own reads see it.

        `last` says that nothing comes after it: where that saves a visit to the database, it commits at once.
        """
        writes, self._writes = self._writes, []
        if writes or last:
            await insert_all(self.conn, writes, commit=last)

    async def flush(self, *, last: bool = False) -> None:
        """Write what was gathered. The transaction's owner calls this right before the commit."""
        heads: list[Row] = []
        if self._denials:
            self.defer(_DENIALS, self._denials)
            self.defer(_FACTS, [(f.key, f.denied, f.before, f.expires_at, seq) for f, seq in self._facts.values()])
            heads.append(("denials", self.denial_seq, self.log_id))
        if self._records:
            self.defer(_AUDIT, self._records)
            heads.append(("audit", self._audit_seq, self._audit_hash))
        self.defer(_COUNTERS, heads)
        self._records, self._denials, self._facts = [], [], {}
        await self.send(last=last)


_DENIALS, _AUDIT = Insert(denials), Insert(audit)
_FACTS, _COUNTERS = Insert(denial_facts, ("key",)), Insert(counters, ("name",))
# In one order always: writers that lock the two rows crosswise would wait for each other for ever.
_HEADS = Query(
    "SELECT name, value, text FROM counters", "SELECT name, value, text FROM counters ORDER BY name FOR UPDATE"
)


async def _heads(conn: AsyncConnection) -> dict[str, tuple[int, str]]:
    """Take the counters' rows, which lets writers follow one another."""
    if conn.dialect.name == "sqlite":
        rows: Iterable[Any] = await begin_write(conn, _HEADS)
    else:
        rows = await conn.exec_driver_sql(_HEADS.postgres)  # by SQLAlchemy: it begins the transaction
    return {name: (value, text) for name, value, text in rows}


async def upsert(conn: AsyncConnection, table: Any, rows: Sequence[Mapping[str, Any]], keys: Iterable[str]) -> None:
    """Insert rows, or overwrite those whose `keys` exist: in both databases' own words."""
    if not rows:
        return
    if conn.dialect.name == "postgresql":
        from sqlalchemy.dialects.postgresql import insert as dialect_insert
    else:
        from sqlalchemy.dialects.sqlite import insert as dialect_insert  # type: ignore[assignment]
    statement = dialect_insert(table)
    names = [name for name in rows[0] if name not in set(keys)]
    statement = statement.on_conflict_do_update(
        index_elements=list(keys), set_={name: statement.excluded[name] for name in names}
    )
    await conn.execute(statement, list(rows))


_REMEMBERED = 256


class Store:
    """The store, opened. `clock` gives Unix seconds."""

    def __init__(self, engine: AsyncEngine, clock: Callable[[], float] = time.time) -> None:
        self.engine = engine
        self.clock = clock
        self._committed: dict[int, Entry] = {}

    @classmethod
    async def open(cls, url: str, *, durable: bool = True, clock: Callable[[], float] = time.time) -> Store:
        """Open the store at a SQLAlchemy URL and bring its schema up to date. Raises StoreUnavailable, ConfigError."""
        try:
            store = cls(engine_for(url, durable=durable), clock)
        except OSError as error:
            raise unavailable(error) from error
        try:
            await store._migrate(url)
        except BaseException:
            await store.close()
            raise
        return store

    async def close(self) -> None:
        await self.engine.dispose()

    @asynccontextmanager
    async def write(self) -> AsyncIterator[Transaction]:
        """One serialised, durable write. Raises StoreUnavailable; then nothing of it happened."""
        try:
            async with self.engine.connect() as conn:
                conn = await conn.execution_options(offboard_writes="direct")
                async with conn.begin():
                    transaction = Transaction(conn, self.clock(), await _heads(conn))
                    yield transaction
                    await transaction.flush(last=True)
        except Exception as error:
            if not _is_the_databases(error):
                raise
            raise unavailable(error) from error
        self._keep(transaction.entries)

    def _keep(self, entries: Sequence[Entry]) -> None:
        """Remember what was just committed: a push of it needs no read. Within one process commits may return late."""
        self._committed.update((entry.seq, entry) for entry in entries)
        for seq in sorted(self._committed)[:-_REMEMBERED]:
            del self._committed[seq]

    def just_committed(self, after: int, limit: int) -> list[Entry]:
        """Entries of the denial log from `after` + 1 on, if this process committed them all, up to its newest one."""
        newest = max(self._committed, default=0)
        if not 0 < newest - after <= limit:
            return []
        found = [self._committed.get(seq) for seq in range(after + 1, newest + 1)]
        return [entry for entry in found if entry is not None] if None not in found else []

    async def probe(self) -> None:
        """Commit a write that changes nothing: says whether the store takes writes now. Raises StoreUnavailable."""
        async with self.write() as tx:
            await tx.conn.execute(update(counters).values(value=counters.c.value))

    @asynccontextmanager
    async def read(self) -> AsyncIterator[AsyncConnection]:
        """One consistent read. Raises StoreUnavailable."""
        try:
            async with self.engine.connect() as conn:
                if conn.dialect.name == "postgresql":
                    conn = await conn.execution_options(isolation_level="REPEATABLE READ")
                async with conn.begin():
                    yield conn
        except Exception as error:
            if not _is_the_databases(error):
                raise
            raise unavailable(error) from error

    async def _migrate(self, url: str) -> None:
        try:
            async with self.engine.connect() as conn:
                current = await conn.run_sync(_current_revision)
            if current == REVISION:
                return
            from offboard_worker.store.migrations import upgrade  # alembic costs a second: only when there is work

            async with self.engine.connect() as conn:
                conn = await conn.execution_options(offboard_writes=True)
                async with conn.begin():
                    await conn.run_sync(upgrade)
                    if (await conn.execute(select(counters.c.name))).first() is None:
                        await conn.execute(
                            insert(counters),
                            [
                                {"name": "audit", "value": 0, "text": GENESIS},
                                {"name": "denials", "value": 0, "text": secrets.token_hex(8)},
                            ],
                        )
        except Exception as error:
            if not _is_the_databases(error):
                raise
            raise unavailable(error) from error


def _current_revision(conn: Any) -> str | None:
    from sqlalchemy import inspect

    if not inspect(conn).has_table("alembic_version"):
        return None
    row = conn.exec_driver_sql("SELECT version_num FROM alembic_version").first()
    return row[0] if row else None


def _is_the_databases(error: Exception) -> bool:
    """Say whether an error is the database's or its driver's. asyncpg's are told by module: it is optional."""
    return isinstance(error, SQLAlchemyError | sqlite3.Error | OSError) or type(error).__module__.startswith("asyncpg")


class RowRefused(StoreUnavailable):
    """The database works and refused the data itself: the same rows again would fail again, others would not."""

    reason = "row-refused"
    default_advice = "This is a bug in offboard-worker: please report it with the log line."


def unavailable(error: Exception) -> StoreUnavailable:
    """Turn a database's error into ours: the driver's first line, never a statement's parameters."""
    cause: BaseException = error.orig if isinstance(error, DBAPIError) and error.orig is not None else error
    kinds = {kind.__name__ for kind in type(cause).__mro__}
    refused = isinstance(error, IntegrityError | DataError) or kinds & {
        "IntegrityError",
        "DataError",
        "IntegrityConstraintViolationError",
    }
    text = str(cause).splitlines()[0] if str(cause) else type(cause).__name__
    return (RowRefused if refused else StoreUnavailable)(f"the store refused: {text}")
