"""The coordinator's server: run it, and see how it is."""

import time
from pathlib import Path
from typing import Annotated

import typer

from fedsim.console import Json, print_json

SiteFolder = Annotated[Path, typer.Argument(metavar="DIR", help="a site, made by `fedsim deploy init`")]


def server(folder: SiteFolder) -> None:
    """Run a site's server until it is interrupted: SuperLink, and the proxy that nodes reach it by.

    Example: fedsim deploy server site
    """
    from fedsim.deploy.server import serve
    from fedsim.deploy.site import Site

    serve(Site.open(folder), lambda line: print(f"{time.strftime('%H:%M:%S')} {line}", flush=True))


def status(
    folder: SiteFolder,
    as_json: Json = False,
    watch: Annotated[bool, typer.Option("--watch", help="again every 2 s, until Ctrl-C")] = False,
) -> None:
    """Show how a site is: server, nodes, certificate, last run; written to DIR/metrics.prom for Prometheus, too.

    Example: fedsim deploy status site
    """
    from fedsim.deploy import status as how
    from fedsim.deploy.site import Site

    site = Site.open(folder)
    while True:
        told = how.facts(site)
        how.write(site, told)
        if watch and not as_json:
            typer.clear()
        if as_json:
            print_json(told.as_data())
        else:
            typer.echo("\n".join(how.table(told)))
        if not watch:
            return
        time.sleep(2)
