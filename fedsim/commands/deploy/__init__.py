"""Commands of `fedsim deploy`: the coordinator's, and those of a node's owner."""

from collections.abc import Callable
from typing import Any

import typer

from fedsim.commands.deploy.disclosing import disclosure, statistics
from fedsim.commands.deploy.keys import admit, init, join, revoke, rotate
from fedsim.commands.deploy.nodes import leave, ledger, log, node, review, rules
from fedsim.commands.deploy.packing import pack
from fedsim.commands.deploy.rehearsing import rehearse
from fedsim.commands.deploy.running import run
from fedsim.commands.deploy.serving import server, status
from fedsim.console import Command

app = typer.Typer(
    help="Take a scenario to real clients: a server, and nodes that keep their data.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
)
COMMANDS: tuple[Callable[..., Any], ...] = (
    init,
    join,
    admit,
    revoke,
    rotate,
    rehearse,
    pack,
    node,
    review,
    rules,
    ledger,
    log,
    leave,
    server,
    status,
    run,
    disclosure,
    statistics,
)
for command in COMMANDS:
    app.command(command.__name__.rstrip("_"), cls=Command)(command)
