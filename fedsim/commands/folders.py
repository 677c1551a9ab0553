"""Commands that look at what there is: scenarios, parts and run folders."""

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any, TextIO

import typer

from fedsim.console import DataDir, Json, RunPath, Settings, print_json, tell
from fedsim.errors import RunFolderError, ScenarioError


def list_(
    what: Annotated[
        str, typer.Argument(help="scenarios, strategies, adversaries, models, data, partitions, papers or runs")
    ],
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
    model: Annotated[
        str | None, typer.Option(help="torch or onnx: the trained model for its users, with a card")
    ] = None,
    client: Annotated[int | None, typer.Option(help="with --model: the own model of this client")] = None,
    format: Annotated[str | None, typer.Option(help="of a table: csv, json or parquet; csv, or as --out ends")] = None,
    out: Annotated[Path | None, typer.Option(help="a new file, printed if not given; else a new folder")] = None,
    as_json: Json = False,
    data_dir: DataDir = None,
) -> None:
    """Write one table of a run for other programs; its model for users; or what epsilon covers, to be given away.

    Example: fedsim export runs/first --table clients --out clients.parquet, or with --model onnx --out given
    """
    if sum([table is not None, public, model is not None]) != 1:
        raise RunFolderError("give one of --table, --public and --model")
    if client is not None and model is None:
        raise RunFolderError("--client goes with --model: it says whose own model is wanted")
    if table is None:
        if out is None or format is not None:
            asked = "--public" if model is None else "--model"
            raise RunFolderError(f"{asked} writes a folder; name it with --out, and leave --format to tables")
        if model is None:
            _export_public(folder, out, as_json)
        else:
            _export_model(folder, model, out, client, data_dir, as_json)
        return
    from fedsim import export as exports

    ending = out.suffix[1:] if out is not None else "json" if as_json else ""
    chosen = format or (ending if ending in exports.FORMATS else "csv")
    rows = exports.export(folder, table, chosen, out, sys.stdout)
    if out is not None:
        tell({"file": str(out), "rows": rows}, f"{rows} rows in {out}", as_json)


def _export_public(folder: Path, out: Path, as_json: bool) -> None:
    from fedsim.public import publish

    files = publish(folder, out)
    tell({"folder": str(out), "files": files}, f"{', '.join(files)} in {out}", as_json)


def _export_model(folder: Path, form: str, out: Path, client: int | None, data_dir: Path | None, as_json: bool) -> None:
    from fedsim.model_export import ROWS, export_model

    if form not in ("torch", "onnx"):
        raise RunFolderError(f"--model {form}: give torch or onnx")
    done = export_model(folder, "torch" if form == "torch" else "onnx", out, client, data_dir=data_dir)
    near = "" if done.difference is None else f"; {done.difference:.1e} from torch at most, on {ROWS} rows"
    values = {"folder": str(out), "files": list(done.files), "difference": done.difference}
    tell(values, f"{', '.join(done.files)} in {out}{near}", as_json)


def predict(
    folder: Annotated[Path, typer.Argument(metavar="RUN", help="a run, or what export --model torch wrote")],
    data: Annotated[Path, typer.Option(help="rows: CSV, text lines, .npz, or files in a folder", show_default=False)],
    client: Annotated[int | None, typer.Option(help="ask the own model of this client")] = None,
    out: Annotated[Path | None, typer.Option(help="a new CSV file, printed if not given")] = None,
    as_json: Json = False,
    data_dir: DataDir = None,
) -> None:
    """Ask a run's model about new rows, which are made ready as those were that it was trained on.

    Example: fedsim predict runs/first --data patients.csv --out answers.csv
    """
    from fedsim import handover

    if out is not None and out.exists():
        raise RunFolderError(f"{out} exists already; choose another with --out, or remove it")
    told = handover.predict(folder, data, client, data_dir=data_dir)
    if as_json and out is None:
        print_json([dict(zip(told.columns, row, strict=True)) for row in told.rows])
        return
    if out is None:
        _write_csv(told.columns, told.rows, sys.stdout)
        return
    try:
        with out.open("w", newline="", encoding="utf-8") as file:
            _write_csv(told.columns, told.rows, file)
    except OSError as error:
        raise RunFolderError(
            f"{out} cannot be written: {error.strerror or error}; choose another with --out"
        ) from error
    tell({"file": str(out), "rows": len(told.rows)}, f"{len(told.rows)} rows in {out}", as_json)


def _write_csv(columns: Sequence[str], rows: Iterable[Sequence[Any]], stream: TextIO) -> None:
    import csv

    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows([f"{value:.6g}" if isinstance(value, float) else value for value in row] for row in rows)


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
