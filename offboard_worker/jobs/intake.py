"""From what a source said to a case and a denial, in one transaction (DESIGN section 4).

The receiver calls `accept` with a batch of deliveries (group commit); the confirm job calls it with one confirmed
event; operators' commands use the same steps. Whatever is decided here is durable, audited and has its place in the
denial log once the transaction commits.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from offboard_worker.core.event import IdentityEvent, Ignored
from offboard_worker.core.person import PersonState
from offboard_worker.core.policy import Decision, Effect
from offboard_worker.errors import UsageError
from offboard_worker.jobs.desk import Desk
from offboard_worker.jobs.rulebook import Accepted, Rulebook
from offboard_worker.jobs.storable import storable
from offboard_worker.sources.source import Statement
from offboard_worker.store import cases, denials, inbox
from offboard_worker.store.database import Transaction
from offboard_worker.store.inbox import EventRow, Received
from offboard_worker.store.people import Directory, Standing


@dataclass(frozen=True, slots=True)
class Arrival:
    """One verified and parsed delivery, ready to be made durable."""

    received: Received
    statements: tuple[Statement, ...]


async def accept(tx: Transaction, arrivals: Sequence[Arrival], book: Rulebook) -> Accepted:
    """Make a batch of deliveries durable and act on what is new in them."""
    ids = inbox.defer_deliveries(tx, [arrival.received for arrival in arrivals])
    statements = [
        (delivery_id, arrival.received, storable(statement))
        for delivery_id, arrival in zip(ids, arrivals, strict=True)
        for statement in arrival.statements
    ]
    known_keys, desk = await Desk.open(
        tx, [statement for *_, statement in statements], book, [(r.source, s.key) for _, r, s in statements]
    )
    new: list[tuple[str, Received, Statement]] = []
    for one in statements:
        key = (one[1].source, one[2].key)
        if key not in known_keys:
            known_keys.add(key)
            new.append(one)
    rows = [desk.take(*one) for one in new]
    inbox.defer_events(tx, rows)
    await desk.finish()
    desk.accepted.kinds.update((row.kind, row.effect) for row in rows)
    desk.accepted.duplicates = len(statements) - len(new)
    desk.accepted.events = len(new)
    return desk.accepted


async def accept_confirmed(
    tx: Transaction, row: EventRow, verdict: IdentityEvent | Ignored, book: Rulebook
) -> Accepted:
    """Act on what the re-read of an `account-changed` event found; the event's own row keeps the outcome.

    Two workers may have been given the same event: what is settled already is not acted on again.
    """
    now = await inbox.event(tx.conn, row.id)
    if now is None or not now.pending:
        return Accepted()
    if isinstance(verdict, Ignored):
        await inbox.settle(tx, row.id, pending=False, effect=Effect.RECORD.value, reason=verdict.reason, error="")
        tx.record("event.confirmed", f"source:{row.source}", row.id, {"effect": "record", "reason": verdict.reason})
        return Accepted()
    _, desk = await Desk.open(tx, [verdict], book)
    received = Received(row.source, "", {}, b"", tx.now)  # a re-read speaks of now, whenever the notification came
    done = desk.take(row.delivery_id, received, verdict)
    await desk.finish()
    await inbox.settle(
        tx,
        row.id,
        pending=False,
        kind=done.kind,
        statement=done.statement,
        effect=done.effect,
        reason=done.reason,
        person_id=done.person_id,
        case_id=done.case_id,
        error="",
    )
    return desk.accepted


async def open_case(tx: Transaction, person_id: str, who: str, reason: str, book: Rulebook) -> Accepted:
    """An operator says that a person leaves: contain and revoke, without waiting for any approval but policy's."""
    desk = Desk(tx, book, await Directory.of_ids(tx.conn, [person_id]), {}, 0)
    desk.open_cases = await cases.unfinished_of(tx.conn, [person_id])
    known = desk.person(person_id)
    if known.protected:
        raise UsageError(
            f"{known.name or person_id} is protected (break-glass): nothing is touched",
            advice="Set people.NAME.protected to false in the configuration first.",
        )
    known.standings["operator"] = Standing(True, tx.now)
    desk.offboard(known, Decision(Effect.OFFBOARD, reason, hold=book.rules.approval), who, tx.now)
    await desk.finish()
    return desk.accepted


async def reinstate(tx: Transaction, person_id: str, who: str, reason: str, book: Rulebook) -> Accepted:
    """An operator says that a person is back: every source's standing is overruled."""
    desk = Desk(tx, book, await Directory.of_ids(tx.conn, [person_id]), {}, 0)
    desk.open_cases = await cases.unfinished_of(tx.conn, [person_id])
    known = desk.person(person_id)
    for standing in known.standings.values():
        standing.gone = False
    desk.reinstate(known, who, reason)
    await desk.finish()
    return desk.accepted


async def learn_aliases(
    tx: Transaction, person_id: str, system: str, ids: Iterable[str], basis: str, book: Rulebook
) -> int | None:
    """Record ids that a connector identified for a person; deny them too if the person is gone. Returns the seq."""
    ids = tuple(ids)
    directory = await Directory.of_names(tx.conn, [(system, alias) for alias in ids], ())
    directory.by_id.update((await Directory.of_ids(tx.conn, [person_id])).by_id)
    known = directory.by_id[person_id]
    news = [alias for alias in ids if directory.learn(known, system, alias, basis)]
    if not news:
        return None
    tx.record("person.learned", "worker", person_id, {"system": system, "ids": news, "basis": basis})
    await directory.save(tx)
    if known.state is not PersonState.DEPARTED or system not in book.issuers:
        return None
    keys = denials.keys_of(known, book.issuers)
    facts = denials.deny(known, keys, await denials.current(tx, keys), int(tx.now))
    return tx.append_denial("deny", facts, who="worker", reason="a further id of a leaver", person_id=person_id)
