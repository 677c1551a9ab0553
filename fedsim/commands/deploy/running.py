"""Runs a scenario on real clients."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from fedsim.commands.running import tell_ended
from fedsim.console import Json, ScenarioName, Settings


def run(
    scenario: ScenarioName,
    site: Annotated[Path, typer.Option("--on", metavar="DIR", help="a site, whose server is running")],
    settings: Settings = [],  # noqa: B006  typer wants a literal default
    nodes: Annotated[int | None, typer.Option(min=1, help="how many there must be; all that are admitted")] = None,
    wait: Annotated[float, typer.Option(min=0, help="seconds for which they are waited for")] = 600.0,
    central: Annotated[
        Path | None, typer.Option(help="held-out rows of the server's own, as the scenario's data source reads them")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="the run folder, which must not exist")] = None,
    as_json: Json = False,
) -> None:
    """Run a scenario on the nodes of a site, with their own data; `fedsim resume` goes on with it.

    Example: fedsim deploy run mine.toml --on site --nodes 3
    """
    from fedsim import scenario as scenarios
    from fedsim.deploy import running
    from fedsim.deploy.site import Site
    from fedsim.progress import Lines

    loaded = scenarios.load(scenario, settings)
    stream = sys.stderr if as_json else sys.stdout
    done = running.deploy(
        loaded, Site.open(site), nodes=nodes, wait=wait, central=central, out=out, progress=Lines(stream)
    )
    tell_ended(done.folder, done.values, stream, as_json)
