"""What the proxy tells about itself: Prometheus metrics (docs/metrics.md, "Proxy") and the access log.

The access log is one JSON line per request through the logger `offboard_worker.proxy.access`: never the token, the
query or a header. This file decides nothing.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

access_log = logging.getLogger("offboard_worker.proxy.access")


class Metrics:
    """The metrics of one proxy, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self.decisions = Counter(
            "offboard_proxy_decisions_total", "Requests by decision.", ["decision", "reason"], registry=registry
        )
        self.cuts = Counter("offboard_proxy_cuts_total", "Requests cut in flight.", ["reason"], registry=registry)
        self.upstream_errors = Counter(
            "offboard_proxy_upstream_errors_total", "Trouble with upstreams.", ["upstream", "reason"], registry=registry
        )
        self.duration = Histogram(
            "offboard_proxy_head_seconds",
            "From the request's head to the answer's head.",
            ["upstream"],
            buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30),
            registry=registry,
        )
        self.bytes = Counter(
            "offboard_proxy_answer_bytes_total", "Body bytes answered.", ["upstream"], registry=registry
        )
        self.flights = Gauge("offboard_proxy_flights", "Requests and streams in flight.", registry=registry)
        self.lease_left = Gauge("offboard_proxy_lease_seconds", "Seconds left of the lease.", registry=registry)
        self.applied = Gauge("offboard_proxy_applied_seq", "Denial log entry applied last.", registry=registry)

    def watch(self, flights: Callable[[], int], lease: Callable[[], float], applied: Callable[[], int]) -> None:
        """Bind the gauges to what they show."""
        self.flights.set_function(flights)
        self.lease_left.set_function(lambda: max(0.0, lease()))
        self.applied.set_function(applied)


@dataclass(slots=True)
class AccessLine:
    """One request, as the access log tells it. `ms` is counted from the request's head."""

    method: str
    path: str
    started: float
    person: str = ""
    role: str = ""
    upstream: str = ""
    decision: str = "refused"
    reason: str = ""
    status: int = 0
    bytes: int = 0

    def write(self, now: float) -> None:
        if access_log.isEnabledFor(logging.INFO):
            line = {
                "person": self.person,
                "role": self.role,
                "upstream": self.upstream,
                "method": self.method,
                "path": self.path,
                "decision": self.decision,
                "reason": self.reason,
                "status": self.status,
                "bytes": self.bytes,
                "ms": round((now - self.started) * 1000, 2),
            }
            access_log.info("%s", json.dumps(line))
