"""Alembic's environment: runs on the connection that `upgrade` hands over, in its transaction."""

from __future__ import annotations

from alembic import context

from offboard_worker.store.schema import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    transactional_ddl=False,
    render_as_batch=True,
)
context.run_migrations()
