"""A job as our workers run it: one of our own functions, and nothing else.

RQ imports a job's function and its callbacks by the names that stand in Redis. With the JSON serializer alone, write access
to Redis would still be remote code execution: a job may name `os.system`. https://python-rq.org/docs/jobs/
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from rq.job import Job

from offboard_worker.errors import OffboardError

FUNCTIONS: Final = frozenset(
    f"offboard_worker.worker.{name}"
    for name in (
        "dispatch", "event", "revoke",
        "catch_up", "checkpoint", "close", "deletes", "prune", "roster", "upkeep",
    )
)  # fmt: skip
"""Everything that a job may call."""


class ForeignJob(OffboardError):
    """A job names a function that is none of ours: somebody else writes into our Redis."""

    reason = "foreign-job"
    default_advice = "Find out who can write to Redis, and treat it as an incident."


class OwnJob(Job):
    """RQ's job, which runs only what FUNCTIONS lists, and no callback at all: we use none."""

    @property
    def func(self) -> Callable[..., Any]:
        """The function. Raises ForeignJob."""
        if self.func_name not in FUNCTIONS or self.instance is not None:
            raise ForeignJob(f"job {self.id} names a function that is not offboard-worker's: it was not run")
        found: Callable[..., Any] = super().func
        return found

    @property
    def success_callback(self) -> None:
        return None

    @property
    def failure_callback(self) -> None:
        return None

    @property
    def stopped_callback(self) -> None:
        return None
