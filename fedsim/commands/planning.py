"""Commands for before a run: data, machine, a first scenario, privacy."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedsim.console import DataDir, Json, ScenarioName, Settings, echo_wrapped, print_json, tell
from fedsim.errors import ScenarioError

if TYPE_CHECKING:
    pass


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
    from fedsim.federating import federate
    from fedsim.scenario import load

    loaded = load(scenario, settings)
    federation = federate(loaded, Folders.of(data_dir, loaded.folder))
    pictures.picture(federation, picture)
    table, summary = pictures.table(federation), pictures.summary(federation)
    if as_json:
        print_json({"clients": table, "summary": summary, "picture": str(picture)})
        return
    for line in pictures.table_lines(federation):
        typer.echo(line)
    typer.echo(f"picture: {picture}")


def check(
    target: Annotated[str, typer.Argument(metavar="SCENARIO|MODEL", help="a scenario; or FILE.py:NET, with its data")],
    settings: Settings = [],  # noqa: B006
    as_json: Json = False,
    data_dir: DataDir = None,
) -> None:
    """Try model, loss and metrics on one batch of one client, and say what they are to a federation.

    Example: fedsim check quickstart, or: fedsim check mine.py:Net --set data.name=digits
    """
    from fedsim import checking

    found = checking.check(target, settings, data_dir)
    if as_json:
        print_json(checking.as_data(found))
    for line in [] if as_json else checking.check_lines(found):
        typer.echo(line)


def doctor(data_dir: DataDir = None, as_json: Json = False) -> None:
    """Look at this machine: what a run needs, and what to do about what is missing.

    Example: fedsim doctor --data-dir ~/data
    """
    from fedsim.doctor import examine

    findings = examine(data_dir)
    if as_json:
        print_json([finding._asdict() for finding in findings])
    for finding in [] if as_json else findings:
        typer.echo(f"{finding.state:<8} {finding.name:<16} {finding.found}")
        if finding.remedy:
            echo_wrapped(finding.remedy)
    if any(finding.state == "missing" and not finding.name.startswith("data") for finding in findings):
        raise typer.Exit(1)


def new(
    path: Annotated[
        Path, typer.Argument(help="the new scenario file, folder with --folder or --flower, name with --strategy")
    ],
    folder: Annotated[bool, typer.Option("--folder", help="a folder with an own model and own data")] = False,
    strategy: Annotated[bool, typer.Option("--strategy", help="an own strategy, PATH.py, with its test")] = False,
    flower: Annotated[bool, typer.Option("--flower", help="a Flower app, for `fedsim flower` and `flwr run`")] = False,
    as_json: Json = False,
) -> None:
    """Write a commented scenario to start from, a commented strategy, or a Flower app.

    Example: fedsim new mine.toml, or: fedsim new --strategy mine, or: fedsim new --flower my-app
    """
    from fedsim import new as writing

    if folder + strategy + flower > 1:
        raise ScenarioError("give one of --folder, --strategy and --flower")
    if flower:
        files, advice = writing.create_app(path), writing.app_advice(path)
    elif strategy:
        files, advice = writing.create_strategy(path), writing.strategy_advice(path)
    else:
        files = writing.create(path, folder=folder)
        advice = writing.scenario_advice(files)
    tell({"files": [str(file) for file in files]}, "\n".join([*map(str, files), *advice]), as_json)


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
        print_json({**auditing.as_data(found), "report": str(out)})
    for line in [] if as_json else [*auditing.lines(found), f"report: {out}"]:
        typer.echo(line)
    if not auditing.passed(found):
        raise typer.Exit(1)


def _tell_spending(folders: Sequence[Path], delta: float | None, as_json: bool) -> None:
    from fedsim import spending, spending_page

    spent = spending.spending(folders, delta)
    if as_json:
        print_json(spending_page.as_data(spent))
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
        print_json({**outlook_page.as_data(seen), "picture": str(picture) if picture is not None else None})
        return
    for line in outlook_page.look_lines(seen):
        typer.echo(line)
    if picture is not None:
        typer.echo(f"picture: {picture}")
