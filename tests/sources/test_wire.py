"""How sources read bytes and call out, whoever the vendor is."""

from __future__ import annotations

import ssl
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.x509.oid import NameOID

from offboard_worker.errors import SourceUnavailable
from offboard_worker.secret import Secret
from offboard_worker.sources import wire
from tests.sources.deliveries import NOW


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("7", 7.0), ("1.5", 1.5), ("-3", 0.0), ("1e9", 86_400.0), ("", None), ("soon", None), ("nan", None),
        ("Fri, 20 Nov 2026 09:16:30 GMT", 30.0), ("Fri, 20 Nov 2026 09:00:00 GMT", 0.0),
    ],
)  # fmt: skip
def test_retry_after_is_read_in_every_form(text: str, seconds: float | None) -> None:
    assert wire.retry_after({"Retry-After": text}, NOW) == seconds


def test_times_come_out_in_utc_and_odd_ones_give_way() -> None:
    assert wire.instant("2026-11-20T10:16:00+01:00", NOW - timedelta(1)) == NOW
    assert wire.instant("2019-09-18T00:52:45.9696658Z", NOW) == datetime(2019, 9, 18, 0, 52, 45, 969665, UTC)
    assert wire.instant("2026-11-20 09:16:00", NOW - timedelta(1)) == NOW
    for odd in ("", None, "yesterday", "0001-01-01T00:00:00+14:00"):
        assert wire.instant(odd, NOW) == NOW


def test_a_secret_is_compared_whole() -> None:
    assert wire.same("ключ", Secret("ключ"))
    assert not wire.same("ключ\udcff", Secret("ключ"))
    assert not wire.same("", Secret("x"))


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "::1", "[::1]", "localhost"])
def test_loopback_is_known(host: str) -> None:
    assert wire.is_loopback(host)


@pytest.mark.parametrize("host", ["", "0.0.0.0", "10.0.0.1", "127.0.0.1.example.com", "localhost.example.com", "::"])
def test_nothing_else_is_loopback(host: str) -> None:
    assert not wire.is_loopback(host)


@pytest.mark.integration
async def test_ssl_cert_file_is_honoured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    key = generate_private_key(SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "loopback")])
    now = datetime.now(UTC)
    builder = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
    builder = builder.not_valid_before(now - timedelta(hours=1)).not_valid_after(now + timedelta(hours=1))
    builder = builder.add_extension(
        x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False
    )
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
    certificate = tmp_path / "ca.pem"
    certificate.write_bytes(builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))
    private = tmp_path / "key.pem"
    private.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate, private)

    async def hello(request: web.Request) -> web.Response:
        return web.Response(text="hello")

    app = web.Application()
    app.router.add_get("/", hello)
    server = TestServer(app, scheme="https")
    await server.start_server(ssl=context)
    url = str(server.make_url("/"))
    stranger = wire.open_session()
    with pytest.raises(SourceUnavailable):
        await wire.fetch(stranger, "GET", url)
    await stranger.close()
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    session = wire.open_session()
    assert (await wire.fetch(session, "GET", url))[::2] == (200, b"hello")
    await session.close()
    await server.close()


@pytest.mark.integration
async def test_a_vendors_trouble_names_the_host_and_never_the_address() -> None:
    async def trouble(request: web.Request) -> web.Response:
        return web.Response(status=int(request.query["status"]), headers={"Retry-After": "3"}, body=b"x" * 100)

    app = web.Application()
    app.router.add_get("/{rest:.*}", trouble)
    async with TestServer(app) as server:
        session = wire.open_session()
        for status in (429, 500, 503):
            with pytest.raises(SourceUnavailable) as caught:
                await wire.fetch(session, "GET", str(server.make_url(f"/s3cr3t?status={status}")))
            assert caught.value.retry_after == 3
            assert "s3cr3t" not in caught.value.message
        with pytest.raises(SourceUnavailable):
            await wire.fetch(session, "GET", str(server.make_url("/?status=200")), limit=10)
        gone = str(server.make_url("/s3cr3t"))
        await session.close()
    session = wire.open_session()
    with pytest.raises(SourceUnavailable) as caught:
        await wire.fetch(session, "GET", gone)
    await session.close()
    assert "s3cr3t" not in caught.value.message
