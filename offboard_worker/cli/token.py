"""`offboard token …`: the proxy's own access tokens. A token is shown once, when it is issued, and never again."""

from __future__ import annotations

import time
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
    from offboard_worker.app import Opened

app = typer.Typer(help="Access tokens for the proxy.", no_args_is_help=True)


@app.command()
def issue(
    person: Annotated[str, typer.Option("--person", "-p", help="Whom it is for: exact id, alias or e-mail address.")],
    role: Annotated[list[str], typer.Option("--role", "-r", help="A role under proxy.roles; may be repeated.")],
    config: ConfigOption = DEFAULT_CONFIG,
    as_json: JsonOption = False,
    lifetime: Annotated[float | None, typer.Option(help="Seconds; proxy.token_lifetime by default.", min=1)] = None,
) -> None:
    """Issue a short-lived access token for a person who works here."""
    from offboard_worker.core.person import PersonState
    from offboard_worker.errors import UsageError
    from offboard_worker.jobs.operate import find_person
    from offboard_worker.proxy.keys import ensure_signing_key
    from offboard_worker.proxy.tokens import mint

    async def work(opened: Opened) -> tuple[str, dict[str, Any]]:
        found = await find_person(opened.job_context(), person)
        if found.state is PersonState.DEPARTED:
            raise UsageError(
                f"{found.id} has left: no token is issued", advice="Reinstate them first, if they are back."
            )
        settings = opened.app.config
        token, claims = mint(
            ensure_signing_key(settings.signing_keys),
            settings.proxy,
            found.id,
            generation=found.generation,
            roles=role,
            now=time.time(),
            lifetime=lifetime,
        )
        await opened.issued.record(claims)
        async with opened.store.write() as tx:
            detail = {"jti": claims["jti"], "roles": list(role), "exp": claims["exp"]}
            tx.record("token.issued", operator(), found.id, detail)
        return token, claims

    token, claims = with_app(config, work)
    if as_json:
        print_json({"access_token": token, "token_type": "Bearer", "jti": claims["jti"], "expires_at": claims["exp"]})
    else:
        typer.echo(token)


@app.command()
def revoke(
    jti: Annotated[str, typer.Argument(help="The token's id (jti), as `offboard token list` shows it.")],
    config: ConfigOption = DEFAULT_CONFIG,
    as_json: JsonOption = False,
    reason: Annotated[str, typer.Option(help="Why: goes into the audit.")] = "revoked by an operator",
) -> None:
    """Refuse one token from now on, at every replica."""
    from offboard_worker.errors import UsageError
    from offboard_worker.store.denials import deny_token

    async def work(opened: Opened) -> dict[str, Any]:
        token = next((one for one in await opened.issued.list(None, now=time.time()) if one.jti == jti), None)
        if token is None:
            raise UsageError(f"no live token has the id {jti}", advice="See `offboard token list`.")
        async with opened.store.write() as tx:
            fact = deny_token(token.issuer, token.jti, token.expires_at)
            seq = tx.append_denial("deny", [fact], who=operator(), reason=reason, person_id=token.person)
        await opened.projection.push()
        confirmed = await opened.projection.confirm(seq)
        return {"jti": jti, "seq": seq, "replicas": {name: str(how) for name, how in confirmed.replicas.items()}}

    found = with_app(config, work)
    print_json(found) if as_json else typer.echo(f"{jti} is refused at {len(found['replicas'])} replicas")


@app.command("list")
def list_(
    config: ConfigOption = DEFAULT_CONFIG,
    as_json: JsonOption = False,
    person: Annotated[str | None, typer.Option("--person", "-p", help="Only this person's.")] = None,
) -> None:
    """List the tokens that were issued and have not expired."""
    from offboard_worker.jobs.operate import find_person

    async def work(opened: Opened) -> list[dict[str, Any]]:
        found = (await find_person(opened.job_context(), person)).id if person else None
        return [
            {
                "jti": one.jti,
                "person": one.person,
                "roles": list(one.roles),
                "issued_at": one.issued_at,
                "expires_at": one.expires_at,
            }
            for one in await opened.issued.list(found, now=time.time())
        ]

    rows = with_app(config, work)
    if as_json:
        print_json(rows)
        return
    print_table(
        "Live tokens",
        ("jti", "person", "roles", "expires in"),
        (
            (row["jti"], row["person"], ", ".join(row["roles"]), f"{max(0, row['expires_at'] - time.time()):.0f} s")
            for row in rows
        ),
        "No live tokens. Issue one with `offboard token issue --person ID --role ROLE`.",
    )
