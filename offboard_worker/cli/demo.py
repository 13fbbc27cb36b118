"""`offboard demo`: one leaver's story, played for real on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from offboard_worker.errors import ConfigError


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("demo", rich_help_panel="Run")(demo)


def demo(
    keep: Annotated[bool, typer.Option("--keep", help="Leave it all running, and say what to try next.")] = False,
    svg: Annotated[Path | None, typer.Option(help="Also write what the terminal showed to this SVG picture.")] = None,
) -> None:
    """Play one leaver's story with a real Valkey, real SDKs and simulated vendors. Exit code 0 only if it is all true."""
    try:
        from offboard_worker.demo.story import play
    except ImportError as error:
        raise ConfigError(
            f"the demo needs the vendors' SDKs and moto ({error.name} is missing)",
            advice="pip install 'offboard-worker[demo]'",
        ) from error
    raise typer.Exit(play(keep=keep, svg=svg))
