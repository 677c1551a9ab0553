"""The command that runs a paper's protocol again."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from fedsim.console import DataDir, Json, print_json


def reproduce(
    name: Annotated[str, typer.Argument(metavar="PAPER", help="as `fedsim list papers` has it; or a file of your own")],
    out: Annotated[Path | None, typer.Option(help="folder of the runs; the same command goes on in it")] = None,
    as_json: Json = False,
    data_dir: DataDir = None,
) -> None:
    """Run a published result again: the paper's value, ours over seeds, and a verdict by a tolerance set beforehand.

    The exit status is 0 whatever the verdict: that a value is not reproduced is a result.

    Example: fedsim reproduce mcmahan-2nn
    """
    from fedsim import reproducing
    from fedsim.progress import Lines

    stream = sys.stderr if as_json else sys.stdout
    paper = reproducing.load(name)
    for line in reproducing.paper_lines(paper):
        print(line, file=stream)
    done, folder = reproducing.reproduce(paper, out, data_dir, Lines(stream))
    if as_json:
        print_json(reproducing.as_data(paper, done, folder))
    for line in [] if as_json else reproducing.judged_lines(done, folder):
        typer.echo(line)
