"""Recurring duties: each may run twice without harm."""

from __future__ import annotations

import json
import stat
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from offboard_worker.config import PolicySettings
from offboard_worker.core.case import State, TargetState
from offboard_worker.core.chain import Checkpoint, fingerprint
from offboard_worker.core.credential import Action
from offboard_worker.core.event import EventKind
from offboard_worker.denylist.facts import RedisNames
from offboard_worker.denylist.issued import IssuedTokens
from offboard_worker.errors import ConfigError
from offboard_worker.jobs.duties import (
    audit_key,
    checkpoint_audit,
    close_verified,
    prune_expired,
    queue_due_deletes,
)
from offboard_worker.store import audit, cases
from offboard_worker.store.denials import deny_token
from tests.conftest import Clock
from tests.jobs.toy import KEY, Office

pytestmark = pytest.mark.integration


# Checkpoints


def test_the_signing_key_is_made_once_and_is_nobody_elses_to_read(tmp_path: Path) -> None:
    path = tmp_path / "keys" / "audit.pem"
    first = audit_key(path).public_key()
    assert fingerprint(audit_key(path).public_key()) == fingerprint(first)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    public = load_pem_public_key(path.with_suffix(".pub.pem").read_bytes())
    assert fingerprint(public) == fingerprint(first)  # type: ignore[arg-type]


@pytest.mark.parametrize("text", ["", "not a key", "-----BEGIN PUBLIC KEY-----\n-----END PUBLIC KEY-----\n"])
def test_a_file_that_is_no_key_is_said_to_be_none(tmp_path: Path, text: str) -> None:
    path = tmp_path / "audit.pem"
    path.write_text(text)
    with pytest.raises(ConfigError, match="PEM private key"):
        audit_key(path)


async def test_a_checkpoint_goes_into_the_store_and_off_the_box(office: Office, tmp_path: Path) -> None:
    await office.offboard()
    made = await checkpoint_audit(office.store, tmp_path / "audit.pem", tmp_path / "away")
    assert made is not None
    (line,) = (tmp_path / "away" / "checkpoints.jsonl").read_text().splitlines()
    assert Checkpoint(**json.loads(line)) == made
    key = audit_key(tmp_path / "audit.pem").public_key()
    records, signed = await audit.verify(office.store, {fingerprint(key): key}, [made])
    assert records >= 1
    assert signed >= 1
    assert await checkpoint_audit(office.store, tmp_path / "audit.pem", tmp_path / "away") is None  # nothing new


# Expired things


async def test_what_has_expired_is_forgotten_and_nothing_else(office: Office, clock: Clock) -> None:
    issued = IssuedTokens(office.redis, RedisNames("t"))
    now = int(clock.now)
    for jti, expires in (("old", now + 10), ("young", now + 10_000)):
        claims = {"sub": "ada", "jti": jti, "iss": "i", "roles": [], "gen": 0, "iat": now, "exp": expires}
        await issued.record(claims)
        async with office.store.write() as tx:
            tx.append_denial("deny", [deny_token("i", jti, expires)], who="t", reason="t")
    await office.ctx.projection.push()
    clock.go(5000)
    await prune_expired(office.ctx, issued)
    await prune_expired(office.ctx, issued)
    assert [token.jti for token in await issued.list()] == ["young"]
    assert (await office.ctx.projection.status()).facts == 1


# Deletes and closing


async def test_a_verified_case_is_closed_when_nothing_is_left_to_do(office: Office, clock: Clock) -> None:
    office.change(policy=PolicySettings(close_after=timedelta(hours=1)))
    office.vault.add(KEY, "k1")
    case = await office.work(await office.offboard())
    assert await close_verified(office.ctx) == 0
    clock.go(3601)
    assert await close_verified(office.ctx) == 1
    case = await office.case()
    assert (case.state, case.finished_at) == (State.CLOSED, clock.now)
    assert await close_verified(office.ctx) == 0


async def test_a_case_with_something_open_is_never_closed(office: Office, clock: Clock) -> None:
    office.change(policy=PolicySettings(close_after=timedelta(hours=1)))
    office.vault.add(KEY, "k1")
    office.vault.lies.add("k1")
    case = await office.work(await office.offboard())
    clock.go(10_000)
    assert await close_verified(office.ctx) == 0
    assert (await office.case()).state is case.state is State.ATTENTION


async def test_a_delete_is_planned_done_after_the_grace_period_and_then_the_case_closes(
    office: Office, clock: Clock
) -> None:
    office.change(policy=PolicySettings(delete_after=timedelta(days=7), close_after=timedelta(hours=1)))
    office.vault.add(KEY, "k1")
    case = await office.work(await office.offboard())
    await close_verified(office.ctx)
    assert (await office.case()).delete_due_at == clock.now + 7 * 86_400
    clock.go(86_400)
    assert await queue_due_deletes(office.ctx) == 0
    assert await close_verified(office.ctx) == 0, "a delete is still ahead"
    clock.go(6 * 86_400)
    assert await queue_due_deletes(office.ctx) == 1
    assert await queue_due_deletes(office.ctx) == 0
    assert office.submitted == [case.id]
    target = await office.target(case)
    assert (target.action, target.state) == (Action.DELETE, TargetState.PENDING)
    assert (await office.work(case)).state is State.VERIFIED
    assert office.vault.things == {}
    clock.go(3601)
    assert await close_verified(office.ctx) == 1


async def test_a_delete_that_failed_keeps_the_case_open(office: Office, clock: Clock) -> None:
    office.change(policy=PolicySettings(close_after=timedelta(0)))
    office.vault.add(KEY, "k1")
    case = await office.work(await office.offboard())
    async with office.store.write() as tx:
        await cases.set_case(tx, case.id, delete_due_at=clock.now)
    await queue_due_deletes(office.ctx)
    office.vault.lies.add("k1")
    await office.work(case)
    clock.go(10_000)
    assert await close_verified(office.ctx) == 0
    assert (await office.case()).state is State.ATTENTION


async def test_nothing_is_deleted_of_somebody_who_is_back(office: Office, clock: Clock) -> None:
    office.vault.add(KEY, "k1")
    case = await office.work(await office.offboard())
    async with office.store.write() as tx:
        await cases.set_case(tx, case.id, delete_due_at=clock.now)
    await office.hears(EventKind.ACCOUNT_ENABLED)
    assert await queue_due_deletes(office.ctx) == 0
    assert (await office.target(case)).action is Action.RESTORE
