"""Commands that train: run and resume."""

import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import typer

from fedsim.console import DataDir, Json, RunPath, ScenarioName, Settings, echo_wrapped, print_json, tell
from fedsim.errors import RunFolderError, ScenarioError

if TYPE_CHECKING:
    from fedsim.forecast import Line
    from fedsim.scenario import Scenario


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
        _print_forecast([*planning.forecast(loaded, data_dir), _report_line()], as_json)
    elif fast_check:
        fingerprint = _check(loaded, data_dir, stream)
        tell({"scenario": scenario, "ok": True, "fingerprint": fingerprint}, "the scenario runs", as_json)
    else:
        result = rounds.run(loaded, data_dir=data_dir, out=out, progress=Lines(stream))
        tell_ended(result.folder, result.values, stream, as_json)


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
    from fedsim.deploy import running as deployed
    from fedsim.progress import Lines

    stream = sys.stderr if as_json else sys.stdout
    if deployed.is_deployed(folder):
        done = deployed.resume(folder, Lines(stream), rounds, settings)
        tell_ended(done.folder, done.values, stream, as_json)
        return
    result = resuming.resume(folder, rounds=rounds, settings=settings, data_dir=data_dir, progress=Lines(stream))
    tell_ended(result.folder, result.values, stream, as_json)


def tell_ended(folder: Path, values: Mapping[str, Any], stream: TextIO, as_json: bool) -> None:
    """Write a run's report, which takes half a second; without one the run is as good. For programs its summary."""
    from fedsim.report.run import report

    try:
        report(folder)
    except RunFolderError as error:
        typer.echo(f"note: no report: {error}", file=stream)
    else:
        typer.echo("report.html in it shows the run in a browser", file=stream)
    if as_json:
        print_json(values)


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


def _report_line() -> "Line":
    """What a report takes, which the command leaves beside what a run does."""
    from fedsim.forecast import Line, size
    from fedsim.report.run import TYPICAL_BYTES

    return Line("report", TYPICAL_BYTES, f"{size(TYPICAL_BYTES)} of report.html, beside that on the disk")


def _print_forecast(lines: Sequence[Any], as_json: bool) -> None:
    if as_json:
        print_json({line.name: line.value for line in lines})
    for line in [] if as_json else lines:
        echo_wrapped(f"{line.name:<12} {line.text}", " " * 13, first="")
