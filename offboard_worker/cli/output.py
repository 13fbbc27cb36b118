"""How commands speak: errors with advice, tables for people, JSON for programs. Colour always comes with a word."""

from __future__ import annotations

import asyncio
import getpass
import json
import logging
import sys
from collections.abc import Callable, Coroutine, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from offboard_worker.config import Config, load
from offboard_worker.errors import ConfigError, DenylistUnavailable, OffboardError, UsageError

if TYPE_CHECKING:
    from offboard_worker.app import Opened

T = TypeVar("T")

DONE, FAILED, USAGE, ATTENTION = 0, 1, 2, 3

ConfigOption = Annotated[
    Path, typer.Option("--config", "-c", envvar="OFFBOARD_CONFIG", help="The configuration file.", show_default=True)
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]
DEFAULT_CONFIG = Path("config.yaml")

COLOUR = {
    "verified": "green",
    "closed": "green",
    "gone": "green",
    "done": "green",
    "acknowledged": "green",
    "attested": "green",
    "disabled": "green",
    "failed": "red",
    "active": "red",
    "attention": "red",
    "paused": "red",
    "unknown": "yellow",
    "contained": "yellow",
    "revoking": "yellow",
    "running": "yellow",
    "retrying": "yellow",
    "pending": "yellow",
    "held": "yellow",
    "open": "yellow",
}


def report_error(error: OffboardError) -> int:
    """Print an error and its advice to stderr; return the exit code."""
    print(f"error: {error.message}", file=sys.stderr)
    print(f"  next      {error.advice}", file=sys.stderr)
    return USAGE if isinstance(error, ConfigError | UsageError) else FAILED


def read_config(path: Path) -> Config:
    return load(path)


def operator() -> str:
    """Who is at the keyboard, for the audit."""
    try:
        return f"operator:{getpass.getuser()}"
    except (KeyError, OSError):
        return "operator:unknown"


def with_app(path: Path, work: Callable[[Opened], Coroutine[Any, Any, T]]) -> T:
    """Run one coroutine over an opened application."""
    from redis.exceptions import RedisError

    from offboard_worker.app import App

    async def whole() -> T:
        async with App(read_config(path)).open() as opened:
            return await work(opened)

    try:
        return asyncio.run(whole())
    except RedisError as error:
        raise DenylistUnavailable(f"Redis doesn't answer: {type(error).__name__}") from error


def print_json(value: Any) -> None:
    print(json.dumps(value, indent=2, ensure_ascii=False))


def print_table(title: str, columns: Iterable[str], rows: Iterable[Iterable[Any]], empty: str) -> None:
    """Print a table; state words are coloured. `empty` says how to fill it."""
    from rich.console import Console
    from rich.table import Table

    console = Console()
    found = [[_cell(value) for value in row] for row in rows]
    if not found:
        console.print(f"[dim]{empty}[/dim]")
        return
    table = Table(title=title, title_justify="left", header_style="bold", show_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in found:
        table.add_row(*row)
    console.print(table)


def _cell(value: Any) -> str:
    from rich.markup import escape

    text = "" if value is None else str(value)
    colour = COLOUR.get(text)
    return f"[{colour}]{text}[/{colour}]" if colour else escape(text)


def set_up_logging() -> None:
    """Send log records to stderr, one line each."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Line())
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    for noisy in ("httpx", "botocore", "msal", "azure", "asyncio", "rq.worker", "rq.scheduler", "alembic", "rq.cron"):
        logging.getLogger(noisy).setLevel(logging.WARNING)


class _Line(logging.Formatter):
    """One line of JSON per record: time, level, logger, message, advice where there is one."""

    def format(self, record: logging.LogRecord) -> str:
        message = record.getMessage()
        if message.startswith("{") and message.endswith("}"):
            return message  # access logs are JSON already
        line = {
            "at": self.formatTime(record, "%Y-%m-%dT%H:%M:%S%z"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": message,
        }
        if advice := getattr(record, "advice", None):
            line["advice"] = advice
        if record.exc_info and record.exc_info[0] is not None:
            line["error"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)
