"""Cases and targets: one unfinished case a person, moved by the table alone."""

from __future__ import annotations

import pytest
from sqlalchemy import insert

from offboard_worker.core.case import State, Step, TargetState
from offboard_worker.core.credential import Action, Strength
from offboard_worker.errors import IllegalTransition
from offboard_worker.store import cases
from offboard_worker.store.cases import CaseRow, TargetRow, summary
from offboard_worker.store.database import RowRefused, Store
from offboard_worker.store.schema import people
from tests.conftest import Clock

T = 1_764_000_000.0


def case(number: int, state: State = State.REVOKING, person: str = "p-1", by: str = "source:okta-main") -> CaseRow:
    return CaseRow(f"c-{number}", person, state, "left", by, T + number, T + number, denial_seq=number)


def target(number: int, connector: str, state: TargetState = TargetState.PENDING, **more: object) -> TargetRow:
    return TargetRow(f"c-{number}", connector, state, **{"action": Action.DISABLE, **more})  # type: ignore[arg-type]


async def keep(store: Store, *rows: CaseRow | TargetRow) -> None:
    async with store.write() as tx:
        await cases.insert_cases(
            tx, [row for row in rows if isinstance(row, CaseRow)], [row for row in rows if isinstance(row, TargetRow)]
        )


@pytest.fixture(autouse=True)
async def two_people(store: Store) -> None:
    row = {"name": "", "state": "active", "generation": 0, "protected": False, "created_at": T}
    async with store.write() as tx:
        await tx.conn.execute(insert(people), [{**row, "id": "p-1"}, {**row, "id": "p-2"}])


async def test_a_case_is_read_back_as_it_was(store: Store) -> None:
    await keep(store, case(1), target(1, "okta", next_attempt_at=T))
    async with store.read() as conn:
        assert await cases.one(conn, "c-1") == case(1)
        assert await cases.targets_of(conn, "c-1") == [target(1, "okta", next_attempt_at=T)]
        assert await cases.target(conn, "c-1", "okta") == target(1, "okta", next_attempt_at=T)
        assert await cases.one(conn, "c-9") is None
        assert await cases.target(conn, "c-1", "aws") is None


@pytest.mark.parametrize("state", [State.OPEN, State.HELD, State.REVOKING, State.ATTENTION, State.VERIFIED])
async def test_nobody_has_two_unfinished_cases(store: Store, state: State) -> None:
    await keep(store, case(1, state))
    with pytest.raises(RowRefused):
        await keep(store, case(2, State.REVOKING))
    await keep(store, case(3, State.REVOKING, "p-2"))
    async with store.read() as conn:
        found = await cases.unfinished_of(conn, ["p-1", "p-2", "p-1", "p-3"])
    assert {person: row.id for person, row in found.items()} == {"p-1": "c-1", "p-2": "c-3"}


@pytest.mark.parametrize("state", [State.CLOSED, State.CANCELLED, State.REINSTATED])
async def test_a_finished_case_lets_another_open(store: Store, state: State) -> None:
    await keep(store, case(1, state), case(2))
    async with store.read() as conn:
        assert (await cases.unfinished_of(conn, ["p-1"]))["p-1"].id == "c-2"
        latest = await cases.latest_of(conn, "p-1")
    assert latest is not None
    assert latest.id == "c-2"


async def test_a_case_moves_by_the_table_alone(store: Store, clock: Clock) -> None:
    await keep(store, case(1))
    clock.go(60)
    async with store.write() as tx:
        row = await cases.one(tx.conn, "c-1")
        assert row is not None
        with pytest.raises(IllegalTransition):
            await cases.move(tx, row, Step.CLOSE, "ops")
        moved = await cases.move(tx, row, Step.SETTLE, "worker", "all gone")
        moved = await cases.move(tx, moved, Step.CLOSE, "ops")
    async with store.read() as conn:
        assert await cases.one(conn, "c-1") == moved
    assert (moved.state, moved.finished_at, moved.updated_at) == (State.CLOSED, clock.now, clock.now)


