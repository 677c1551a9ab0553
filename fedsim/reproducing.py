"""Published results as commands: a paper's protocol run again, its figures beside ours, and a verdict on each.

A paper's file (`scenarios/papers/*.toml`) has its table, what of its protocol is not followed, a comparison that runs
the protocol, and every published value with a tolerance that was written down before anything was run. Over seeds, ours
has a 95 % t interval. A value is reproduced where the whole interval lies within the tolerance, it is not where the
whole interval lies outside, and otherwise these seeds do not decide: a test of equivalence with two one-sided tests at
2.5 % (Schuirmann, "A Comparison of the Two One-Sided Tests Procedure and the Power Approach for Assessing the
Equivalence of Average Bioavailability", 1987).
"""

import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from pydantic import Field, ValidationError

from fedsim.comparing import compare
from fedsim.comparison.candidates import joined
from fedsim.comparison.facts import RunFacts
from fedsim.comparison.plan import Comparison
from fedsim.comparison.statistics import Interval, interval
from fedsim.comparison.written import parse
from fedsim.errors import ScenarioError
from fedsim.progress import Progress
from fedsim.registry import is_file, nearest
from fedsim.scenario_files import read
from fedsim.tables import Count, Table

Verdict = Literal["reproduced", "not reproduced", "not decided"]
Figure = Literal["last", "rounds"]


class Published(Table):
    """One value of a paper's table, and how near ours has to come.

    `figure` says what is compared: "last", the comparison's metric after the last round, or "rounds", how many a run
    needs to the comparison's target.
    """

    condition: str = ""
    candidate: str
    figure: Figure = "last"
    value: float
    spread: float | None = Field(None, ge=0, description="what the paper gives after its plus-minus sign")
    tolerance: float = Field(gt=0)


class About(Table):
    """What a paper's file says of the paper."""

    title: str
    authors: str
    venue: str
    table: str
    url: str
    checked: str = Field(description="how it was made sure that these are the published values")
    minutes: Count = Field(description="on two cores")
    departures: list[str] = Field(min_length=1, description="what of the protocol is not followed")


class PaperTable(Table):
    """A paper's file."""

    paper: About
    comparison: dict[str, Any]
    published: list[Published] = Field(min_length=1)


@dataclass(frozen=True)
class Paper:
    """A published result and what runs its protocol."""

    name: str
    about: About
    comparison: Comparison
    published: tuple[Published, ...]


class Judged(NamedTuple):
    """A published value beside ours.

    Attributes:
        published: the value.
        values: [S] ours by seed; infinite rounds where the target was not reached, nan where a run came to no figure.
        ours: mean and 95 % interval.
        verdict, why: `why` says on which side ours lies, or what is missing; empty where the value is reproduced.
    """

    published: Published
    values: tuple[float, ...]
    ours: Interval
    verdict: Verdict
    why: str


def papers() -> list[str]:
    """Names of the papers that come with fedsim."""
    return sorted(Path(entry.name).stem for entry in _shipped().iterdir() if entry.name.endswith(".toml"))


def load(name: str) -> Paper:
    """A paper by its name, or by the file of one.

    Raises:
        ScenarioError: there is neither, or the file is not sound; names file and key.
    """
    path = Path(name)
    if path.suffix != ".toml" and not is_file(path):
        if name not in papers():
            raise ScenarioError(f"there is no paper {name!r}.{nearest(name, papers())} Or give a .toml file.")
        path = Path(str(_shipped() / f"{name}.toml"))
    if not is_file(path):
        raise ScenarioError(f"{name}: there is no such file")
    try:
        table = PaperTable.model_validate(read(path))
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        raise ScenarioError(f"{path}: {key}: {first['msg'].removeprefix('Value error, ')}") from None
    plan = {"name": path.stem, **table.comparison}
    paper = Paper(path.stem, table.paper, parse(plan, path.resolve().parent, str(path)), tuple(table.published))
    _check(paper, path)
    return paper


def reproduce(
    paper: Paper, out: Path | None = None, data_dir: Path | None = None, progress: Progress | None = None
) -> tuple[list[Judged], Path]:
    """Run a paper's protocol, or what is left of it, and judge every published value.

    Args:
        paper: which.
        out: the comparison's folder; the same command goes on in it.
        data_dir: where data sets are looked for first.
        progress: is told what goes on.

    Returns:
        The published values beside ours, and the folder of the runs.

    Raises:
        FedsimError: it cannot be run as it is.
        Interrupted: the same command goes on.
    """
    found = compare(paper.comparison, out=out, data_dir=data_dir, progress=progress)
    assert found.folder is not None
    return judged(paper, found.runs), found.folder


def judged(paper: Paper, runs: Sequence[RunFacts]) -> list[Judged]:
    """Every published value beside what a comparison's runs came to."""
    return [
        judge(value, [_figure(run, value.figure, paper.comparison) for run in runs if _is_of(run, value)])
        for value in paper.published
    ]


def judge(published: Published, values: Sequence[float]) -> Judged:
    """Ours beside a published value.

    Args:
        published: with its tolerance.
        values: [S] ours by seed.
    """
    lost = [value for value in values if not math.isfinite(value)]
    ours = interval(values)
    if lost:
        unit = "did not reach the target" if published.figure == "rounds" else "came to no figure"
        return Judged(published, tuple(values), ours, "not reproduced", f"{len(lost)} of {len(values)} runs {unit}")
    if ours.n < 2:
        return Judged(published, tuple(values), ours, "not decided", "fewer than two seeds give no interval")
    least, most = _band(published)
    if least <= ours.low and ours.high <= most:
        return Judged(published, tuple(values), ours, "reproduced", "")
    if ours.high < least or ours.low > most:
        more = {"rounds": ("fewer", "more"), "last": ("lower", "higher")}[published.figure][ours.low > most]
        return Judged(published, tuple(values), ours, "not reproduced", more)
    return Judged(published, tuple(values), ours, "not decided", "the interval reaches over the tolerance's edge")


