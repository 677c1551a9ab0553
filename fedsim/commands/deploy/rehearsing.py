"""The command that rehearses a deployment on one machine."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from fedsim.console import DataDir, Json, ScenarioName, Settings, echo_wrapped, print_json


def rehearse(
    scenario: ScenarioName,
    nodes: Annotated[int, typer.Option(min=1, help="and clients of the simulation it is compared with")] = 3,
    settings: Settings = [],  # noqa: B006
    seeded_coins: Annotated[
        bool, typer.Option("--seeded-coins", help="noise from the seed in both runs, so that they must be the same")
    ] = False,
    rules: Annotated[Path | None, typer.Option(metavar="FILE", help="a node's rules.toml, for all nodes")] = None,
    out: Annotated[Path | None, typer.Option(help="a folder for all it leaves, which must not exist")] = None,
    as_json: Json = False,
    data_dir: DataDir = None,
) -> None:
    """Deploy a scenario on this machine as on many, and compare the model with the simulation's.

    Server, proxy and nodes are real processes with keys and TLS; all nodes take part in each round. The status is 1
    where the models should be the same and are not.

    Example: fedsim deploy rehearse quickstart --set rounds=2 --nodes 3 --seeded-coins
    """
    from fedsim.deploy import rehearse as rehearsing
    from fedsim.progress import Lines
    from fedsim.scenario import load

    stream = sys.stderr if as_json else sys.stdout
    found = rehearsing.rehearse(
        load(scenario, settings),
        nodes,
        progress=Lines(stream),
        out=out,
        data_dir=data_dir,
        rules=rules,
        seeded_coins=seeded_coins,
    )
    for line in rehearsing.lines(found):
        if not as_json:
            echo_wrapped(line, "  ", first="")
    if as_json:
        print_json(found.values)
    raise typer.Exit(int(found.comparable and not found.same))