async def test_what_is_to_be_done_now_is_found_whatever_the_queue_remembers(store: Store) -> None:
    """A connector that failed first must not make the others' work be forgotten."""
    await keep(
        store,
        case(1, State.ATTENTION),
        target(1, "failed", TargetState.FAILED),
        target(1, "pending"),
        target(1, "running", TargetState.RUNNING),
        target(1, "later", TargetState.RETRYING, next_attempt_at=T + 100),
        target(1, "done", TargetState.DONE),
        case(2, State.HELD, "p-2"),
        target(2, "held"),
        case(3, State.CLOSED),
        target(3, "restored", action=Action.RESTORE),
        target(3, "never"),
        case(4, State.CANCELLED),
        target(4, "stopped"),
    )
    async with store.read() as conn:
        assert {t.connector for t in await cases.unfinished_targets(conn, T)} == {"pending", "running", "restored"}
        assert "later" in {t.connector for t in await cases.unfinished_targets(conn, T + 100)}


async def test_a_connector_that_runs_again_takes_its_case_back_to_work(store: Store) -> None:
    await keep(
        store, case(1, State.VERIFIED), target(1, "okta", TargetState.DONE), case(2, State.CLOSED), target(2, "okta")
    )
    async with store.write() as tx:
        await cases.reopen_target(tx, "c-1", "okta")
        await cases.reopen_target(tx, "c-2", "okta")
    async with store.read() as conn:
        first, second = await cases.one(conn, "c-1"), await cases.one(conn, "c-2")
        again = await cases.target(conn, "c-1", "okta")
    assert first is not None
    assert second is not None
    assert again is not None
    assert (first.state, second.state, again.state) == (State.REVOKING, State.CLOSED, TargetState.PENDING)


async def test_a_case_settles_when_its_last_connector_is_done(store: Store) -> None:
    await keep(store, case(1), target(1, "aws", TargetState.DONE), target(1, "okta"))
    async with store.write() as tx:
        waiting = await cases.settle(tx, "c-1", "worker")
        assert waiting is not None
        assert waiting.state is State.REVOKING
        await cases.set_target(tx, "c-1", "okta", state=TargetState.DONE.value)
        settled = await cases.settle(tx, "c-1", "worker")
    assert settled is not None
    assert settled.state is State.VERIFIED


async def test_a_case_with_a_paused_connector_needs_attention_until_it_is_done(store: Store) -> None:
    await keep(store, case(1), target(1, "okta", TargetState.PAUSED))
    async with store.write() as tx:
        stumbled = await cases.settle(tx, "c-1", "worker")
        assert stumbled is not None
        assert stumbled.state is State.ATTENTION
        await cases.set_target(tx, "c-1", "okta", state=TargetState.DONE.value)
        settled = await cases.settle(tx, "c-1", "worker")
    assert settled is not None
    assert settled.state is State.VERIFIED


async def test_a_connector_that_is_new_in_the_configuration_is_added_once(store: Store) -> None:
    await keep(store, case(1), target(1, "okta", TargetState.DONE))
    async with store.write() as tx:
        await cases.add_targets(tx, "c-1", ["okta", "aws"])
        await cases.add_targets(tx, "c-1", ["okta", "aws"])
    async with store.read() as conn:
        assert [(t.connector, t.state) for t in await cases.targets_of(conn, "c-1")] == [
            ("aws", TargetState.PENDING),
            ("okta", TargetState.DONE),
        ]


V, A, F, U = Strength.VERIFIED, Strength.ACKNOWLEDGED, Strength.FAILED, Strength.UNKNOWN


@pytest.mark.parametrize(
    ("strengths", "tasks", "words"),
    [
        ([], 0, "no credentials found"),
        ([], 1, "no credentials found, 1 task for a person"),
        ([V] * 41 + [U], 1, "41 of 42 credentials verified gone, 1 needs a person"),
        ([V, U, U, U], 2, "1 of 4 credentials verified gone, 1 unknown, 2 need a person"),
        ([V, A, F], 0, "1 of 3 credentials verified gone, 1 acknowledged, 1 failed"),
    ],
)
def test_a_summary_leads_with_the_number_that_matters(strengths: list[Strength], tasks: int, words: str) -> None:
    assert summary(strengths, tasks) == words
