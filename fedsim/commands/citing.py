"""For papers: what to cite, and the options of other commands that write figures and tables."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedsim.console import Json, print_json

if TYPE_CHECKING:
    from fedsim.report.picture import Picture
    from fedsim.report.still import Asked

Figures = Annotated[
    Path | None, typer.Option(metavar="DIR", help="draw every picture into this folder, its numbers as CSV")
]
Format = Annotated[str, typer.Option(help="of --figures: pdf, svg or png")]
Width = Annotated[str, typer.Option(help="of --figures, with its unit: 3.3in, 84mm, 8.4cm or 240pt")]
Latex = Annotated[Path | None, typer.Option(metavar="FILE.tex", help="write the result as a LaTeX table (booktabs)")]


def cite(
    folders: Annotated[list[Path], typer.Argument(metavar="RUN...", help="run folders, or a comparison's folder")],
    as_json: Json = False,
) -> None:
    """Print BibTeX of what a run rests on: algorithm, data and their licence, accountant, software.

    Example: fedsim cite runs/first > first.bib
    """
    from fedsim.report import cite as citing

    found = citing.cite(folders)
    if as_json:
        print_json(citing.as_data(found))
    else:
        typer.echo(citing.bibtex(found), nl=False)


def asked(format: str, width: str) -> "Asked":
    """How stills are wanted; to be called before anything takes time.

    Raises:
        FedsimError: no such format, or no such width.
    """
    from fedsim.report import still

    return still.asked(format, width)


def draw(pictures: "Sequence[Picture]", folder: Path, how: "Asked", quiet: bool) -> None:
    """Write stills and their numbers, and say where."""
    from fedsim.report import still

    files = still.write(pictures, folder, how)
    if not quiet:
        typer.echo(f"{len(files) // 2} figures and their numbers in {folder}")


def write_table(path: Path, source: str, quiet: bool) -> None:
    """Write a LaTeX table, and say where."""
    from fedsim.report import latex

    latex.write(path, source)
    if not quiet:
        typer.echo(path)
