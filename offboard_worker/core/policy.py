"""What an event about a person leads to. Pure: the same facts always give the same decision."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from enum import StrEnum

from offboard_worker.core.event import EventKind
from offboard_worker.core.person import Person, PersonState


class Effect(StrEnum):
    """What is done about one event."""

    OFFBOARD = "offboard"  # deny for good, open a case, revoke
    CUT_SESSIONS = "cut-sessions"  # tokens issued until now are dead; new ones are welcome
    REINSTATE = "reinstate"  # lift the denial for new tokens
    CONFIRM = "confirm"  # re-read at the source before anything is believed
    RECORD = "record"  # write it down, touch nothing
    ALARM = "alarm"  # names a protected person: touch nothing, tell operators


@dataclass(frozen=True, slots=True)
class Decision:
    """One decision and the reason that goes into the audit. `hold` waits for an approval once contained."""

    effect: Effect
    reason: str
    hold: bool = False


@dataclass(frozen=True, slots=True)
class Rules:
    """The policy's settings that decide."""

    revoke_on: Collection[str]
    approval: bool = False
    reinstate_on_enable: bool = True
    max_leavers: int = 25


def decide(kind: EventKind, person: Person, rules: Rules, recent_leavers: int) -> Decision:
    """Decide what one event leads to. `recent_leavers` counts the cases that events opened within the guard's window."""
    if kind is EventKind.ACCOUNT_CHANGED:
        return Decision(Effect.CONFIRM, "the source only said that something changed")
    if kind is EventKind.ACCESS_REMOVED:
        return Decision(Effect.RECORD, "a single access was removed; the person still works here")
    if kind is EventKind.ACCOUNT_ENABLED:
        return _enabled(person, rules)
    if person.protected:
        return Decision(Effect.ALARM, "the person is protected (break-glass): nothing is touched")
    if kind.value in rules.revoke_on:
        if rules.approval:
            return Decision(Effect.OFFBOARD, f"{kind.value}; policy asks for an approval", hold=True)
        if recent_leavers >= rules.max_leavers:
            return Decision(
                Effect.OFFBOARD,
                f"{kind.value}; {recent_leavers} people already left within the guard's window, the limit is "
                f"{rules.max_leavers}",
                hold=True,
            )
        return Decision(Effect.OFFBOARD, kind.value)
    return Decision(Effect.CUT_SESSIONS, f"{kind.value}: what was issued until now is dead")


def _enabled(person: Person, rules: Rules) -> Decision:
    if person.state is not PersonState.DEPARTED:
        return Decision(Effect.RECORD, "the person had not left")
    if not rules.reinstate_on_enable:
        return Decision(Effect.RECORD, "policy.reinstate_on_enable is off: an operator must reinstate")
    return Decision(Effect.REINSTATE, "the account was enabled again")
