"""The command that packs fedsim for machines without a network."""

from pathlib import Path
from typing import Annotated

import typer

from fedsim.console import Json, print_json


def pack(
    folder: Annotated[Path, typer.Argument(help="where the pack goes; must not exist", show_default=False)],
    node: Annotated[bool, typer.Option("--node", help="for a node: without Ray and what draws reports")] = False,
    extra: Annotated[list[str], typer.Option(help="of fedsim, such as media; may be given several times")] = [],  # noqa: B006
    as_json: Json = False,
) -> None:
    """Pack fedsim and all it needs, with hashes and licences, for a machine without a network.

    The other machine runs the same system and Python: sh PACK/install.sh

    Example: fedsim deploy pack fedsim-node --node
    """
    from fedsim.deploy.pack import pack as write_pack

    if not as_json:
        typer.echo("downloading; torch alone may take minutes")
    packed = write_pack(folder, node=node, extras=extra)
    total = sum(each.bytes for each in packed)
    if as_json:
        print_json({"folder": str(folder), "bytes": total, "packages": [each._asdict() for each in packed]})
        return
    typer.echo(f"{len(packed)} packages, {total / 1e6:,.0f} MB in {folder}; licences in {folder / 'licences.csv'}")
    typer.echo(f"copy the folder to the other machine, and there: sh {folder.name}/install.sh")
