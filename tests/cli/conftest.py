"""A configuration, its store and a Valkey for commands; and a way to run them as the shell does."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from offboard_worker import cli
from offboard_worker.denylist.embedded import EmbeddedValkey


@dataclass(frozen=True)
class Said:
    """What one command printed, and how it ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


Run = Callable[..., Said]


@pytest.fixture
def settings(valkey_server: EmbeddedValkey, tmp_path: Path) -> dict[str, Any]:
    rule = {"upstream": "api", "methods": ["GET"], "paths": ["/v1/**"]}
    return {
        "data_dir": str(tmp_path / "data"),
        "redis": {"url": valkey_server.url},
        "proxy": {
            "lease": "500ms",
            "heartbeat": "100ms",
            "upstreams": {"api": {"url": "http://127.0.0.1:9", "secret": "Bearer key"}},
            "roles": {"developer": {"rules": [rule]}},
        },
        "sources": {"okta-main": {"type": "okta", "secret": "abcdefgh-12345678", "system": "okta"}},
        "people": {
            "ada": {"name": "Ada Leaver", "emails": ["ada@example.com"], "aliases": {"okta": "00uADA"}},
            "bob": {"name": "Bob Stays", "emails": ["bob@example.com"]},
            "root": {"name": "Break Glass", "protected": True},
        },
    }


@pytest.fixture
def config(settings: dict[str, Any], tmp_path: Path, valkey_server: EmbeddedValkey) -> Path:
    from offboard_worker.denylist.connection import open_blocking_client

    client = open_blocking_client(valkey_server.url, 2.0)
    client.flushall()
    client.close()
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(settings))
    return path


@pytest.fixture
def run(config: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run `offboard …` in this process, with the configuration, as the shell would."""
    monkeypatch.setenv("OFFBOARD_CONFIG", str(config))
    monkeypatch.setenv("COLUMNS", "200")

    def offboard(*arguments: str) -> Said:
        monkeypatch.setattr("sys.argv", ["offboard", *arguments])
        capsys.readouterr()
        try:
            cli.main()
            code = 0
        except SystemExit as left:
            code = left.code if isinstance(left.code, int) else int(left.code is not None)
        out, err = capsys.readouterr()
        return Said(code, out, err)

    return offboard
