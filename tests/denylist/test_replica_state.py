"""The lease and what may be applied, one decision at a time. Whatever order things come in is test_bounds.py's."""

from __future__ import annotations

import pytest

from offboard_worker.denylist.facts import Entry, TokenIdentity
from offboard_worker.denylist.redis_copy import Position, Snapshot, StreamEntry
from offboard_worker.denylist.replica_state import ReplicaState
from tests.denylist.conftest import leaver

H = "log-1~b"


def entry(seq: int, history: str = H) -> StreamEntry:
    return StreamEntry(history, Entry(seq, (leaver(seq),), 0.0))


@pytest.fixture
def state() -> ReplicaState:
    made = ReplicaState(lease=2.0)
    made.load(Snapshot(Position(H, 3), [leaver(1), leaver(3)]))
    return made


def test_nothing_is_served_before_the_first_heartbeat_was_answered(state: ReplicaState) -> None:
    assert state.lease_left(0.0) == 0.0
    state.answered(state.beat(0.0), Position(H, 3))
    assert state.lease_left(0.5) == 1.5
    assert state.lease_left(2.0) == 0.0


def test_a_lease_counts_from_the_sending_and_waits_for_the_entries(state: ReplicaState) -> None:
    state.answered(state.beat(10.0), Position(H, 5))
    assert state.lease_left(10.1) == 0.0
    assert state.apply([entry(4)]) == [leaver(4)]
    assert state.lease_left(10.2) == 0.0
    state.apply([entry(5)])
    assert state.lease_left(10.5) == 1.5


def test_a_replica_that_is_always_a_little_behind_still_keeps_its_lease(state: ReplicaState) -> None:
    for step in range(1, 40):
        state.answered(state.beat(step * 0.25), Position(H, 3 + step))
        state.apply([entry(2 + step)])
    assert state.lease_left(39 * 0.25) == 1.75


def test_being_ahead_of_redis_is_fine(state: ReplicaState) -> None:
    state.answered(state.beat(0.0), Position(H, 1))
    assert state.lease_left(0.0) == 2.0
    assert state.load(Snapshot(Position(H, 1), [leaver(1)])) == []
    assert state.position == Position(H, 3)
    assert state.apply([entry(2), entry(3)]) == []
    assert state.apply([entry(4)]) == [leaver(4)]


@pytest.mark.parametrize("stands", [Position("", 0), Position("log-2~b", 3), Position("log-1~c", 3)])
def test_no_metadata_or_another_history_means_loading_before_any_lease(state: ReplicaState, stands: Position) -> None:
    state.answered(state.beat(0.0), stands)
    assert state.must_load
    assert state.denied(TokenIdentity((), None, "person|p-1"), 0.0)
    state.answered(state.beat(0.1), Position(H, 3))
    assert state.lease_left(0.1) == 0.0
    state.load(Snapshot(Position(H, 3), [leaver(1), leaver(3)]))
    state.answered(state.beat(0.2), Position(H, 3))
    assert state.lease_left(0.2) == 2.0


@pytest.mark.parametrize("odd", [entry(5), entry(4, "log-1~c")])
def test_a_gap_or_a_foreign_entry_is_not_applied(state: ReplicaState, odd: StreamEntry) -> None:
    state.answered(state.beat(0.0), Position(H, 9))
    assert state.apply([odd, entry(4)]) == []
    assert state.must_load
    assert state.position == Position(H, 3)


def test_an_older_heartbeats_answer_grants_nothing(state: ReplicaState) -> None:
    """Redis's list shows the newest heartbeat alone: a lease by an older one would be one that writers don't see."""
    older = state.beat(0.0)
    state.distrust()
    newer = state.beat(0.1)
    assert newer.lease == 0.0
    state.load(Snapshot(Position(H, 3), []))
    state.answered(older, Position(H, 3))
    assert state.lease_left(0.2) == 0.0
    state.answered(newer, Position(H, 3))
    assert state.lease_left(0.2) == 0.0


def test_a_heartbeat_owns_up_to_a_lease_that_is_still_left(state: ReplicaState) -> None:
    state.answered(state.beat(0.0), Position(H, 3))
    state.distrust()
    assert state.beat(1.9).lease == 2.0
    assert state.beat(2.0).lease == 0.0


def test_a_load_tells_every_change_and_a_closed_replica_serves_no_more(state: ReplicaState) -> None:
    state.distrust()
    assert state.load(Snapshot(Position("log-1~c", 2), [leaver(1), leaver(2)])) == [
        leaver(2),
        type(leaver(3))("person|p-3", denied=False),
    ]
    state.answered(state.beat(0.0), Position("log-1~c", 2))
    state.close()
    assert state.lease_left(0.0) == 0.0
