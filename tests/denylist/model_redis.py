"""Redis's copy in a dict: the meaning of lua.py in plain Python, for tests that need thousands of runs and no clock.

It can be rolled back to any earlier state (a failover to a replica that lagged), and its clock can be stepped.
test_bounds.py runs the same machine on a real Valkey too, so that the two can't drift apart unseen.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from offboard_worker.denylist.facts import Entry, Fact
from offboard_worker.denylist.redis_copy import Answer, Position, Reading, ReplicaReport, Snapshot, StreamEntry
from offboard_worker.errors import DenylistUnavailable


@dataclass
class State:
    log_id: str = ""
    build: str = ""
    seq: int = 0
    since: int = 0
    server: str = ""
    count: int = -1
    facts: dict[str, Fact] = field(default_factory=dict)
    stream: list[StreamEntry] = field(default_factory=list)
    replicas: dict[str, str] = field(default_factory=dict)
    staged: dict[str, dict[str, Fact]] = field(default_factory=dict)

    @property
    def history(self) -> str:
        return f"{self.log_id}~{self.build}" if self.build else ""

    @property
    def intact(self) -> bool:
        return bool(self.build) and self.count == len(self.facts)


class ModelRedis:
    """One dataset behind one address. While `up` is False every call fails, having done nothing."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.state = State()
        self.up = True
        self.wall_offset = 1_764_000_000.0
        self._clock = clock
        self._server = 1

    # --- what the world does to it ---

    def save(self) -> State:
        return copy.deepcopy(self.state)

    def failover(self, earlier: State) -> None:
        self.state = copy.deepcopy(earlier)
        self._server += 1

    def restart(self) -> None:
        self._server += 1

    def flush(self) -> None:
        self.state = State()

    def lose_facts(self) -> None:
        self.state.facts = {}

    def trim(self) -> None:
        del self.state.stream[:-1]

    def step_wall(self, seconds: float) -> None:
        self.wall_offset += seconds

    # --- what its clients ask ---

    def _call(self) -> State:
        if not self.up:
            raise DenylistUnavailable("Redis is away")
        return self.state

    def _now(self) -> int:
        return int((self._clock() + self.wall_offset) * 1000)

    async def read(self, *, wait_replicas: int = 0, wait_seconds: float = 1.0) -> Reading:
        state, server = self._call(), f"run-{self._server}"
        if state.build and state.server != server:
            state.server, state.since = server, self._now()
        reports = {name: ReplicaReport.parse(raw) for name, raw in state.replicas.items()}
        where = Position(state.history, state.seq)
        return Reading(where, state.intact, state.since, self._now(), server, len(state.facts), reports)

    async def push(self, position: Position, entries: Sequence[Entry], keep: int) -> Answer:
        state = self._call()
        stands = Position(state.history, state.seq)
        if not state.intact:
            return Answer(False, stands, damaged=True)
        if position != stands:
            return Answer(False, stands)
        for entry in entries:
            assert entry.seq == state.seq + 1
            state.stream.append(StreamEntry(state.history, entry))
            state.facts.update((fact.key, fact) for fact in entry.facts)
            state.seq = entry.seq
        state.count = len(state.facts)
        return Answer(True, Position(state.history, state.seq))

    async def stage(self, token: str, facts: Sequence[Fact]) -> None:
        self._call().staged.setdefault(token, {}).update((fact.key, fact) for fact in facts)

    async def flip(self, found: Position, token: str, log_id: str, seq: int, count: int) -> Answer:
        state = self._call()
        stands, staged = Position(state.history, state.seq), state.staged.get(token, {})
        if found != stands:
            return Answer(False, stands)
        if len(staged) != count:
            return Answer(False, stands, damaged=True)
        state.facts, state.stream, state.replicas = dict(staged), [], {}
        state.log_id, state.build, state.seq, state.count = log_id, token, seq, count
        state.since, state.server = self._now(), f"run-{self._server}"
        return Answer(True, Position(state.history, seq))

    async def forget(self, replica: str, raw: str) -> None:
        if self._call().replicas.get(replica) == raw:
            del self.state.replicas[replica]

    async def prune(self, before: float) -> int:
        raise NotImplementedError("nothing expires in the model")

    async def beat(self, replica: str, position: Position, lease: float, number: int) -> Position:
        state = self._call()
        said = state.replicas.get(replica)
        if said and int(said.rpartition(":")[2]) >= number:
            return Position("", 0)
        applied = position.seq if state.intact and position.history == state.history else 0
        state.replicas[replica] = f"{applied}:{round(lease * 1000)}:{self._now()}:{number}"
        return Position(state.history, state.seq) if state.intact else Position("", 0)

    async def entries(self, after: int, block: float | None) -> list[StreamEntry]:
        return [item for item in self._call().stream if item.entry.seq > after]

    async def snapshot(self) -> Snapshot | None:
        state = self._call()
        if not state.intact:
            return None
        return Snapshot(Position(state.history, state.seq), list(state.facts.values()))
