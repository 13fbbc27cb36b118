"""What the receiver tells about itself: Prometheus metrics (docs/metrics.md, "Receiver") and its access log.

The access log is one JSON line per request through the logger `offboard_worker.receiver`: never a header, a query or a
body. This file decides nothing.
"""

from __future__ import annotations

import json
import logging
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from offboard_worker.jobs.rulebook import Accepted

log = logging.getLogger("offboard_worker.receiver")

_SECONDS: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)


class Metrics:
    """The metrics of one receiver, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self.deliveries = Counter(
            "offboard_receiver_deliveries_total", "Requests answered.", ["source", "outcome"], registry=registry
        )
        self.events = Counter(
            "offboard_receiver_events_total", "New events, once durable.", ["kind", "effect"], registry=registry
        )
        self.duplicates = Counter(
            "offboard_receiver_duplicates_total", "Statements that were in the inbox already.", registry=registry
        )
        self.alarms = Counter(
            "offboard_receiver_protected_total", "Events that named a protected person.", registry=registry
        )
        self.batch = Histogram(
            "offboard_receiver_commit_deliveries",
            "Deliveries that shared one transaction.",
            buckets=(1, 2, 4, 8, 16, 32, 64, 128, 256),
            registry=registry,
        )
        self.commit = Histogram(
            "offboard_receiver_commit_seconds", "One transaction, decided and durable.", buckets=_SECONDS,
            registry=registry,
        )  # fmt: skip
        self.push = Histogram(
            "offboard_receiver_push_seconds", "From the commit to Redis's answer.", buckets=_SECONDS, registry=registry
        )
        self.answer = Histogram(
            "offboard_receiver_answer_seconds", "From the request's head to its answer.", buckets=_SECONDS,
            registry=registry,
        )  # fmt: skip
        self.push_failures = Counter(
            "offboard_receiver_push_failures_total", "Pushes that failed or took too long.", ["reason"],
            registry=registry,
        )  # fmt: skip
        self.enqueue_failures = Counter(
            "offboard_receiver_enqueue_failures_total", "Work left to the reconciler.", registry=registry
        )
        self.pending = Gauge(
            "offboard_receiver_containment_pending", "Denials of this receiver that Redis may lack.", registry=registry
        )
        self._answers: dict[tuple[str, str], Counter] = {}

    def answered(self, source: str, outcome: str, seconds: float) -> None:
        """Count one request."""
        counter = self._answers.get((source, outcome))
        if counter is None:
            counter = self._answers[source, outcome] = self.deliveries.labels(source, outcome)
        counter.inc()
        self.answer.observe(seconds)

    def committed(self, deliveries: int, accepted: Accepted, seconds: float) -> None:
        """Count one transaction."""
        self.batch.observe(deliveries)
        self.commit.observe(seconds)
        for (kind, effect), count in accepted.kinds.items():
            self.events.labels(kind, effect).inc(count)
        self.duplicates.inc(accepted.duplicates)
        self.alarms.inc(len(accepted.alarms))


def write_access(source: str, method: str, status: int, outcome: str, size: int, seconds: float) -> None:
    """Write one line of the access log."""
    if log.isEnabledFor(logging.INFO):
        line = {
            "source": source,
            "method": method,
            "status": status,
            "outcome": outcome,
            "bytes": size,
            "ms": round(seconds * 1000, 2),
        }
        log.info("%s", json.dumps(line, separators=(",", ":")))
