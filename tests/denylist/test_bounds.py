"""The table of bounds (DESIGN section 6) as a machine that tries to break it.

The machine commits, pushes, loses writes, fails over, flushes, trims, restores the store, stops and restarts replicas,
delays and loses their messages, steps clocks and asks for confirmation, in any order. After every step it holds:

- a replica's facts are exactly a prefix of the store's log, whatever happened;
- a replica that may serve knows every entry that Redis has held, without losing it, for longer than the lease;
- a replica that may serve reached Redis within the last lease;
- when `confirm` has returned, no replica that may serve, listed or not, lacks the entry;
- Redis itself is exactly a prefix, or is recognised as not to be believed.

It runs on the model of Redis with many examples and on a real Valkey with few: the logic under test is the same.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Collection, Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from offboard_worker.denylist.confirmation import Confirming, Watch
from offboard_worker.denylist.embedded import EmbeddedValkey
from offboard_worker.denylist.facts import Entry, Fact, TokenIdentity
from offboard_worker.denylist.projection import Projection
from offboard_worker.denylist.redis_copy import Position, Snapshot, StreamEntry
from offboard_worker.denylist.replica_state import Beat, ReplicaState
from offboard_worker.errors import DenylistUnavailable
from tests.denylist.memory_log import MemoryLog
from tests.denylist.model_redis import ModelRedis
from tests.denylist.real_redis import RealRedis

T = TypeVar("T")
LEASE = 2.0  # it and all times below are exact in binary: no bound is missed or broken by rounding
PEOPLE = 2
REPLICAS = 2
replica_numbers = st.integers(0, REPLICAS - 1)


@dataclass
class Proxy:
    """One replica with its messages on the way."""

    name: str
    state: ReplicaState
    sent: list[Beat] = field(default_factory=list)
    answers: list[tuple[Beat, Position]] = field(default_factory=list)
    batch: list[StreamEntry] = field(default_factory=list)
    snapshot: Snapshot | None = None
    reached: float = float("-inf")
    """When Redis last executed a heartbeat of this process."""

    def knows_beyond(self, stands: Position) -> bool:
        """Whether it, or something on its way to it, is ahead of Redis in Redis's own history."""
        known = [self.state.position, *(Position(item.history, item.entry.seq) for item in self.batch)]
        if self.snapshot is not None:
            known.append(self.snapshot.position)
        return any(position.history == stands.history and position.seq > stands.seq for position in known)


