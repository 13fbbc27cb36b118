"""Bearer tokens: minting our own, and verifying ours and an identity provider's (RFC 7519, 8725, 9068).

The signature is PyJWT's work; the claims are checked here, against a clock that is passed in. What comes out is a
VerifiedToken: facts, never a decision, so it may be remembered. Whether its owner is denied is asked anew for each
request. Nothing in a token's header chooses a key, but for `kid` among the keys of the issuer that we configured.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import json
import re
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import aiohttp
import jwt
from jwt.exceptions import PyJWTError

from offboard_worker.config import IssuerSettings, ProxySettings
from offboard_worker.denylist.facts import (
    Key,
    TokenIdentity,
    email_key,
    person_key,
    session_key,
    subject_key,
    token_key,
)
from offboard_worker.errors import ConfigError, TokenRefused
from offboard_worker.proxy.jwks import RemoteKeys
from offboard_worker.proxy.keys import SigningKeys

OWN_TYPE: Final = "at+jwt"
OWN_LEEWAY: Final = 5.0
MAX_TOKEN: Final = 12 * 1024
LONGEST_CLAIM: Final = 512
FOLDER_EVERY: Final = 2.0
_COMPACT = re.compile(r"[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+")
_jws = jwt.PyJWS()


class BadToken(TokenRefused):
    """The token is not accepted; `detail` is the slug that the metric and the answer carry."""

    def __init__(self, detail: str, message: str) -> None:
        super().__init__(message)
        self.detail = detail


@dataclass(frozen=True, slots=True)
class VerifiedToken:
    """What a token says, its signature and claims having been checked. `expires_at` is Unix seconds."""

    identity: TokenIdentity
    subject: str
    roles: tuple[str, ...]
    expires_at: int
    issuer: str
    not_before: int = 0


def mint(
    keys: SigningKeys,
    settings: ProxySettings,
    person_id: str,
    *,
    generation: int,
    roles: Sequence[str],
    now: float,
    lifetime: float | None = None,
) -> tuple[str, dict[str, Any]]:
    """Sign an access token for one person; return it with its claims. `lifetime` is in seconds. Raises ConfigError."""
    unknown = [role for role in roles if role not in settings.roles]
    if unknown:
        known = ", ".join(sorted(settings.roles)) or "none"
        raise ConfigError(f"proxy.roles has no {', '.join(unknown)}; configured: {known}")
    key = keys.signer()
    if key.private is None:
        raise ConfigError("signing keys: the newest key holds no private half")
    issued_at = int(now)
    claims: dict[str, Any] = {
        "iss": settings.issuer,
        "aud": settings.audience,
        "sub": person_id,
        "gen": generation,
        "jti": secrets.token_urlsafe(16),
        "roles": list(roles),
        "iat": issued_at,
        "exp": issued_at + int(settings.token_lifetime.total_seconds() if lifetime is None else lifetime),
    }
    return jwt.encode(claims, key.private, "EdDSA", {"typ": OWN_TYPE, "kid": key.kid}), claims


class TokenVerifier:
    """Verifies tokens of our own issuer and of the configured ones, and remembers what it verified."""

    def __init__(
        self,
        settings: ProxySettings,
        keys: SigningKeys,
        session: aiohttp.ClientSession,
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._settings = settings
        self._own = keys
        self._clock = clock
        self._folder_at = time.monotonic()
        self._known: OrderedDict[bytes, VerifiedToken] = OrderedDict()
        self._size = settings.token_cache
        self._epoch = 0
        self._remote: dict[str, tuple[IssuerSettings, RemoteKeys]] = {}
        for name, issuer in settings.issuers.items():
            if issuer.issuer == settings.issuer or issuer.issuer in self._remote:
                raise ConfigError(f"proxy.issuers.{name}: {issuer.issuer} is configured twice")
            remote = RemoteKeys(
                issuer.jwks_url,
                session,
                max_age=issuer.jwks_max_age.total_seconds(),
                stale=issuer.jwks_stale.total_seconds(),
                on_change=self.forget,
            )
            self._remote[issuer.issuer] = (issuer, remote)

    def forget(self) -> None:
        """Forget what was verified: a key has gone, and what it had signed must not outlive it."""
        self._known.clear()
        self._epoch += 1

    async def close(self) -> None:
        await asyncio.gather(*(remote.close() for _, remote in self._remote.values()))

    def known(self, token: str) -> VerifiedToken | None:
        """Return what is remembered of a token that is still in its time, None if it must be verified. Never awaits."""
        self._look_at_folder()
        digest = hashlib.sha256(token.encode("utf-8", "surrogateescape")).digest()
        verified = self._known.get(digest)
        if verified is None:
            return None
        self._known.move_to_end(digest)
        self._in_time(verified)
        if verified.issuer != self._settings.issuer:
            self._remote[verified.issuer][1].refresh_soon()
        return verified

    async def verify(self, token: str) -> VerifiedToken:
        """Return what the token says. Raises BadToken, or SourceUnavailable where a key set can't be had."""
        verified = self.known(token)
        if verified is not None:
            return verified
        epoch = self._epoch
        header, claims = _unverified(token)
        if claims.get("iss") == self._settings.issuer:
            verified = self._verify_own(token, header)
        else:
            verified = await self._verify_foreign(token, header, claims)
        self._in_time(verified)
        if epoch == self._epoch:
            self._known[hashlib.sha256(token.encode()).digest()] = verified
            if len(self._known) > self._size:
                self._known.popitem(last=False)
        return verified

    def _in_time(self, token: VerifiedToken) -> None:
        """Raise BadToken for a token before or after its time."""
        now = self._clock()
        own = token.issuer == self._settings.issuer
        leeway = OWN_LEEWAY if own else self._remote[token.issuer][0].leeway.total_seconds()
        if token.expires_at <= now:  # no leeway: the denial of a jti ends at this very time
            raise BadToken("expired", "the token has expired")
        if token.not_before > now + leeway:
            raise BadToken("not-yet-valid", "the token is not valid yet")

    def _look_at_folder(self, every: float = FOLDER_EVERY) -> None:
        now = time.monotonic()
        if now - self._folder_at >= every:
            self._folder_at = now
            if self._own.reload():
                self.forget()

    def _verify_own(self, token: str, header: Mapping[str, Any]) -> VerifiedToken:
        if header["alg"] != "EdDSA":
            raise BadToken("bad-algorithm", "the token's algorithm is not EdDSA")
        if _type(header) not in (OWN_TYPE, f"application/{OWN_TYPE}"):
            raise BadToken("bad-type", "the token is not an access token")
        kid = header.get("kid")
        if not isinstance(kid, str):
            raise BadToken("unknown-key", "the token names no key")
        if kid not in self._own.by_kid:
            self._look_at_folder(0.2)
        key = self._own.by_kid.get(kid)
        if key is None:
            raise BadToken("unknown-key", "the token's key is not one of ours")
        claims = _signed(token, [key.public], "EdDSA")
        if claims.get("iss") != self._settings.issuer:
            raise BadToken("bad-issuer", "the token's issuer is not this proxy")
        _audience(claims, (self._settings.audience,))
        person, jti = _text(claims, "sub"), _text(claims, "jti")
        issued_at, expires_at, not_before = _times(claims, self._clock(), OWN_LEEWAY)
        generation = claims.get("gen")
        if issued_at is None or type(generation) is not int or generation < 0:
            raise BadToken("bad-claims", "the token lacks iat or a valid gen")
        roles = claims.get("roles", [])
        if not isinstance(roles, list) or not all(isinstance(role, str) for role in roles):
            raise BadToken("bad-claims", "the token's roles are not a list of names")
        keys = (token_key(self._settings.issuer, jti),)
        identity = TokenIdentity(keys, issued_at, person_key(person), generation)
        return VerifiedToken(identity, person, tuple(roles), expires_at, self._settings.issuer, not_before)

    async def _verify_foreign(self, token: str, header: Mapping[str, Any], hint: Mapping[str, Any]) -> VerifiedToken:
        known = self._remote.get(hint["iss"]) if isinstance(hint.get("iss"), str) else None
        if known is None:
            raise BadToken("bad-issuer", "the token's issuer is not configured")
        settings, remote = known
        algorithm = header["alg"]
        if algorithm not in settings.algorithms:
            raise BadToken("bad-algorithm", "the token's algorithm is not allowed for its issuer")
        if _type(header) not in {_normal_type(name) for name in settings.types}:
            raise BadToken("bad-type", "the token is not an access token")
        kid = header.get("kid")
        if kid is not None and not isinstance(kid, str):
            raise BadToken("unknown-key", "the token's kid is not a text")
        keys = [key.key for key in await remote.find(kid, algorithm)]
        if not keys:
            raise BadToken("unknown-key", "the issuer has no such key for this algorithm")
        claims = _signed(token, keys, algorithm)
        if claims.get("iss") != settings.issuer:
            raise BadToken("bad-issuer", "the token's issuer is not configured")
        if "events" in claims:
            raise BadToken("bad-type", "a security event or logout token is not an access token")
        _audience(claims, settings.audience)
        issued_at, expires_at, not_before = _times(claims, self._clock(), settings.leeway.total_seconds())
        identity, label = _foreign_identity(claims, settings, issued_at)
        roles = _mapped_roles(claims.get(settings.roles_claim), settings.roles)
        return VerifiedToken(identity, label, roles, expires_at, settings.issuer, not_before)


