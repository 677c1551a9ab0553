"""The command line: `fedsim`, whose commands are in `commands/`."""

import logging
import sys
from typing import NoReturn

import click
import typer

from fedsim.commands import deploy
from fedsim.commands.citing import cite
from fedsim.commands.comparing import compare
from fedsim.commands.flower import flower
from fedsim.commands.folders import client, export, list_, predict, replay, show, tag
from fedsim.commands.planning import audit, check, doctor, new, partition, privacy
from fedsim.commands.reporting import report
from fedsim.commands.reproducing import reproduce
from fedsim.commands.running import resume, run
from fedsim.console import Command
from fedsim.errors import FedsimError
from fedsim.signals import terminate_as_interrupt

app = typer.Typer(
    help="Federated learning: run scenarios, compare strategies, deploy to real clients.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
for command in (
    run,
    resume,
    compare,
    reproduce,
    list_,
    show,
    replay,
    client,
    export,
    predict,
    report,
    cite,
    tag,
    partition,
    check,
    doctor,
    new,
    privacy,
    audit,
    flower,
):
    app.command(command.__name__.rstrip("_"), cls=Command)(command)
app.add_typer(deploy.app, name="deploy")


def main() -> NoReturn:
    """The `fedsim` command: a user's mistake is one line and a status, never a traceback."""
    terminate_as_interrupt()
    logging.basicConfig(level=logging.WARNING, format="note: %(message)s")
    try:
        status = app(standalone_mode=False) or 0  # typer gives a command's early exit, and Ctrl-C, as a number
    except FedsimError as error:
        _fail(str(error), error.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(2)
    except (KeyboardInterrupt, click.Abort):
        status = 130
    if status == 130:
        _fail("interrupted", status)
    sys.exit(status)


def _fail(message: str, status: int) -> NoReturn:
    print(f"\nerror: {message}" if sys.stdout.isatty() else f"error: {message}", file=sys.stderr)
    sys.exit(status)
