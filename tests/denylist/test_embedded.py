"""The embedded Valkey keeps its data and port, and never shares a folder with another one."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest

from offboard_worker.denylist.connection import open_client
from offboard_worker.denylist.embedded import EmbeddedValkey
from offboard_worker.errors import ConfigError

pytestmark = pytest.mark.integration


@pytest.mark.parametrize("how", ["stop", "kill"])
async def test_data_and_address_survive(tmp_path: Path, how: str) -> None:
    valkey = EmbeddedValkey(tmp_path / "data", settings={"appendfsync": "always"})
    await valkey.start()
    url = valkey.url
    client = open_client(url, 1.0)
    await client.set("a", "b")
    await (valkey.stop() if how == "stop" else valkey.kill())
    await valkey.start()
    assert valkey.url == url
    await client.connection_pool.disconnect()
    assert await client.get("a") == b"b"
    await client.aclose()
    await valkey.stop()
    assert valkey.pid is None


async def test_a_unix_socket_and_a_password(tmp_path: Path) -> None:
    async with EmbeddedValkey(tmp_path / "d", unix_socket=tmp_path / "s" / "v.sock", password="s3/c?ret") as valkey:
        client = open_client(valkey.url, 1.0)
        assert await client.ping()
        await client.aclose()
        assert valkey.pid is not None
        assert not any("s3/c?ret" in part for part in psutil.Process(valkey.pid).cmdline())


async def test_two_servers_never_share_a_folder(tmp_path: Path) -> None:
    async with EmbeddedValkey(tmp_path / "d"):
        with pytest.raises(ConfigError, match="another Valkey"):
            await EmbeddedValkey(tmp_path / "d").start(timeout=0.2)
