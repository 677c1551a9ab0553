"""The command line: thin, every command a call of the library."""

import json
import logging
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn, TextIO, get_type_hints

import click
import typer
from typer.core import TyperArgument, TyperCommand
from typer.models import ArgumentInfo

from fedsim.errors import FedsimError, RunFolderError, ScenarioError
from fedsim.signals import terminate_as_interrupt

if TYPE_CHECKING:
    from fedsim.scenario import Scenario


class Command(TyperCommand):
    """A command whose help says what its arguments are.

    Click 8.5 gave arguments a help text of its own, and so wipes out the one that typer below 0.21 sets before; here
    it is set again.
    """

    def __init__(self, name: str | None, *, callback: Callable[..., Any] | None = None, **rest: Any) -> None:
        super().__init__(name, callback=callback, **rest)
        hints = get_type_hints(callback, include_extras=True) if callback is not None else {}
        for parameter in self.params:
            if isinstance(parameter, TyperArgument):
                notes = getattr(hints.get(str(parameter.name)), "__metadata__", ())
                parameter.help = next((note.help for note in notes if isinstance(note, ArgumentInfo)), None)

    def format_arguments(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Nothing: Click 8.5 would write them a second time."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write arguments and options; without the escapes that typer puts in for rich, which is not used."""
        records = [(each, each.get_help_record(ctx)) for each in self.get_params(ctx)]
        for title, kind in (("Arguments", "argument"), ("Options", "option")):
            rows = [row for each, row in records if row is not None and each.param_type_name == kind]
            if rows:
                with formatter.section(title):
                    formatter.write_dl([(name, text.replace("\\[", "[")) for name, text in rows])


app = typer.Typer(
    help="Federated learning: run scenarios, compare strategies, deploy to real clients.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

ScenarioName = Annotated[str, typer.Argument(help="a .toml file, or a name from `fedsim list scenarios`")]
Settings = Annotated[list[str], typer.Option("--set", metavar="KEY=VALUE", help="change a key for this run")]
DataDir = Annotated[Path | None, typer.Option(help="folder of data sets, looked into before FEDSIM_DATA")]
RunPath = Annotated[Path, typer.Argument(metavar="RUN", help="a run folder", show_default=False)]
Json = Annotated[bool, typer.Option("--json", help="print JSON for programs instead")]


@app.command(cls=Command)
def run(
    scenario: ScenarioName,
    settings: Settings = [],  # noqa: B006  typer wants a literal default
    engine: Annotated[str | None, typer.Option(help="ray or inline, instead of the scenario's")] = None,
    ray_address: Annotated[str | None, typer.Option(help="of a Ray cluster to run on, host:port or auto")] = None,
    out: Annotated[Path | None, typer.Option(help="the run folder, which must not exist")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="say what it would cost, and stop")] = False,
    fast_check: Annotated[bool, typer.Option("--fast-check", help="two clients, two batches, one evaluation")] = False,
    as_json: Json = False,
    data_dir: DataDir = None,
) -> None:
    """Run a scenario.

    Example: fedsim run quickstart --set seed=2 --out runs/first
    """
    from fedsim import planning, rounds
    from fedsim.progress import Lines
    from fedsim.scenario import load

    if sum([dry_run, fast_check, out is not None]) > 1:
        raise ScenarioError("give one of --dry-run, --fast-check and --out: the first two leave no run folder")
    chosen = {"engine.kind": engine, "engine.address": ray_address}
    loaded = load(scenario, [*settings, *(f"{key}={value}" for key, value in chosen.items() if value is not None)])
    stream = sys.stderr if as_json else sys.stdout
    if dry_run:
        _print_forecast(planning.forecast(loaded, data_dir), as_json)
    elif fast_check:
        fingerprint = _check(loaded, data_dir, stream)
        _tell({"scenario": scenario, "ok": True, "fingerprint": fingerprint}, "the scenario runs", as_json)
    else:
        result = rounds.run(loaded, data_dir=data_dir, out=out, progress=Lines(stream))
        if as_json:
            _print_json(result.values)


@app.command(cls=Command)
def resume(
    folder: RunPath,
    rounds: Annotated[int | None, typer.Option(help="of the whole run, to extend it")] = None,
    settings: Settings = [],  # noqa: B006
    as_json: Json = False,
    data_dir: DataDir = None,
) -> None:
    """Go on with a run from its last checkpoint, to the bits of one that was never interrupted.

    Only keys of engine, checkpoint, records and stop may be set anew. --rounds is refused where the noise was solved
    for the rounds: a private run to be extended gives noise_multiplier and max_participations.

    Example: fedsim resume runs/first
    """
    from fedsim import resuming
    from fedsim.progress import Lines

    stream = sys.stderr if as_json else sys.stdout
    result = resuming.resume(folder, rounds=rounds, settings=settings, data_dir=data_dir, progress=Lines(stream))
    if as_json:
        _print_json(result.values)


@app.command("list", cls=Command)
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
        _print_json([entry._asdict() for entry in listing(what)])
    for line in [] if as_json else listing_lines(what):
        typer.echo(line)


@app.command(cls=Command)
def show(folder: RunPath, as_json: Json = False) -> None:
    """Show a run from its folder: rounds, failures by cause, slowest and worst clients; also while it goes on.

    Example: fedsim show runs/first
    """
    from fedsim import show as shows

    shown = shows.show(folder)
    if as_json:
        _print_json(shows.as_data(shown))
    for line in [] if as_json else shows.show_lines(shown):
        typer.echo(line)


@app.command(cls=Command)
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
        _print_json(replays.as_data(done))
    for line in [] if as_json else replays.replay_lines(done):
        typer.echo(line)
    if done.verdict.same is False:
        raise typer.Exit(1)


@app.command(cls=Command)
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
        _print_json({**clients.as_data(found), "picture": str(picture) if picture is not None else None})
        return
    for line in clients.client_lines(found):
        typer.echo(line)
    if picture is not None:
        typer.echo(f"picture: {picture}")


@app.command(cls=Command)
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
        _tell({"file": str(out), "rows": rows}, f"{rows} rows in {out}", as_json)


def _export_public(folder: Path, format: str | None, out: Path | None, as_json: bool) -> None:
    from fedsim.public import publish

    if out is None or format is not None:
        raise RunFolderError("--public writes a folder; name it with --out, and leave --format to tables")
    files = publish(folder, out)
    _tell({"folder": str(out), "files": files}, f"{', '.join(files)} in {out}", as_json)


@app.command(cls=Command)
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
    _tell(values, f"{folder} is {'no longer ' if remove else ''}tagged {name}", as_json)


@app.command(cls=Command)
def partition(
    scenario: ScenarioName,
    settings: Settings = [],  # noqa: B006
    picture: Annotated[Path, typer.Option(help="where the picture goes, .svg or .png")] = Path("partition.svg"),
    as_json: Json = False,
    data_dir: DataDir = None,
) -> None:
    """Show how a scenario's data are spread over its clients, as a table and a picture.

    Example: fedsim partition quickstart --picture partition.png
    """
    from fedsim.data import picture as pictures
    from fedsim.data.corpus import Folders
    from fedsim.job import federate
    from fedsim.scenario import load

    loaded = load(scenario, settings)
    federation = federate(loaded, Folders.of(data_dir, loaded.folder))
    pictures.picture(federation, picture)
    table, summary = pictures.table(federation), pictures.summary(federation)
    if as_json:
        _print_json({"clients": table, "summary": summary, "picture": str(picture)})
        return
    for line in pictures.table_lines(federation):
        typer.echo(line)
    typer.echo(f"picture: {picture}")


@app.command(cls=Command)
def doctor(data_dir: DataDir = None, as_json: Json = False) -> None:
    """Look at this machine: what a run needs, and what to do about what is missing.

    Example: fedsim doctor --data-dir ~/data
    """
    from fedsim.doctor import examine

    findings = examine(data_dir)
    if as_json:
        _print_json([finding._asdict() for finding in findings])
    for finding in [] if as_json else findings:
        typer.echo(f"{finding.state:<8} {finding.name:<16} {finding.found}")
        if finding.remedy:
            _echo_wrapped(finding.remedy)
    if any(finding.state == "missing" and not finding.name.startswith("data") for finding in findings):
        raise typer.Exit(1)


@app.command(cls=Command)
def new(
    path: Annotated[Path, typer.Argument(help="the new scenario file, folder with --folder, name with --strategy")],
    folder: Annotated[bool, typer.Option("--folder", help="a folder with an own model and own data")] = False,
    strategy: Annotated[bool, typer.Option("--strategy", help="an own strategy, PATH.py, with its test")] = False,
    as_json: Json = False,
) -> None:
    """Write a commented scenario to start from, or a commented strategy.

    Example: fedsim new mine.toml, or: fedsim new --strategy mine
    """
    from fedsim.new import create, create_strategy, scenario_advice, strategy_advice

    if folder and strategy:
        raise ScenarioError("give one of --folder and --strategy")
    files = create_strategy(path) if strategy else create(path, folder=folder)
    advice = strategy_advice(path) if strategy else scenario_advice(files)
    _tell({"files": [str(file) for file in files]}, "\n".join([*map(str, files), *advice]), as_json)


@app.command(cls=Command)
def privacy(
    names: Annotated[
        list[str], typer.Argument(metavar="SCENARIO|RUN...", help="a scenario; or run folders, or folders of runs")
    ],
    settings: Settings = [],  # noqa: B006
    target: Annotated[float | None, typer.Option(help="of a scenario: solve the noise for this epsilon")] = None,
    picture: Annotated[Path | None, typer.Option(help="of a scenario: epsilon by round, .svg or .png")] = None,
    delta: Annotated[float | None, typer.Option(help="of runs: say their epsilon at this delta too")] = None,
    as_json: Json = False,
    data_dir: DataDir = None,
) -> None:
    """Say what a scenario will spend, before anything trains; or what runs have spent, each and all together.

    Example: fedsim privacy quickstart --target 3, or: fedsim privacy runs/ --delta 1e-6
    """
    folders = [Path(name) for name in names if Path(name).is_dir()]
    if folders and len(folders) == len(names):
        if settings or target is not None or picture is not None:
            raise ScenarioError("--set, --target and --picture go with a scenario; these are folders of runs")
        _tell_spending(folders, delta, as_json)
    elif len(names) > 1:
        name = next(name for name in names if not Path(name).is_dir())
        raise ScenarioError(f"{name} is no folder of a run; give run folders, or one scenario")
    elif delta is not None:
        raise ScenarioError("--delta goes with runs; a scenario's own is set by --set privacy.LEVEL.delta=...")
    else:
        _tell_outlook(names[0], settings, target, picture, data_dir, as_json)


@app.command(cls=Command)
def audit(
    target: Annotated[
        str, typer.Argument(metavar="SCENARIO|RUN", help="a scenario that promises privacy; or a run folder")
    ],
    settings: Settings = [],  # noqa: B006
    canaries: Annotated[
        int | None, typer.Option(help="of a scenario: rows or clients that are there by a coin")
    ] = None,
    noise_off: Annotated[bool, typer.Option("--noise-off", help="of a scenario: would the audit see it?")] = False,
    delta: Annotated[float | None, typer.Option(help="of a scenario: of claim and bound, at most 1e-5")] = None,
    out: Annotated[Path, typer.Option(help="the report, one HTML file")] = Path("audit.html"),
    as_json: Json = False,
    data_dir: DataDir = None,
) -> None:
    """Attack what a scenario promises by canaries, or a finished run's model by membership inference.

    The exit status is 1 if the promise is refuted, or with --noise-off if the audit does not see that.

    Example: fedsim audit quickstart --out audit.html, or: fedsim audit runs/first
    """
    from fedsim.audit import auditing, report
    from fedsim.progress import Lines

    report.check(out)
    progress = Lines(sys.stderr if as_json else sys.stdout)
    found = auditing.audit(
        target, settings, canaries=canaries, noise_off=noise_off, delta=delta, data_dir=data_dir, progress=progress
    )
    progress.phase("")
    report.write(found, out)
    if as_json:
        _print_json({**auditing.as_data(found), "report": str(out)})
    for line in [] if as_json else [*auditing.lines(found), f"report: {out}"]:
        typer.echo(line)
    if not auditing.passed(found):
        raise typer.Exit(1)


def main() -> NoReturn:
    """The `fedsim` command: a user's mistake is one line and a status, never a traceback."""
    terminate_as_interrupt()
    logging.basicConfig(level=logging.WARNING, format="note: %(message)s")
    try:
        status = app(standalone_mode=False) or 0  # typer gives a command's early exit, and Ctrl-C, as a number
    except FedsimError as error:
        _fail(str(error), error.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(2)
    except (KeyboardInterrupt, click.Abort):
        status = 130
    if status == 130:
        _fail("interrupted", status)
    sys.exit(status)


def _check(scenario: "Scenario", data_dir: Path | None, stream: TextIO) -> str:
    """Run a scenario cut short in a folder that does not stay; the model's fingerprint."""
    from fedsim import planning, rounds
    from fedsim.progress import Lines

    class Passing(Lines):
        """Without a closing block, which would name that folder."""

        def end(self, lines: Sequence[str]) -> None:
            self.phase("")

    with tempfile.TemporaryDirectory() as place:
        out = Path(place) / "run"
        return rounds.run(planning.fast(scenario), data_dir=data_dir, out=out, progress=Passing(stream)).fingerprint


def _fail(message: str, status: int) -> NoReturn:
    print(f"\nerror: {message}" if sys.stdout.isatty() else f"error: {message}", file=sys.stderr)
    sys.exit(status)


def _list_runs(folder: Path, as_json: bool) -> None:
    from dataclasses import asdict

    from fedsim import overview

    found, unreadable = overview.runs(folder)
    if as_json:
        reasons = {str(path): reason for path, reason in unreadable.items()}
        _print_json({"runs": [asdict(run) for run in found], "unreadable": reasons})
    for line in [] if as_json else overview.run_lines(found, unreadable):
        typer.echo(line)


def _tell_spending(folders: Sequence[Path], delta: float | None, as_json: bool) -> None:
    from fedsim import spending, spending_page

    spent = spending.spending(folders, delta)
    if as_json:
        _print_json(spending_page.as_data(spent))
    for line in [] if as_json else spending_page.spending_lines(spent):
        typer.echo(line)


def _tell_outlook(
    name: str, settings: Sequence[str], target: float | None, picture: Path | None, data_dir: Path | None, as_json: bool
) -> None:
    from fedsim import outlook, outlook_page
    from fedsim.scenario import load

    seen = outlook.look(load(name, settings), data_dir, target)
    if picture is not None:
        outlook_page.picture(seen, picture)
    if as_json:
        _print_json({**outlook_page.as_data(seen), "picture": str(picture) if picture is not None else None})
        return
    for line in outlook_page.look_lines(seen):
        typer.echo(line)
    if picture is not None:
        typer.echo(f"picture: {picture}")


def _print_forecast(lines: Sequence[Any], as_json: bool) -> None:
    if as_json:
        _print_json({line.name: line.value for line in lines})
    for line in [] if as_json else lines:
        _echo_wrapped(f"{line.name:<12} {line.text}", " " * 13, first="")


def _tell(values: Mapping[str, Any], text: str, as_json: bool) -> None:
    if as_json:
        _print_json(values)
    else:
        typer.echo(text)


def _print_json(values: Any) -> None:
    from fedsim.records import to_json

    typer.echo(json.dumps(json.loads(to_json(values)), indent=2))


def _echo_wrapped(text: str, indent: str = "    ", first: str = "    ") -> None:
    """Print a text in lines of at most 80 columns; `first` is before its first line, `indent` before the others."""
    import textwrap

    for line in textwrap.wrap(text, 80, initial_indent=first, subsequent_indent=indent):
        typer.echo(line)
