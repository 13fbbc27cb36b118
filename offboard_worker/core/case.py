"""The life of a case: the offboarding of one person.

Every transition is in TRANSITIONS; nothing else in the project may move a case. This file does no I/O and asks no
clock.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from enum import StrEnum
from typing import Final

from offboard_worker.core.credential import SETTLED, Strength
from offboard_worker.errors import IllegalTransition


class State(StrEnum):
    OPEN = "open"  # accepted, nothing done yet
    HELD = "held"  # contained, waits for an approval
    CONTAINED = "contained"  # denied in the store and on its way to, or at, every proxy replica
    REVOKING = "revoking"  # jobs are finding, disabling and reading back
    ATTENTION = "attention"  # something is unknown, failed, or needs a person
    VERIFIED = "verified"  # every credential read back as powerless, or settled as strongly as its vendor allows
    CLOSED = "closed"
    CANCELLED = "cancelled"  # an operator stopped it before it was finished
    REINSTATED = "reinstated"  # the person is back; what could be restored is


class Step(StrEnum):
    CONTAIN = "contain"
    HOLD = "hold"
    APPROVE = "approve"
    REVOKE = "revoke"
    SETTLE = "settle"
    STUMBLE = "stumble"
    RETRY = "retry"
    CLOSE = "close"
    CANCEL = "cancel"
    REINSTATE = "reinstate"


TRANSITIONS: Final[Mapping[tuple[State, Step], State]] = {
    (State.OPEN, Step.CONTAIN): State.CONTAINED,
    (State.OPEN, Step.CANCEL): State.CANCELLED,
    (State.CONTAINED, Step.HOLD): State.HELD,
    (State.CONTAINED, Step.REVOKE): State.REVOKING,
    (State.CONTAINED, Step.CANCEL): State.CANCELLED,
    (State.CONTAINED, Step.REINSTATE): State.REINSTATED,
    (State.HELD, Step.APPROVE): State.REVOKING,
    (State.HELD, Step.CANCEL): State.CANCELLED,
    (State.HELD, Step.REINSTATE): State.REINSTATED,
    (State.REVOKING, Step.SETTLE): State.VERIFIED,
    (State.REVOKING, Step.STUMBLE): State.ATTENTION,
    (State.REVOKING, Step.RETRY): State.REVOKING,
    (State.REVOKING, Step.CANCEL): State.CANCELLED,
    (State.REVOKING, Step.REINSTATE): State.REINSTATED,
    (State.ATTENTION, Step.RETRY): State.REVOKING,
    (State.ATTENTION, Step.SETTLE): State.VERIFIED,
    (State.ATTENTION, Step.CANCEL): State.CANCELLED,
    (State.ATTENTION, Step.REINSTATE): State.REINSTATED,
    (State.VERIFIED, Step.RETRY): State.REVOKING,
    (State.VERIFIED, Step.CLOSE): State.CLOSED,
    (State.VERIFIED, Step.REINSTATE): State.REINSTATED,
}

FINISHED: Final = frozenset({State.CLOSED, State.CANCELLED, State.REINSTATED})
"""States that nothing leaves: a new event about the person opens a new case."""


def advance(state: State, step: Step) -> State:
    """Return the state that follows. Raises IllegalTransition, which is a bug in the caller."""
    try:
        return TRANSITIONS[state, step]
    except KeyError:
        raise IllegalTransition(f"a case that is {state.value} can't {step.value}") from None


def can(state: State, step: Step) -> bool:
    """Say whether a step is allowed: for what is offered to operators."""
    return (state, step) in TRANSITIONS


class TargetState(StrEnum):
    """How far one connector's part of a case is."""

    PENDING = "pending"
    RUNNING = "running"
    DONE = "done"  # ran to its end; the evidence says how well
    RETRYING = "retrying"  # the vendor was busy or broken: the queue tries again at `next_attempt_at`
    PAUSED = "paused"  # our own credential for the system is refused
    FAILED = "failed"  # ran out of retries, or refused for good


def conclude(targets: Iterable[TargetState], strengths: Iterable[Strength], open_tasks: int) -> Step | None:
    """Say which step a revoking case takes now, or None while work is still under way.

    A case with an `unknown` or a `failed` in it, a connector that could not finish, or an open task for a person can't
    settle by itself.
    """
    states = list(targets)
    if any(state in (TargetState.FAILED, TargetState.PAUSED) for state in states):
        return Step.STUMBLE
    if any(state is not TargetState.DONE for state in states):
        return None
    if open_tasks or any(strength not in SETTLED for strength in strengths):
        return Step.STUMBLE
    return Step.SETTLE
