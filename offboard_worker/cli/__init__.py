"""The command `offboard`: one file per command group. Commands import what they need when they run, so that `--help`
is quick and the proxy's process never loads the store.

Exit codes: 0 done, 1 failed, 2 wrong usage or configuration, 3 something needs attention.
"""

from __future__ import annotations

import os
import sys

import typer

from offboard_worker.cli import audit, case, check, demo, denylist, run, token
from offboard_worker.cli.output import report_error
from offboard_worker.errors import OffboardError

app = typer.Typer(
    name="offboard",
    help="End a leaver's access: refuse them at the proxy within milliseconds, then revoke and prove every credential.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)
run.register(app)
check.register(app)
demo.register(app)
app.add_typer(case.app, name="case")
app.add_typer(token.app, name="token")
app.add_typer(denylist.app, name="denylist")
app.add_typer(audit.app, name="audit")


def main() -> None:
    """Run the command line; every foreseen error becomes a sentence and an exit code."""
    os.umask(0o077)  # deliveries, people and evidence are for our own user alone
    try:
        app()
    except OffboardError as error:
        sys.exit(report_error(error))
    except KeyboardInterrupt:
        sys.exit(130)
