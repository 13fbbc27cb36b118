"""The whole story with PostgreSQL as the store."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.e2e.conftest import Town
from tests.e2e.system import System

pytestmark = [pytest.mark.e2e, pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(300)]


async def test_a_leaver_with_postgresql_as_the_store(town: Town, folder: Path, postgres_server: Any) -> None:
    postgres_server.psql("CREATE DATABASE whole_story;\n")
    who = town.somebody(rich=True)
    store = {"url": postgres_server.get_uri("whole_story")}
    async with System.running(town.world, folder, store=store) as system:
        token = await system.token(who.person)
        assert await system.calls(token) == [200, 200]
        assert await system.okta(who) in (200, 204)
        assert await system.calls(token) == [401, 401]
        case = await system.verified(who)
        assert set(case["refused_by"].values()) == {"applied"}
        await system.inst.cli("audit", "checkpoint")
        assert (await system.inst.cli("audit", "verify"))["intact"]
        assert await system.inst.stop() == 0
        assert not list((folder / "data").glob("*.db"))
