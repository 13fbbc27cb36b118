"""What sources share at the border: strict reading of bytes, constant-time comparison, and careful calls to a vendor.

It knows no vendor and no meaning. A body that can't be read is MalformedDelivery, never another exception; a vendor that
can't be asked is SourceUnavailable with its Retry-After. Plain http goes to loopback only, and no redirect is followed:
both would hand a token to somebody else.
"""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from hmac import compare_digest
from ipaddress import ip_address
from typing import TYPE_CHECKING, Annotated, Any, Final, TypeVar
from urllib.parse import urlsplit

from pydantic import AfterValidator, TypeAdapter, ValidationError

from offboard_worker.errors import MalformedDelivery, SourceUnavailable
from offboard_worker.secret import Secret

if TYPE_CHECKING:
    from aiohttp import ClientSession

T = TypeVar("T")

TIMEOUT: Final = 10.0  # seconds for one call, connecting included
MAX_ITEMS: Final = 20_000  # entries in one delivery; at 1 MiB a body nothing real comes near it
MAX_ANSWER: Final = 8 * 1024 * 1024


def read(shape: TypeAdapter[T], body: bytes | str, what: str) -> T:
    """Read JSON into `shape`. Raises MalformedDelivery, which names the place and never quotes the content."""
    try:
        return shape.validate_json(body)
    except ValidationError as error:
        raise MalformedDelivery(
            f"{what}: {_first(error)}", advice=f"Compare the body with the format of {what}."
        ) from None


def read_answer(shape: TypeAdapter[T], body: bytes, what: str) -> T:
    """Read a vendor's answer. A half or wrong one is the vendor's trouble: SourceUnavailable, and it is asked again."""
    try:
        return read(shape, body, what)
    except MalformedDelivery as error:
        raise SourceUnavailable(error.message) from None


def _first(error: ValidationError) -> str:
    """Say where reading failed, without the content: a body can hold a secret (clientState)."""
    found = error.errors(include_url=False, include_context=False, include_input=False)[0]
    place = ".".join(str(part)[:40] for part in found["loc"][:8])
    if found["type"] == "json_invalid":
        return "not JSON"
    return f"{found['type']} at {place or 'the top'}"


def same(given: str, secret: Secret) -> bool:
    """Compare in constant time. Headers can hold surrogates (bytes that weren't UTF-8), which must compare, not raise."""
    return compare_digest(given.encode("utf-8", "surrogatepass"), secret.reveal().encode("utf-8", "surrogatepass"))


def instant(text: str | None, otherwise: datetime) -> datetime:
    """Return an ISO 8601 time in UTC, or `otherwise`: a vendor's odd date must not cost us the event."""
    if not text:
        return otherwise
    try:
        found = datetime.fromisoformat(text)
        return (found if found.tzinfo else found.replace(tzinfo=UTC)).astimezone(UTC)
    except (ValueError, OverflowError):
        return otherwise


def is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def _vendor_url(value: str) -> str:
    parts = urlsplit(value)
    if parts.scheme not in ("https", "http") or not parts.hostname or parts.username is not None or parts.query:
        raise ValueError("expected an address like https://host/path, without user name or query")
    if parts.scheme == "http" and not is_loopback(parts.hostname):
        raise ValueError("plain http is allowed to loopback only: use https")
    return value.rstrip("/")


VendorUrl = Annotated[str, AfterValidator(_vendor_url)]


def retry_after(headers: Mapping[str, str], now: datetime | None = None) -> float | None:
    """Return the seconds that Retry-After asks for, whole, fractional or as an HTTP date; None if it says nothing."""
    text = headers.get("Retry-After", "").strip()
    if not text:
        return None
    try:
        seconds = float(text)
    except ValueError:
        try:
            until = parsedate_to_datetime(text)
        except (ValueError, TypeError):
            return None
        seconds = ((until if until.tzinfo else until.replace(tzinfo=UTC)) - (now or datetime.now(UTC))).total_seconds()
    return min(max(seconds, 0.0), 86_400.0) if seconds == seconds else None  # NaN is no answer


def open_session() -> ClientSession:
    """Open a session that honours SSL_CERT_FILE, keeps no cookies and reads no proxy or netrc settings."""
    import aiohttp  # here, so that importing a source stays cheap

    return aiohttp.ClientSession(
        timeout=aiohttp.ClientTimeout(total=TIMEOUT),
        connector=aiohttp.TCPConnector(ssl=ssl.create_default_context(), limit=20),
        cookie_jar=aiohttp.DummyCookieJar(),
    )


async def fetch(
    session: ClientSession, method: str, url: str, *, limit: int = MAX_ANSWER, encoded: bool = False, **options: Any
) -> tuple[int, Mapping[str, str], bytes]:
    """Send one request and return status, headers and at most `limit` bytes; 429 and 5xx raise SourceUnavailable.

    `encoded` sends the address byte for byte as given (links that a vendor made). Addresses and tokens stay out of
    the message: only the host is named.
    """
    import aiohttp
    from yarl import URL

    host = urlsplit(url).netloc
    try:
        async with session.request(method, URL(url, encoded=encoded), allow_redirects=False, **options) as response:
            body = await response.content.read(limit + 1)
            while len(body) <= limit and (more := await response.content.read(limit + 1 - len(body))):
                body += more
    except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
        raise SourceUnavailable(f"{host} could not be asked: {type(error).__name__}") from None
    if len(body) > limit:
        raise SourceUnavailable(f"{host} answered more than {limit} bytes")
    if response.status == 429 or response.status >= 500:
        raise SourceUnavailable(f"{host} answered {response.status}", retry_after=retry_after(response.headers))
    return response.status, response.headers, body
