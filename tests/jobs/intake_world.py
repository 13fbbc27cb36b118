"""A small company for the tests of intake: two sources, three connectors, and words to say things with."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from itertools import count

from sqlalchemy import select

from offboard_worker.core.event import EventKind, IdentityEvent
from offboard_worker.core.person import Person, Subject
from offboard_worker.core.policy import Rules
from offboard_worker.denylist.facts import Fact, compact
from offboard_worker.jobs.intake import Arrival, accept
from offboard_worker.jobs.rulebook import Accepted, Rulebook, SourceFacts
from offboard_worker.sources.source import Statement
from offboard_worker.store import cases
from offboard_worker.store.cases import CaseRow
from offboard_worker.store.database import Store
from offboard_worker.store.denials import StoredLog
from offboard_worker.store.inbox import Received
from offboard_worker.store.people import search
from offboard_worker.store.schema import events

T0 = 1_764_000_000.0
ISSUER = "https://example.okta.com/oauth2/default"
RULES = Rules(revoke_on=("account-disabled", "account-suspended", "account-purged"), max_leavers=25)
BOOK = Rulebook(
    rules=RULES,
    window=timedelta(hours=1),
    skew=timedelta(seconds=5),
    connectors={"aws-prod": "aws", "okta": "okta", "proxy": "proxy"},
    sources={"okta-main": SourceFacts("okta"), "entra-corp": SourceFacts("entra", trust_email=True)},
    issuers={"okta": (ISSUER,)},
)
_keys = count(1)


def book(**rules: object) -> Rulebook:
    return replace(BOOK, rules=replace(RULES, **rules))  # type: ignore[arg-type]


def subject(who: str, system: str = "okta", **changes: object) -> Subject:
    values: dict[str, object] = {
        "id": f"{system}-{who}",
        "emails": (f"{who}@example.com",),
        "logins": (f"{who}.login",),
    }
    return Subject(system, **{**values, **changes})  # type: ignore[arg-type]


def event(
    kind: EventKind,
    who: str | Subject,
    at: float = 0.0,
    *,
    source: str = "okta-main",
    key: str | None = None,
) -> IdentityEvent:
    """Say something about somebody; `at` is in seconds from T0."""
    whom = who if isinstance(who, Subject) else subject(who, "okta" if source == "okta-main" else "entra")
    return IdentityEvent(
        source, key or f"k{next(_keys)}", kind, whom, datetime.fromtimestamp(T0 + at, UTC), "vendor.type"
    )


@dataclass
class Company:
    """One store, and the rulebook that it is run by."""

    store: Store
    book: Rulebook = BOOK
    accepted: list[Accepted] = field(default_factory=list)

    async def hears(self, *deliveries: Iterable[Statement] | Statement, received: float = 1000.0) -> Accepted:
        """Take one batch of deliveries, each of one or several statements."""
        arrivals = []
        for delivery in deliveries:
            statements = tuple(delivery) if isinstance(delivery, list | tuple) else (delivery,)
            source = getattr(statements[0], "source", "okta-main")
            arrivals.append(Arrival(Received(source, "POST", {}, b"{}", T0 + received), statements))
        async with self.store.write() as tx:
            done = await accept(tx, arrivals, self.book)
        self.accepted.append(done)
        return done

    async def person(self, name: str) -> Person:
        async with self.store.read() as conn:
            (found,) = await search(conn, name)
        return found

    async def cases_of(self, name: str) -> list[CaseRow]:
        """Somebody's cases, oldest first."""
        person = await self.person(name)
        async with self.store.read() as conn:
            return sorted(await cases.many(conn, person_id=person.id), key=lambda case: case.id)

    async def targets(self, case: CaseRow) -> dict[str, tuple[str, str]]:
        async with self.store.read() as conn:
            return {t.connector: (t.state.value, t.action.value) for t in await cases.targets_of(conn, case.id)}

    async def facts(self) -> dict[str, Fact]:
        return {fact.key: fact for fact in (await StoredLog(self.store).facts())[1]}

    async def denied(self) -> set[str]:
        return {key for key, fact in (await self.facts()).items() if fact.denied}

    async def effects(self) -> list[tuple[str, str]]:
        """What became of each event, as (kind, effect), in the order of keys."""
        async with self.store.read() as conn:
            rows = await conn.execute(select(events))
            return [(row.kind, row.effect) for row in sorted(rows, key=lambda row: int(row.key[1:]))]

    async def log_is_sound(self) -> None:
        """The log is gapless, and its fold is the facts."""
        log = StoredLog(self.store)
        entries = await log.since(0, 100_000)
        head, facts = await log.facts()
        assert [entry.seq for entry in entries] == list(range(1, head + 1))
        assert compact(entries, 0.0) == {fact.key: fact for fact in facts}
