"""The desk of intake: decides in memory what each statement leads to, and writes it all in bulk.

One desk serves one transaction. It reads everything that deciding needs in one go, so that a batch of hundreds of
deliveries costs as many statements as one; nothing else moves people, standings and new cases.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from offboard_worker.core.case import FINISHED, State, Step, TargetState, advance, can
from offboard_worker.core.credential import Action
from offboard_worker.core.event import ENDS_ACCESS, EventKind, IdentityEvent, Ignored
from offboard_worker.core.person import PersonState
from offboard_worker.core.policy import Decision, Effect, decide
from offboard_worker.denylist.facts import person_key
from offboard_worker.errors import UsageError
from offboard_worker.jobs.rulebook import Accepted, Rulebook, SourceFacts
from offboard_worker.sources.source import Chore, Learned, Statement
from offboard_worker.store import cases, denials, inbox
from offboard_worker.store.cases import OPENED_SINCE, CaseRow, TargetRow
from offboard_worker.store.database import Transaction, dumps, new_id
from offboard_worker.store.direct import look_up
from offboard_worker.store.inbox import EventRow, Received
from offboard_worker.store.people import Directory, Known, Standing


@dataclass(frozen=True, slots=True)
class EventBase:
    """What every event's row says, whatever the statement means."""

    id: str
    delivery_id: str
    source: str
    key: str
    received_at: float

    def row(
        self,
        kind: str,
        vendor_type: str = "",
        statement: str = "{}",
        occurred_at: float | None = None,
        *,
        person_id: str | None = None,
        case_id: str | None = None,
        effect: str = Effect.RECORD.value,
        reason: str = "",
        pending: bool = False,
    ) -> EventRow:
        return EventRow(
            self.id,
            self.delivery_id,
            self.source,
            self.key,
            kind,
            vendor_type,
            statement,
            self.received_at,
            occurred_at,
            person_id,
            case_id,
            effect,
            reason,
            pending,
        )

    def of(
        self,
        event: IdentityEvent,
        *,
        effect: Effect = Effect.RECORD,
        reason: str,
        person_id: str | None = None,
        case_id: str | None = None,
        pending: bool = False,
    ) -> EventRow:
        return self.row(
            event.kind.value,
            event.vendor_type,
            inbox.as_json(event),
            event.occurred_at.timestamp(),
            person_id=person_id,
            case_id=case_id,
            effect=effect.value,
            reason=reason,
            pending=pending,
        )


