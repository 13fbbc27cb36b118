"""A denial log in memory: what the store is to the projection."""

from __future__ import annotations

from collections.abc import Sequence

from offboard_worker.denylist.facts import Entry, Fact, compact


class MemoryLog:
    """Appends entries with a gapless seq. `restore` goes back in time, as a store does that comes from a backup."""

    def __init__(self, log_id: str = "log-1") -> None:
        self.id = log_id
        self.entries: list[Entry] = []

    def append(self, *facts: Fact) -> int:
        self.entries.append(Entry(len(self.entries) + 1, facts, at=1_764_000_000.0))
        return len(self.entries)

    def restore(self, seq: int) -> None:
        del self.entries[seq:]

    async def log_id(self) -> str:
        return self.id

    async def head(self) -> int:
        return len(self.entries)

    async def since(self, seq: int, limit: int) -> Sequence[Entry]:
        return self.entries[seq : seq + limit]

    async def facts(self) -> tuple[int, Sequence[Fact]]:
        return len(self.entries), list(compact(self.entries, now=0.0).values())
