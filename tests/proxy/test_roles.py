"""Roles: deny by default, on the exact bytes, and nothing that could be read in two ways."""

from __future__ import annotations

import posixpath
from typing import Any
from urllib.parse import unquote

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from offboard_worker.config import RoleSettings
from offboard_worker.errors import ConfigError
from offboard_worker.proxy.roles import Refusal, Roles, Rule, Target, compile_path, path_problem, split_target


def roles(*paths: str, **more: Any) -> Roles:
    rule = {"upstream": "api", "paths": paths, **more}
    return Roles({"r": RoleSettings.model_validate({"rules": [rule]})}, ["api", "other"])


def decision(subject: Roles, path: str, method: str = "GET", upstream: str = "api") -> str:
    decided = subject.decide(["r"], Target(upstream, path, None), method)
    return "allowed" if isinstance(decided, Rule) else decided.reason


@pytest.mark.parametrize(
    ("pattern", "path", "allowed"),
    [
        ("/v1/x", "/v1/x", True),
        ("/v1/x", "/v1/x/", False),
        ("/v1/x", "/v1/%78", False),
        ("/v1/x", "/V1/x", False),
        ("/v1/*", "/v1/a", True),
        ("/v1/*", "/v1/", False),
        ("/v1/*", "/v1/a/b", False),
        ("/v1/*/b", "/v1/a/b", True),
        ("/v1/**", "/v1/a/b/c", True),
        ("/v1/**", "/v1/", True),
        ("/v1/**", "/v1", False),
        ("/v1/**", "/v10/a", False),
        ("/v1/x.y", "/v1/xzy", False),
        ("/**", "/", True),
    ],
)
def test_patterns(pattern: str, path: str, allowed: bool) -> None:
    assert (decision(roles(pattern), path) == "allowed") is allowed


@pytest.mark.parametrize("pattern", ["v1/x", "", "/v1/a*", "/**/x", "/v1/x?q", "/v 1", "/v1/#"])
def test_a_pattern_that_could_surprise_is_refused_at_start(pattern: str) -> None:
    with pytest.raises(ConfigError, match="path pattern"):
        compile_path(pattern)


def test_everything_that_no_rule_names_is_refused() -> None:
    subject = roles("/v1/**", methods=("GET",))
    assert decision(subject, "/v1/x", "POST") == "no-role"
    assert decision(subject, "/v1/x", "get") == "bad-method"
    assert decision(subject, "/v1/x", "TRACE") == "bad-method"
    assert decision(subject, "/v1/x", upstream="other") == "no-role"
    assert decision(subject, "/v1/x", upstream="third") == "unknown-upstream"
    nobody = subject.decide([], Target("api", "/v1/x", None), "GET")
    assert isinstance(nobody, Refusal)
    assert isinstance(subject.decide(["unheard"], Target("api", "/v1/x", None), "GET"), Refusal)


@pytest.mark.parametrize("method", ["CONNECT", "TRACE", "get", "GET POST"])
def test_methods_that_are_never_forwarded_can_not_be_configured(method: str) -> None:
    with pytest.raises(ConfigError, match="never forwarded"):
        roles("/x", methods=(method,))


UNSAFE = ["/v1/a%2Fb", "/v1/a%5cb", "/v1/../x", "/v1/%2E%2e/x", "/v1/.", "/v1//x", "/v1/a;b", "/v1/a%3bb", "/v1/a\\b"]
UNSAFE += ["/v1/%252e%252e/x", "/v1/%00", "/v1/%0a", "/v1/%zz", "/v1/.%2e", "/v1/x/..;/y", "/v1/%252fx", "/v1/%2525"]


@pytest.mark.parametrize("path", UNSAFE)
def test_a_path_that_can_be_read_in_two_ways_needs_a_rule_that_says_so(path: str) -> None:
    assert decision(roles("/v1/**"), path) == "bad-path"
    assert decision(roles("/v1/**", unsafe_paths=True), path) == "allowed"


@pytest.mark.parametrize(
    ("target", "reason"),
    [
        ("/api", "unknown-upstream"),
        ("//api/x", "unknown-upstream"),
        ("http://h/api/x", "bad-target"),
        ("h:443", "bad-target"),
        ("*", "bad-target"),
        ("", "bad-target"),
        ("/api/x#y", "bad-path"),
        ("/api/x?a#y", "bad-path"),
        ("/api/x y", "bad-path"),
        ("/api/é", "bad-path"),
        ("/api/\x7f", "bad-path"),
    ],
)
def test_targets_that_are_never_forwarded(target: str, reason: str) -> None:
    refused = split_target(target)
    assert isinstance(refused, Refusal)
    assert refused.reason == reason


pieces = st.sampled_from(
    ["a", "b", ".", "..", "/", "//", "%2e", "%2E", "%2f", "%5c", "\\", ";", "%3b", "%25", "%00", "%", "%c3", "~", "%41"]
)
paths = st.lists(pieces, max_size=8).map(lambda parts: "/" + "".join(parts))


@given(paths)
@example("/a/..%2f..")
def test_no_reading_of_a_safe_path_leaves_its_place(path: str) -> None:
    """However an upstream decodes and normalises what passed, it stays the same path, segment for segment."""
    if path_problem(path) is not None:
        return
    for reading in (path, unquote(path, errors="replace"), unquote(unquote(path, errors="replace"), errors="replace")):
        reading = reading.replace("\\", "/").partition(";")[0]
        assert posixpath.normpath(reading) == (reading.rstrip("/") or "/")
        assert reading.count("/") == path.count("/")


@given(st.text(max_size=30), st.none() | st.text(max_size=10))
def test_what_is_taken_apart_can_be_put_together_again(path: str, query: str | None) -> None:
    raw = f"/api/{path}" + ("" if query is None else f"?{query}")
    target = split_target(raw)
    if isinstance(target, Target):
        assert f"/{target.upstream}{target.rest}" == raw
        assert raw.isascii()
        assert raw.isprintable()
