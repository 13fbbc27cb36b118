"""Whether a request may pass: the one admission function of both lanes, and the flights that a denial cuts.

parse → verify → register the flight → lease → denylist → role → (re-check after each await) → upstream. A flight is
registered before it is checked: a denial that comes between the check and the upstream finds it and cuts it, so there
is no window. This file knows neither sockets nor Redis: it sees the replica as a `DenyView`, and a flight as something
with a `cut`.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from offboard_worker.denylist.facts import Fact, Key, TokenIdentity, kills
from offboard_worker.errors import SourceUnavailable
from offboard_worker.proxy.roles import Refusal, Roles, Rule, Target, split_target
from offboard_worker.proxy.tokens import BadToken, TokenVerifier, VerifiedToken

_BEARER: Final = re.compile(r"[Bb][Ee][Aa][Rr][Ee][Rr] +([^\s,]+)")
WATCH_EVERY: Final = 0.25
"""Seconds between looks at the lease; the look that matters is scheduled for the lease's very end."""


class DenyView(Protocol):
    """What admission needs of the denylist's replica."""

    @property
    def fresh(self) -> bool:
        """Whether the lease holds."""

    @property
    def lease_left(self) -> float:
        """Seconds for which it still holds, 0 or less if it doesn't."""

    @property
    def stale_for(self) -> float:
        """Seconds since it ran out: 0 while it holds, infinity where there never was one."""

    def denied(self, identity: TokenIdentity) -> Fact | None:
        """The fact that makes the token dead, None if nothing does."""


class Refused(Exception):
    """The request does not pass. `reason` is the metric's label, `error` the slug that the client reads."""

    def __init__(self, refusal: Refusal, *, error: str | None = None, advice: str = "", retry_after: int = 0) -> None:
        super().__init__(refusal.message)
        self.reason = refusal.reason
        self.status = refusal.status
        self.message = refusal.message
        self.error = error or refusal.reason
        self.advice = advice
        self.retry_after = retry_after


@dataclass(eq=False, slots=True)
class Flight:
    """One request on its way. `stop` ends it at once: it is called at most once, and must not await."""

    stop: Callable[[str], None]
    token: VerifiedToken | None = None
    rule: Rule | None = None
    cut: str | None = None
    allowed_as: str = "ok"  # the reason in the access log and the metric: `stale-lease` is the exception

    def end(self, reason: str) -> bool:
        """Cut the flight unless it is cut already; say whether this call did it."""
        if self.cut is not None:
            return False
        self.cut = reason
        self.stop(reason)
        return True


class Flights:
    """Every flight, found by each key that could deny it."""

    def __init__(self) -> None:
        self._by_key: dict[Key, set[Flight]] = {}
        self._all: set[Flight] = set()

    def __len__(self) -> int:
        return len(self._all)

    def __iter__(self) -> Iterator[Flight]:
        return iter(tuple(self._all))

    def add(self, flight: Flight) -> None:
        if flight.token is None:
            raise ValueError("a flight is registered once its token is verified")
        self._all.add(flight)
        for key in flight.token.identity.all_keys():
            self._by_key.setdefault(key, set()).add(flight)

    def discard(self, flight: Flight) -> None:
        if flight not in self._all or flight.token is None:
            return
        self._all.discard(flight)
        for key in flight.token.identity.all_keys():
            flights = self._by_key.get(key)
            if flights is not None:
                flights.discard(flight)
                if not flights:
                    del self._by_key[key]

    def of(self, key: Key) -> Sequence[Flight]:
        return tuple(self._by_key.get(key, ()))


