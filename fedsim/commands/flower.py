"""The command that runs Flower apps."""

import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import Annotated

import typer

from fedsim.console import Json, print_json


def flower(
    app: Annotated[Path, typer.Argument(metavar="APP", help="a Flower app's folder, which has its pyproject.toml")],
    nodes: Annotated[int, typer.Option(min=1, help="how many clients there are; 2, as in Flower's simulation")] = 2,
    run_config: Annotated[
        list[str], typer.Option("--run-config", metavar="TEXT", help="settings for this run: \"lr=0.1 name='x'\"")
    ] = [],  # noqa: B006  typer wants a literal default
    seed: Annotated[int, typer.Option(help="of what the app draws from global generators")] = 0,
    workers: Annotated[int | None, typer.Option(min=1, help="of Ray; one for each core")] = None,
    out: Annotated[Path | None, typer.Option(help="the run folder, which must not exist")] = None,
    as_json: Json = False,
) -> None:
    """Run a Flower app as it is, its own ServerApp and ClientApp, on this project's Ray engine.

    Example: fedsim flower my-app --nodes 100 --run-config "num-server-rounds=5"
    """
    from fedsim.apps.lines import Lines
    from fedsim.apps.running import run

    stream = sys.stderr if as_json else sys.stdout
    with redirect_stdout(stream):  # an app prints, too
        done = run(app, nodes=nodes, overrides=run_config, seed=seed, workers=workers, out=out, lines=Lines(stream))
    if as_json:
        print_json(done.values)