def crossing(rounds: np.ndarray, values: np.ndarray, target: float, *, lower: bool) -> float:
    """Rounds to a target as McMahan et al. 2017 count them; infinite where it is not reached.

    The curve is made monotonic, its best value so far, and followed along straight lines between measured rounds.

    Args:
        rounds: [R] numbers.
        values: [R] of the metric, nan where it was not measured.
        target: to be reached.
        lower: whether it is reached from above.
    """
    measured = ~np.isnan(values)
    if not measured.any():
        return math.inf
    at, sign = rounds[measured].astype(float), -1.0 if lower else 1.0
    best = np.maximum.accumulate(sign * values[measured])
    there = np.flatnonzero(best >= sign * target)
    if not len(there):
        return math.inf
    first = int(there[0])
    if first == 0:
        return float(at[0])
    before, after = best[first - 1], best[first]
    return float(at[first - 1] + (sign * target - before) / (after - before) * (at[first] - at[first - 1]))


def _is_of(run: RunFacts, published: Published) -> bool:
    return (run.condition, run.candidate) == (published.condition, published.candidate)


def _figure(run: RunFacts, figure: Figure, comparison: Comparison) -> float:
    if run.status == "unfinished":
        return math.nan
    if figure == "last":
        return run.score(comparison.metric or run.headline or "")
    target = comparison.target
    assert target is not None  # _check
    lower = target.at_most is not None
    goal = target.at_most if target.at_most is not None else target.at_least
    assert goal is not None
    return crossing(run.rounds, run.metrics.get(target.metric, np.full(len(run.rounds), math.nan)), goal, lower=lower)


def _check(paper: Paper, path: Path) -> None:
    conditions = [each.name for each in paper.comparison.conditions]
    candidates = [each.name for each in paper.comparison.candidates]
    for number, value in enumerate(paper.published):
        where = f"{path}: published.{number}"
        for key, name, known in (
            ("condition", value.condition, conditions),
            ("candidate", value.candidate, candidates),
        ):
            if name not in known:
                raise ScenarioError(
                    f"{where}.{key} = {name!r}: the comparison has no such {key}.{nearest(name, known)}"
                )
        if value.figure == "rounds" and paper.comparison.target is None:
            raise ScenarioError(f"{where}.figure = 'rounds' needs comparison.target; say what is to be reached")


def _shipped() -> Any:
    return files("fedsim.scenarios") / "papers"


def paper_lines(paper: Paper) -> list[str]:
    """What a paper's command is, before it runs: at most 80 columns."""
    about, comparison = paper.about, paper.comparison
    runs, seeds = _counted(len(comparison.cells()), "run"), _counted(len(comparison.seeds), "seed")
    return [
        *_wrapped(f"{about.authors}, {about.title}, {about.venue}", ""),
        *_wrapped(about.table, ""),
        *_wrapped(f"{about.url}; checked: {about.checked}", ""),
        f"{runs}, {seeds}, about {_counted(about.minutes, 'minute')} on two cores",
        "not as in the paper",
        *(line for text in about.departures for line in _wrapped(text, "    ", "  - ")),
    ]


def judged_lines(judged: Sequence[Judged], folder: Path) -> list[str]:
    """Published values, ours, and the verdicts: at most 80 columns."""
    header = f"{'':<20} {'published':>11} {'tolerance':>16} {'ours':>8} {'95 % interval':>18}"
    return [
        header,
        *map(_line, judged),
        "",
        *(line for each in judged for line in _wrapped(_told(each), "    ")),
        f"runs: {folder}",
    ]


def as_data(paper: Paper, judged: Sequence[Judged], folder: Path) -> dict[str, Any]:
    """Plain values for programs."""
    return {
        "paper": {"name": paper.name, **paper.about.model_dump(mode="json")},
        "folder": str(folder),
        "seeds": list(paper.comparison.seeds),
        "published": [
            {
                **each.published.model_dump(mode="json", exclude_none=True),
                "ours": each.ours._asdict(),
                "values": list(each.values),
                "verdict": each.verdict,
                "why": each.why,
            }
            for each in judged
        ],
    }


def _line(judged: Judged) -> str:
    published, ours = judged.published, judged.ours
    least, most = _band(published)
    value, low, high, mean = (_number(each, published.figure) for each in (published.value, least, most, ours.mean))
    spread = f" ± {_number(published.spread, published.figure)}" if published.spread is not None else ""
    between = f"{_number(ours.low, published.figure)} to {_number(ours.high, published.figure)}" if ours.n > 1 else "-"
    return f"{_name(published)[:20]:<20} {value + spread:>11} {f'{low} to {high}':>16} {mean:>8} {between:>18}"


def _band(published: Published) -> tuple[float, float]:
    return published.value - published.tolerance, published.value + published.tolerance


def _told(judged: Judged) -> str:
    why = f": {judged.why}" if judged.why else ""
    return f"{_name(judged.published)}: {judged.verdict}{why}"


def _name(published: Published) -> str:
    return joined(published.condition, published.candidate)


def _number(value: float, figure: Figure) -> str:
    if not math.isfinite(value):
        return "-"
    return f"{value:.3f}" if figure == "last" else f"{value:.0f}"


def _counted(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _wrapped(text: str, indent: str, first: str = "") -> list[str]:
    return textwrap.wrap(text, 80, initial_indent=first, subsequent_indent=indent)
