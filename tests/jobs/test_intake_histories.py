"""Whatever order, batches and repetitions a history arrives in, it ends in the same people, denials and a sound log."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from offboard_worker.core.event import ENDS_ACCESS, EventKind, IdentityEvent
from offboard_worker.core.person import PersonState
from offboard_worker.jobs.rulebook import SourceFacts
from offboard_worker.store import audit, cases
from offboard_worker.store.database import Store
from tests.conftest import Clock
from tests.jobs.intake_world import BOOK, Company, event

SOURCES = {"okta-main": "okta", "entra-corp": "entra"}
# Where one source's addresses identify and the other's don't, who is one person depends on who is heard of first.
BOTH_TRUSTED = replace(BOOK, sources={name: SourceFacts(system, trust_email=True) for name, system in SOURCES.items()})
KINDS = (
    EventKind.ACCOUNT_DISABLED,
    EventKind.ACCOUNT_SUSPENDED,
    EventKind.ACCOUNT_PURGED,
    EventKind.ACCOUNT_ENABLED,
    EventKind.ACCOUNT_ENABLED,
    EventKind.SESSION_REVOKED,
    EventKind.ACCESS_REMOVED,
)


@dataclass(frozen=True)
class Outcome:
    states: dict[str, PersonState]
    denied: frozenset[str]


said = st.tuples(
    st.sampled_from(KINDS), st.sampled_from(["ada", "bob"]), st.integers(0, 6), st.sampled_from(list(SOURCES))
)
histories = st.lists(said, min_size=1, max_size=9).map(
    lambda all_: [event(k, who, at, source=source, key=f"k{n}") for n, (k, who, at, source) in enumerate(all_)]
)


def expected(history: Sequence[IdentityEvent]) -> dict[str, PersonState]:
    """What is so by the rule alone: per source the latest word counts, a tie goes to the departure, any source suffices."""
    latest: dict[tuple[str, str], tuple[float, bool]] = {}
    for one in history:
        gone = one.kind in ENDS_ACCESS
        if gone or one.kind is EventKind.ACCOUNT_ENABLED:
            name = one.subject.emails[0]
            word = (one.occurred_at.timestamp(), gone)
            latest[name, one.source] = max(latest.get((name, one.source), word), word)
    states = {one.subject.emails[0]: PersonState.ACTIVE for one in history}
    states.update({name: PersonState.DEPARTED for (name, _), (_, gone) in latest.items() if gone})
    return states


async def run(template: Path, deliveries: Sequence[Sequence[IdentityEvent]]) -> Outcome:
    with tempfile.TemporaryDirectory() as folder:
        shutil.copyfile(template, Path(folder) / "store.db")
        store = await Store.open(f"sqlite:///{folder}/store.db", durable=False, clock=Clock())
        try:
            return await _outcome(Company(store, BOTH_TRUSTED), deliveries)
        finally:
            await store.close()


async def _outcome(company: Company, batches: Sequence[Sequence[IdentityEvent]]) -> Outcome:
    names: dict[str, str] = {}
    for batch in batches:
        await company.hears(*batch)
        await company.log_is_sound()
        names.update({one.subject.id or "": one.subject.emails[0] for one in batch})
    await audit.verify(company.store, {})
    states: dict[str, PersonState] = {}
    people: dict[str, str] = {}
    for alias, email in names.items():
        person = await company.person(alias)
        states[email] = person.state
        people[person.id] = email
        async with company.store.read() as conn:
            unfinished = await cases.unfinished_of(conn, [person.id])
        assert bool(unfinished) is (person.state is PersonState.DEPARTED)
    denied = await company.denied()
    assert {people[key.removeprefix("person|")] for key in denied if key.startswith("person|")} == {
        email for email, state in states.items() if state is PersonState.DEPARTED
    }
    return Outcome(states, frozenset(key for key in denied if not key.startswith("person|")))


@given(history=histories, data=st.data())
@settings(
    max_examples=25, deadline=None, phases=(Phase.explicit, Phase.generate), suppress_health_check=list(HealthCheck)
)
@pytest.mark.integration
def test_every_order_and_batching_ends_in_the_same_state(
    sqlite_template: Path, history: list[IdentityEvent], data: st.DataObject
) -> None:
    shuffled = list(data.draw(st.permutations(history)))
    repeated = shuffled + data.draw(st.lists(st.sampled_from(history), max_size=3))
    cuts = sorted(data.draw(st.sets(st.integers(1, len(repeated)), max_size=3)) - {len(repeated)})
    batches = [repeated[a:b] for a, b in zip([0, *cuts], [*cuts, len(repeated)], strict=True)]

    straight = asyncio.run(run(sqlite_template, [[one] for one in history]))
    other = asyncio.run(run(sqlite_template, batches))
    assert straight.states == other.states == expected(history)
    assert straight.denied == other.denied
