"""What a process pays for: which packages are loaded when its entry point is (import-linter sees only what is written)."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from offboard_worker import plugins

SDKS = {"azure", "boto3", "botocore", "kiota_abstractions", "moto", "msal", "msgraph", "okta"}
HEAVY = SDKS | {"alembic", "flask", "rich", "rq_dashboard"}
STATE = {"aiosqlite", "asyncpg", "connectors", "rq", "sqlalchemy"}


def loaded(statement: str) -> set[str]:
    """The first names of all modules that a fresh interpreter has after a statement."""
    code = f"{statement}\nimport json, sys\nprint(json.dumps(sorted({{m.partition('.')[0] for m in sys.modules}})))"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True)
    return set(json.loads(said.stdout.splitlines()[-1]))


def test_the_proxy_loads_neither_store_nor_queue_nor_connectors_nor_sdks() -> None:
    assert not loaded("import offboard_worker.proxy.server") & (HEAVY | STATE)


def test_the_receiver_loads_no_sdk_whatever_its_sources() -> None:
    sources = "; ".join(f"plugins.source_class({name!r})" for name in sorted(plugins.SOURCES))
    found = loaded(f"import offboard_worker.receiver.run\nfrom offboard_worker import plugins; {sources}")
    assert not found & (HEAVY | {"rq"})


@pytest.mark.parametrize("name", sorted(plugins.CONNECTORS))
def test_a_connector_loads_no_sdk_before_it_is_opened(name: str) -> None:
    assert not loaded(f"from offboard_worker import plugins; plugins.connector_class({name!r})") & SDKS


def test_help_loads_neither_state_nor_sdks() -> None:
    assert not loaded("import offboard_worker.cli") & (SDKS | STATE | {"aiohttp", "alembic"})
