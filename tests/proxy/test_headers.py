"""Header hygiene and the masking of keys, without I/O."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from multidict import CIMultiDict

from offboard_worker.proxy.headers import framing_problem, is_identity, normal, to_client, to_upstream
from offboard_worker.proxy.observe import Metrics
from offboard_worker.proxy.redact import Mask
from offboard_worker.secret import Secret

KEY = "sk-abcabcabd"


@pytest.mark.parametrize(
    "name",
    [
        *("Forwarded", "X-Forwarded-For", "X_Forwarded_Proto", "x-real-ip", "REMOTE_USER", "X-Auth-Request-Email"),
        *("Via", "X-Amzn-Oidc-Data", "X-MS-CLIENT-PRINCIPAL-ID", "Cf-Access-Jwt-Assertion", "X-HTTP-Method-Override"),
    ],
)
def test_headers_that_tell_who_calls_are_known_in_every_spelling(name: str) -> None:
    assert is_identity(normal(name))


def test_ordinary_headers_pass() -> None:
    headers = CIMultiDict(
        {"Accept": "*/*", "Content-Type": "a/b", "X-Request-Id": "1", "X-Amz-Date": "2", "Idempotency-Key": "3"}
    )
    assert to_upstream(headers, "X-Api-Key") == headers


def test_what_the_connection_header_names_goes_no_further() -> None:
    raw = [(b"Connection", b"X-Hop, close"), (b"X-Hop", b"1"), (b"X", b"2"), (b"Transfer-Encoding", b"chunked")]
    assert to_client(raw) == CIMultiDict({"X": "2"})
    assert to_client([(b"X", b"caf\xe9")])["X"] == "café"
    with pytest.raises(ValueError, match="control"):
        to_client([(b"X", b"a\x01b")])


def test_cookies_of_others_pass_unchanged() -> None:
    assert to_upstream(CIMultiDict({"Cookie": "a=1;b=2"}), "X")["Cookie"] == "a=1;b=2"
    assert "Cookie" not in to_upstream(CIMultiDict({"Cookie": "offboard_session=1"}), "X")


@pytest.mark.parametrize(
    ("raw", "problem"),
    [
        ([(b"Host", b"h")], None),
        ([], "no-host"),
        ([(b"Host", b"h"), (b"Host", b"h")], "duplicate-host"),
        ([(b"Host", b"h/x")], "bad-host"),
        ([(b"Host", b"u@h")], "bad-host"),
        ([(b"Host", b"[::1]:80")], None),
        ([(b"Host", b"h"), (b"Transfer_Encoding", b"chunked")], "underscore-header"),
        ([(b"Host", b"h"), (b"Transfer-Encoding", b"chunked"), (b"Content-Length", b"1")], "bad-transfer-encoding"),
        ([(b"Host", b"h"), (b"Content-Length", b"+1")], "bad-content-length"),
        ([(b"Host", b"h"), (b"Connection", b"authorization")], "bad-connection"),
        ([(b"Host", b"h"), (b"Connection", b"upgrade"), (b"Upgrade", b"websocket")], None),
        ([(b"Host", b"h"), (b"Upgrade", b"websocket")], "bad-upgrade"),
        (
            [(b"Host", b"h"), (b"Connection", b"upgrade"), (b"Upgrade", b"websocket"), (b"Content-Length", b"2")],
            "bad-upgrade",
        ),
    ],
)
def test_framing(raw: list[tuple[bytes, bytes]], problem: str | None) -> None:
    assert framing_problem(raw, (1, 1), "GET") == problem


@given(st.lists(st.text("abcdsk-", max_size=9).map(str.encode) | st.just(KEY.encode()), max_size=12))
def test_a_stream_in_pieces_is_masked_as_a_whole_one(pieces: list[bytes]) -> None:
    mask = Mask(Secret(f"Bearer {KEY}"))
    stream = mask.stream()
    out = b"".join([stream.feed(piece) for piece in pieces]) + stream.end()
    whole = b"".join(pieces)
    assert len(out) == len(whole)
    assert out == mask.data(whole)
    assert KEY.encode() not in out


def test_only_what_could_begin_the_key_is_held_back() -> None:
    stream = Mask(Secret(KEY)).stream()
    assert stream.feed(b"data: 1\n\n") == b"data: 1\n\n"
    assert stream.feed(b"data: sk-") == b"data: "
    assert stream.feed(b"x") == b"sk-x"


def test_without_a_key_nothing_is_touched() -> None:
    for secret in (None, Secret("short")):
        stream = Mask(secret).stream()
        assert stream.feed(b"short") == b"short"
        assert stream.end() == b""


def test_every_metric_is_documented() -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "metrics.md").read_text("utf-8")
    names = {name for metric in Metrics().registry.collect() for name in (metric.name, f"{metric.name}_total")}
    documented = set(re.findall(r"`(offboard_proxy_\w+)`", page))
    assert documented <= names
    assert all(
        metric.name in documented or f"{metric.name}_total" in documented for metric in Metrics().registry.collect()
    )
