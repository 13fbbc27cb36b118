"""An operator's own entries in the denial log: a person with all their names, or single identities."""

from __future__ import annotations

from collections.abc import Sequence

from offboard_worker.core.person import PersonState
from offboard_worker.denylist.facts import Fact, Key, person_key
from offboard_worker.errors import UsageError
from offboard_worker.jobs.context import JobContext
from offboard_worker.jobs.operate import find_person
from offboard_worker.store import denials
from offboard_worker.store.people import Directory


async def change_facts(
    ctx: JobContext, effect: str, person: str | None, keys: Sequence[Key], who: str, reason: str
) -> int:
    """Append one entry that denies or lifts; return its seq. Raises UsageError.

    A leaver's denial is not lifted here: that is a reinstatement, which restores their access with evidence.
    """
    found = await find_person(ctx, person) if person else None
    if found is not None and effect == "lift" and found.state is PersonState.DEPARTED:
        raise UsageError(
            f"{found.id} has left: their denial belongs to a case",
            advice="Reinstate them with `offboard case cancel CASE --reinstate`.",
        )
    async with ctx.store.write() as tx:
        now = int(tx.now)
        facts: list[Fact] = []
        if found is not None:
            directory = await Directory.of_ids(tx.conn, [found.id])
            known = directory.by_id[found.id]
            known.generation += 1
            await directory.save(tx)
            names = denials.keys_of(known, ctx.book.issuers)
            old = await denials.current(tx, [person_key(known.id), *names])
            make = denials.deny if effect == "deny" else denials.lift
            facts += make(known, names, old, now)
        facts += [Fact(key, effect == "deny", now) for key in keys]
        return tx.append_denial(effect, facts, who=who, reason=reason, person_id=found.id if found else None)
