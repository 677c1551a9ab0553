"""The command line: thin, every command a call of the library."""

import json
import logging
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn, TextIO

import click
import typer

from fedsim.errors import FedsimError, ScenarioError

if TYPE_CHECKING:
    from fedsim.scenario import Scenario

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
Json = Annotated[bool, typer.Option("--json", help="print JSON for programs instead")]


@app.command()
def run(
    scenario: ScenarioName,
    settings: Settings = [],  # noqa: B006  typer wants a literal default
    engine: Annotated[str | None, typer.Option(help="ray or inline, instead of the scenario's")] = None,
    out: Annotated[Path | None, typer.Option(help="the run folder, which must not exist")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="say what it would cost, and stop")] = False,
    fast_check: Annotated[bool, typer.Option("--fast-check", help="two clients, two batches, one evaluation")] = False,
    as_json: Json = False,
    data_dir: DataDir = None,
) -> None:
    """Run a scenario.

    Example: fedsim run quickstart --set seed=2 --engine inline
    """
    from fedsim import rounds
    from fedsim.progress import Lines
    from fedsim.scenario import load

    if sum([dry_run, fast_check, out is not None]) > 1:
        raise ScenarioError("give one of --dry-run, --fast-check and --out: the first two leave no run folder")
    loaded = load(scenario, [*settings, *([f"engine.kind={engine}"] if engine else [])])
    stream = sys.stderr if as_json else sys.stdout
    if dry_run:
        _print_forecast(rounds.forecast(loaded, data_dir), as_json)
    elif fast_check:
        fingerprint = _check(loaded, data_dir, stream)
        _tell({"scenario": scenario, "ok": True, "fingerprint": fingerprint}, "the scenario runs", as_json)
    else:
        result = rounds.run(loaded, data_dir=data_dir, out=out, progress=Lines(stream))
        if as_json:
            _print_json(result.values)


@app.command("list")
def list_(
    what: Annotated[str, typer.Argument(help="scenarios, strategies, models, data or partitions")],
    as_json: Json = False,
) -> None:
    """List what a scenario can name, with parameters and defaults.

    Example: fedsim list strategies
    """
    from fedsim.catalogue import listing

    entries = listing(what)
    if as_json:
        _print_json([entry._asdict() for entry in entries])
    for entry in [] if as_json else entries:
        typer.echo(f"{entry.name:<18} {entry.summary}")
        if entry.parameters:
            _echo_wrapped("  ".join(f"{key} = {default}" for key, default in entry.parameters.items()))


@app.command()
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


@app.command()
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


@app.command()
def new(
    path: Annotated[Path, typer.Argument(help="the new scenario file, or folder with --folder")],
    folder: Annotated[bool, typer.Option("--folder", help="a folder with an own model and own data")] = False,
    as_json: Json = False,
) -> None:
    """Write a commented scenario to start from.

    Example: fedsim new mine.toml
    """
    from fedsim.new import create

    files = [str(file) for file in create(path, folder=folder)]
    scenario = next(file for file in files if file.endswith(".toml"))
    _tell({"files": files}, "\n".join([*files, f"next: fedsim run {scenario}"]), as_json)


def main() -> NoReturn:
    """The `fedsim` command: a user's mistake is one line and a status, never a traceback."""
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
    from fedsim import rounds
    from fedsim.progress import Lines

    class Passing(Lines):
        """Without a closing block, which would name that folder."""

        def end(self, lines: Sequence[str]) -> None:
            self.phase("")

    with tempfile.TemporaryDirectory() as place:
        out = Path(place) / "run"
        return rounds.run(rounds.fast(scenario), data_dir=data_dir, out=out, progress=Passing(stream)).fingerprint


def _fail(message: str, status: int) -> NoReturn:
    print(f"\nerror: {message}" if sys.stdout.isatty() else f"error: {message}", file=sys.stderr)
    sys.exit(status)


def _print_forecast(lines: Sequence[Any], as_json: bool) -> None:
    if as_json:
        _print_json({line.name: line.value for line in lines})
    for line in [] if as_json else lines:
        typer.echo(f"{line.name:<12} {line.text}")


def _tell(values: Mapping[str, Any], text: str, as_json: bool) -> None:
    if as_json:
        _print_json(values)
    else:
        typer.echo(text)


def _print_json(values: Any) -> None:
    from fedsim.records import to_json

    typer.echo(json.dumps(json.loads(to_json(values)), indent=2))


def _echo_wrapped(text: str) -> None:
    import textwrap

    for line in textwrap.wrap(text, 76):
        typer.echo(f"    {line}")