def _foreign_identity(
    claims: Mapping[str, Any], settings: IssuerSettings, issued_at: int | None
) -> tuple[TokenIdentity, str]:
    """Gather every key that the token could be denied by, and a label for the access log."""
    iss = settings.issuer
    subject = _text(claims, settings.subject_claim)
    keys: list[Key] = [subject_key(iss, subject)]
    if settings.subject_claim != "sub" and "sub" in claims:
        keys.append(subject_key(iss, _text(claims, "sub")))
    label = subject
    if settings.email_claim and claims.get(settings.email_claim) is not None:
        label = _text(claims, settings.email_claim)
        keys.append(email_key(label))
    if claims.get("sid") is not None:
        keys.append(session_key(iss, _text(claims, "sid")))
    if claims.get("jti") is not None:
        keys.append(token_key(iss, _text(claims, "jti")))
    return TokenIdentity(tuple(dict.fromkeys(keys)), issued_at), label


def _mapped_roles(value: object, mapping: Mapping[str, tuple[str, ...]]) -> tuple[str, ...]:
    values = value.split() if isinstance(value, str) else value if isinstance(value, list) else []
    return tuple(dict.fromkeys(role for item in values if isinstance(item, str) for role in mapping.get(item, ())))


def _unverified(token: str) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """Read header and claims to learn which key to ask for. Nothing of it is believed. Raises BadToken."""
    if len(token) > MAX_TOKEN or not _COMPACT.fullmatch(token):
        raise BadToken("malformed", "the token is not a compact JWS")
    parts = token.split(".")
    header, claims = _object(parts[0]), _object(parts[1])
    if "crit" in header or "b64" in header:
        raise BadToken("malformed", "the token needs a header extension that is not understood")
    if not isinstance(header.get("alg"), str):
        raise BadToken("bad-algorithm", "the token names no algorithm")
    return header, claims


