"""`offboard case …`: open, look at, approve, retry and cancel cases."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from offboard_worker.cli.output import (
    ATTENTION,
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

app = typer.Typer(help="Cases: the offboarding of one person each.", no_args_is_help=True)
CaseId = Annotated[str, typer.Argument(help="The case's id, as `offboard case list` shows it.")]
Reason = Annotated[str, typer.Option("--reason", help="Why: goes into the audit.")]


@app.command("list")
def list_(
    config: ConfigOption = DEFAULT_CONFIG,
    as_json: JsonOption = False,
    state: Annotated[
        list[str] | None, typer.Option(help="Only cases in this state; may be given more than once.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, max=100_000)] = 500,
) -> None:
    """List cases, newest first."""
    from offboard_worker.core.case import State
    from offboard_worker.errors import UsageError
    from offboard_worker.reports.case import listed
    from offboard_worker.store import cases

    try:
        wanted = [State(value) for value in state or []]
    except ValueError as error:
        raise UsageError(f"{error}; the states are {', '.join(s.value for s in State)}") from None

    async def work(opened: Opened) -> list[dict[str, Any]]:
        async with opened.store.read() as conn:
            return await listed(conn, await cases.many(conn, states=wanted, limit=limit))

    rows = with_app(config, work)
    if as_json:
        print_json(rows)
        return
    print_table(
        "Cases",
        ("case", "person", "name", "state", "refused after", "credentials", "opened by"),
        (
            (
                row["id"],
                row["person"],
                row["name"],
                row["state"],
                "pending" if row["refused_after_ms"] is None else f"{row['refused_after_ms']:g} ms",
                row["summary"],
                row["opened_by"],
            )
            for row in rows
        ),
        "No cases. An identity provider's event opens one, or `offboard case open PERSON`.",
    )


@app.command()
def show(case_id: CaseId, config: ConfigOption = DEFAULT_CONFIG, as_json: JsonOption = False) -> None:
    """Show everything about one case. Exit code 3 if it needs attention."""
    from offboard_worker.jobs.operate import find_case
    from offboard_worker.reports.case import described

    async def work(opened: Opened) -> dict[str, Any]:
        async with opened.store.read() as conn:
            return await described(conn, await find_case(conn, case_id))

    case = with_app(config, work)
    if as_json:
        print_json(case)
    else:
        from offboard_worker.cli.case_page import print_case

        print_case(case)
    if case["state"] in ("attention", "held"):
        raise typer.Exit(ATTENTION)


@app.command("open")
def open_(
    person: Annotated[str, typer.Argument(help="The leaver: our person id, an exact alias or an e-mail address.")],
    config: ConfigOption = DEFAULT_CONFIG,
    as_json: JsonOption = False,
    reason: Reason = "",
) -> None:
    """Offboard a person now: contain at once, then revoke in every system."""
    from offboard_worker.jobs.operate import open_case

    async def work(opened: Opened) -> str:
        return await open_case(opened.job_context(), person, operator(), reason)

    case_id = with_app(config, work)
    if as_json:
        print_json({"case": case_id})
    else:
        typer.echo(f"case {case_id} is open; watch it with: offboard case show {case_id}")


@app.command()
def retry(case_id: CaseId, config: ConfigOption = DEFAULT_CONFIG, as_json: JsonOption = False) -> None:
    """Run again what did not end well. Safe at any time: what is done stays done."""
    from offboard_worker.jobs.operate import retry as again

    async def work(opened: Opened) -> list[str]:
        return await again(opened.job_context(), case_id, operator())

    names = with_app(config, work)
    if as_json:
        print_json({"case": case_id, "connectors": names})
    else:
        typer.echo(f"running again: {', '.join(names)}")


@app.command()
def approve(case_id: CaseId, config: ConfigOption = DEFAULT_CONFIG, as_json: JsonOption = False) -> None:
    """Let a held case go on to revocation."""
    from offboard_worker.jobs.operate import approve as let_go

    async def work(opened: Opened) -> str:
        return (await let_go(opened.job_context(), case_id, operator())).state.value

    state = with_app(config, work)
    print_json({"case": case_id, "state": state}) if as_json else typer.echo(f"case {case_id} is {state}")


@app.command()
def cancel(
    case_id: CaseId,
    config: ConfigOption = DEFAULT_CONFIG,
    as_json: JsonOption = False,
    reason: Reason = "",
    reinstate: Annotated[
        bool, typer.Option("--reinstate", help="The person is back: welcome new tokens, restore what was disabled.")
    ] = False,
) -> None:
    """Stop a case. The person stays refused at the proxy unless --reinstate is given."""
    from offboard_worker.jobs.operate import cancel as stop

    async def work(opened: Opened) -> str:
        return (await stop(opened.job_context(), case_id, operator(), reason, reinstate=reinstate)).state.value

    state = with_app(config, work)
    print_json({"case": case_id, "state": state}) if as_json else typer.echo(f"case {case_id} is {state}")


@app.command()
def attest(
    task_id: Annotated[str, typer.Argument(help="The task's id, as `offboard case show` shows it.")],
    note: Annotated[str, typer.Option(help="What was done, and where it can be seen.")],
    config: ConfigOption = DEFAULT_CONFIG,
    as_json: JsonOption = False,
) -> None:
    """Say that a task was done by hand: its evidence becomes `attested`."""
    from offboard_worker.jobs.operate import attest as vouch

    async def work(opened: Opened) -> dict[str, str]:
        case = await vouch(opened.job_context(), task_id, operator(), note)
        return {"case": case.id, "state": case.state.value}

    found = with_app(config, work)
    print_json(found) if as_json else typer.echo(f"case {found['case']} is {found['state']}")
