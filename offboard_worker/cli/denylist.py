"""`offboard denylist …`: the facts that the proxy refuses by."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from offboard_worker.cli.output import (
    DEFAULT_CONFIG,
    ConfigOption,
    JsonOption,
    operator,
    print_json,
    print_table,
    with_app,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from offboard_worker.app import Opened

app = typer.Typer(help="The denylist: what the proxy refuses by.", no_args_is_help=True)
Person = Annotated[str | None, typer.Option("--person", "-p", help="A person, with all their aliases.")]
Issuer = Annotated[str | None, typer.Option("--issuer", help="A token issuer (iss); goes with --subject or --session.")]
Subject = Annotated[str | None, typer.Option("--subject", help="A subject (sub) of --issuer.")]
Session = Annotated[str | None, typer.Option("--session", help="A session (sid) of --issuer.")]
Email = Annotated[str | None, typer.Option("--email", help="An e-mail address in tokens.")]
Reason = Annotated[str, typer.Option("--reason", help="Why: goes into the audit.")]


@app.command("list")
def list_(
    config: ConfigOption = DEFAULT_CONFIG,
    as_json: JsonOption = False,
    log: Annotated[
        bool, typer.Option("--log", help="The whole log, entry by entry, instead of the current facts.")
    ] = False,
) -> None:
    """List the current facts, from the store: the truth of which Redis and the proxies hold copies."""
    from offboard_worker.store.denials import listed

    async def work(opened: Opened) -> list[dict[str, Any]]:
        return await listed(opened.store, all_entries=log)

    rows = with_app(config, work)
    if as_json:
        print_json(rows)
    elif log:
        print_table(
            "Denial log",
            ("seq", "effect", "person", "who", "reason", "facts"),
            ((r["seq"], r["effect"], r["person"], r["who"], r["reason"], len(r["facts"])) for r in rows),
            "The log is empty: nobody was ever denied.",
        )
    else:
        print_table(
            "Denylist",
            ("fact", "now", "tokens dead before", "seq"),
            ((r["key"], "refused" if r["denied"] else "lifted", r["before"] or "", r["seq"]) for r in rows),
            "Nobody is denied. A leaver's event adds facts, or `offboard denylist add`.",
        )


@app.command()
def add(
    config: ConfigOption = DEFAULT_CONFIG,
    as_json: JsonOption = False,
    person: Person = None,
    issuer: Issuer = None,
    subject: Subject = None,
    session: Session = None,
    email: Email = None,
    reason: Reason = "added by an operator",
) -> None:
    """Refuse a person, or one identity that tokens carry, without opening a case."""
    _change(config, as_json, "deny", person, issuer, subject, session, email, reason)


@app.command()
def lift(
    config: ConfigOption = DEFAULT_CONFIG,
    as_json: JsonOption = False,
    person: Person = None,
    issuer: Issuer = None,
    subject: Subject = None,
    session: Session = None,
    email: Email = None,
    reason: Reason = "lifted by an operator",
) -> None:
    """Welcome new tokens again. Tokens that were issued before stay dead."""
    _change(config, as_json, "lift", person, issuer, subject, session, email, reason)


@app.command()
def push(config: ConfigOption = DEFAULT_CONFIG, as_json: JsonOption = False) -> None:
    """Push what the store says into Redis now, and wait until every live replica has it."""

    async def work(opened: Opened) -> dict[str, Any]:
        return await _spread(opened)

    _print_spread(with_app(config, work), as_json)


async def _spread(opened: Opened) -> dict[str, Any]:
    seq = await opened.projection.push()
    confirmed = await opened.projection.confirm(seq)
    return {"seq": seq, "replicas": {name: str(how) for name, how in confirmed.replicas.items()}}


def _print_spread(found: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print_json(found)
    else:
        typer.echo(f"Redis and {len(found['replicas'])} replicas stand at entry {found['seq']}")


def _change(
    config: Any,
    as_json: bool,
    effect: str,
    person: str | None,
    issuer: str | None,
    subject: str | None,
    session: str | None,
    email: str | None,
    reason: str,
) -> None:
    from offboard_worker.denylist.facts import email_key, session_key, subject_key
    from offboard_worker.errors import UsageError

    keys = []
    if (subject or session) and not issuer:
        raise UsageError("--subject and --session need the --issuer that they belong to")
    if subject and issuer:
        keys.append(subject_key(issuer, subject))
    if session and issuer:
        keys.append(session_key(issuer, session))
    if email:
        keys.append(email_key(email))
    if not keys and not person:
        raise UsageError("nothing to change", advice="Give --person, --issuer with --subject or --session, or --email.")
    with_app(config, _changing(as_json, effect, person, keys, reason))


def _changing(
    as_json: bool, effect: str, person: str | None, keys: list[str], reason: str
) -> Callable[[Opened], Coroutine[Any, Any, None]]:
    from offboard_worker.jobs.deny import change_facts

    async def work(opened: Opened) -> None:
        await change_facts(opened.job_context(), effect, person, keys, operator(), reason)
        _print_spread(await _spread(opened), as_json)

    return work