class Admission:
    """Decides on requests, and cuts those in flight when a decision would now be another."""

    def __init__(
        self,
        view: DenyView,
        verifier: TokenVerifier,
        roles: Roles,
        *,
        streams_outlive_tokens: bool = False,
        on_cut: Callable[[str], None] = lambda reason: None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._view = view
        self._verifier = verifier
        self._roles = roles
        self._outlive = streams_outlive_tokens
        self._on_cut = on_cut
        self._clock = clock
        self.flights = Flights()
        self._watchdog: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._watchdog = asyncio.create_task(self._watch())

    async def close(self) -> None:
        if self._watchdog is not None:
            self._watchdog.cancel()
            await asyncio.gather(self._watchdog, return_exceptions=True)

    async def admit(self, flight: Flight, authorization: Sequence[str], method: str, raw_target: str) -> Target:
        """Let one request in, or raise Refused. The flight is registered from here on: `leave` must follow."""
        target = split_target(raw_target)
        token = _bearer(authorization)
        try:
            flight.token = self._verifier.known(token) or await self._verifier.verify(token)
        except BadToken as error:
            raise Refused(
                Refusal(f"token-{error.detail}", error.message, 401), error="invalid_token", advice=error.advice
            ) from None
        except SourceUnavailable as error:
            raise Refused(
                Refusal("keys-unavailable", "the issuer's keys can't be had now", 503), retry_after=5
            ) from error
        self.flights.add(flight)
        rule = target if isinstance(target, Refusal) else self._roles.decide(flight.token.roles, target, method)
        flight.rule = None if isinstance(rule, Refusal) else rule  # its stale policy counts in the check
        self.check(flight)
        if isinstance(target, Refusal):
            raise Refused(target)
        if isinstance(rule, Refusal):
            raise Refused(
                rule, advice="Ask for a role that names this upstream, method and path." * (rule.status == 403)
            )
        return target

    def check(self, flight: Flight) -> None:
        """Refuse a flight that may not go on now: without a fresh lease, or denied. Called after each await."""
        if flight.cut is not None:
            raise Refused(Refusal(flight.cut, "the request was cut", 401 if flight.cut == "revoked" else 503))
        if not self._view.fresh and self._outlived(flight):
            raise Refused(
                Refusal("lease-expired", "the proxy can't tell who has been revoked just now", 503),
                error="denylist-unavailable",
                advice="Try again in a moment; the proxy lets nobody pass without a fresh denylist.",
                retry_after=1,
            )
        if flight.token is not None and self._view.denied(flight.token.identity) is not None:
            raise Refused(
                Refusal("revoked", "access has been revoked", 401),
                error="revoked",
                advice="If this is a mistake, ask your administrators to reinstate you.",
            )

    def _outlived(self, flight: Flight) -> bool:
        """Say whether the lease ran out longer ago than the flight's route allows; most allow nothing."""
        if flight.rule is None or self._view.stale_for >= flight.rule.stale:
            return True
        flight.allowed_as = "stale-lease"
        return False

    def still(self, flight: Flight) -> bool:
        """Say whether a stream may go on, and cut it if it may not: asked between its pieces."""
        try:
            self.check(flight)
        except Refused as refused:
            self._cut(flight, refused.reason)
            return False
        return True

    def leave(self, flight: Flight) -> None:
        self.flights.discard(flight)

    def on_facts(self, facts: Iterable[Fact]) -> None:
        """Cut every flight that one of these changed facts kills; the replica calls this as it applies them."""
        now = self._clock()
        for fact in facts:
            for flight in self.flights.of(fact.key):
                if flight.token is not None and kills(fact, flight.token.identity, now):
                    self._cut(flight, "revoked")

    def recheck_all(self) -> None:
        """Ask the whole denylist again for every flight: after a snapshot, whose changes have no list."""
        for flight in self.flights:
            if flight.token is not None and self._view.denied(flight.token.identity) is not None:
                self._cut(flight, "revoked")

    def cut_all(self, reason: str) -> int:
        """Cut every flight; return how many that were."""
        return sum(self._cut(flight, reason) for flight in self.flights)

    def _cut(self, flight: Flight, reason: str) -> bool:
        if not flight.end(reason):
            return False
        self._on_cut(reason)
        return True

    async def _watch(self) -> None:
        """Cut everything when the lease ends, and each flight when its token does."""
        while True:
            left = self._view.lease_left
            if not self._view.fresh or left <= 0:
                for flight in self.flights:
                    if self._outlived(flight):
                        self._cut(flight, "lease-expired")
                await asyncio.sleep(0.05)
                continue
            if not self._outlive:
                now = self._clock()
                for flight in self.flights:
                    if flight.token is not None and flight.token.expires_at <= now:
                        self._cut(flight, "expired")
            await asyncio.sleep(min(left, WATCH_EVERY))


def _bearer(values: Sequence[str]) -> str:
    """Return the one bearer token of a request (RFC 6750 section 2.1). Raises Refused."""
    if len(values) > 1:
        raise Refused(Refusal("duplicate-authorization", "Authorization stands more than once", 400))
    if not values:
        raise Refused(
            Refusal("no-token", "a bearer token is needed", 401),
            error="no-token",
            advice="Send Authorization: Bearer TOKEN; `offboard token issue` makes one.",
        )
    match = _BEARER.fullmatch(values[0].strip(" \t"))
    if match is None:
        raise Refused(Refusal("no-token", "Authorization holds no bearer token", 401), error="no-token")
    return match[1]
