"""An identity provider's key set (RFC 7517): fetched, cached, refreshed, and believed a while when it can't be fetched.

Only the configured URL is ever fetched: nothing in a token (`jku`, `x5u`, `jwk`, `x5c`) chooses a key. An unknown key
id causes at most one fetch per `COOL_DOWN`, so that invented ids can't be used to flood the identity provider. Keys
that can't sign tokens (encryption keys, symmetric keys, unknown types) are left out. This file verifies nothing.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import aiohttp
from jwt import PyJWK
from jwt.exceptions import PyJWTError
from yarl import URL

from offboard_worker.config import is_loopback
from offboard_worker.errors import ConfigError, SourceUnavailable

log = logging.getLogger(__name__)

COOL_DOWN = 10.0
FETCH_TIMEOUT = 5.0
MAX_BYTES = 512 * 1024
_KEY_TYPES = {"R": "RSA", "P": "RSA", "E": "EC"}
_CURVES = {"ES256": "P-256", "ES384": "P-384", "ES512": "P-521"}


class RemoteKeys:
    """The verification keys of one issuer. `on_change` is called when a key has gone or is another under its id."""

    def __init__(
        self,
        url: str,
        session: aiohttp.ClientSession,
        *,
        max_age: float,
        stale: float,
        on_change: Callable[[], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        _check_url(url)
        self._url = url
        self._session = session
        self._max_age = max_age
        self._stale = stale
        self._on_change = on_change
        self._clock = clock
        self._keys: tuple[Mapping[str, Any], ...] = ()
        self._fetched_at: float | None = None
        self._tried_at: float | None = None
        self._lock = asyncio.Lock()
        self._refreshing: asyncio.Task[None] | None = None

    async def find(self, kid: str | None, algorithm: str) -> Sequence[PyJWK]:
        """Return the keys that may verify, none if the id is unknown. Raises SourceUnavailable."""
        if self._age() is None or self._too_old():
            await self._fetch(forced=self._age() is None)
        if self._age() is None or self._too_old():
            raise SourceUnavailable(
                f"the key set at {self._url} can't be fetched",
                advice="Check jwks_url of the issuer and that the proxy reaches it.",
                retry_after=COOL_DOWN,
            )
        found = self._matching(kid, algorithm)
        if not found and kid is not None:
            await self._fetch(forced=False)
            found = self._matching(kid, algorithm)
        self.refresh_soon()
        return found

    def refresh_soon(self) -> None:
        """Start a fetch beside the requests when the set has reached its age: nobody waits for it."""
        age = self._age()
        if age is None or age < self._max_age or (self._refreshing is not None and not self._refreshing.done()):
            return
        if self._tried_at is None or self._clock() - self._tried_at >= COOL_DOWN:
            self._refreshing = asyncio.create_task(self._fetch(forced=False))

    async def close(self) -> None:
        if self._refreshing is not None:
            self._refreshing.cancel()
            await asyncio.gather(self._refreshing, return_exceptions=True)

    def _age(self) -> float | None:
        return None if self._fetched_at is None else self._clock() - self._fetched_at

    def _too_old(self) -> bool:
        age = self._age()
        return age is not None and age > self._max_age + self._stale

    def _matching(self, kid: str | None, algorithm: str) -> list[PyJWK]:
        found: list[PyJWK] = []
        for raw in self._keys:
            if (kid is None or raw.get("kid") == kid) and suits(raw, algorithm):
                try:
                    found.append(PyJWK(dict(raw), algorithm))
                except PyJWTError as error:
                    log.warning("a key in %s is left out: %s", self._url, type(error).__name__)
        return found[:8]

    async def _fetch(self, *, forced: bool) -> None:
        """Fetch once, however many ask; not more often than COOL_DOWN. A failure keeps what we have."""
        asked_at = self._clock()
        async with self._lock:
            if self._tried_at is not None and (
                self._tried_at >= asked_at or (self._clock() - self._tried_at < COOL_DOWN and not forced)
            ):
                return
            if forced and self._tried_at is not None and self._clock() - self._tried_at < 1.0:
                return
            self._tried_at = self._clock()
            try:
                keys = await self._get()
            except (aiohttp.ClientError, TimeoutError, ValueError, OSError) as error:
                log.warning("the key set at %s can't be fetched: %s", self._url, type(error).__name__)
                return
            before = self._keys
            self._keys, self._fetched_at = keys, self._clock()
            if any(key not in keys for key in before):
                self._on_change()

    async def _get(self) -> tuple[Mapping[str, Any], ...]:
        timeout = aiohttp.ClientTimeout(total=FETCH_TIMEOUT)
        async with self._session.get(
            self._url, timeout=timeout, allow_redirects=False, headers={"Accept": "application/json"}
        ) as answer:
            if answer.status != 200:
                raise ValueError(f"status {answer.status}")
            body = await answer.content.read(MAX_BYTES + 1)
            while len(body) <= MAX_BYTES and not answer.content.at_eof():
                body += await answer.content.read(MAX_BYTES + 1 - len(body))
        if len(body) > MAX_BYTES:
            raise ValueError("too large")
        document = json.loads(body)
        if not isinstance(document, dict) or not isinstance(document.get("keys"), list):
            raise ValueError("not a JWK set")
        return tuple(key for key in document["keys"] if isinstance(key, dict))


def suits(jwk: Mapping[str, Any], algorithm: str) -> bool:
    """Say whether a JWK is a public signature key for exactly this algorithm (RFC 7517 section 4)."""
    if jwk.get("alg") not in (None, algorithm) or jwk.get("use") not in (None, "sig"):
        return False
    operations = jwk.get("key_ops")
    if operations is not None and (not isinstance(operations, list) or "verify" not in operations):
        return False
    if algorithm == "EdDSA":
        return jwk.get("kty") == "OKP" and jwk.get("crv") in ("Ed25519", "Ed448")
    if jwk.get("kty") != _KEY_TYPES.get(algorithm[:1]):
        return False
    return algorithm not in _CURVES or jwk.get("crv") == _CURVES[algorithm]


def _check_url(url: str) -> None:
    parsed = URL(url)
    if parsed.scheme == "https" or (parsed.scheme == "http" and is_loopback(parsed.host or "")):
        return
    raise ConfigError(
        f"jwks_url {url} can't be used",
        advice="Use https: whoever can change the key set on its way can sign tokens. Plain http is for loopback.",
    )
