"""Schema migrations (Alembic), run by the process that opens a store of an older revision."""

from __future__ import annotations

from pathlib import Path

from alembic import command
from alembic.config import Config
from sqlalchemy import Connection

from offboard_worker.errors import ConfigError


def upgrade(connection: Connection) -> None:
    """Bring the schema to the newest revision, inside the caller's transaction. Raises ConfigError if it is newer."""
    from alembic.util import CommandError

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent))
    config.attributes["connection"] = connection
    if connection.dialect.name == "postgresql":
        connection.exec_driver_sql("SELECT pg_advisory_xact_lock(728391)")  # two processes may start at once
    try:
        command.upgrade(config, "head")
    except CommandError as error:
        raise ConfigError(
            f"the store's schema is of a revision that this version doesn't know: {error}",
            advice="Run the newer offboard-worker that wrote it, or restore a backup from before its upgrade.",
        ) from error
