"""When a denial counts as being in force everywhere: the rules of confirmation.py one by one."""

from __future__ import annotations

import pytest

from offboard_worker.denylist.confirmation import DRIFT, Confirming, InForce, Watch
from offboard_worker.denylist.redis_copy import Position, Reading, ReplicaReport

LEASE = 2.0
TERM = LEASE * DRIFT + 0.001  # past the end, whatever the rounding


def reading(seq: int = 5, *, history: str = "log-1~b", server: str = "s", age: float = 0.0, **applied: int) -> Reading:
    """What Redis says, `age` seconds (of its own clock) after its list began; replicas by what they applied."""
    reports = {name: ReplicaReport(seq, LEASE, 0, f"{seq}:2000:0:1") for name, seq in applied.items()}
    return Reading(Position(history, seq), bool(history), 0, int(age * 1000), server, 1, reports)


@pytest.fixture
def watch() -> Watch:
    """A watch that has seen its lineage begin long ago."""
    watch = Watch(LEASE)
    watch.note(reading(), 0.0)
    return watch


def look(watch: Watch, confirming: Confirming, seen: Reading, now: float) -> dict[str, InForce] | None:
    watch.note(seen, now)
    return confirming.observe(seen, "log-1", now)


def test_all_applied_on_a_complete_list_is_enough(watch: Watch) -> None:
    assert look(watch, Confirming(5, watch), reading(a=5, b=6), 10.0) == dict.fromkeys("ab", InForce.APPLIED)


def test_one_that_lacks_it_is_waited_for_until_it_was_silent_for_a_lease(watch: Watch) -> None:
    confirming = Confirming(5, watch)
    assert look(watch, confirming, reading(a=4), 10.0) is None
    assert look(watch, confirming, reading(a=4), 10.0 + LEASE) is None
    assert look(watch, confirming, reading(a=4), 10.0 + TERM) == {"a": InForce.LEASE_EXPIRED}


def test_a_replica_with_a_longer_lease_is_waited_for_longer(watch: Watch) -> None:
    slow = reading()
    slow = Reading(slow.position, True, 0, 0, "s", 1, {"a": ReplicaReport(4, 10.0, 0, "4:10000:0:1")})
    confirming = Confirming(5, watch)
    assert look(watch, confirming, slow, 10.0) is None
    assert look(watch, confirming, slow, 10.0 + 9.9) is None
    assert look(watch, confirming, slow, 10.0 + 10.2) is not None


def test_what_redis_does_not_hold_is_never_in_force(watch: Watch) -> None:
    confirming = Confirming(5, watch)
    for seen in (reading(4, a=5), reading(9, history="log-2~b", a=9), reading(0, history="")):
        assert not confirming.held(seen, "log-1")
        assert look(watch, confirming, seen, 100.0) is None
        assert look(watch, confirming, seen, 200.0) is None


@pytest.mark.parametrize("change", [{"server": "t"}, {"history": "log-1~c"}])
def test_after_a_failover_or_rebuild_the_wait_and_the_list_begin_anew(watch: Watch, change: dict[str, str]) -> None:
    confirming = Confirming(5, watch)
    assert look(watch, confirming, reading(a=4), 10.0) is None
    after = reading(**change, a=5)  # type: ignore[arg-type]
    assert look(watch, confirming, after, 10.0 + TERM) is None
    assert look(watch, confirming, after, 10.0 + 2 * TERM) == {"a": InForce.APPLIED}


def test_a_loss_between_two_looks_begins_the_wait_anew(watch: Watch) -> None:
    confirming = Confirming(5, watch)
    assert look(watch, confirming, reading(5, a=4), 10.0) is None
    assert look(watch, confirming, reading(4, a=3), 11.0) is None
    moving = reading(5, a=4)
    assert look(watch, confirming, moving, 12.0) is None
    heard = Reading(moving.position, True, 0, 0, "s", 1, {"a": ReplicaReport(4, LEASE, 0, "4:2000:9:2")})
    assert look(watch, confirming, heard, 10.0 + TERM) is None
    assert look(watch, confirming, heard, 12.0 + TERM) == {"a": InForce.LEASE_EXPIRED}


def test_a_new_writer_goes_by_redis_clock_until_it_has_seen_a_change() -> None:
    watch = Watch(LEASE)
    assert look(watch, Confirming(5, watch), reading(age=1.0, a=5), 0.0) is None
    assert look(watch, Confirming(5, watch), reading(age=3.0, a=5), 0.1) is not None
    # The clock may be stepped, so one who saw the list begin anew counts the lease itself.
    assert look(watch, Confirming(5, watch), reading(server="t", age=3600.0, a=5), 0.2) is None
    assert look(watch, Confirming(5, watch), reading(server="t", age=3600.0, a=5), 0.3 + TERM) is not None


def test_a_replica_without_any_lease_is_not_waited_for(watch: Watch) -> None:
    loading = {"a": ReplicaReport(0, 0.0, 0, "0:0:0:1")}
    seen = Reading(Position("log-1~b", 5), True, 0, 0, "s", 1, loading)
    assert look(watch, Confirming(5, watch), seen, 10.0) == {"a": InForce.LEASE_EXPIRED}


def test_only_silence_that_we_watched_makes_a_replica_dead(watch: Watch) -> None:
    watch.note(reading(a=4), 10.0)
    assert watch.dead(60.0, 69.0) == {}
    assert watch.dead(60.0, 70.0) == {"a": "4:2000:0:1"}
    watch.note(reading(a=5), 70.0)
    assert watch.dead(60.0, 71.0) == {}
