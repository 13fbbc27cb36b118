"""Which headers pass, in both directions, and which requests are framed too oddly to be passed at all. No I/O.

RFC 9110 section 7.6.1 (hop-by-hop), RFC 9112 section 6 (framing). aiohttp's parser refuses much by itself; what it
accepts and two servers could read differently is refused here, so that no upstream ever sees a request that we did
not admit.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Final

from multidict import CIMultiDict, MultiMapping

RawHeaders = Sequence[tuple[bytes, bytes]]

HOP_BY_HOP: Final = frozenset(
    [
        "connection",
        "keep-alive",
        "proxy-connection",
        "proxy-authenticate",
        "proxy-authorization",
        "proxy-authentication-info",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
        "http2-settings",
        "expect",
    ]
)
FRAMING: Final = HOP_BY_HOP | {"content-length", "host", "authorization"}
"""With an underscore for a dash some servers read these as the real ones."""

_IDENTITY: Final = frozenset(
    [
        "forwarded",
        "via",
        "x-real-ip",
        "x-client-ip",
        "x-cluster-client-ip",
        "true-client-ip",
        "cf-connecting-ip",
        "fastly-client-ip",
        "x-original-url",
        "x-original-uri",
        "x-original-method",
        "x-original-host",
        "x-rewrite-url",
        "x-host",
        "x-http-method",
        "x-http-method-override",
        "x-method-override",
        "x-user",
        "x-username",
        "x-user-id",
        "x-user-name",
        "x-user-email",
        "x-email",
        "x-groups",
        "x-roles",
        "x-role",
        "x-tenant",
        "x-remote-ip",
        "x-remote-addr",
        "remote-user",
        "remote-groups",
        "remote-name",
        "remote-email",
        "remote-addr",
        "x-principal",
        "x-identity",
        "x-subject",
        "x-client-cert",
        "x-api-user",
        "x-envoy-external-address",
    ]
)
_IDENTITY_PREFIXES: Final = (
    "x-forwarded-",
    "x-forwarded",
    "x-remote-",
    "x-auth-",
    "x-authenticated-",
    "x-authentik-",
    "x-webauth-",
    "x-ms-client-principal",
    "x-ms-token-",
    "x-goog-authenticated-user",
    "x-goog-iap-",
    "x-amzn-oidc-",
    "x-ssl-",
    "ssl-client-",
    "x-client-cert-",
    "x-consumer-",
    "x-credential-",
    "x-envoy-",
    "x-offboard-",
    "cf-access-",
)
OUR_COOKIES: Final = ("offboard_", "__Host-offboard_", "__Secure-offboard_")
_END_TO_END: Final = frozenset(
    {"host", "authorization", "content-length", "content-type", "cookie", "content-encoding"}
)
_TOKEN: Final = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_HOST: Final = re.compile(rb"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._~-]+)(:\d{1,5})?")
_CONTROL: Final = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")


def normal(name: str) -> str:
    """The form in which header names are compared: lower case, dashes for underscores."""
    return name.lower().replace("_", "-")


def framing_problem(raw: RawHeaders, version: tuple[int, int], method: str) -> str | None:
    """Name what is wrong with a request's head, None if it is plain. The name is the metric's label."""
    if version not in ((1, 1), (1, 0)):
        return "bad-version"
    values: dict[str, list[bytes]] = {}
    for name_bytes, value in raw:
        name = name_bytes.decode("latin-1").lower()
        if not _TOKEN.fullmatch(name_bytes) or _CONTROL.search(value) or not _is_utf8(value):
            return "bad-header"
        if "_" in name and normal(name) in FRAMING:
            return "underscore-header"
        values.setdefault(name, []).append(value.strip(b" \t"))
    for single in ("host", "authorization", "content-length", "transfer-encoding", "expect", "upgrade"):
        if len(values.get(single, ())) > 1:
            return f"duplicate-{single}"
    return _framing(values, version) or _routing(values, version) or _upgrade(values, version, method)


def _framing(values: dict[str, list[bytes]], version: tuple[int, int]) -> str | None:
    encoding = values.get("transfer-encoding")
    if encoding and (version == (1, 0) or "content-length" in values or encoding[0].lower() != b"chunked"):
        return "bad-transfer-encoding"
    length = values.get("content-length")
    if length and not re.fullmatch(rb"\d{1,18}", length[0]):
        return "bad-content-length"
    expect = values.get("expect")
    if expect and expect[0].lower() != b"100-continue":
        return "bad-expect"
    return None


def _routing(values: dict[str, list[bytes]], version: tuple[int, int]) -> str | None:
    host = values.get("host")
    if host is None:
        if version == (1, 1):
            return "no-host"
    elif not _HOST.fullmatch(host[0]):
        return "bad-host"
    if _named(b",".join(values.get("connection", ())).decode("latin-1")) & _END_TO_END:
        return "bad-connection"
    return None


def _upgrade(values: dict[str, list[bytes]], version: tuple[int, int], method: str) -> str | None:
    upgrade = values.get("upgrade")
    if upgrade is None:
        return None
    body = "transfer-encoding" in values or values.get("content-length", [b"0"])[0].lstrip(b"0") != b""
    named = _named(b",".join(values.get("connection", ())).decode("latin-1"))
    plain = method == "GET" and version == (1, 1) and not body and "upgrade" in named
    return None if plain and upgrade[0].lower() == b"websocket" else "bad-upgrade"


def _named(connection: str) -> frozenset[str]:
    return frozenset(normal(name.strip(" \t")) for name in connection.split(",") if name.strip(" \t"))


def _is_utf8(value: bytes) -> bool:
    try:
        value.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def to_upstream(headers: MultiMapping[str], injected: str, *, websocket: bool = False) -> CIMultiDict[str]:
    """Return the request headers that pass: neither hop-by-hop, nor about identity, nor what `injected` replaces."""
    drop = _named(",".join(headers.getall("Connection", ()))) | HOP_BY_HOP | {"authorization", "host", normal(injected)}
    passed: CIMultiDict[str] = CIMultiDict()
    for name, value in headers.items():
        plain = normal(name)
        if plain in drop or is_identity(plain) or (websocket and plain.startswith("sec-websocket-")):
            continue
        if plain == "cookie":
            value = _foreign_cookies(value)
            if not value:
                continue
        passed.add(name, value)
    return passed


def is_identity(plain: str) -> bool:
    """Say whether a (normal) header name tells an upstream who is calling or from where."""
    return plain in _IDENTITY or plain.startswith(_IDENTITY_PREFIXES)


def _foreign_cookies(value: str) -> str:
    pairs = [pair.strip() for pair in value.split(";")]
    if not any(pair.startswith(OUR_COOKIES) for pair in pairs):
        return value
    return "; ".join(pair for pair in pairs if pair and not pair.startswith(OUR_COOKIES))


def to_client(raw: Iterable[tuple[bytes, bytes]]) -> CIMultiDict[str]:
    """Return the answer headers that pass. Raises ValueError for one that can't be written again."""
    decoded = [(name.decode("ascii"), _text(value)) for name, value in raw]
    drop = _named(",".join(value for name, value in decoded if name.lower() == "connection")) | HOP_BY_HOP
    return CIMultiDict((name, value) for name, value in decoded if normal(name) not in drop - {"content-length"})


def _text(value: bytes) -> str:
    if _CONTROL.search(value):
        raise ValueError("a control character in a header")
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError:
        return value.decode("latin-1")
