"""What one proxy replica knows and whether it may serve by it: pure decisions, driven by events and a passed-in clock.

It keeps a prefix of one history of the denial log and applies only `applied + 1`. Anything else (a gap, no metadata,
another history) means loading anew: it goes on denying by what it has, and renews no lease until that is done. No I/O,
no tasks, no clock of its own; replica.py is the shell around it.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from offboard_worker.denylist.fact_table import FactTable
from offboard_worker.denylist.facts import Fact, TokenIdentity
from offboard_worker.denylist.redis_copy import Position, Snapshot, StreamEntry

NOWHERE = Position("", 0)


def _boot_time() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)


# On Linux CLOCK_MONOTONIC stands still while the machine is suspended, and a lease would outlive the sleep.
lease_clock: Callable[[], float] = _boot_time if sys.platform == "linux" else time.monotonic
"""The clock of leases: seconds that never step and that count while the machine sleeps."""


@dataclass(frozen=True, slots=True)
class Beat:
    """One heartbeat on its way: when it was sent, what it reports, and the lease that its answer may grant.

    `lease` is 0 where it asks for none: the replica has nothing to serve by, and holds no older lease either.
    """

    sent: float
    position: Position
    lease: float
    number: int


class ReplicaState:
    """The facts, the position they stand at, and the lease. Times are seconds of one monotonic clock."""

    def __init__(self, lease: float) -> None:
        self.facts = FactTable()
        self.position = NOWHERE
        self.must_load = True
        self._lease = lease
        self._lease_until = float("-inf")
        self._owed: list[tuple[Position, float]] = []
        self._beats = 0
        self._closed = False

    # --- deciding -------------------------------------------------------------------------------------------------

    def lease_left(self, now: float) -> float:
        """Return for how many seconds more this replica may serve, 0 if it may not."""
        return max(0.0, self._lease_until - now) if not self._closed else 0.0

    def stale_for(self, now: float) -> float:
        """Return how long ago the lease ran out, infinity if there never was one: for routes that may outlive it."""
        return max(0.0, now - self._lease_until) if not self._closed else float("inf")

    def denied(self, identity: TokenIdentity, wall: float) -> Fact | None:
        """Return the fact that makes a token dead at `wall` (Unix seconds), whatever the lease."""
        return self.facts.killer(identity, wall)

    def waiting_since(self) -> float | None:
        """Return when the oldest heartbeat was sent whose entries haven't come yet, None if there is none."""
        return self._owed[0][1] if self._owed else None

    # --- the lease ------------------------------------------------------------------------------------------------

    def beat(self, now: float) -> Beat:
        """Begin a heartbeat. It must be written to Redis as it is: writers tell from it who may still be serving."""
        self._beats += 1
        claims = not self._closed and (not self.must_load or self.lease_left(now) > 0)
        return Beat(now, self.position, self._lease if claims else 0.0, self._beats)

    def answered(self, beat: Beat, stands: Position) -> None:
        """Take in where Redis stood when it executed the heartbeat; renew the lease if all of that is applied here.

        Only the newest heartbeat's answer counts: Redis's list shows what that one said, and writers go by the list.
        """
        if beat.number != self._beats:
            return
        if not stands.history or stands.history != self.position.history:
            self.distrust()
        elif not self.must_load and beat.lease:
            self._owed.append((stands, beat.sent))
            self._settle()

    def _settle(self) -> None:
        """Renew by every heartbeat whose entries are applied; it counts from when the heartbeat was sent."""
        due = [sent for stands, sent in self._owed if stands.seq <= self.position.seq]
        if due:
            self._lease_until = max(self._lease_until, max(due) + self._lease)
        # What would be over when the newest was sent can grant nothing any more: the list stays short.
        alive = self._owed[-1][1] - self._lease if self._owed else 0.0
        self._owed = [owed for owed in self._owed if owed[0].seq > self.position.seq and owed[1] > alive]

    def distrust(self) -> None:
        """Renew no lease until the facts have been loaded anew; what is denied stays denied."""
        self.must_load = True
        self._owed.clear()

    @property
    def closed(self) -> bool:
        return self._closed

    def close(self) -> None:
        """Give up the lease for good."""
        self._closed = True
        self._owed.clear()

    # --- the facts ------------------------------------------------------------------------------------------------

    def apply(self, entries: Iterable[StreamEntry]) -> list[Fact]:
        """Apply entries of the stream in order and return their facts; ask for a load at the first one that doesn't fit.

        What is known already is passed over: after a failover the same entries come again.
        """
        applied: list[Fact] = []
        for item in entries:
            if self.must_load:
                break
            if item.history != self.position.history or item.entry.seq > self.position.seq + 1:
                self.distrust()
            elif item.entry.seq == self.position.seq + 1:
                self.facts.put(item.entry.facts)
                self.position = Position(item.history, item.entry.seq)
                applied.extend(item.entry.facts)
        self._settle()
        return applied

    def load(self, snapshot: Snapshot) -> list[Fact]:
        """Take over a snapshot and return every fact that changed.

        One that is behind us in our own history (a failover lost entries) is passed over: we know more than it.
        """
        behind = snapshot.position.history == self.position.history and snapshot.position.seq < self.position.seq
        self.must_load = False
        self._owed.clear()
        if behind:
            return []
        table = FactTable(snapshot.facts)
        changed = table.changes_from(self.facts)
        self.facts, self.position = table, snapshot.position
        return changed
