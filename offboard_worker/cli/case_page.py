"""A case on the terminal: the number that matters, the line of time, each credential, what a person must do."""

from __future__ import annotations

from typing import Any

from rich.console import Console

from offboard_worker.cli.output import COLOUR, print_table


def print_case(case: dict[str, Any]) -> None:
    """Print one case as `reports.case.described` gives it."""
    console = Console()
    colour = COLOUR.get(case["state"], "white")
    console.print(f"[bold]{case['id']}[/bold]  {case['name'] or case['person']}  [{colour}]{case['state']}[/{colour}]")
    console.print(f"{case['summary']}\n", highlight=False)
    _print_times(console, case)
    print_table(
        "Credentials",
        ("connector", "kind", "id", "action", "strength", "state", "verified", "residual until"),
        (
            (
                row["connector"],
                row["kind"],
                row["id"],
                row["action"],
                row["strength"],
                row["state"],
                row["verified_at"],
                row["residual_until"],
            )
            for row in case["credentials"]
        ),
        "No credentials on record yet.",
    )
    _print_trouble(console, case)


def _print_times(console: Console, case: dict[str, Any]) -> None:
    if case["refused_after_ms"] is None:
        refused = "[yellow]pending: refused where Redis is reached, not confirmed everywhere yet[/yellow]"
    else:
        refused = f"{case['refused_at']}  ({case['refused_after_ms']:g} ms after it was accepted)"
    for name, value in (
        ("accepted", case["accepted_at"]),
        ("refused everywhere", refused),
        ("last change", case["updated_at"]),
        ("reason", f"{case['reason']} ({case['opened_by']})"),
    ):
        console.print(f"  {name:18} {value}", highlight=False)
    console.print()


def _print_trouble(console: Console, case: dict[str, Any]) -> None:
    for part in case["targets"]:
        if part["error"]:
            console.print(f"\n[red]{part['connector']} {part['state']}[/red]: {part['error']}", highlight=False)
            console.print(f"  next: {part['advice']}", highlight=False)
    for task in case["tasks"]:
        if task["done_at"] is None:
            console.print(f"\n[yellow]needs a person[/yellow] {task['id']}: {task['title']}", highlight=False)
            console.print(f"  next: {task['advice']}", highlight=False)
            console.print(f'  then: offboard case attest {task["id"]} --note "…"', highlight=False)
