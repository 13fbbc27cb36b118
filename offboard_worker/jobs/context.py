"""What every job is given. Built once per process by the composition root; jobs never reach past it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime

from offboard_worker.config import JobSettings, PolicySettings
from offboard_worker.connector import Connector, ConnectorConfig
from offboard_worker.denylist.projection import Projection
from offboard_worker.jobs.claims import Claims
from offboard_worker.jobs.rulebook import Rulebook
from offboard_worker.sources.source import Source, SourceConfig
from offboard_worker.store.database import Store

OpenConnector = Callable[[str], AbstractAsyncContextManager[Connector[ConnectorConfig]]]


@dataclass(frozen=True, slots=True)
class JobContext:
    """The store, the denylist's projection, and how to reach sources and connectors."""

    store: Store
    projection: Projection
    claims: Claims
    book: Rulebook
    settings: JobSettings
    policy: PolicySettings
    open_connector: OpenConnector
    sources: Mapping[str, Source[SourceConfig]]
    submit: Callable[[list[str]], Awaitable[None]]  # hands case ids to the queue

    def now(self) -> datetime:
        return datetime.fromtimestamp(self.store.clock(), UTC)

    @asynccontextmanager
    async def connector(self, instance: str) -> AsyncIterator[Connector[ConnectorConfig]]:
        async with self.open_connector(instance) as connector:
            yield connector
