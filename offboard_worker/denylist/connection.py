"""How the denylist reaches Redis: clients whose timeouts are stated, not redis-py's defaults.

redis-py 8 waits 5 s per try and tries 11 times: a black-holed Redis then takes a minute to be noticed. Nothing here
retries: whoever calls knows better when to try again. This file knows no keys and no scripts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

import redis
import redis.sentinel
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel
from redis.backoff import NoBackoff
from redis.retry import Retry as BlockingRetry

from offboard_worker.errors import ConfigError

Connect = Callable[[float | None], Redis]
"""Makes a client; the argument is its socket timeout in seconds, None for blocking reads (which need a watchdog)."""

CONNECT_TIMEOUT = 1.0
_SENTINEL = "redis+sentinel://"


def open_client(url: str, timeout: float | None) -> Redis:
    """Return a client for a `redis://`, `rediss://`, `unix://` or `redis+sentinel://` URL. Touches no network yet."""
    options = _options(timeout, Retry(NoBackoff(), 0))
    if url.startswith(_SENTINEL):
        place = SentinelPlace.of(url)
        watch = Sentinel(list(place.hosts), sentinel_kwargs=_options(timeout, Retry(NoBackoff(), 0)))  # type: ignore[no-untyped-call]
        master: Redis = watch.master_for(place.service, db=place.db, password=place.password, **options)
        return master
    client: Redis = Redis.from_url(url, **options)
    return client


def open_blocking_client(url: str, timeout: float | None) -> redis.Redis:
    """Return the blocking client that RQ needs, for the same URLs."""
    options = _options(timeout, BlockingRetry(NoBackoff(), 0))
    if url.startswith(_SENTINEL):
        place = SentinelPlace.of(url)
        blocking: Any = redis.sentinel.Sentinel  # untyped in redis-py
        watch = blocking(list(place.hosts), sentinel_kwargs=_options(timeout, BlockingRetry(NoBackoff(), 0)))
        master: redis.Redis = watch.master_for(place.service, db=place.db, password=place.password, **options)
        return master
    client: redis.Redis = redis.Redis.from_url(url, **options)
    return client


@dataclass(frozen=True, slots=True)
class SentinelPlace:
    """Where the sentinels are and which service to ask them for: `redis+sentinel://[:password@]h1[:p],h2[:p]/name[/db]`."""

    hosts: tuple[tuple[str, int], ...]
    service: str
    db: int = 0
    password: str | None = None

    @classmethod
    def of(cls, url: str) -> SentinelPlace:
        """Read such a URL. Raises ConfigError."""
        rest = url.removeprefix(_SENTINEL)
        login, _, place = rest.rpartition("@")
        hosts, _, path = place.partition("/")
        service, _, db = path.partition("/")
        pairs = [host.partition(":") for host in hosts.split(",") if host]
        if not pairs or not service or not all((p or "0").isdigit() for *_, p in pairs) or not (db or "0").isdigit():
            raise ConfigError("redis: is not a Sentinel URL\n  expected  redis+sentinel://host1:26379,host2:26379/name")
        found = tuple((host, int(port or 26379)) for host, _, port in pairs)
        return cls(found, service, int(db or 0), unquote(login.removeprefix(":")) or None)


def _options(timeout: float | None, retry: Any) -> dict[str, Any]:
    return {
        "socket_timeout": timeout,
        "socket_connect_timeout": CONNECT_TIMEOUT if timeout is None else timeout,
        "retry": retry,
        "protocol": 2,
        "decode_responses": False,
    }


def connect_to(url: str) -> Connect:
    """Return the `Connect` of one URL."""
    return lambda timeout: open_client(url, timeout)
