"""What was found, what was done to it, and what a person must do."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import func, insert, select

from offboard_worker.core.case import State
from offboard_worker.core.credential import Action, Credential, CredentialKind, CredentialState, Evidence, Strength
from offboard_worker.store import audit, cases
from offboard_worker.store import credentials as kept
from offboard_worker.store.cases import CaseRow
from offboard_worker.store.database import Store
from offboard_worker.store.schema import evidence, people, tasks
from tests.conftest import Clock

T = 1_764_000_000.0
AT = datetime.fromtimestamp(T, UTC)
KEY = Credential(
    "aws-prod",
    CredentialKind.ACCESS_KEY,
    "AKIA1",
    owner="ada",
    scope="ada",
    label="CI key",
    state=CredentialState.ACTIVE,
    created_at=AT - timedelta(days=9),
    snapshot={"status": "Active"},
)


@pytest.fixture(autouse=True)
async def two_cases(store: Store) -> None:
    row = {"name": "", "state": "departed", "generation": 1, "protected": False, "created_at": T}
    async with store.write() as tx:
        await tx.conn.execute(insert(people), [{**row, "id": "p-1"}])
        done = CaseRow("c-1", "p-1", State.CLOSED, "", "ops", T, T)
        await cases.insert_cases(tx, [done, CaseRow("c-2", "p-1", State.REVOKING, "", "ops", T + 1, T)], [])


async def find(store: Store, *found: Credential, case: str = "c-1") -> str:
    async with store.write() as tx:
        ids = await kept.keep_found(tx, case, "p-1", found)
    return next(iter(ids.values()))


async def held(store: Store, case: str = "c-1") -> list[kept.Held]:
    async with store.read() as conn:
        return await kept.held_by_case(conn, case)


def proof(strength: Strength = Strength.VERIFIED, action: Action = Action.DISABLE, **changes: object) -> Evidence:
    one = Evidence(
        KEY, action, strength, CredentialState.DISABLED, AT, AT + timedelta(seconds=1), AT + timedelta(seconds=2)
    )
    return replace(one, **changes)  # type: ignore[arg-type]


async def test_what_was_found_is_read_back_whole(store: Store) -> None:
    row_id = await find(store, KEY)
    assert await held(store) == [kept.Held(row_id, KEY, CredentialState.ACTIVE, False, None)]


async def test_finding_it_again_in_the_same_case_keeps_snapshot_and_state_from_before(store: Store) -> None:
    """A worker that died after the vendor's call finds its own work: it must not be taken for how things were."""
    await find(store, KEY)
    await find(store, replace(KEY, state=CredentialState.DISABLED, snapshot={"status": "Inactive"}))
    await find(store, replace(KEY, state=CredentialState.ACTIVE, snapshot={"status": "tampered"}))
    (one,) = await held(store)
    assert one.credential.snapshot == {"status": "Active"}
    assert one.state_before is CredentialState.ACTIVE


async def test_another_case_takes_a_new_snapshot_of_what_is_active_again(store: Store) -> None:
    await find(store, KEY)
    await find(store, replace(KEY, snapshot={"status": "Active", "groups": "new"}), case="c-2")
    (one,) = await held(store, "c-2")
    assert one.credential.snapshot == {"status": "Active", "groups": "new"}


async def test_another_case_keeps_the_snapshot_of_what_we_disabled(store: Store) -> None:
    await find(store, KEY)
    await find(store, replace(KEY, state=CredentialState.DISABLED, snapshot={}), case="c-2")
    (one,) = await held(store, "c-2")
    assert (one.credential.snapshot, one.state_before) == ({"status": "Active"}, CredentialState.DISABLED)


async def test_names_that_differ_in_any_part_are_other_credentials(store: Store) -> None:
    await find(store, KEY, replace(KEY, scope="bob"), replace(KEY, id="AKIA2"), replace(KEY, connector="aws-dev"), KEY)
    await find(store, replace(KEY, kind=CredentialKind.PASSWORD))
    assert len(await held(store)) == 5
    async with store.read() as conn:
        assert len(await kept.held_by_case(conn, "c-1", "aws-dev")) == 1


async def test_many_are_kept_at_once(store: Store) -> None:
    many = [replace(KEY, id=f"AKIA{n}") for n in range(700)]
    await find(store, *many)
    await find(store, *many)
    assert len(await held(store)) == 700


async def test_evidence_is_appended_and_one_is_the_latest(store: Store) -> None:
    row_id = await find(store, KEY)
    for one in (proof(Strength.UNKNOWN), proof(Strength.FAILED), proof(Strength.VERIFIED, residual_note="STS")):
        async with store.write() as tx:
            await kept.keep_evidence(tx, "c-1", row_id, one)
    async with store.read() as conn:
        everything = await kept.evidence_of_case(conn, "c-1", latest=False)
        assert sorted(e.strength for e in everything) == sorted([Strength.UNKNOWN, Strength.FAILED, Strength.VERIFIED])
        (latest,) = await kept.evidence_of_case(conn, "c-1")
        count = select(func.count()).select_from(evidence).where(evidence.c.latest)
        assert (await conn.execute(count)).scalar_one() == 1
        assert await cases.strengths_of(conn, "c-1") == [Strength.VERIFIED]
    assert latest == replace(proof(residual_note="STS"), credential=replace(KEY, state=CredentialState.DISABLED))
    (one_held,) = await held(store)
    assert (one_held.strength, one_held.disabled_by_us) == (Strength.VERIFIED, True)
    assert one_held.credential.state is CredentialState.DISABLED


