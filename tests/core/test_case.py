"""The case's state machine is its table: whatever stands in it happens, and nothing else does."""

from __future__ import annotations

import itertools

import pytest

from offboard_worker.core.case import FINISHED, TRANSITIONS, State, Step, TargetState, advance, can, conclude
from offboard_worker.core.credential import Strength
from offboard_worker.errors import IllegalTransition


@pytest.mark.parametrize(("state", "step"), list(itertools.product(State, Step)))
def test_every_step_either_stands_in_the_table_or_is_refused(state: State, step: Step) -> None:
    if (state, step) in TRANSITIONS:
        assert advance(state, step) is TRANSITIONS[state, step]
        assert can(state, step)
    else:
        with pytest.raises(IllegalTransition, match=f"{state.value} can't {step.value}"):
            advance(state, step)
        assert not can(state, step)


def reachable(start: State) -> set[State]:
    found, fresh = {start}, {start}
    while fresh:
        fresh = {after for (before, _), after in TRANSITIONS.items() if before in fresh} - found
        found |= fresh
    return found


def test_every_state_can_be_reached_from_an_open_case() -> None:
    assert reachable(State.OPEN) == set(State)


@pytest.mark.parametrize("state", set(State) - FINISHED)
def test_no_unfinished_state_is_a_dead_end(state: State) -> None:
    assert reachable(state) & FINISHED


@pytest.mark.parametrize("state", FINISHED)
def test_nothing_leaves_a_finished_state(state: State) -> None:
    assert not [step for step in Step if can(state, step)]


def test_nothing_is_closed_without_having_been_verified() -> None:
    assert {before for (before, _), after in TRANSITIONS.items() if after is State.CLOSED} == {State.VERIFIED}


def test_nothing_is_revoked_before_it_is_contained() -> None:
    assert State.REVOKING not in {after for (before, _), after in TRANSITIONS.items() if before is State.OPEN}


def test_a_held_case_goes_on_by_approval_alone() -> None:
    assert {
        step for (before, step), after in TRANSITIONS.items() if before is State.HELD and after is State.REVOKING
    } == {Step.APPROVE}


DONE = TargetState.DONE


def test_a_case_settles_when_all_is_done_and_every_strength_settles() -> None:
    strengths = [Strength.VERIFIED, Strength.ACKNOWLEDGED, Strength.ATTESTED]
    assert conclude([DONE, DONE], strengths, 0) is Step.SETTLE


def test_a_case_in_which_nothing_was_found_settles() -> None:
    assert conclude([DONE], [], 0) is Step.SETTLE


@pytest.mark.parametrize("strength", [Strength.UNKNOWN, Strength.FAILED])
def test_one_unknown_or_failed_credential_keeps_a_case_from_settling(strength: Strength) -> None:
    assert conclude([DONE], [Strength.VERIFIED] * 41 + [strength], 0) is Step.STUMBLE


def test_an_open_task_keeps_a_case_from_settling() -> None:
    assert conclude([DONE], [Strength.VERIFIED], 1) is Step.STUMBLE


@pytest.mark.parametrize("state", [TargetState.PENDING, TargetState.RUNNING, TargetState.RETRYING])
def test_a_case_waits_while_a_connector_works(state: TargetState) -> None:
    assert conclude([DONE, state], [Strength.FAILED], 1) is None


@pytest.mark.parametrize("state", [TargetState.FAILED, TargetState.PAUSED])
def test_a_connector_that_gave_up_needs_attention_at_once(state: TargetState) -> None:
    assert conclude([state, TargetState.RUNNING], [], 0) is Step.STUMBLE
