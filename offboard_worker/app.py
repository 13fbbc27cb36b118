"""The composition root: builds everything once from the configuration. Entry points take what they need from here.

Nothing below imports this. It opens no connection until it is entered, imports only the plugins that the configuration
names, and no vendor's SDK.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from functools import cached_property
from typing import TYPE_CHECKING, Any

from redis.asyncio import Redis

from offboard_worker import plugins
from offboard_worker.config import Config, plugin_config
from offboard_worker.connector import Connector, ConnectorConfig
from offboard_worker.core.policy import Rules
from offboard_worker.denylist.connection import open_client
from offboard_worker.denylist.facts import RedisNames
from offboard_worker.denylist.issued import IssuedTokens
from offboard_worker.denylist.projection import Projection
from offboard_worker.errors import ConfigError
from offboard_worker.jobs.claims import Claims
from offboard_worker.jobs.context import JobContext
from offboard_worker.jobs.rulebook import Rulebook, SourceFacts
from offboard_worker.secret import Secret
from offboard_worker.sources.source import Source, SourceConfig
from offboard_worker.store.database import Store
from offboard_worker.store.denials import StoredLog
from offboard_worker.store.people import configured

if TYPE_CHECKING:
    from offboard_worker.jobs.queue import Queues

_INSTANCE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,62}")
PROXY_TOKENS = "proxy"
"""The instance name of the built-in connector for our own proxy's tokens."""


class App:
    """Everything that one process may need, built lazily from one configuration."""

    def __init__(self, config: Config) -> None:
        self.config = config
        _check_names(config)

    @cached_property
    def names(self) -> RedisNames:
        return RedisNames(self.config.redis.prefix)

    @cached_property
    def sources(self) -> Mapping[str, Source[Any]]:
        """Every configured source. Raises ConfigError."""
        return {name: self._source(name, raw) for name, raw in self.config.sources.items()}

    def _source(self, name: str, raw: Mapping[str, Any]) -> Source[Any]:
        kind = plugins.source_class(_type_of(raw, "sources", name))
        settings: SourceConfig = plugin_config(kind.Config, self.config, ("sources", name), raw)
        return kind(name, settings)

    @cached_property
    def connectors(self) -> Mapping[str, tuple[type[Connector[Any]], ConnectorConfig]]:
        """Every configured connector's class and settings, the built-in one for our own tokens among them."""
        found = {name: self._connector(name, raw) for name, raw in self.config.connectors.items()}
        if not any(kind.name == "proxy_tokens" for kind, _ in found.values()):
            found[PROXY_TOKENS] = self._connector(PROXY_TOKENS, {"type": "proxy_tokens"})
        return found

    def _connector(self, name: str, raw: Mapping[str, Any]) -> tuple[type[Connector[Any]], ConnectorConfig]:
        kind = plugins.connector_class(_type_of(raw, "connectors", name))
        settings: ConnectorConfig = plugin_config(kind.Config, self.config, ("connectors", name), raw)
        if kind.name == "proxy_tokens":
            where = {
                "redis_url": Secret(self.config.redis_url),
                "redis_prefix": self.config.redis.prefix,
                "store_url": Secret(self.config.store_url),
            }
            settings = settings.model_copy(update=where)
        return kind, settings

    def open_connector(self, name: str) -> AbstractAsyncContextManager[Connector[Any]]:
        """Open one connector. Raises ConfigError if it isn't configured (any more)."""
        if name not in self.connectors:
            raise ConfigError(
                f"connector {name} is not configured",
                advice=f"Put connectors.{name} back until its cases are done, or cancel them.",
            )
        kind, settings = self.connectors[name]
        return kind.open(name, settings)

    @cached_property
    def book(self) -> Rulebook:
        """Everything configured that decides what an event leads to."""
        config = self.config
        issuers: dict[str, set[str]] = {}
        for source in self.sources.values():
            issuers.setdefault(source.system, set()).update(source.config.issuers)
        return Rulebook(
            rules=Rules(
                revoke_on=frozenset(config.policy.revoke_on),
                approval=config.policy.approval,
                reinstate_on_enable=config.policy.reinstate_on_enable,
                max_leavers=config.guards.max_leavers,
            ),
            window=config.guards.window,
            skew=config.policy.issued_before_skew,
            connectors={name: settings.system or name for name, (_, settings) in self.connectors.items()},
            sources={
                name: SourceFacts(source.system, source.config.trust_email) for name, source in self.sources.items()
            },
            issuers={system: tuple(sorted(all_of)) for system, all_of in issuers.items() if all_of},
        )

    @asynccontextmanager
    async def open(self, *, redis_timeout: float = 2.0) -> AsyncIterator[Opened]:
        """Connect: the store migrated, the configured people in it, Redis clients made."""
        async with AsyncExitStack() as stack:
            durable = self.config.receiver.durability == "full"
            store = await Store.open(self.config.store_url, durable=durable)
            stack.push_async_callback(store.close)
            redis = open_client(self.config.redis_url, redis_timeout)
            stack.push_async_callback(redis.aclose)
            opened = Opened(self, store, redis)
            if self.config.people:
                async with store.write() as tx:
                    await configured(tx, self.config.people)
            yield opened
            for source in self.sources.values() if "sources" in self.__dict__ else ():
                await source.close()


class Opened:
    """An App with its connections."""

    def __init__(self, app: App, store: Store, redis: Redis) -> None:
        self.app = app
        self.store = store
        self.redis = redis
        self.issued = IssuedTokens(redis, app.names)
        self.projection = Projection(
            redis,
            StoredLog(store),
            app.names,
            wait_replicas=app.config.redis.wait_replicas,
            lease=app.config.proxy.lease.total_seconds(),
        )
        self.claims = Claims(redis, app.config.redis.prefix)

    @cached_property
    def queues(self) -> Queues:
        """The job queues, over a blocking client of their own."""
        from offboard_worker.denylist.connection import open_blocking_client
        from offboard_worker.jobs.queue import Queues

        return Queues(open_blocking_client(self.app.config.redis_url, 5.0), self.app.config.jobs)

    async def submit(self, case_ids: list[str]) -> None:
        await asyncio.to_thread(self.queues.submit, case_ids, [])

    def job_context(self) -> JobContext:
        return JobContext(
            store=self.store,
            projection=self.projection,
            claims=self.claims,
            book=self.app.book,
            settings=self.app.config.jobs,
            policy=self.app.config.policy,
            open_connector=self.app.open_connector,
            sources=self.app.sources,
            submit=self.submit,
        )


def _type_of(raw: Mapping[str, Any], section: str, name: str) -> str:
    kind = raw.get("type") if isinstance(raw, Mapping) else None
    if not isinstance(kind, str):
        known = plugins.source_types() if section == "sources" else plugins.connector_types()
        raise ConfigError(
            f"{section}.{name}.type is not set\n  found     nothing\n  expected  one of {', '.join(known)}"
        )
    return kind


def _check_names(config: Config) -> None:
    for section, names in (("sources", config.sources), ("connectors", config.connectors)):
        for name in names:
            if not _INSTANCE.fullmatch(name):
                raise ConfigError(
                    f"{section}.{name} can't be used as a name\n  found     {name!r}\n"
                    "  expected  letters, digits, - and _, at most 63, as it becomes part of URLs and job ids"
                )
