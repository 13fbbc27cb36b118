"""`offboard check`: is the configuration right, and does everything that it names answer?"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Annotated, Any

import typer

from offboard_worker.cli.output import (
    DEFAULT_CONFIG,
    FAILED,
    ConfigOption,
    JsonOption,
    print_json,
    print_table,
    read_config,
)

if TYPE_CHECKING:
    from offboard_worker.app import App
    from offboard_worker.config import Config

CHECK_WITHIN = 30.0


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("check", rich_help_panel="Run")(check)


def check(
    config: ConfigOption = DEFAULT_CONFIG,
    as_json: JsonOption = False,
    offline: Annotated[
        bool, typer.Option("--offline", help="Validate the configuration alone; connect to nothing.")
    ] = False,
) -> None:
    """Validate the configuration, reach Redis, the store and each connector, and name missing permissions."""
    settings = read_config(config)
    rows = asyncio.run(_check(settings, offline))
    if as_json:
        print_json(rows)
    else:
        print_table(
            "Check",
            ("what", "state", "found", "next"),
            ((row["what"], row["state"], row["found"], row["next"]) for row in rows),
            "Nothing is configured.",
        )
    if any(row["state"] == "failed" for row in rows):
        raise typer.Exit(FAILED)


def _row(what: str, state: str, found: str, advice: str = "") -> dict[str, str]:
    return {"what": what, "state": state, "found": found, "next": advice}


async def _check(settings: Config, offline: bool) -> list[dict[str, str]]:
    from offboard_worker.app import App

    app = App(settings)
    rows = [_row(f"source {name}", "done", source.title) for name, source in app.sources.items()]
    if offline:
        rows += [_row(f"connector {n}", "done", _connector_title(settings, n)) for n in settings.connectors]
        return rows
    rows.append(await _redis(settings))
    rows.append(await _store(settings))
    if rows[-2]["state"] == "done" and rows[-1]["state"] == "done":
        rows += await asyncio.gather(*(_connector(app, name) for name in app.connectors))
    return rows


def _connector_title(settings: Config, name: str) -> str:
    from offboard_worker import plugins
    from offboard_worker.config import plugin_config

    raw = settings.connectors[name]
    kind = plugins.connector_class(str(raw.get("type")))
    plugin_config(kind.Config, settings, ("connectors", name), raw)
    return kind.title


async def _redis(settings: Config) -> dict[str, str]:
    from redis.exceptions import RedisError

    from offboard_worker.denylist.connection import open_client
    from offboard_worker.errors import ConfigError

    try:
        client = open_client(settings.redis_url, 2.0)
    except ConfigError as error:
        return _row("redis", "failed", error.message, error.advice)
    try:
        found: dict[str, Any] = await client.info("server")
    except (RedisError, OSError) as error:
        return _row("redis", "failed", f"no answer: {type(error).__name__}", "Check redis: and that the server runs.")
    finally:
        await client.aclose()
    return _row("redis", "done", f"version {found.get('valkey_version') or found.get('redis_version')}")


async def _store(settings: Config) -> dict[str, str]:
    from offboard_worker.errors import OffboardError
    from offboard_worker.store.database import Store

    try:
        store = await Store.open(settings.store_url)
    except OffboardError as error:
        return _row("store", "failed", error.message, error.advice)
    try:
        async with store.write() as tx:  # a write that changes nothing: the disk and the rights are there
            return _row("store", "done", f"{tx.conn.dialect.name}, denial log at {tx.denial_seq}")
    except OffboardError as error:
        return _row("store", "failed", error.message, error.advice)
    finally:
        await store.close()


async def _connector(app: App, name: str) -> dict[str, str]:
    from offboard_worker.errors import OffboardError

    what = f"connector {name}"
    try:
        async with asyncio.timeout(CHECK_WITHIN), app.open_connector(name) as connector:
            standing = await connector.check()
    except TimeoutError:
        return _row(what, "failed", f"no answer within {CHECK_WITHIN:g} s", "Check its base URL and the network.")
    except OffboardError as error:
        return _row(what, "failed", error.message, error.advice)
    if standing.missing:
        missing = ", ".join(standing.missing)
        return _row(what, "failed", f"{standing.identity} lacks {missing}", "Grant what is missing: docs/connectors.")
    return _row(what, "done", "; ".join((standing.identity, *standing.notes)))
