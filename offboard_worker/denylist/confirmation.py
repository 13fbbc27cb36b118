"""When a denial is in force on every proxy replica: the proof, as pure logic over readings of Redis. No I/O.

A heartbeat writes the replica's line and reads Redis's `seq` in one step, and a replica renews its lease only when it
has applied that seq. So once Redis holds entry N, every lease granted *afterwards* belongs to a replica that applied N,
and every lease granted *before* ends within one lease. Two ways to know that nobody serves without N:

1. *The list says so.* Every replica on Redis's list has applied N, or has been silent for a whole lease. That is a
   proof only if the list can't have forgotten anybody: no rebuild, restart or failover within the last lease. We
   watch `Reading.lineage` for that, on our own monotonic clock; a process that has seen no change yet believes
   Redis's `since`, which a step of Redis's wall clock could falsify.
2. *Waiting.* Redis has held N, on one lineage, for a whole lease.

Both rest on a primary that is cut off granting no lease once another one is promoted (`min-replicas-to-write 1`,
`min-replicas-max-lag 1`, and a failover timeout above 3 s). Times of ours are the moments an answer was *received*:
what it describes happened no later.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from offboard_worker.denylist.redis_copy import Position, Reading, ReplicaReport

DRIFT = 1.01
"""Two monotonic clocks may run this much apart in speed (ours and a replica's)."""


class InForce(StrEnum):
    """Why one replica can't let the person through."""

    APPLIED = "applied"
    LEASE_EXPIRED = "lease-expired"


@dataclass(frozen=True, slots=True)
class Confirmation:
    """Every replica refuses by entry `seq`. `at` is Unix seconds, `waited` the seconds from asking to knowing."""

    seq: int
    at: float
    waited: float
    replicas: Mapping[str, InForce]


@dataclass(frozen=True, slots=True)
class _Heard:
    raw: str
    first: float
    report: ReplicaReport


class Watch:
    """What one writer has seen of Redis over time: since when its list is complete, and who is silent."""

    def __init__(self, lease: float) -> None:
        self.lease = lease
        self._lineage: tuple[str, str, int] | None = None
        self._lineage_first = 0.0
        self._changed = False
        self._heard: dict[str, _Heard] = {}

    def note(self, reading: Reading, now: float) -> None:
        """Take in one reading; `now` is our monotonic clock when it was received."""
        if reading.lineage != self._lineage:
            self._changed = self._changed or self._lineage is not None or not reading.intact
            self._lineage, self._lineage_first, self._heard = reading.lineage, now, {}
        heard = {}
        for name, report in reading.replicas.items():
            before = self._heard.get(name)
            heard[name] = before if before and before.raw == report.raw else _Heard(report.raw, now, report)
        self._heard = heard

    def term(self, reading: Reading) -> float:
        """The longest that a lease known to this reading can last, in seconds of our clock."""
        return max([self.lease, *(report.lease for report in reading.replicas.values())]) * DRIFT

    def complete(self, reading: Reading, now: float) -> bool:
        """Say whether the reading's list names everybody who can hold a lease. It must have been noted."""
        term = self.term(reading)
        if now - self._lineage_first >= term:
            return True
        return not self._changed and reading.now_ms - reading.since_ms >= term * 1000

    def silent(self, name: str, now: float) -> float:
        """Seconds for which a replica has said nothing new, as far as we have watched."""
        heard = self._heard.get(name)
        return now - heard.first if heard else 0.0

    def dead(self, longer_than: float, now: float) -> dict[str, str]:
        """Replicas that have been silent for that many seconds, and what each said last."""
        return {name: heard.raw for name, heard in self._heard.items() if now - heard.first >= longer_than}


class Confirming:
    """One wait for one entry: fed with readings, it ends with who refuses and why."""

    def __init__(self, seq: int, watch: Watch) -> None:
        self.seq = seq
        self.settled_on: tuple[str, str, int] | None = None
        """The lineage on which enough of Redis's own replicas are known to hold the entry."""
        self._watch = watch
        self._lineage: tuple[str, str, int] | None = None
        self._held_since = 0.0

    def held(self, reading: Reading, log_id: str) -> bool:
        """Say whether Redis holds the entry; if not, it has to be pushed (again) and the wait starts anew."""
        position: Position = reading.position
        return reading.intact and position.log_id == log_id and position.seq >= self.seq

    def observe(self, reading: Reading, log_id: str, now: float) -> dict[str, InForce] | None:
        """Take in a reading that the watch has noted; return the replicas once all refuse, None until then."""
        if not self.held(reading, log_id):
            self._lineage = None
            return None
        if reading.lineage != self._lineage:
            self._lineage, self._held_since = reading.lineage, now
        term = self._watch.term(reading)
        waited_out = now - self._held_since >= term
        outcome: dict[str, InForce] = {}
        for name, report in reading.replicas.items():
            if report.applied >= self.seq:
                outcome[name] = InForce.APPLIED
            elif waited_out or not report.lease or self._watch.silent(name, now) >= term:
                outcome[name] = InForce.LEASE_EXPIRED
        everybody = len(outcome) == len(reading.replicas)
        return outcome if waited_out or (everybody and self._watch.complete(reading, now)) else None
