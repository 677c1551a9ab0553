"""Commands that look at what there is: scenarios, parts and run folders."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedsim.console import DataDir, Json, RunPath, Settings, print_json, tell
from fedsim.errors import RunFolderError, ScenarioError

if TYPE_CHECKING:
    pass


def list_(
    what: Annotated[str, typer.Argument(help="scenarios, strategies, adversaries, models, data, partitions or runs")],
    folder: Annotated[Path | None, typer.Argument(help="of runs; runs/ by default", show_default=False)] = None,
    as_json: Json = False,
) -> None:
    """List what a scenario can name, with parameters and defaults; or the runs below a folder.

    Example: fedsim list strategies
    """
    if what == "runs":
        _list_runs(folder or Path("runs"), as_json)
        return
    from fedsim.catalogue import listing, listing_lines

    if folder is not None:
        raise ScenarioError(f"`fedsim list {what}` takes no folder; only `fedsim list runs` does")
    if as_json:
        print_json([entry._asdict() for entry in listing(what)])
    for line in [] if as_json else listing_lines(what):
        typer.echo(line)


def show(folder: RunPath, as_json: Json = False) -> None:
    """Show a run from its folder: rounds, failures by cause, slowest and worst clients; also while it goes on.

    Example: fedsim show runs/first
    """
    from fedsim import show as shows

    shown = shows.show(folder)
    if as_json:
        print_json(shows.as_data(shown))
    for line in [] if as_json else shows.show_lines(shown):
        typer.echo(line)


def replay(
    folder: RunPath,
    number: Annotated[int, typer.Option("--round", help="a committed round, or the one that ended the run")],
    client: Annotated[int, typer.Option(help="the client's number")],
    debug: Annotated[bool, typer.Option("--pdb", help="debug the client half, and its failure")] = False,
    settings: Settings = [],  # noqa: B006
    as_json: Json = False,
    data_dir: DataDir = None,
) -> None:
    """Do one client's work of a past round again, here, to the same bits; also while the run goes on.

    Prints every step and whether norm, loss and steps are those of run.db; the exit status is 1 if they are not.

    Example: fedsim replay runs/first --round 60 --client 7
    """
    from fedsim import replay as replays
    from fedsim.progress import Lines

    if debug and as_json:
        raise ScenarioError("give --pdb or --json: a debugger talks where the JSON would go")
    progress = Lines(sys.stderr if as_json else sys.stdout)
    done = replays.replay(folder, number, client, settings=settings, data_dir=data_dir, progress=progress, debug=debug)
    if as_json:
        print_json(replays.as_data(done))
    for line in [] if as_json else replays.replay_lines(done):
        typer.echo(line)
    if done.verdict.same is False:
        raise typer.Exit(1)


def client(
    folder: RunPath,
    number: Annotated[int, typer.Argument(metavar="CLIENT", help="the client's number", show_default=False)],
    picture: Annotated[Path | None, typer.Option(help="where a picture of its images goes, .svg or .png")] = None,
    as_json: Json = False,
    data_dir: DataDir = None,
) -> None:
    """Show one client of a run: its rows, every round it took part in, failures, privacy; also while it goes on.

    Example: fedsim client runs/first 7 --picture client-7.png
    """
    from fedsim import client as clients
    from fedsim.progress import Lines

    found = clients.look(folder, number, data_dir=data_dir, progress=Lines(sys.stderr if as_json else sys.stdout))
    if picture is not None:
        clients.draw(found, picture)
    if as_json:
        print_json({**clients.as_data(found), "picture": str(picture) if picture is not None else None})
        return
    for line in clients.client_lines(found):
        typer.echo(line)
    if picture is not None:
        typer.echo(f"picture: {picture}")


def export(
    folder: RunPath,
    table: Annotated[str | None, typer.Option(help="rounds, clients, privacy, ...: docs/run-folder.md")] = None,
    public: Annotated[bool, typer.Option("--public", help="what epsilon covers and nothing else")] = False,
    format: Annotated[str | None, typer.Option(help="of a table: csv, json or parquet; csv, or as --out ends")] = None,
    out: Annotated[Path | None, typer.Option(help="a new file, printed if not given; with --public a folder")] = None,
    as_json: Json = False,
) -> None:
    """Write one table of a run for other programs; or what epsilon covers of it, as a folder that may be given away.

    Example: fedsim export runs/first --table clients --out clients.parquet, or with --public --out given
    """
    if public == (table is not None):
        raise RunFolderError("give one of --table and --public")
    if table is None:
        _export_public(folder, format, out, as_json)
        return
    from fedsim import export as exports

    ending = out.suffix[1:] if out is not None else "json" if as_json else ""
    chosen = format or (ending if ending in exports.FORMATS else "csv")
    rows = exports.export(folder, table, chosen, out, sys.stdout)
    if out is not None:
        tell({"file": str(out), "rows": rows}, f"{rows} rows in {out}", as_json)


def _export_public(folder: Path, format: str | None, out: Path | None, as_json: bool) -> None:
    from fedsim.public import publish

    if out is None or format is not None:
        raise RunFolderError("--public writes a folder; name it with --out, and leave --format to tables")
    files = publish(folder, out)
    tell({"folder": str(out), "files": files}, f"{', '.join(files)} in {out}", as_json)


def tag(
    folder: RunPath,
    name: Annotated[str, typer.Argument(help="one word")],
    note: Annotated[str, typer.Option(help="what to remember of it")] = "",
    remove: Annotated[bool, typer.Option("--remove", help="take the name away again")] = False,
    as_json: Json = False,
) -> None:
    """Give a run a name and a note, which `fedsim show` and `fedsim list runs` print; also while it goes on.

    Example: fedsim tag runs/first paper --note "figure 2"
    """
    from fedsim import tags

    if remove:
        tags.remove_tag(folder, name)
    else:
        tags.set_tag(folder, name, note)
    values = {"folder": str(folder), "tag": name, "removed": remove}
    tell(values, f"{folder} is {'no longer ' if remove else ''}tagged {name}", as_json)


def _list_runs(folder: Path, as_json: bool) -> None:
    from dataclasses import asdict

    from fedsim import overview

    found, unreadable = overview.runs(folder)
    if as_json:
        reasons = {str(path): reason for path, reason in unreadable.items()}
        print_json({"runs": [asdict(run) for run in found], "unreadable": reasons})
    for line in [] if as_json else overview.run_lines(found, unreadable):
        typer.echo(line)
