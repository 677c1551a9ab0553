"""The command that compares."""

import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fedsim.commands.citing import Figures, Format, Latex, Width, asked, draw, write_table
from fedsim.console import DataDir, Json, Settings, open_page, print_json
from fedsim.errors import ScenarioError

if TYPE_CHECKING:
    from fedsim.comparison.findings import Findings
    from fedsim.comparison.plan import Comparison
    from fedsim.report.still import Asked

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def compare(
    names: Annotated[
        list[str],
        typer.Argument(
            metavar="COMPARISON|SCENARIO|RUN...", help="a comparison.toml; a scenario, with --vary; or runs"
        ),
    ],
    vary: Annotated[
        list[str], typer.Option("--vary", metavar="KEY=A,B", help="values to compare; all combinations of several")
    ] = [],  # noqa: B006  typer wants a literal default
    seeds: Annotated[str | None, typer.Option(help="how many, or a list as 1,2,5; 5 unless the file says")] = None,
    settings: Settings = [],  # noqa: B006
    metric: Annotated[str | None, typer.Option(help="full name of the test metric on which verdicts rest")] = None,
    reference: Annotated[str | None, typer.Option(help="the candidate to compare with; the first")] = None,
    target: Annotated[
        str | None, typer.Option(metavar="METRIC>=VALUE", help="rounds, bytes and seconds until a validation metric")
    ] = None,
    no_references: Annotated[bool, typer.Option("--no-references", help="no local, central and constant")] = False,
    leave_one_out: Annotated[
        bool, typer.Option("--leave-one-out", help="also run the reference without each client, of 20 at most")
    ] = False,
    tune: Annotated[int | None, typer.Option(help="first give every candidate so many tuning trials")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="say what it would take, and stop")] = False,
    budget: Annotated[str | None, typer.Option(metavar="8h|30m", help="time; only whole seeds are run")] = None,
    engine: Annotated[str | None, typer.Option(help="ray or inline, instead of the scenario's")] = None,
    ray_address: Annotated[str | None, typer.Option(help="of a Ray cluster to run on, host:port or auto")] = None,
    out: Annotated[Path | None, typer.Option(help="the comparison's folder; one that is there goes on")] = None,
    figures: Figures = None,
    format: Format = "pdf",
    width: Width = "3.3in",
    latex: Latex = None,
    opened: Annotated[bool, typer.Option("--open", help="show the report in the browser")] = False,
    as_json: Json = False,
    data_dir: DataDir = None,
) -> None:
    """Compare strategies or any settings over seeds: what can be concluded, at what cost, for which clients.

    The same command again goes on where it was interrupted. Of run folders nothing is executed.

    Example: fedsim compare quickstart --vary strategy.name=fedavg,fedprox --seeds 5
    """
    from fedsim import comparing
    from fedsim.comparison import dry
    from fedsim.comparison.findings import compared
    from fedsim.progress import Lines
    from fedsim.stored import is_run

    how, stream = asked(format, width), sys.stderr if as_json else sys.stdout
    if all(is_run(Path(name)) for name in names):
        found = compared([Path(name) for name in names], metric, reference)
        _tell(found, as_json)
        _for_papers(found, figures, how, latex, as_json)
        return
    if len(names) > 1:
        other = next(name for name in names if not is_run(Path(name)))
        raise ScenarioError(f"{other} is no run folder; give run folders alone, or one comparison or scenario")
    changes = {
        "vary": vary,
        "seeds": seeds,
        "metric": metric,
        "reference": reference,
        "target": target,
        "references": [] if no_references else None,
        "leave_one_out": leave_one_out or None,
        "tune": tune,
    }
    chosen = {"engine.kind": engine, "engine.address": ray_address}
    settings = [*settings, *(f"{key}={value}" for key, value in chosen.items() if value is not None)]
    comparison, out, lines = _plan(names[0], changes, settings), out or _folder(names[0]), Lines(stream)
    if len(comparison.candidates) == 1:
        only = comparison.candidates[0].name
        lines.note(f"{only} is the only candidate, so nothing is compared with it; name others with --vary")
    if dry_run:
        estimates = comparing.forecast(comparison, out, data_dir, lines)
        if as_json:
            print_json(dry.as_data(estimates))
        for line in [] if as_json else dry.lines(estimates):
            typer.echo(line)
        return
    seconds = _seconds(budget) if budget is not None else None
    done = comparing.compare(comparison, out=out, budget=seconds, data_dir=data_dir, progress=lines)
    _tell(done, as_json)
    _for_papers(done, figures, how, latex, as_json)
    if opened and done.folder is not None:
        open_page(done.folder / comparing.REPORT)


def _folder(name: str) -> Path | None:
    """A comparison's folder, where that is what was named."""
    return Path(name) if (Path(name) / "comparison.toml").is_file() else None


def _plan(name: str, asked: dict[str, Any], settings: Sequence[str]) -> "Comparison":
    from fedsim import comparing
    from fedsim.comparison import written

    read = {
        "vary": written.varied,
        "seeds": _seeds,
        "target": _target,
        "tune": lambda trials: {"trials": trials},
    }
    changes = {
        key: read.get(key, lambda value: value)(value) for key, value in asked.items() if value not in (None, [])
    }
    if asked["references"] == []:
        changes["references"] = []
    folder = _folder(name)
    return comparing.plan(folder / "comparison.toml" if folder is not None else name, changes, settings)


def _seeds(text: str) -> int | list[int]:
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not parts or not all(part.isdigit() for part in parts):
        raise ScenarioError(f"--seeds {text}: give a number, for 1, 2, ..., or a list as 1,2,5")
    return int(parts[0]) if len(parts) == 1 and "," not in text else [int(part) for part in parts]


def _target(text: str) -> dict[str, Any]:
    found = re.fullmatch(r"(\S+?)\s*(>=|<=)\s*(\S+)", text.strip())
    try:
        return {"metric": found[1], "at_least" if found[2] == ">=" else "at_most": float(found[3])}  # type: ignore[index]
    except (TypeError, ValueError):
        example = "global/central-validation/rows/accuracy>=0.8"
        raise ScenarioError(f"--target {text}: write it as METRIC>=VALUE or METRIC<=VALUE, e.g. '{example}'") from None


def _seconds(text: str) -> float:
    parts = re.findall(r"(\d+(?:\.\d+)?)\s*([smhd])", text)
    if not parts or re.sub(r"(\d+(?:\.\d+)?)\s*[smhd]", "", text).strip():
        raise ScenarioError(f"--budget {text}: write it as 8h, 30m or 1h30m")
    return sum(float(number) * _UNITS[unit] for number, unit in parts)


def _tell(found: "Findings", as_json: bool) -> None:
    from fedsim import comparing
    from fedsim.comparison.lines import as_values

    if as_json:
        print_json(as_values(found))
    for line in [] if as_json else comparing.result_lines(found):
        typer.echo(line)


def _for_papers(found: "Findings", figures: Path | None, how: "Asked", latex: Path | None, quiet: bool) -> None:
    from fedsim.report import contrasts, papers

    if figures is not None:
        draw(contrasts.pictures(found), figures, how, quiet)
    if latex is not None:
        write_table(latex, papers.comparison_table(found), quiet)
