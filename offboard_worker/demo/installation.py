"""A whole offboard-worker, run as real processes by `offboard up`, for the demo, the end-to-end tests and benchmarks."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any, Self

READY_WITHIN = 90.0


class Installation:
    """`async with Installation(folder, config_text) as inst:` runs until the block ends. `inst.urls` are the addresses."""

    def __init__(self, folder: Path, config_text: str, *, proxies: int = 1) -> None:
        self.folder = folder
        self.config = folder / "config.yaml"
        self.log = folder / "offboard.log"
        self.urls: dict[str, Any] = {}
        self._text = config_text
        self._proxies = proxies
        self._process: asyncio.subprocess.Process | None = None

    @property
    def proxies(self) -> list[str]:
        """The URL of each proxy replica."""
        return [url for name, url in self.urls.items() if name == "proxy" or (name[:6] == "proxy-" and "_" not in name)]

    @property
    def receiver(self) -> str:
        return str(self.urls["receiver"])

    async def __aenter__(self) -> Self:
        await asyncio.to_thread(self._write)
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    def _write(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.config.write_text(self._text, encoding="utf-8")

    async def start(self) -> None:
        """Start `offboard up` and wait until it says that everything is ready. Raises RuntimeError with its log."""
        with self.log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *_command("up", "--json", "--proxies", str(self._proxies), "--config", str(self.config)),
                stdout=asyncio.subprocess.PIPE,
                stderr=log,
            )
        assert self._process.stdout is not None  # noqa: S101 - it was asked for
        try:
            async with asyncio.timeout(READY_WITHIN):
                line = await self._process.stdout.readline()
        except TimeoutError:
            line = b""
        if not line:
            await self.stop()
            raise RuntimeError(f"offboard up did not start:\n{self.log.read_text('utf-8')[-4000:]}")
        self.urls = json.loads(line)

    async def stop(self, within: float = 15.0) -> int | None:
        """End it with SIGTERM and return its exit code."""
        process = self._process
        if process is None or process.returncode is not None:
            return process.returncode if process else None
        process.terminate()
        try:
            async with asyncio.timeout(within):
                await process.wait()
        except TimeoutError:
            process.kill()
            await process.wait()
        return process.returncode

    def kill(self, component: str) -> None:
        """kill -9 one component; `up` starts it again."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.urls["pids"][component], signal.SIGKILL)

    async def cli(self, *arguments: str) -> Any:
        """Run one `offboard` command with --json and return what it printed. Raises RuntimeError."""
        process = await asyncio.create_subprocess_exec(
            *_command(*arguments, "--config", str(self.config), "--json"),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        out, err = await process.communicate()
        if process.returncode not in (0, 3):
            raise RuntimeError(f"offboard {' '.join(arguments)}: {err.decode()}")
        return json.loads(out)


def _command(*arguments: str) -> tuple[str, ...]:
    return (sys.executable, "-m", "offboard_worker", *arguments)