def _object(segment: str) -> Mapping[str, Any]:
    try:
        value = json.loads(base64.urlsafe_b64decode(segment + "=" * (-len(segment) % 4)), object_pairs_hook=_once)
    except (ValueError, binascii.Error, RecursionError):
        raise BadToken("malformed", "the token is not JSON in base64url") from None
    if not isinstance(value, dict):
        raise BadToken("malformed", "the token holds no JSON object")
    return value


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Refuse a name that stands twice: two readers could believe two different claims (RFC 8725 section 3.10)."""
    read = dict(pairs)
    if len(read) != len(pairs):
        raise ValueError("a name stands twice")
    return read


def _signed(token: str, keys: Sequence[Any], algorithm: str) -> Mapping[str, Any]:
    """Return the claims if one of the keys signed them. Raises BadToken."""
    for key in keys:
        try:
            _jws.decode_complete(token, key, algorithms=[algorithm], options={"enforce_minimum_key_length": True})
        except (PyJWTError, ValueError, TypeError):
            continue
        return _object(token.split(".")[1])
    raise BadToken("bad-signature", "the token's signature does not verify")


def _type(header: Mapping[str, Any]) -> str:
    value = header.get("typ", "")
    return _normal_type(value) if isinstance(value, str) else "?"


def _normal_type(name: str) -> str:
    return name.lower().removeprefix("application/")


def _text(claims: Mapping[str, Any], name: str) -> str:
    value = claims.get(name)
    if not isinstance(value, str) or not 0 < len(value) <= LONGEST_CLAIM:
        raise BadToken("bad-claims", f"the token's {name} is missing or not a text")
    return value


def _audience(claims: Mapping[str, Any], accepted: Sequence[str]) -> None:
    value = claims.get("aud")
    values = value if isinstance(value, list) else [value]
    if not any(isinstance(item, str) and item in accepted for item in values):
        raise BadToken("bad-audience", "the token is for another service")


def _times(claims: Mapping[str, Any], now: float, leeway: float) -> tuple[int | None, int, int]:
    """Return iat, exp and nbf in Unix seconds. Raises BadToken for a missing exp, an odd number, or an iat to come."""
    read: dict[str, int | None] = {}
    for name in ("iat", "exp", "nbf"):
        value = claims.get(name)
        if value is None:
            read[name] = None
        elif isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 2**53:
            raise BadToken("bad-claims", f"the token's {name} is not a time")
        else:
            read[name] = int(value)
    expires_at = read["exp"]
    if expires_at is None:
        raise BadToken("bad-claims", "the token has no exp")
    issued_at = read["iat"]
    if issued_at is not None and issued_at > now + leeway:
        raise BadToken("not-yet-valid", "the token was issued in the future")
    return issued_at, expires_at, read["nbf"] or 0