class World(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.now = 1000.0
        self.loop = asyncio.new_event_loop()
        self.redis: Any = self.make_redis()
        self.log = MemoryLog()
        self.names = itertools.count(1)
        self.proxies = [self.new_proxy() for _ in range(REPLICAS)]
        self.writers = [Projection(None, self.log, lease=LEASE, copy=self.redis, clock=self.clock) for _ in range(2)]
        self.saved: list[Any] = []
        self.held: dict[int, float] = {}
        """Since when Redis has held each entry of the log as it is now, without losing it."""
        self.logs: dict[str, list[Entry]] = {}
        """What each history is a prefix of (a restored store leaves the older ones behind)."""
        self.confirming: list[Confirming] = []
        self.confirmed: set[tuple[int, Entry]] = set()

    def make_redis(self) -> Any:
        return ModelRedis(self.clock)

    def clock(self) -> float:
        return self.now

    def new_proxy(self) -> Proxy:
        return Proxy(f"proxy/{next(self.names)}", ReplicaState(LEASE))

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return self.loop.run_until_complete(work)

    def teardown(self) -> None:
        self.loop.close()

    def look(self) -> None:
        """Note what Redis holds now: it begins, goes on, or has been lost."""
        stands, intact = self.peek()
        if not intact:
            self.held.clear()
            return
        self.logs[stands.history] = list(self.log.entries)
        self.held = {seq: self.held.get(seq, self.now) for seq in range(1, stands.seq + 1)}

    def peek(self) -> tuple[Position, bool]:
        state = self.redis.state
        return Position(state.history, state.seq), state.intact

    # --- the store and its writers ---

    @initialize()
    def all_is_well_at_first(self) -> None:
        self.healthy(5)

    @rule(rounds=st.integers(1, 5))
    def healthy(self, rounds: int) -> None:
        """Half a second each in which everything works: then every replica is fresh and knows all."""
        self.redis.up = True
        for _ in range(rounds):
            self.now += 0.5
            for writer in range(2):
                self.push(writer)
            for number in range(REPLICAS):
                for _ in range(2):
                    self.beat(number, "answered")
                    self.follow(number, 1000)
                self.beat(number, "answered")
                assert self.proxies[number].state.lease_left(self.now) == LEASE
                assert self.proxies[number].state.position.seq == len(self.log.entries)

    @rule(person=st.integers(0, PEOPLE - 1), denied=st.booleans(), generation=st.integers(0, 3))
    def commit(self, person: int, denied: bool, generation: int) -> None:
        self.log.append(Fact(f"person|{person}", denied, generation))

    @rule(person=st.integers(0, PEOPLE - 1), denied=st.booleans(), writer=st.integers(0, 1))
    def revoke(self, person: int, denied: bool, writer: int) -> None:
        """What the receiver does: commit, push, ask for confirmation."""
        self.commit(person, denied, 0)
        self.push(writer)
        self.ask_for_confirmation(len(self.log.entries), writer)
        self.poll()

    @rule(writer=st.integers(0, 1))
    def push(self, writer: int) -> None:
        if self.redis.up:
            self.saved = [*self.saved[-3:], self.redis.save()]
        try:
            assert self.run(self.writers[writer].push()) == len(self.log.entries)
        except DenylistUnavailable:
            assert not self.redis.up
        self.look()

    @precondition(lambda self: self.redis.up and self.log.entries)
    @rule(data=st.data(), new_id=st.booleans())
    def restore_the_store(self, data: st.DataObject, new_id: bool) -> None:
        """The store comes back from a backup, with another log id as it should, or (operators!) with the old one.

        With the old one a push has to notice that Redis is ahead. It can't where Redis had just lost what a replica
        still knows: that is why a restored store takes another id.
        """
        stands, intact = self.peek()
        if new_id or (intact and any(proxy.knows_beyond(stands) for proxy in self.proxies)):
            self.log.id = f"log-{next(self.names)}"
        self.log.restore(data.draw(st.integers(0, len(self.log.entries)), label="to"))
        self.confirming.clear()
        self.confirmed.clear()
        self.held.clear()
        self.run(self.writers[0].push())
        self.push(1)
        self.saved.clear()  # Redis's own replicas have followed before anything else happens

    # --- Redis's troubles ---

    @precondition(lambda self: self.saved)
    @rule(data=st.data())
    def fail_over(self, data: st.DataObject) -> None:
        self.redis.failover(self.saved[data.draw(st.integers(0, len(self.saved) - 1), label="to")])
        self.confirmed.clear()  # what Redis lost after a confirmation is the next push's to mend (`WAIT` prevents it)
        self.held.clear()
        self.look()

    @rule(
        what=st.sampled_from(["flush", "flush and push", "restart", "trim", "away", "step", "harm"]),
        forward=st.booleans(),
    )
    def trouble(self, what: str, forward: bool) -> None:
        match what:
            case "flush" | "flush and push":
                self.redis.flush()
                self.held.clear()
                if what == "flush and push":
                    self.push(0)
            case "harm":
                self.redis.lose_facts()
                self.held.clear()
            case "restart":
                self.redis.restart()
            case "trim":
                self.redis.trim()
            case "away":
                self.redis.up = False
            case "step":
                self.redis.step_wall(3600.0 if forward else -3600.0)

    @precondition(lambda self: not self.redis.up)
    @rule()
    def redis_is_back(self) -> None:
        self.redis.up = True

    @rule(seconds=st.sampled_from([1 / 64, 0.25, 0.875, 1.125, 1.125, LEASE + 0.125]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds
        self.poll()

    # --- replicas, whose every message can be late or lost ---

    @rule(number=replica_numbers)
    def restart_replica(self, number: int) -> None:
        self.proxies[number] = self.new_proxy()

    @rule(number=replica_numbers, how=st.sampled_from(["answered", "answered", "answer late", "answer lost", "late"]))
    def beat(self, number: int, how: str) -> None:
        proxy = self.proxies[number]
        proxy.sent.append(proxy.state.beat(self.now))
        if how != "late":
            self.execute_beat(number, newest=True, answered=how != "answer lost")
        if how == "answered":
            self.receive_answer(number, newest=True)

    @rule(number=replica_numbers)
    def hear_nothing_but_heartbeats(self, number: int) -> None:
        """A replica whose stream is stuck for longer than a lease, while its heartbeats go through."""
        for _ in range(5):
            self.beat(number, "answered")
            self.time_passes(0.5)
            self.nobody_serves_on_what_is_older_than_the_lease()

    @rule(number=replica_numbers, newest=st.booleans(), answered=st.booleans())
    def execute_beat(self, number: int, newest: bool, answered: bool) -> None:
        """Redis executes one of the heartbeats that are on the way, in any order; the answer may be lost."""
        proxy = self.proxies[number]
        if proxy.sent and self.redis.up:
            beat = proxy.sent.pop(-1 if newest else 0)
            stands = self.run(self.redis.beat(proxy.name, beat.position, beat.lease, beat.number))
            proxy.reached = self.now
            if answered:
                proxy.answers.append((beat, stands))

    @rule(number=replica_numbers, newest=st.booleans())
    def receive_answer(self, number: int, newest: bool) -> None:
        proxy = self.proxies[number]
        if proxy.answers:
            proxy.state.answered(*proxy.answers.pop(-1 if newest else 0))

    @rule(number=replica_numbers, at_once=st.sampled_from([0, 1, 1000]))
    def follow(self, number: int, at_once: int) -> None:
        """Ask Redis for entries (or a snapshot) and take all, one or, for now, nothing of the answer."""
        proxy = self.proxies[number]
        if not self.redis.up:
            return
        if proxy.state.must_load:
            proxy.snapshot = self.run(self.redis.snapshot())
        else:
            proxy.batch = self.run(self.redis.entries(proxy.state.position.seq, None))
        if at_once:
            self.take(number, at_once)

    @rule(number=replica_numbers, at_once=st.sampled_from([1, 1000]))
    def take(self, number: int, at_once: int) -> None:
        proxy = self.proxies[number]
        if proxy.snapshot is not None and proxy.state.must_load:
            proxy.state.load(proxy.snapshot)
            proxy.snapshot = None
        elif proxy.batch:
            proxy.state.apply(proxy.batch[:at_once])
            proxy.batch = proxy.batch[at_once:]

    # --- confirmation ---

    def ask_for_confirmation(self, seq: int, writer: int) -> None:
        self.confirming = [*self.confirming[-3:], Confirming(seq, self.writers[writer].watch)]

    @rule()
    def poll(self) -> None:
        for confirming in list(self.confirming):
            writer = next(one for one in self.writers if one.watch is confirming._watch)
            try:
                outcome = self.run(writer._confirm_once(confirming))
            except DenylistUnavailable:
                continue
            self.look()
            if outcome is not None:
                self.confirming.remove(confirming)
                self.confirmed.add((confirming.seq, self.log.entries[confirming.seq - 1]))
                self.nobody_serves_without_what_was_confirmed()

    @rule(writer=st.integers(0, 1))
    def list_replicas(self, writer: int) -> None:
        if self.redis.up:
            self.run(self.writers[writer].replicas())

    # --- what must hold ---

    @invariant()
    def replicas_hold_exactly_a_prefix(self) -> None:
        for proxy in self.proxies:
            position = proxy.state.position
            assert {fact.key: fact for fact in proxy.state.facts} == fold(self.prefix(position))

    @invariant()
    def redis_holds_exactly_a_prefix(self) -> None:
        stands, intact = self.peek()
        if intact:
            found = {fact.key: fact for fact in self.stored_facts()}
            assert found == fold(self.prefix(stands))

    def stored_facts(self) -> list[Fact]:
        return list(self.redis.state.facts.values())

    def prefix(self, position: Position) -> list[Entry]:
        if not position.history:
            return []
        entries = self.logs[position.history]
        assert position.seq <= len(entries)
        return entries[: position.seq]

    @invariant()
    def nobody_serves_on_what_is_older_than_the_lease(self) -> None:
        long_held = [seq for seq, since in self.held.items() if self.now - since > LEASE]
        for proxy in self.serving():
            assert self.now - proxy.reached <= LEASE
            if long_held:
                self.assert_knows(proxy, max(long_held))

    @invariant()
    def nobody_serves_without_what_was_confirmed(self) -> None:
        for proxy in self.serving():
            for seq, entry in self.confirmed:
                self.assert_knows(proxy, seq)
                assert self.prefix(proxy.state.position)[seq - 1] == entry

    def serving(self) -> list[Proxy]:
        return [proxy for proxy in self.proxies if proxy.state.lease_left(self.now) > 0]

    def assert_knows(self, proxy: Proxy, seq: int) -> None:
        """By entry `seq` or a later one each person stands as the store says; a denied one does not pass."""
        position = proxy.state.position
        assert position.seq >= seq
        truth = fold(self.log.entries[: position.seq])
        for key, fact in truth.items():
            token = TokenIdentity((), None, key, 2)
            passes = proxy.state.denied(token, 0.0) is None
            assert passes == (not fact.denied and fact.before <= 2)


def fold(entries: list[Entry]) -> dict[str, Fact]:
    return {fact.key: fact for entry in entries for fact in entry.facts}


def hold(world: type[World], examples: int, steps: int, phases: Collection[Phase] = tuple(Phase)) -> None:
    run_state_machine_as_test(
        world,
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            deadline=None,
            database=None,
            phases=phases,
            print_blob=False,
            suppress_health_check=list(HealthCheck),
        ),
    )


def test_the_bounds_hold_whatever_happens(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL, "offboard_worker.denylist")
    hold(World, examples=400, steps=40)


class RealWorld(World):
    url = ""

    def make_redis(self) -> Any:
        return RealRedis(self.url, self.loop)

    def peek(self) -> tuple[Position, bool]:
        reading = self.redis.look()
        return reading.position, reading.intact

    def stored_facts(self) -> list[Fact]:
        facts: list[Fact] = self.redis.facts()
        return facts

    def teardown(self) -> None:
        self.redis.close()
        super().teardown()


@pytest.mark.integration
def test_the_bounds_hold_on_a_real_valkey(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL, "offboard_worker.denylist")
    valkey = EmbeddedValkey(tmp_path, settings={"appendonly": "no"})
    asyncio.run(valkey.start())
    try:
        RealWorld.url = valkey.url
        hold(RealWorld, examples=12, steps=30)
    finally:
        asyncio.run(valkey.kill())


def renew_blindly(state: ReplicaState) -> None:
    """A bug: every heartbeat renews, whatever Redis said that it holds."""
    for _, sent in state._owed:
        state._lease_until = max(state._lease_until, sent + LEASE)
    state._owed.clear()


@pytest.mark.parametrize(
    ("target", "name", "bug"),
    [
        (ReplicaState, "_settle", renew_blindly),
        (Watch, "complete", lambda watch, reading, now: True),
        (Watch, "silent", lambda watch, name, now: LEASE * 2),
    ],
)
def test_the_machine_finds_bugs(
    target: type, name: str, bug: object, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL, "offboard_worker.denylist")
    monkeypatch.setattr(target, name, bug)
    with pytest.raises(AssertionError):
        hold(World, examples=1000, steps=40, phases=(Phase.generate,))