async def test_evidence_of_one_case_leaves_anothers_alone(store: Store) -> None:
    row_id = await find(store, KEY)
    await find(store, KEY, case="c-2")
    async with store.write() as tx:
        await kept.keep_evidence(tx, "c-1", row_id, proof(Strength.VERIFIED))
        await kept.keep_evidence(tx, "c-2", row_id, proof(Strength.FAILED))
    async with store.read() as conn:
        assert await cases.strengths_of(conn, "c-1") == [Strength.VERIFIED]
        assert await cases.strengths_of(conn, "c-2") == [Strength.FAILED]
    assert [one.strength for one in await held(store)] == [Strength.VERIFIED]


@pytest.mark.parametrize(
    ("before", "acknowledged", "ours"),
    [
        (CredentialState.ACTIVE, True, True),
        (CredentialState.DISABLED, True, False),
        (CredentialState.ACTIVE, False, False),
    ],
)
async def test_only_what_was_active_and_acknowledged_counts_as_disabled_by_us(
    store: Store, before: CredentialState, acknowledged: bool, ours: bool
) -> None:
    row_id = await find(store, replace(KEY, state=before))
    async with store.write() as tx:
        await kept.keep_evidence(tx, "c-1", row_id, proof() if acknowledged else proof(acknowledged_at=None))
    assert [one.disabled_by_us for one in await held(store)] == [ours]


async def test_the_audit_tells_of_each_piece_of_evidence(store: Store) -> None:
    row_id = await find(store, KEY)
    async with store.write() as tx:
        await kept.keep_evidence(tx, "c-1", row_id, proof(Strength.FAILED, error="still active"))
    async with store.read() as conn:
        records = [record async for record in audit.records(conn, subject=KEY.ref)]
    assert [(r.what, r.detail["strength"], r.detail["error"]) for r in records] == [
        ("credential.disable", "failed", "still active")
    ]


async def test_the_same_task_is_opened_once(store: Store) -> None:
    for _ in range(2):
        async with store.write() as tx:
            await kept.open_task(tx, "c-1", "k-1", "aws-prod", "Remove the root key", "Do it by hand.")
            await kept.open_task(tx, "c-1", "k-2", "aws-prod", "Remove the root key", "Do it by hand.")
            await kept.open_task(tx, "c-1", "", "aws-prod", "Ask for a permission", "iam:ListUsers")
            await kept.open_task(tx, "c-1", "", "aws-prod", "Look at the role", "It is managed elsewhere.")
    async with store.read() as conn:
        assert await cases.open_tasks_of(conn, "c-1") == 4
        assert {task["title"] for task in await kept.tasks_of(conn, "c-1")} == {
            "Remove the root key",
            "Ask for a permission",
            "Look at the role",
        }


async def test_a_task_is_attested_once_by_somebody(store: Store, clock: Clock) -> None:
    async with store.write() as tx:
        await kept.open_task(tx, "c-1", "k-1", "aws-prod", "t", "a")
    async with store.read() as conn:
        (task,) = await kept.tasks_of(conn, "c-1")
    async with store.write() as tx:
        assert await kept.attest(tx, task["id"], "ops@example.com", "done in the console") is not None
        assert await kept.attest(tx, task["id"], "other@example.com", "me too") is None
        assert await kept.attest(tx, "t-nothing", "ops", "") is None
    async with store.read() as conn:
        (task,) = await kept.tasks_of(conn, "c-1")
        assert await cases.open_tasks_of(conn, "c-1") == 0
    assert (task["done_by"], task["done_at"], task["note"]) == ("ops@example.com", clock.now, "done in the console")


async def test_a_task_that_was_read_back_as_done_is_closed_and_audited(store: Store) -> None:
    async with store.write() as tx:
        await kept.open_task(tx, "c-1", "k-1", "aws-prod", "t", "a")
        await kept.open_task(tx, "c-1", "k-2", "aws-prod", "t", "a")
    async with store.write() as tx:
        await kept.close_tasks(tx, "c-1", ["k-1", "k-9"], "worker", "read back as gone")
    async with store.read() as conn:
        open_ = (await conn.execute(select(tasks.c.credential_id).where(tasks.c.done_at.is_(None)))).scalars().all()
        closed = [record async for record in audit.records(conn) if record.what == "task.closed"]
    assert list(open_) == ["k-2"]
    assert [record.detail["credential"] for record in closed] == ["k-1"]
