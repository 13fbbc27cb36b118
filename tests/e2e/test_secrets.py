"""Canaries: no secret shows anywhere outside the places that are made for it. Runs last, over all that came before."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from offboard_worker import config as configuration
from offboard_worker.denylist.connection import open_client
from tests.e2e.conftest import DASHBOARD_PASSWORD, Town
from tests.e2e.system import System, basic_auth, offboard

pytestmark = [pytest.mark.e2e, pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(300)]


async def test_no_secret_shows_anywhere(system: System, town: Town, tmp_path: Path) -> None:
    world, who = town.world, town.somebody(rich=True)
    token = await system.token(who.person)
    assert await system.okta(who) in (200, 204)
    assert await system.deliver("okta-main", world.okta_event(who), {"Authorization": "hook-canary-guess"}) == 401
    case = await system.verified(who)
    valkey = configuration.load(system.inst.config).redis_url.partition("://:")[2].partition("@")[0]
    secrets = {
        "hook secret": world.hook_secret,
        "client state": world.client_state,
        "EventBridge key": world.aws_api_key,
        "Okta token": world.okta.token,
        "client secret": world.graph.client_secret,
        "AWS secret key": world.aws.secret_access_key,
        "upstream key": world.api.key,
        "dashboard password": DASHBOARD_PASSWORD,
        "issued token": token,
        "issued token's signature": token.rpartition(".")[2],
        "a wrong secret that was sent": "hook-canary-guess",
        "Valkey's password": valkey,
    }
    assert all(len(secret) >= 12 for secret in secrets.values())
    shown: list[str] = []
    for place, content in [
        *_files(system.inst.folder),
        *await _said(system, case["id"], token, tmp_path),
        *await _served(system, token),
        *await _kept_in_redis(system),
        *_processes(system),
    ]:
        shown += [f"{name} in {place}" for name, secret in secrets.items() if secret.encode() in content]
    assert shown == []


def _files(folder: Path) -> Iterator[tuple[str, bytes]]:
    """Everything on disk but what holds secrets by its nature: config.yaml, the signing keys, Valkey's URL."""
    data = folder / "data"
    made_for_it = {folder / "config.yaml", data / "valkey" / "url"}
    count = 0
    for path in folder.rglob("*"):
        if path.is_file() and path not in made_for_it and data / "signing-keys" not in path.parents:
            count += 1
            yield str(path.relative_to(folder)), path.read_bytes()
    assert count >= 5
    private = [data / "valkey" / "url", *(data / "signing-keys").iterdir(), *(data / "audit").glob("*.pem")]
    for path in private:
        assert path.name.endswith(".pub.pem") or path.stat().st_mode & 0o077 == 0, f"others may read {path}"


async def _said(system: System, case_id: str, token: str, folder: Path) -> list[tuple[str, bytes]]:
    commands: list[tuple[str, ...]] = [
        ("case", "list"), ("case", "list", "--json"), ("case", "show", case_id), ("case", "show", case_id, "--json"),
        ("denylist", "list"), ("denylist", "list", "--log", "--json"), ("token", "list", "--json"),
        ("audit", "export"), ("audit", "verify"), ("check",), ("check", "--json"), ("case", "show", "c-none"),
    ]  # fmt: skip
    found = []
    for command in commands:
        code, out, err = await offboard(system.inst, *command)
        assert "Traceback" not in err, err
        assert out or code, command
        found.append((f"offboard {' '.join(command)}", (out + err).encode()))
    return found


async def _served(system: System, token: str) -> list[tuple[str, bytes]]:
    urls = [f"{url}/{page}" for url in system.metrics_of("proxy") for page in ("metrics", "readyz")]
    urls += [f"{url}/metrics" for url in system.metrics_of("receiver")]
    urls += [f"{system.inst.receiver}/{page}" for page in ("readyz", "webhooks/okta-main", "webhooks/nobody")]
    found = [(url, (await system.get(url))[1].encode()) for url in urls]
    for url in system.inst.proxies:
        for path in ("/ledger/v1/ledger", "/ledger/v1/../admin", "/nowhere/", "/.well-known/jwks.json"):
            headers = {"Authorization": f"Bearer {token}"}
            async with system.http.get(f"{url}{path}", headers=headers) as answer:
                found.append((f"{url}{path}", json.dumps(dict(answer.headers)).encode() + await answer.read()))
    dashboard, auth = system.inst.urls["dashboard"], basic_auth("ops", DASHBOARD_PASSWORD)
    for page in ("/", "/0/data/queues.json", "/0/data/workers.json", "/0/view/workers"):
        found.append((f"dashboard {page}", (await system.get(f"{dashboard}{page}", headers=auth))[1].encode()))
    return found


async def _kept_in_redis(system: System) -> list[tuple[str, bytes]]:
    """Every key's dump and its value, uncompressed where it is one of RQ's compressed fields."""
    client: Any = open_client(configuration.load(system.inst.config).redis_url, 5.0)
    found: list[tuple[str, bytes]] = []
    try:
        async for key in client.scan_iter(count=500):
            name = f"redis {key.decode()}"
            found.append((name, key + (await client.dump(key) or b"")))
            kind = (await client.type(key)).decode()
            if kind == "hash":
                for value in (await client.hgetall(key)).values():
                    found.append((name, _inflated(value)))
            elif kind == "stream":
                found.append((name, repr(await client.xrange(key)).encode()))
    finally:
        await client.aclose()
    assert len(found) > 10
    return found


def _inflated(value: bytes) -> bytes:
    import zlib

    try:
        return zlib.decompress(value)
    except zlib.error:
        return value


def _processes(system: System) -> Iterator[tuple[str, bytes]]:
    for process in [psutil.Process(system.up), *psutil.Process(system.up).children(recursive=True)]:
        yield f"the command line of {process.pid}", " ".join(process.cmdline()).encode()
