"""Two replicas on a real Valkey: what passes, what is refused, and how fast a leaver is cut off."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest

from offboard_worker.denylist.facts import Fact, person_key
from offboard_worker.proxy.server import ProxyServer
from tests.denylist.conftest import until
from tests.proxy.conftest import KEY, World, settings
from tests.proxy.upstream import FakeUpstream

pytestmark = pytest.mark.integration


async def test_an_allowed_call_reaches_the_upstream_with_the_key_and_without_the_token(world: World) -> None:
    for proxy in world.proxies:
        async with world.client.get(f"{proxy.url}/api/v1/things?a=%20b&c", headers=world.auth()) as answer:
            assert answer.status == 200
            assert answer.headers["X-Upstream"] == "yes"
            assert await answer.text() == "GET /v1/things?a=%20b&c"
    assert [seen.header("X-Api-Key") for seen in world.upstream.seen] == [[KEY], [KEY]]
    assert [seen.header("Authorization") for seen in world.upstream.seen] == [[], []]


async def test_the_call_after_a_denial_is_refused_at_every_replica_with_401_revoked(world: World) -> None:
    headers = world.auth()
    for proxy in world.proxies:
        async with world.client.get(f"{proxy.url}/api/v1/x", headers=headers) as answer:
            assert answer.status == 200
    pushed = await world.deny()
    seq = world.log.entries[-1].seq
    waited = await until(lambda: all(proxy.replica.applied >= seq for proxy in world.proxies))
    for proxy in world.proxies:
        async with world.client.get(f"{proxy.url}/api/v1/x", headers=headers) as answer:
            assert answer.status == 401
            assert answer.headers["WWW-Authenticate"].startswith('Bearer realm="offboard-proxy", error=')
            assert answer.headers["Cache-Control"] == "no-store"
            assert (await answer.json())["error"] == "revoked"
    assert len(world.upstream.seen) == 2
    assert waited < 0.5, f"took {waited:.3f} s after the push at {pushed}"


async def test_open_streams_uploads_and_websockets_of_the_leaver_are_cut_and_nobody_elses(world: World) -> None:
    one, two = world.proxies
    stay = await world.client.get(f"{one.url}/api/v1/sse", headers=world.auth("bystander"))
    streams = [await world.client.get(f"{proxy.url}/api/v1/sse", headers=world.auth()) for proxy in world.proxies]
    upload = asyncio.create_task(_endless_upload(world, two))
    socket = await world.client.ws_connect(
        f"{one.url}/api/v1/ws", headers=world.auth(), protocols=("chat.v1", "chat.v2")
    )
    assert socket.protocol == "chat.v2"
    await socket.send_str("hello")
    assert (await socket.receive()).data == "echo hello"
    for stream in (stay, *streams):
        assert await stream.content.read(6)
    await until(lambda: world.upstream.uploaded > 0)

    pushed = await world.deny()
    for stream in streams:
        with pytest.raises(aiohttp.ClientError):
            await stream.content.read()
    with pytest.raises(aiohttp.ClientError):
        await upload
    cut = time.monotonic() - pushed
    message = await socket.receive()
    assert message.type is aiohttp.WSMsgType.CLOSE
    assert message.data == 1008
    assert cut < 0.5
    await until(lambda: world.upstream.open_streams == 1 and world.upstream.websockets == 0, 1.5)
    assert await stay.content.readexactly(1000)
    stay.close()
    assert one.metrics.registry.get_sample_value("offboard_proxy_cuts_total", {"reason": "revoked"}) == 2


async def _endless_upload(world: World, proxy: ProxyServer) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        while True:
            yield b"x" * 1024
            await asyncio.sleep(0.01)

    async with world.client.post(f"{proxy.url}/api/v1/upload", headers=world.auth(), data=pieces()) as answer:
        await answer.read()


async def test_without_a_lease_new_calls_get_503_and_streams_are_cut(world: World) -> None:
    proxy = world.proxies[0]
    stream = await world.client.get(f"{proxy.url}/api/v1/sse", headers=world.auth())
    assert await stream.content.read(6)
    world.valkey.pause()
    started = time.monotonic()
    try:
        with pytest.raises(aiohttp.ClientError):
            await stream.content.read()
        assert time.monotonic() - started < 0.6 + 0.3
        async with world.client.get(f"{proxy.url}/api/v1/x", headers=world.auth()) as answer:
            assert answer.status == 503
            assert answer.headers["Retry-After"] == "1"
            assert answer.headers["Cache-Control"] == "no-store"
        async with world.client.get(f"{proxy.metrics_url}/readyz") as ready:
            assert ready.status == 503
    finally:
        world.valkey.resume()
    await until(lambda: proxy.replica.fresh)
    async with world.client.get(f"{proxy.url}/api/v1/x", headers=world.auth()) as answer:
        assert answer.status == 200
    async with world.client.get(f"{proxy.metrics_url}/readyz") as ready:
        assert ready.status == 200


async def test_where_redis_never_was_nobody_passes(tmp_path: Path, upstream: FakeUpstream) -> None:
    from offboard_worker.proxy.tokens import mint

    configured = settings(upstream.url)
    async with ProxyServer(configured, "redis://127.0.0.1:1/0", data_dir=tmp_path) as proxy:
        token, _ = mint(proxy._keys, configured, "p", generation=0, roles=["developer"], now=time.time())
        async with aiohttp.ClientSession(headers={"Authorization": f"Bearer {token}"}) as client:
            async with client.get(f"{proxy.url}/api/v1/x") as answer:
                assert answer.status == 503
                assert (await answer.json())["error"] == "denylist-unavailable"
            async with client.get(f"{proxy.metrics_url}/healthz") as alive:
                assert alive.status == 200
    assert upstream.seen == []


async def test_the_generation_kills_old_tokens_and_lets_newer_ones_pass(world: World) -> None:
    old, new = world.auth(generation=1), world.auth(generation=2)
    await world.deny(Fact(person_key("leaver"), denied=False, before=2))
    await until(lambda: all(proxy.replica.applied == 1 for proxy in world.proxies))
    url = f"{world.proxies[0].url}/api/v1/x"
    async with world.client.get(url, headers=old) as answer:
        assert answer.status == 401
    async with world.client.get(url, headers=new) as answer:
        assert answer.status == 200


async def test_roles_decide_on_method_and_path(world: World) -> None:
    url = world.proxies[0].url
    reader = world.auth(roles=["reader"])
    for method, path, status, error in [
        ("GET", "/api/v1/x", 200, None),
        ("POST", "/api/v1/x", 403, "no-role"),
        ("GET", "/api/v2/x", 403, "no-role"),
        ("GET", "/other/v1/x", 404, "unknown-upstream"),
        ("TRACE", "/api/v1/x", 405, "bad-method"),
    ]:
        async with world.client.request(method, url + path, headers=reader) as answer:
            assert (answer.status, (await answer.json())["error"] if error else None) == (status, error)
    assert len(world.upstream.seen) == 1


async def test_no_header_about_identity_passes_in_any_spelling(world: World) -> None:
    headers = {
        **world.auth(),
        "X-Forwarded-For": "1.2.3.4",
        "X_Forwarded_User": "root",
        "X-Remote-User": "root",
        "Remote_User": "root",
        "Forwarded": "for=1.2.3.4",
        "x_api_key": "mine",
        "X-Api-Key": "mine",
        "Connection": "keep-alive, X-Secret-Hop",
        "X-Secret-Hop": "1",
        "TE": "trailers",
        "Cookie": "offboard_session=1; theirs=2",
        "X-Plain": "stays",
    }
    async with world.client.get(f"{world.proxies[0].url}/api/v1/x", headers=headers) as answer:
        assert answer.status == 200
    seen = world.upstream.seen[0]
    names = {name.lower() for name, _ in seen.headers}
    assert names == {"host", "x-plain", "cookie", "x-api-key", "accept", "accept-encoding", "user-agent"}
    assert seen.header("Cookie") == ["theirs=2"]
    assert seen.header("X-Api-Key") == [KEY]


async def test_the_upstreams_key_is_nowhere(world: World, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    url, found = world.proxies[0].url, []
    for path in ("echo", "redirect", "truncated", "ws-redirect", "silent", "v2"):
        try:
            async with world.client.get(f"{url}/api/v1/{path}", headers=world.auth(), allow_redirects=False) as answer:
                found.append(str(answer.raw_headers))
                found.append((await answer.read()).decode())
        except aiohttp.ClientError as error:
            found.append(str(error))
    async with world.client.get(f"{world.proxies[0].metrics_url}/metrics") as metrics:
        found.append(await metrics.text())
    assert not any(KEY in text for text in (*found, caplog.text))
    assert any("*" * len(KEY) in text for text in found), "the echo was not masked but missing"
    assert "/v1/stolen" not in {seen.target.partition("?")[0] for seen in world.upstream.seen}
    assert not any(token in caplog.text for token in world.minted)


async def test_a_websocket_handshake_is_never_redirected(world: World) -> None:
    with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
        await world.client.ws_connect(f"{world.proxies[0].url}/api/v1/ws-redirect", headers=world.auth())
    assert refused.value.status == 502
    assert [seen.target for seen in world.upstream.seen] == ["/v1/ws-redirect"]


async def test_websocket_close_codes_pass_in_both_directions(world: World) -> None:
    url = f"{world.proxies[0].url}/api/v1/ws"
    async with world.client.ws_connect(url, headers=world.auth()) as socket:
        await socket.send_bytes(b"\x00\xff")
        assert (await socket.receive()).data == b"\x00\xff"
        await socket.send_str("bye")
        message = await socket.receive()
        assert (message.data, message.extra) == (4001, "enough")
    socket = await world.client.ws_connect(url, headers=world.auth())
    await socket.close(code=4002)
    await until(lambda: len(world.upstream.close_codes) == 2)
    assert world.upstream.close_codes[1] == 4002


async def test_bodies_pass_unchanged_and_bodiless_answers_stay_so(world: World) -> None:
    url, headers = f"{world.proxies[0].url}/api/v1", world.auth()
    async with aiohttp.ClientSession(auto_decompress=False, headers=headers) as client:
        async with client.get(f"{url}/gzip") as answer:
            assert await answer.read() == b"\x1f\x8bnot really"
        async with client.get(f"{url}/nothing") as answer:
            assert (answer.status, await answer.read()) == (204, b"")
        async with client.get(f"{url}/unchanged") as answer:
            assert (answer.status, answer.headers["ETag"]) == (304, '"1"')
        async with client.head(f"{url}/x") as answer:
            assert (answer.status, answer.headers["Content-Length"]) == (200, "10")
        async with client.post(f"{url}/x", data=b"\x1f\x8bzip", headers={"Content-Encoding": "gzip"}) as answer:
            assert answer.status == 200
    assert world.upstream.seen[-1].body == b"\x1f\x8bzip"
    assert world.upstream.seen[-1].header("Content-Length") == ["5"]


@pytest.mark.parametrize("path", ["truncated", "truncated-chunked"])
async def test_an_answer_that_breaks_off_stays_broken(world: World, path: str) -> None:
    async with world.client.get(f"{world.proxies[0].url}/api/v1/{path}", headers=world.auth()) as answer:
        with pytest.raises(aiohttp.ClientError):
            await answer.read()
    labels = {"upstream": "api", "reason": "upstream-truncated"}
    registry = world.proxies[0].metrics.registry
    assert registry.get_sample_value("offboard_proxy_upstream_errors_total", labels) == 1


async def test_an_upstream_that_is_silent_gives_504_and_one_that_is_away_502(world: World) -> None:
    url = f"{world.proxies[0].url}/api/v1/silent"
    async with world.client.get(url, headers=world.auth()) as answer:
        assert answer.status == 504
        assert (await answer.json())["error"] == "upstream-timeout"
    await world.upstream._runner.cleanup()
    async with world.client.get(url, headers=world.auth()) as answer:
        assert answer.status == 502
        assert KEY not in await answer.text()


async def test_a_client_that_leaves_closes_the_upstream_at_once(world: World) -> None:
    for path in ("sse", "silent"):
        call = asyncio.create_task(_read_all(world, path))
        await until(lambda: world.upstream.open_streams == 1)
        call.cancel()
        assert await until(lambda: world.upstream.open_streams == 0) < 0.1


async def _read_all(world: World, path: str) -> None:
    async with world.client.get(f"{world.proxies[0].url}/api/v1/{path}", headers=world.auth()) as answer:
        await answer.read()


async def test_a_stream_ends_with_its_token(world: World) -> None:
    headers = world.auth(now=time.time() - 10, lifetime=11.5)
    answer = await world.client.get(f"{world.proxies[0].url}/api/v1/sse", headers=headers)
    started = time.monotonic()
    with pytest.raises(aiohttp.ClientError):
        await answer.content.read()
    assert time.monotonic() - started < 2.0


async def test_each_request_is_one_line_in_the_access_log(world: World, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="offboard_worker.proxy.access")
    async with world.client.get(f"{world.proxies[0].url}/api/v1/x?secret=1", headers=world.auth()):
        pass
    line = json.loads(caplog.messages[-1])
    assert line.pop("ms") > 0
    assert line == {
        "person": "leaver",
        "role": "developer",
        "upstream": "api",
        "method": "GET",
        "path": "/api/v1/x",
        "decision": "allowed",
        "reason": "ok",
        "status": 200,
        "bytes": len("GET /v1/x?secret=1"),
    }


async def test_the_key_set_is_public_and_holds_no_private_half(world: World) -> None:
    async with world.client.get(f"{world.proxies[0].url}/.well-known/jwks.json") as answer:
        keys = (await answer.json(content_type=None))["keys"]
    assert len(keys) == 1
    assert "d" not in keys[0]
    assert keys[0]["kid"] == world.keys.signer().kid


async def test_sigterm_lets_a_request_in_flight_finish(tmp_path: Path, world: World) -> None:
    configured = settings(world.upstream.url, drain="3s")
    proxy = ProxyServer(configured, world.valkey.url, data_dir=tmp_path, name="three")
    await proxy.__aenter__()
    await proxy.replica.wait_ready(5)
    call = asyncio.create_task(world.client.get(f"{proxy.url}/api/v1/silent", headers=world.auth()))
    await until(lambda: world.upstream.open_streams == 1)
    ending = asyncio.create_task(proxy.__aexit__())
    await asyncio.sleep(0.1)
    assert not ending.done()
    world.upstream.release.set()
    answer = await call
    assert (answer.status, await answer.text()) == (200, "late")
    await asyncio.wait_for(ending, 2)


async def test_a_fault_of_ours_tells_neither_client_nor_log_what_it_was_about(
    world: World, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise LookupError(f"a secret: {KEY}")

    proxy = world.proxies[0]
    monkeypatch.setattr(proxy._upstreams, "_by_name", {"api": type("Broken", (), {"url": fail})()})
    async with world.client.get(f"{proxy.url}/api/v1/x", headers=world.auth()) as answer:
        assert answer.status == 500
        assert (await answer.json())["error"] == "fault"
    assert "LookupError" in caplog.text
    assert KEY not in caplog.text
    labels = {"decision": "failed", "reason": "fault"}
    assert proxy.metrics.registry.get_sample_value("offboard_proxy_decisions_total", labels) == 1


async def test_a_broken_head_is_counted_and_not_logged(world: World, caplog: pytest.LogCaptureFixture) -> None:
    proxy = world.proxies[0]
    host, _, port = proxy.url.removeprefix("http://").partition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(b"GET / HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer canary-token\r\nBad header\r\n\r\n")
    answer = await reader.read()
    writer.close()
    assert answer.startswith(b"HTTP/1.0 400 ")
    assert b"canary" not in answer
    assert "canary" not in caplog.text
    labels = {"decision": "refused", "reason": "malformed"}
    assert proxy.metrics.registry.get_sample_value("offboard_proxy_decisions_total", labels) == 1
