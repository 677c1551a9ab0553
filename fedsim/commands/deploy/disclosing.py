"""What leaves a node, before anything does; and statistics of nodes' tables, which no epsilon covers."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from fedsim.console import DataDir, Json, ScenarioName, Settings, print_json


def disclosure(
    scenario: ScenarioName,
    settings: Settings = [],  # noqa: B006
    rules: Annotated[Path | None, typer.Option(metavar="FILE", help="an owner's rules.toml; else as it begins")] = None,
    data: Annotated[
        Path | None, typer.Option(metavar="PATH", help="rows such as a node's, in place of the scenario's")
    ] = None,
    nodes: Annotated[int, typer.Option(min=1, metavar="N", help="with --data: how many nodes take part")] = 2,
    as_json: Json = False,
    data_dir: DataDir = None,
) -> None:
    """Show every field that leaves a node in a run: name, shape, how often, and what protects it.

    Example: fedsim deploy disclosure quickstart --rules rules.toml
    """
    from fedsim.deploy import disclosure as disclosing
    from fedsim.deploy.listing import as_data, asked_of, lines, work_on
    from fedsim.deploy.node.rules import Rules, check_counts, read
    from fedsim.scenario import load

    owner = Rules() if rules is None else read(rules)
    work = work_on(load(scenario, settings), data, nodes, data_dir)
    if not owner.counts:
        check_counts(work.job.scenario, work.algorithm)
    listed = (
        *disclosing.fields(work, metrics=owner.metrics, counts=owner.counts),
        *asked_of(work.job.scenario, owner.statistics),
    )
    if as_json:
        print_json(as_data(work, listed))
        return
    for line in lines(work, listed):
        typer.echo(line)


def statistics(
    scenario: ScenarioName,
    site: Annotated[Path, typer.Option("--on", metavar="DIR", help="a site, whose server is running")],
    least: Annotated[int, typer.Option(min=2, metavar="N", help="rows of which a node tells a statistic")],
    settings: Settings = [],  # noqa: B006
    nodes: Annotated[int | None, typer.Option(min=1, help="how many there must be; all that are admitted")] = None,
    wait: Annotated[float, typer.Option(min=0, help="seconds for which they are waited for")] = 600.0,
    as_json: Json = False,
) -> None:
    """Ask nodes for means, deviations and counts of their tables' columns, as constants for `[data.schema]`.

    No epsilon covers them, and owners say in their rules whether they leave.

    Example: fedsim deploy statistics mine.toml --on site --least 20
    """
    from fedsim.deploy.asking import ask
    from fedsim.deploy.site import Site
    from fedsim.deploy.statistics import as_data, lines
    from fedsim.progress import Lines
    from fedsim.scenario import load

    loaded = load(scenario, settings)
    progress = Lines(sys.stderr)
    found = ask(loaded, Site.open(site), least, nodes=nodes, wait=wait, progress=progress)
    if as_json:
        print_json(as_data(found, least))
        return
    for line in lines(found, loaded.data.settings["schema"], least):
        typer.echo(line)
