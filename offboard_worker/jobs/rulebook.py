"""Everything configured that decides what an event leads to, and what one transaction led to. No I/O."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta

from offboard_worker.core.policy import Rules


@dataclass(frozen=True, slots=True)
class SourceFacts:
    """What intake must know of one source: the namespace of its ids, and whether its e-mail addresses identify."""

    system: str
    trust_email: bool = False


@dataclass(frozen=True, slots=True)
class Rulebook:
    """Everything configured that decides. `issuers` maps a namespace to the token issuers that use its ids."""

    rules: Rules
    window: timedelta
    skew: timedelta
    connectors: Mapping[str, str]  # instance → the namespace of its ids
    sources: Mapping[str, SourceFacts] = field(default_factory=dict)
    issuers: dict[str, tuple[str, ...]] = field(default_factory=dict)


@dataclass(slots=True)
class Accepted:
    """What one batch led to: what must be pushed, confirmed and enqueued once it is committed."""

    denial_seq: int = 0
    cases: list[str] = field(default_factory=list)  # with work for the queue
    contained: list[str] = field(default_factory=list)  # newly denied, to be measured
    pending: list[str] = field(default_factory=list)  # events that wait for a job
    duplicates: int = 0
    events: int = 0
    kinds: Counter[tuple[str, str]] = field(default_factory=Counter)  # (kind, effect) of the new events
    alarms: list[str] = field(default_factory=list)  # protected people who were named
