"""The command that shows runs as pages."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedsim.commands.citing import Figures, Format, Latex, Width, asked, draw, write_table
from fedsim.console import Json, open_page, print_json
from fedsim.errors import RunFolderError

if TYPE_CHECKING:
    from fedsim.report.chronicle import Chronicle


def report(
    folders: Annotated[list[Path], typer.Argument(metavar="RUN...", help="run folders", show_default=False)],
    out: Annotated[
        Path | None, typer.Option(help="the file, of one run; report.html in its folder if not given")
    ] = None,
    opened: Annotated[bool, typer.Option("--open", help="show it in the browser")] = False,
    followed: Annotated[bool, typer.Option("--follow", help="rewrite it while the run goes on")] = False,
    figures: Figures = None,
    format: Format = "pdf",
    width: Width = "3.3in",
    latex: Latex = None,
    as_json: Json = False,
) -> None:
    """Write a run's report: one HTML file that works offline, with pictures and the numbers behind them.

    Example: fedsim report runs/first --open
    """
    how = asked(format, width)
    from fedsim.report import follow as following
    from fedsim.report.papers import runs_table
    from fedsim.report.run import pictures
    from fedsim.report.run import report as write

    if len(folders) > 1 and (out is not None or followed):
        raise RunFolderError("--out and --follow are for one run; leave the others out")
    for folder in folders:
        if (folder / "comparison.toml").is_file():
            raise RunFolderError(f"{folder} is a comparison, whose report is written by: fedsim compare {folder}")
    written = [out or folder / "report.html" for folder in folders]
    for folder, file in zip(folders, written, strict=True):
        seen = write(folder, file, reload_seconds=following.PAUSE if followed else None)
        if not as_json:
            typer.echo(file)
        if figures is not None:
            draw(pictures(seen), figures / folder.name if len(folders) > 1 else figures, how, as_json)
        if opened:
            open_page(file)
        if followed and seen.going_on:
            following.follow(folder, file, _passing)
    if latex is not None:
        write_table(latex, runs_table(folders), as_json)
    if as_json:
        print_json({"reports": [str(file) for file in written]})


def _passing(seen: "Chronicle") -> None:
    """On a terminal, that the page is being rewritten."""
    if sys.stderr.isatty():
        text = f"round {seen.overview.rounds}" if seen.going_on else ""
        print(f"\r\x1b[2K{text}", end="", file=sys.stderr, flush=True)