class Desk:
    """One transaction's worth of decisions. `take` decides in memory; `finish` writes everything in bulk."""

    def __init__(
        self,
        tx: Transaction,
        book: Rulebook,
        directory: Directory,
        open_cases: dict[str, CaseRow],
        recent: int,
    ) -> None:
        self.tx = tx
        self.book = book
        self.directory = directory
        self.open_cases = open_cases
        self.recent = recent
        self.accepted = Accepted()
        self._new_cases: dict[str, CaseRow] = {}
        self._targets: list[TargetRow] = []
        self._again: list[tuple[str, str]] = []  # targets that must run again: a further id of the leaver is known
        self._denials: list[tuple[str, Known, str | None, str, str]] = []
        self._named: dict[str, dict[tuple[str, str], str]] = {}  # person → what sources called them in this batch
        self._writes: list[str | tuple[Known, CaseRow | None, str, str]] = []  # a new case's id, or a restoration

    @classmethod
    async def open(
        cls, tx: Transaction, statements: Sequence[Statement], book: Rulebook, keys: Iterable[tuple[str, str]] = ()
    ) -> tuple[set[tuple[str, str]], Desk]:
        """Read everything that deciding needs, in one go; and which (source, key) pairs are in the inbox already."""
        subjects = [s.subject for s in statements if isinstance(s, IdentityEvent | Learned)]
        names = [
            (subject.system, alias)
            for subject in subjects
            for alias in (*((subject.id,) if subject.id else ()), *subject.logins)
        ]
        addresses = [address for subject in subjects for address in subject.emails]
        enough = book.rules.max_leavers + 200  # beyond the limit the exact number changes nothing
        since = (tx.now - book.window.total_seconds(), enough)
        seen, ((recent,),), *found = await look_up(
            tx.conn,
            [(inbox.SEEN, list(set(keys))), (OPENED_SINCE, [since]), *Directory.names(names, addresses)],
        )
        directory = await Directory.of_found(tx.conn, found, cases.OF_PEOPLE)
        open_cases = cases.unfinished(directory.besides)
        return {(source, key) for source, key in seen}, cls(tx, book, directory, open_cases, recent)

    def person(self, person_id: str) -> Known:
        """The person whom an operator named. Raises UsageError."""
        known = self.directory.by_id.get(person_id)
        if known is None:
            raise UsageError(f"no person {person_id} is known", advice="Look for them with `offboard case list`.")
        return known

    def take(self, delivery_id: str, received: Received, statement: Statement) -> EventRow:
        """Decide what one new statement leads to and return its row."""
        base = EventBase(new_id("v"), delivery_id, received.source, statement.key, received.received_at)
        match statement:
            case IdentityEvent():
                row = self._event(base, received, statement)
            case Ignored():
                row = base.row("ignored", statement.vendor_type, reason=statement.reason)
            case Learned():
                known = self._known(received.source, statement)
                row = base.row("learned", statement.vendor_type, person_id=known.id, reason="ids learned")
            case Chore():
                body = dumps({"name": statement.name, "argument": dict(statement.argument)})
                row = base.row("chore", statement=body, pending=True, effect="chore", reason=statement.name)
                self.accepted.pending.append(row.id)
        self._record(row)
        return row

    def _record(self, row: EventRow) -> None:
        self.tx.record(
            "event.accepted",
            f"source:{row.source}",
            row.person_id or "",
            {
                "event": row.id,
                "delivery": row.delivery_id,
                "key": row.key,
                "kind": row.kind,
                "type": row.vendor_type,
                "effect": row.effect,
                "reason": row.reason,
                "case": row.case_id or "",
            },
        )

    def _event(self, base: EventBase, received: Received, event: IdentityEvent) -> EventRow:
        if event.kind is EventKind.ACCOUNT_CHANGED:
            self.accepted.pending.append(base.id)
            return base.of(event, pending=True, effect=Effect.CONFIRM, reason="to be confirmed by a re-read")
        known = self._known(event.source, event)
        late = self._stand(known, event, received.received_at)
        if late:
            return base.of(event, person_id=known.id, reason=late)
        decision = decide(event.kind, known.person(), self.book.rules, self.recent)
        if decision.effect is Effect.REINSTATE and known.gone:
            others = ", ".join(sorted(s for s, standing in known.standings.items() if standing.gone))
            decision = Decision(Effect.RECORD, f"still gone by the word of: {others}")
        case_id = self._act(known, decision, f"source:{event.source}", received.received_at)
        return base.of(event, person_id=known.id, effect=decision.effect, reason=decision.reason, case_id=case_id)

    def _act(self, known: Known, decision: Decision, who: str, accepted_at: float) -> str | None:
        match decision.effect:
            case Effect.OFFBOARD:
                return self.offboard(known, decision, who, accepted_at)
            case Effect.CUT_SESSIONS:
                known.generation += 1
                case = self.open_cases.get(known.id)
                self._denials.append(("cut", known, case.id if case else None, who, decision.reason))
                return case.id if case else None
            case Effect.REINSTATE:
                return self.reinstate(known, who, decision.reason)
            case Effect.ALARM:
                self.accepted.alarms.append(known.id)
                self.tx.record("guard.protected", who, known.id, {"reason": decision.reason})
        return None

    def _stand(self, known: Known, event: IdentityEvent, received_at: float) -> str | None:
        """Keep what a source says of somebody; return why it is too late to matter, if it is.

        Deliveries come late, twice and out of order: what counts is when it happened, by the source's own clock.
        A tie goes to the departure.
        """
        gone = event.kind in ENDS_ACCESS
        if not gone and event.kind is not EventKind.ACCOUNT_ENABLED:
            return None
        at = min(event.occurred_at.timestamp(), received_at)
        last = known.standings.get(event.source)
        if last is not None and (at < last.occurred_at or (at == last.occurred_at and not gone)):
            word = "gone" if last.gone else "enabled"
            return f"late news: the source has since said that the person is {word}"
        if known.protected and gone:
            return None
        known.standings[event.source] = Standing(gone, at)
        return None

    def _known(self, source: str, statement: IdentityEvent | Learned) -> Known:
        """Find or add the person whom a statement names, and learn the names that it brings."""
        subject = statement.subject
        facts = self.book.sources.get(source, SourceFacts(subject.system))
        names = [(subject.system, alias) for alias in (subject.id, *subject.logins) if alias]
        addresses = subject.emails if facts.trust_email else ()
        known = self.directory.find(names, addresses, has_id=bool(subject.id))
        if known is None:
            known = self.directory.add(subject.name)
            self.tx.record("person.added", f"source:{source}", known.id, {"system": subject.system, "id": subject.id})
        known.name = known.name or subject.name
        self._named.setdefault(known.id, {}).update(dict.fromkeys(names, source))
        for system, alias in names:
            self.directory.learn(known, system, alias, f"source:{source}", login=alias != subject.id)
        for address in subject.emails:
            self.directory.learn_email(known, address)
        return known

    def offboard(self, known: Known, decision: Decision, who: str, accepted_at: float) -> str | None:
        """Deny a person and open their case, or add to the one that is open.

        Repeated news about somebody whose case is finished opens no other one, unless it brought a further id:
        then a connector may find what it could not find before.
        """
        fresh = known.state is not PersonState.DEPARTED
        if fresh:
            known.state = PersonState.DEPARTED
            known.generation += 1
        case = self.open_cases.get(known.id)
        if case is not None:
            self._look_again(known, case)
        elif fresh or known.new_ids or not who.startswith("source:"):
            case = self._new_case(known, decision, who, accepted_at)
        else:
            return None
        self._denials.append(("deny", known, case.id, who, decision.reason))
        return case.id

    def _look_again(self, known: Known, case: CaseRow) -> None:
        if case.id in self._new_cases or case.state is State.HELD:
            return
        systems = {system for system, _alias in known.new_ids}
        again = [name for name, system in self.book.connectors.items() if system in systems]
        self._again += [(case.id, name) for name in again]
        if again:
            self.accepted.cases.append(case.id)

    def _new_case(self, known: Known, decision: Decision, who: str, accepted_at: float) -> CaseRow:
        if who.startswith("source:"):
            self.recent += 1
        state = advance(State.OPEN, Step.CONTAIN)
        state = advance(state, Step.HOLD if decision.hold else Step.REVOKE)
        case = CaseRow(
            id=new_id("c"),
            person_id=known.id,
            state=state,
            reason=decision.reason,
            opened_by=who,
            opened_at=self.tx.now,
            accepted_at=accepted_at,
            updated_at=self.tx.now,
        )
        self.open_cases[known.id] = self._new_cases[case.id] = case
        self._targets += [
            TargetRow(case.id, name, TargetState.PENDING, Action.DISABLE) for name in self.book.connectors
        ]
        self._writes.append(case.id)
        self.tx.record(
            "case.opened", who, case.id, {"person": known.id, "state": state.value, "reason": decision.reason}
        )
        self.accepted.contained.append(case.id)
        if not decision.hold:
            self.accepted.cases.append(case.id)
        return case

    def reinstate(self, known: Known, who: str, reason: str) -> str | None:
        """Welcome a person back: new tokens pass, and what we disabled is restored by jobs."""
        known.state = PersonState.ACTIVE
        known.generation += 1
        case = self.open_cases.pop(known.id, None)
        self._denials.append(("lift", known, case.id if case else None, who, reason))
        self._writes.append((known, case, who, reason))
        return case.id if case else None

    def _deny_further_names(self) -> None:
        """Deny what a leaver turns out to be called besides, whatever kind of statement told us."""
        denied = {known.id for effect, known, *_ in self._denials if effect == "deny"}
        for known in self.directory.by_id.values():
            news = known.new_ids or known.new_emails
            if known.state is not PersonState.DEPARTED or not news or known.id in denied:
                continue
            case = self.open_cases.get(known.id)
            if case is not None:
                self._look_again(known, case)
            who = next((f"source:{source}" for source in self._named.get(known.id, {}).values()), "worker")
            reason = "a further name of a leaver"
            self._denials.append(("deny", known, case.id if case else None, who, reason))

    async def finish(self) -> None:
        """Write people, denials, cases and targets, in the order that their references ask for."""
        self._deny_further_names()
        self.directory.defer(self.tx)
        await self._deny()
        await self._write_cases()
        for case_id, connector in self._again:
            await cases.reopen_target(self.tx, case_id, connector)

    async def _write_cases(self) -> None:
        """Insert new cases in bulk, but in order with restorations: a person has one unfinished case at a time."""
        waiting: list[str] = []
        for write in [*self._writes, None]:
            if isinstance(write, str):
                waiting.append(write)
                continue
            ids = set(waiting)
            parts = [part for part in self._targets if part.case_id in ids]
            cases.defer_cases(self.tx, [self._new_cases[case_id] for case_id in waiting], parts)
            waiting = []
            if write is not None:
                await self.tx.send()
                await self._restore(*write)
        if self._again:
            await self.tx.send()

    async def _deny(self) -> None:
        """Append the denials in the order in which they were decided."""
        wanted = [
            (effect, known, denials.keys_of(known, self.book.issuers, self._named.get(known.id, ())), c, w, r)
            for effect, known, c, w, r in self._denials
        ]
        old = await denials.current(
            self.tx, [person_key(w[1].id) for w in wanted] + [key for w in wanted for key in w[2]]
        )
        now = int(self.tx.now)
        for effect, known, keys, case_id, who, reason in wanted:
            match effect:
                case "deny":
                    facts = denials.deny(known, keys, old, now)
                case "cut":
                    facts = denials.cut(known, keys, old, now + int(self.book.skew.total_seconds()))
                case _:
                    facts = denials.lift(known, keys, old, now)
            old.update((fact.key, fact) for fact in facts)
            seq = self.tx.append_denial(effect, facts, who=who, reason=reason, person_id=known.id, case_id=case_id)
            self.accepted.denial_seq = seq
            if effect == "deny" and case_id in self._new_cases:
                self._new_cases[case_id] = replace(self._new_cases[case_id], denial_seq=seq)

    async def _restore(self, known: Known, case: CaseRow | None, who: str, reason: str) -> None:
        """Close the case as reinstated, and give its targets the work of undoing what we did."""
        case = case or await cases.latest_of(self.tx.conn, known.id)
        if case is None:
            return
        if case.id in self._new_cases or can(case.state, Step.REINSTATE):
            case = await cases.move(self.tx, case, Step.REINSTATE, who, reason)
        elif case.state not in FINISHED:
            return
        for part in await cases.targets_of(self.tx.conn, case.id):
            await cases.set_target(
                self.tx,
                case.id,
                part.connector,
                action=Action.RESTORE.value,
                state=TargetState.PENDING.value,
                next_attempt_at=None,
                error="",
                advice="",
            )
        self.accepted.cases.append(case.id)
