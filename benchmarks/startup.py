"""Time to ready and memory of the receiver and the proxy: `python -m benchmarks.startup [--json]`.

Each is started as `offboard receiver` or `offboard proxy` on a migrated store and a running Valkey, with the sources and
connectors of a real configuration. The clock runs from the start of the process until it says that it is ready. Memory is
read from the kernel once it has served a few requests: RSS, and PSS, which shares out what several processes map.
The time of a bare interpreter is the baseline.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
import time
import urllib.error
import urllib.request
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import yaml

from benchmarks.processes import command, offboard

TARGET_SECONDS, TARGET_MB = 1.5, 90.0
CONFIG = {
    "receiver": {"listen": "127.0.0.1:0"},
    "proxy": {
        "listen": "127.0.0.1:0",
        "upstreams": {"api": {"url": "http://127.0.0.1:9", "secret": "Bearer upstream-key"}},
        "roles": {"developer": {"rules": [{"upstream": "api", "methods": ["GET"], "paths": ["/v1/**"]}]}},
    },
    "sources": {
        "okta-main": {"type": "okta", "secret": "benchmark-secret", "system": "okta"},
        "entra-corp": {
            "type": "entra",
            "tenant_id": "11111111-1111-1111-1111-111111111111",
            "client_id": "22222222-2222-2222-2222-222222222222",
            "client_secret": "benchmark-secret",
            "client_state": "benchmark-state-0123456789",
        },
        "aws-org": {"type": "aws", "api_key": "benchmark-secret", "system": "aws"},
    },
    "connectors": {
        "okta": {"type": "okta", "base_url": "http://127.0.0.1:9", "api_token": "benchmark-secret"},
    },
    "people": {"ada": {"aliases": {"okta": "00uADA"}}},
}


async def bare() -> float:
    begun = time.perf_counter()
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", "print()", stdout=asyncio.subprocess.PIPE)
    await process.communicate()
    return time.perf_counter() - begun


async def measure(folder: Path, component: str, path: str) -> dict[str, float]:
    """Start one component, use it a little, and return seconds and megabytes."""
    begun = time.perf_counter()
    async with offboard(folder, component) as process:
        seconds = time.perf_counter() - begun
        for _ in range(20):
            await asyncio.to_thread(_get, f"{process.said[component]}{path}")
        memory = psutil.Process(process.pid).memory_full_info()
        return {"seconds": seconds, "rss_mb": memory.rss / 2**20, "pss_mb": memory.pss / 2**20}


def _get(url: str) -> None:
    with suppress(urllib.error.HTTPError), urllib.request.urlopen(url, timeout=5) as answer:  # noqa: S310 - loopback
        answer.read()


async def run(times: int) -> dict[str, Any]:
    """Measure both components several times and return medians."""
    with tempfile.TemporaryDirectory(prefix="offboard-benchmark-") as name:
        folder = Path(name)
        (folder / "config.yaml").write_text(yaml.safe_dump(CONFIG))
        async with offboard(folder, "valkey"):
            await command(folder, "denylist", "push")
            found: dict[str, Any] = {
                "bare_interpreter_seconds": round(statistics.median([await bare() for _ in range(times)]), 3)
            }
            for component, path in (("receiver", "/healthz"), ("proxy", "/v1/items")):
                runs = [await measure(folder, component, path) for _ in range(times)]
                found[component] = {key: round(statistics.median(run[key] for run in runs), 3) for key in runs[0]}
    found["target"] = {"seconds": TARGET_SECONDS, "mb": TARGET_MB}
    found["met"] = all(
        found[one]["seconds"] <= TARGET_SECONDS and found[one]["rss_mb"] <= TARGET_MB for one in ("receiver", "proxy")
    )
    return found


def show(found: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title="Start-up and memory (medians)")
    for column in ("process", "ready after s", "of a bare interpreter", "RSS MB", "PSS MB"):
        table.add_column(column, justify="left" if column == "process" else "right")
    for name in ("receiver", "proxy"):
        one = found[name]
        ratio = one["seconds"] / found["bare_interpreter_seconds"]
        table.add_row(name, f"{one['seconds']:.2f}", f"{ratio:.0f}x", f"{one['rss_mb']:.1f}", f"{one['pss_mb']:.1f}")
    table.add_row("[dim]target[/dim]", f"{TARGET_SECONDS:g}", "", f"{TARGET_MB:g}", "")
    console = Console()
    console.print(table)
    console.print("[green]target met[/green]" if found["met"] else "[red]target missed[/red]")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.startup")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--times", type=int, default=5)
    arguments = parser.parse_args()
    found = asyncio.run(run(arguments.times))
    print(json.dumps(found, indent=2)) if arguments.json else show(found)


if __name__ == "__main__":
    main()
