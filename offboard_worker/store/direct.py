"""The few statements of the hot path, given straight to the driver: many rows in one call, and one hop to its thread.

SQLAlchemy's async layer costs more for each statement than a batch of thirty leavers costs the database. So `accept`
hands its rows and its look-ups over here, as plain tuples: SQLite gets them in one visit to the connection's own thread
(several rows in one statement, since the interpreter's lock is given up and fought for at each step), PostgreSQL as
arrays. The texts are made from the tables in schema.py. This file knows no meaning and begins and ends no transaction.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from sqlalchemy import BigInteger, Boolean, Double, Integer, LargeBinary, Table
from sqlalchemy.ext.asyncio import AsyncConnection

Row = tuple[Any, ...]

_CHUNKS = (256, 64, 16, 4, 1)
"""Rows to a statement on SQLite: few different texts, so that each stays prepared."""
_ARRAYS = {BigInteger: "int8", Integer: "int4", Boolean: "bool", Double: "float8", LargeBinary: "bytea"}


def _array(table: Table, column: str) -> str:
    kind = type(table.c[column].type)
    return f"{_ARRAYS.get(kind, 'text')}[]"


@dataclass(frozen=True)
class Insert:
    """Rows for one table, in `columns` order. With `keys`, a row that exists is overwritten."""

    table: Table
    keys: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()
    _texts: dict[int, str] = field(default_factory=dict, compare=False)

    @cached_property
    def names(self) -> tuple[str, ...]:
        return self.columns or tuple(column.name for column in self.table.columns)

    @cached_property
    def _conflict(self) -> str:
        if not self.keys:
            return ""
        changes = ", ".join(f'"{n}" = excluded."{n}"' for n in self.names if n not in self.keys)
        return f" ON CONFLICT ({', '.join(self.keys)}) DO UPDATE SET {changes}"

    @cached_property
    def _into(self) -> str:
        quoted = ", ".join(f'"{name}"' for name in self.names)
        return f"INSERT INTO {self.table.name} ({quoted})"

    @cached_property
    def postgres(self) -> str:
        arrays = ", ".join(f"${n}::{_array(self.table, name)}" for n, name in enumerate(self.names, 1))
        return f"{self._into} SELECT * FROM unnest({arrays}){self._conflict}"  # noqa: S608 - names from schema.py

    def sqlite(self, rows: Sequence[Row]) -> Iterator[tuple[str, list[Any]]]:
        """Cut the rows into statements of a few fixed sizes."""
        start = 0
        for size in _CHUNKS:
            while len(rows) - start >= size:
                part = rows[start : start + size]
                yield self._text(size), [value for row in part for value in row]
                start += size

    def _text(self, size: int) -> str:
        text = self._texts.get(size)
        if text is None:
            one = f"({', '.join('?' * len(self.names))})"
            text = self._texts[size] = f"{self._into} VALUES {', '.join([one] * size)}{self._conflict}"
        return text


@dataclass(frozen=True)
class Lookup:
    """Read `columns` of the rows whose `keys` are among those given. No row comes for a key that isn't there."""

    table: Table
    keys: tuple[str, ...]
    columns: tuple[str, ...]

    @cached_property
    def _select(self) -> str:
        return "SELECT " + ", ".join(f't."{name}"' for name in self.columns) + " FROM"

    @cached_property
    def sqlite(self) -> str:
        parts = ["k.value"] if len(self.keys) == 1 else [f"k.value ->> {n}" for n in range(len(self.keys))]
        match = " AND ".join(f't."{name}" = {part}' for name, part in zip(self.keys, parts, strict=True))
        return f"{self._select} json_each(?) AS k CROSS JOIN {self.table.name} AS t ON {match}"

    @cached_property
    def postgres(self) -> str:
        arrays = ", ".join(f"${n}::{_array(self.table, name)}" for n, name in enumerate(self.keys, 1))
        names = ", ".join(f"k{n}" for n in range(len(self.keys)))
        match = " AND ".join(f't."{name}" = k.k{n}' for n, name in enumerate(self.keys))
        return f"{self._select} unnest({arrays}) AS k({names}) JOIN {self.table.name} AS t ON {match}"


@dataclass(frozen=True)
class Query:
    """A query in both databases' own words, for what a Lookup can't say. It is asked with one row of parameters."""

    sqlite: str
    postgres: str


async def driver(conn: AsyncConnection) -> Any:
    """The driver's own connection (aiosqlite's or asyncpg's), inside the transaction that SQLAlchemy began."""
    return (await conn.get_raw_connection()).driver_connection


async def look_up(conn: AsyncConnection, wanted: Sequence[tuple[Lookup | Query, Sequence[Row]]]) -> list[list[Row]]:
    """Answer several look-ups at once, in order. Raises the driver's errors: `Store.write` makes them ours."""
    raw = await driver(conn)
    if conn.dialect.name == "postgresql":
        return [
            await raw.fetch(look.postgres, *(keys[0] if isinstance(look, Query) else _columns(keys))) if keys else []
            for look, keys in wanted
        ]
    work = [(look.sqlite, _sqlite_parameters(look, keys)) if keys else None for look, keys in wanted]
    if not any(work):
        return [[] for _ in work]
    found: list[list[Row]] = await raw._execute(_read, raw._conn, work)
    return found


def _columns(rows: Sequence[Row]) -> list[list[Any]]:
    return [list(column) for column in zip(*rows, strict=True)]


def _sqlite_parameters(look: Lookup | Query, keys: Sequence[Row]) -> Row:
    if isinstance(look, Query):
        return keys[0]
    return (json.dumps(keys if len(look.keys) > 1 else [key for (key,) in keys]),)


async def begin_write(conn: AsyncConnection, heads: Query) -> list[Row]:
    """Begin SQLite's one write transaction and read the counters, in one visit to the connection's thread."""
    raw = await driver(conn)
    raw.offboard_ended = False
    found: list[Row] = await raw._execute(_begin, raw._conn, heads.sqlite)
    return found


def has_ended(raw: Any) -> bool:
    """Say whether the transaction that `begin_write` began was committed by `insert_all`, and nothing came after it."""
    return bool(getattr(raw, "offboard_ended", False))


def _begin(db: sqlite3.Connection, heads: str) -> list[Row]:
    db.execute("BEGIN IMMEDIATE")
    return db.execute(heads).fetchall()


def _read(db: sqlite3.Connection, work: Sequence[tuple[str, Row] | None]) -> list[list[Row]]:
    return [[] if one is None else db.execute(*one).fetchall() for one in work]


async def insert_all(
    conn: AsyncConnection, writes: Sequence[tuple[Insert, Sequence[Row]]], *, commit: bool = False
) -> None:
    """Insert rows into several tables, in the order given. Raises the driver's errors.

    With `commit`, SQLite commits in the same visit to its thread; PostgreSQL leaves that to SQLAlchemy.
    """
    raw = await driver(conn)
    if conn.dialect.name == "postgresql":
        for into, rows in writes:
            if rows:
                await raw.execute(into.postgres, *_columns(rows))
        return
    work = [statement for into, rows in writes if rows for statement in into.sqlite(rows)]
    await raw._execute(_write, raw._conn, work, commit)
    if commit:  # not reached by a write that failed or was cancelled: that one is rolled back
        raw.offboard_ended = True


def _write(db: sqlite3.Connection, work: Sequence[tuple[str, list[Any]]], commit: bool) -> None:
    for text, values in work:
        db.execute(text, values)
    if commit:
        db.execute("COMMIT")
