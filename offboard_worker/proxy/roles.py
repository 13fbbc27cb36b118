"""What a role lets through: upstream, method and path, matched on the exact bytes that are forwarded. No I/O.

Everything that no rule allows is refused. Patterns: `/v1/x` is that path, `*` one segment, `**` (last) any number.
A pattern never sees a path that an upstream could read differently: encoded or double slashes, backslashes, dot
segments, `;` and double encodings are refused before, unless the rule says `unsafe_paths: true`.
Public URLs are `/{upstream}/{rest}`; `/{rest}` is what the patterns see, and the query passes as it is.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from offboard_worker.config import ProxySettings, RoleSettings
from offboard_worker.errors import ConfigError

_METHOD: Final = re.compile(r"[A-Z][A-Z-]{0,31}")
_NEVER: Final = frozenset({"CONNECT", "TRACE", "TRACK"})
"""TRACE would echo the injected key; CONNECT is a tunnel."""

_TARGET: Final = re.compile(r"/[\x21\x22\x24-\x7e]*")
_UNSAFE: Final[tuple[tuple[str, re.Pattern[str]], ...]] = (
    ("encoded-slash", re.compile(r"%(2f|5c)", re.IGNORECASE)),
    ("double-slash", re.compile(r"//")),
    ("backslash", re.compile(r"\\")),
    ("semicolon", re.compile(r";|%3b", re.IGNORECASE)),
    ("double-encoding", re.compile(r"%25(25|2e|2f|5c|3b|3f|23|0|1|7f)", re.IGNORECASE)),
    ("encoded-control", re.compile(r"%([01][0-9a-f]|7f)", re.IGNORECASE)),
    ("bad-escape", re.compile(r"%(?![0-9a-fA-F]{2})")),
    ("dot-segment", re.compile(r"(?:^|/|%2f|\\|%5c)(?:\.|%2e){1,2}(?=$|/|%2f|\\|%5c|;|%3b)", re.IGNORECASE)),
)


@dataclass(frozen=True, slots=True)
class Target:
    """A request target taken apart, every byte of it kept. `query` is None where there is no `?`."""

    upstream: str
    path: str
    query: str | None

    @property
    def rest(self) -> str:
        return self.path if self.query is None else f"{self.path}?{self.query}"


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule that allowed a request; `role` is whose it is."""

    role: str
    upstream: str
    methods: frozenset[str]
    patterns: tuple[re.Pattern[str], ...]
    unsafe_paths: bool
    stale: float = 0.0  # seconds for which the route is served after the lease ran out

    def allows(self, target: Target, method: str) -> bool:
        return (
            target.upstream == self.upstream
            and (method in self.methods or "*" in self.methods)
            and any(pattern.fullmatch(target.path) for pattern in self.patterns)
        )


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a request is refused; `reason` is the metric's label."""

    reason: str
    message: str
    status: int = 403


def split_target(raw: str) -> Target | Refusal:
    """Take `/{upstream}/{rest}?{query}` apart, refusing what no upstream may ever be sent."""
    if not _TARGET.fullmatch(raw):
        if "://" in raw or raw == "*" or not raw.startswith("/"):
            return Refusal("bad-target", "only an origin-form target (/upstream/path) is accepted", 400)
        return Refusal("bad-path", "the target holds a fragment, a control character or a byte beyond ASCII", 400)
    full, mark, query = raw.partition("?")
    upstream, slash, path = full[1:].partition("/")
    if not upstream or not slash:
        return Refusal("unknown-upstream", "the path must begin with /{upstream}/", 404)
    return Target(upstream, "/" + path, query if mark else None)


def path_problem(path: str) -> str | None:
    """Name what makes a path readable in two ways, None for a plain one."""
    for name, pattern in _UNSAFE:
        if pattern.search(path):
            return name
    return None


def compile_path(pattern: str) -> re.Pattern[str]:
    """Turn a path pattern into a regular expression over the exact bytes. Raises ConfigError."""
    segments = pattern.split("/")
    if segments[0] or len(segments) < 2 or not _TARGET.fullmatch(pattern) or "?" in pattern:
        raise ConfigError(f"the path pattern {pattern!r} can't be used: expected one such as /v1/x, /v1/* or /v1/**")
    out: list[str] = []
    for index, segment in enumerate(segments[1:], 1):
        if segment == "**" and index == len(segments) - 1:
            out.append(r"/.*")
        elif segment == "*":
            out.append(r"/[^/]+")
        elif "*" in segment:
            raise ConfigError(
                f"the path pattern {pattern!r} can't be used: * stands for one whole segment, ** for the rest at the end"
            )
        else:
            out.append("/" + re.escape(segment))
    return re.compile("".join(out))


class Roles:
    """All roles of the configuration, compiled."""

    def __init__(self, roles: Mapping[str, RoleSettings], upstreams: Sequence[str]) -> None:
        self._upstreams = frozenset(upstreams)
        self._rules = {name: tuple(_rules(name, settings)) for name, settings in roles.items()}

    @classmethod
    def of(cls, settings: ProxySettings) -> Roles:
        return cls(settings.roles, list(settings.upstreams))

    def decide(self, roles: Sequence[str], target: Target, method: str) -> Rule | Refusal:
        """Return the rule that allows a request, or why none does."""
        if not _METHOD.fullmatch(method) or method in _NEVER:
            return Refusal("bad-method", "this method is never forwarded", 405)
        if target.upstream not in self._upstreams:
            return Refusal("unknown-upstream", "no upstream of that name is configured", 404)
        problem = path_problem(target.path)
        for role in roles:
            for rule in self._rules.get(role, ()):
                if (problem is None or rule.unsafe_paths) and rule.allows(target, method):
                    return rule
        if problem is not None:
            return Refusal("bad-path", f"the path could be read in two ways ({problem})", 400)
        return Refusal("no-role", "no role of this token allows that method and path")


def _rules(role: str, settings: RoleSettings) -> list[Rule]:
    rules: list[Rule] = []
    for rule in settings.rules:
        for method in rule.methods:
            if method != "*" and (not _METHOD.fullmatch(method) or method in _NEVER):
                raise ConfigError(f"roles.{role} names the method {method!r}, which is never forwarded")
        patterns = tuple(compile_path(path) for path in rule.paths)
        rules.append(
            Rule(
                role,
                rule.upstream,
                frozenset(rule.methods),
                patterns,
                rule.unsafe_paths,
                rule.stale_policy.total_seconds(),
            )
        )
    return rules
