"""Starts and ends the project's own processes for the benchmarks, and computes what their tables say."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

READY_WITHIN = 60.0


class Process:
    """One `offboard` command, and what it said when it was ready."""

    def __init__(self, process: asyncio.subprocess.Process, said: dict[str, Any]) -> None:
        self.process = process
        self.said = said

    @property
    def pid(self) -> int:
        return self.process.pid

    async def stop(self) -> None:
        if self.process.returncode is None:
            self.process.terminate()
            try:
                async with asyncio.timeout(10):
                    await self.process.wait()
            except TimeoutError:
                self.process.kill()
                await self.process.wait()


@asynccontextmanager
async def offboard(folder: Path, *arguments: str) -> AsyncIterator[Process]:
    """Run one long-running `offboard` command until the block ends; its log goes below `folder`."""
    with (folder / f"{arguments[0]}.log").open("ab") as log:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "offboard_worker", *arguments),
            *("--config", str(folder / "config.yaml"), "--json"),
            stdout=asyncio.subprocess.PIPE,
            stderr=log,
        )
    assert process.stdout is not None
    try:
        async with asyncio.timeout(READY_WITHIN):
            line = await process.stdout.readline()
        if not line:
            raise RuntimeError(
                f"offboard {arguments[0]} did not start:\n{(folder / f'{arguments[0]}.log').read_text()}"
            )
        yield Process(process, json.loads(line))
    finally:
        await Process(process, {}).stop()


async def command(folder: Path, *arguments: str) -> Any:
    """Run one `offboard` command to its end and return the JSON that it printed."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "offboard_worker", *arguments),
        *("--config", str(folder / "config.yaml"), "--json"),
        stdout=asyncio.subprocess.PIPE,
    )
    output, _ = await process.communicate()
    if process.returncode:
        raise RuntimeError(f"offboard {' '.join(arguments)} ended with {process.returncode}")
    return json.loads(output)


def percentile(values: Sequence[float], share: float) -> float:
    """The nearest-rank percentile."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, max(0, round(share * len(ordered) + 0.5) - 1))]
