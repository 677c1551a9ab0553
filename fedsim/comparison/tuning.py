"""Equal tuning: before a comparison every candidate, the references among them, gets the same number of trials.

A trial is a run under other settings, on seeds that the comparison does not use; its score is the mean over these seeds
of the validation metric after the last round. Trial 0 has the candidate's own settings; `proposals.py` has the others
follow from their number and the scores so far, so that a tuning that was killed goes on as if it had not been.

    tuning/tuning.json   every trial, written when it ends
    tuning/...           run folders of the trial in progress
"""

import json
import math
import shutil
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from fedsim import checkpoints
from fedsim.comparison import trials
from fedsim.comparison.candidates import joined
from fedsim.comparison.facts import RunFacts, facts
from fedsim.comparison.plan import Cell, Comparison, Tuning, reference_name
from fedsim.comparison.proposals import propose
from fedsim.comparison.spaces import own_values, space
from fedsim.comparison.trials import Trial, Tuned
from fedsim.errors import FedsimError, RunFolderError, ScenarioError, one_line
from fedsim.evaluation import check_choosing, default_metric
from fedsim.extras import needed
from fedsim.job import Job
from fedsim.progress import shortened
from fedsim.ranges import Range
from fedsim.records import to_json
from fedsim.registry import as_path
from fedsim.scenario import Scenario
from fedsim.stored import open_run, reading

FOLDER = Path("tuning")
FILE = FOLDER / "tuning.json"
Run = Callable[[Cell], object]
"""Runs a cell in its folder of the comparison's, or goes on with what is there; one that its rules end returns too."""
_TUNED_REFERENCES = ("local", "central")  # a constant has no rate


@dataclass(frozen=True)
class Spot:
    """What is tuned by itself: a candidate or reference under a condition.

    Attributes:
        condition, candidate: names, as in the comparison's cells.
        ranges: of its tuned keys.
        own: the values that it has for them, as far as they are known.
        folder: of its trials, in the comparison's.
    """

    condition: str
    candidate: str
    ranges: Mapping[str, Range]
    own: Mapping[str, Any]
    folder: Path

    @property
    def key(self) -> tuple[str, str]:
        """Condition and candidate."""
        return self.condition, self.candidate

    @property
    def name(self) -> str:
        """For people."""
        return joined(*self.key)

    @property
    def is_reference(self) -> bool:
        """Whether it is a reference strategy's."""
        return self.candidate.startswith(reference_name(""))

    def has(self, place: Path) -> bool:
        """Whether a folder is of one of its trials."""
        return place.parents[1] == self.folder


def spots(comparison: Comparison) -> list[Spot]:
    """What a comparison tunes, in order; whatever is wrong with a range is told here.

    Raises:
        FedsimError: Optuna is not installed, or a range or its key does not go.
    """
    needed("optuna", "tune", "tuning")
    compared = {each.name: (each.settings, each.tune) for each in comparison.candidates}
    compared |= {reference_name(name): ({}, {}) for name in _TUNED_REFERENCES if name in comparison.references}
    found: list[Spot] = []
    for cell in first_trials(comparison):
        if cell.seed == _plan(comparison).seeds[0]:
            settings, given = compared[cell.candidate]
            ranges = space(cell.scenario, given, settings)
            own = own_values(cell.scenario, ranges)
            found.append(Spot(cell.condition, cell.candidate, ranges, own, cell.folder.parents[1]))
    return found


def first_trials(comparison: Comparison) -> list[Cell]:
    """The runs of everybody's trial 0, for whoever checks and counts runs; each further trial has as many."""
    tuned = [each.name for each in comparison.candidates]
    tuned += [reference_name(name) for name in _TUNED_REFERENCES if name in comparison.references]
    found = [cell for cell in _cells(comparison, {}) if cell.candidate in tuned]
    keys = list(dict.fromkeys((cell.condition, cell.candidate) for cell in found))
    return [cell._replace(folder=_place(keys.index((cell.condition, cell.candidate)), cell)) for cell in found]


def check_judged(comparison: Comparison, job: Job) -> None:
    """Refuse to tune by what a candidate does not measure on validation rows, or what epsilon does not cover.

    Raises:
        FedsimError: names the metric and the reason.
    """
    scenario, problem, federation = job.scenario, job.build_problem(), job.federation
    if comparison.metric is not None:
        name: str | None = _on_validation(comparison.metric)
    elif job.build_algorithm().alone:
        name = f"personal/client-validation/clients/{problem.headline}"
    else:
        name = default_metric(scenario, problem, federation)
    if name is None:
        raise ScenarioError("tune: nothing is measured on validation rows; raise data.split.central")
    check_choosing(name, "tune, by metric", scenario, problem, federation)


def tune(
    comparison: Comparison,
    folder: Path,
    run: Run,
    tell: Callable[[str], None] = lambda line: None,
    left: Collection[Path] = (),
) -> Comparison:
    """Tune every candidate, or what is left of it, and give the comparison of tuned ones.

    Args:
        comparison: with `tune`.
        folder: its own.
        run: of a trial's cells.
        tell: is given a line of at most 80 columns for every trial that has ended.
        left: folders of `first_trials` of references that do not fit the problem, and are not tuned.

    Raises:
        FedsimError: a trial cannot be run or judged, or trials are not equal.
    """
    plan, places = _plan(comparison), [spot for spot in spots(comparison) if not any(map(spot.has, left))]
    done = _kept(folder / FILE, places, plan)
    counts = {spot.key: len(done[spot.key].trials) if spot.key in done else 0 for spot in places}
    waiting = [
        (number, spot)
        for number in range(plan.trials)
        for spot in places
        if number >= counts[spot.key] and (spot.ranges or not number)
    ]
    for spot in places:
        _remove(folder / spot.folder / f"trial-{counts[spot.key] - 1}")  # a kill may have left it
    if waiting:
        tell(f"{'trial':>9}  {'':<36}{'validation':>11}{'best':>11}{'s':>9}")
    for number, spot in waiting:
        done[spot.key] = now = _tried(comparison, spot, done.get(spot.key), folder, run)
        _write(folder / FILE, comparison, [done[each.key] for each in places if each.key in done])
        _remove(folder / spot.folder / f"trial-{number}")
        tell(_line(now, plan.trials))
    for spot in places:
        _remove(folder / spot.folder)
    return replace(comparison, tuned={key: each.settled for key, each in done.items() if each.settled})


def read(folder: Path) -> dict[str, Any] | None:
    """The content of a comparison's tuning.json; None where nothing was tuned.

    Raises:
        RunFolderError: it is damaged.
    """
    file = folder / FILE
    if not file.is_file():
        return None
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
        for each in values["candidates"]:
            trials.tuned(each)
        return dict(values)
    except (OSError, LookupError, TypeError, ValueError, FedsimError) as error:
        raise RunFolderError(f"{file} cannot be read: {one_line(error)}") from error


def _plan(comparison: Comparison) -> Tuning:
    assert comparison.tune is not None
    return comparison.tune


def _cells(comparison: Comparison, tuned: Mapping[tuple[str, str], Mapping[str, Any]]) -> list[Cell]:
    """The comparison's cells on the seeds of tuning, under tuned settings."""
    return replace(comparison, seeds=_plan(comparison).seeds, leave_one_out=False, tuned=tuned).cells()


def _place(position: int, cell: Cell) -> Path:
    name = as_path("-".join(filter(None, (cell.condition, cell.candidate))))[:60]
    return FOLDER / f"{position + 1}-{name}" / "trial-0" / f"seed-{cell.seed}"


def _tried(comparison: Comparison, spot: Spot, before: Tuned | None, folder: Path, run: Run) -> Tuned:
    """The trials of a spot with one more."""
    earlier = before.trials if before is not None else ()
    settings = propose(spot.ranges, earlier, before.lower, _plan(comparison)) if before is not None else spot.own
    number, found = len(earlier), list[RunFacts]()
    for cell in _cells(comparison, {spot.key: settings} if number else {}):
        if (cell.condition, cell.candidate) != spot.key:
            continue
        place = spot.folder / f"trial-{number}" / f"seed-{cell.seed}"
        (folder / place).parent.mkdir(parents=True, exist_ok=True)
        run(cell._replace(scenario=_recorded(cell.scenario), folder=place))
        found.append(facts(folder / place, cell.condition, cell.candidate))
    metric, lower = (before.metric, before.lower) if before is not None else _judged_by(comparison, spot, found[0])
    trial = _trial(settings, found, metric, f"{spot.name}, trial {number}")
    first = next((each for each in earlier if each.whole), trial)
    if trial.whole and trial.steps != first.steps:
        raise FedsimError(
            f"{comparison.origin}: {spot.name}: trial {number} took {trial.steps:,} gradient steps, others "
            f"{first.steps:,}, and all should take as many; leave what changes them out of tune: {', '.join(settings)}"
        )
    return Tuned(spot.condition, spot.candidate, metric, lower, spot.ranges, (*earlier, trial))


def _recorded(scenario: Scenario) -> Scenario:
    """With every client's steps in the records, which are counted."""
    return scenario.changed({"records.clients": "all"})


def _judged_by(comparison: Comparison, spot: Spot, run: RunFacts) -> tuple[str, bool]:
    """The validation metric that answers to the primary one, or of a reference to its own; and whether lower is better.

    Raises:
        FedsimError: the runs do not say by which they are judged.
    """
    test = run.headline if spot.is_reference else comparison.metric or run.headline
    if test is None:
        raise FedsimError(f"{comparison.origin}: {spot.name} is judged by nothing; name a metric")
    return _on_validation(test), test.split("/", 3)[-1] in run.lower


def _on_validation(metric: str) -> str:
    """The full name of a test metric on validation rows."""
    return metric.replace("-test/", "-validation/", 1)


def _trial(settings: Mapping[str, Any], runs: Sequence[RunFacts], metric: str, name: str) -> Trial:
    scores, steps, failures = [], 0, 0
    for run in runs:
        values = run.metrics.get(metric)
        if run.status == "done" and values is None:
            raise FedsimError(
                f"{name}: tuning reads {metric}, which is not measured; hold out validation rows "
                "(data.split, evaluate.clients_every), or compare by another metric"
            )
        measured = values[~np.isnan(values)] if values is not None else np.empty(0)
        finite = run.status == "done" and len(measured) > 0 and math.isfinite(measured[-1])
        scores.append(float(measured[-1]) if finite else math.nan)
        taken, failed = _steps(run.folder)
        steps, failures = steps + taken, failures + failed
    ended = next((run.reason or run.status for run, score in zip(runs, scores, strict=True) if math.isnan(score)), None)
    whole = not failures and all(run.status == "done" and len(run.rounds) == run.rounds_planned for run in runs)
    return Trial(dict(settings), tuple(scores), ended, steps, float(sum(run.seconds[-1:].sum() for run in runs)), whole)


def _steps(folder: Path) -> tuple[int, int]:
    """Gradient steps of a run, and how many clients failed."""
    with closing(open_run(folder)) as records, reading(folder):
        rows = records.select("SELECT coalesce(sum(steps), 0) FROM clients WHERE phase = 'train'")
        return sum(int(row[0]) for row in rows), len(records.failures())


def _kept(file: Path, places: Sequence[Spot], plan: Tuning) -> dict[tuple[str, str], Tuned]:
    """The trials that are there.

    Raises:
        RunFolderError: they are of another tuning.
    """
    if (values := read(file.parents[1])) is None:
        return {}
    found = {each.key: each for each in map(trials.tuned, values["candidates"])}
    ranges = {spot.key: spot.ranges for spot in places}
    same = all(each.key in ranges and each.ranges == ranges[each.key] for each in found.values())
    if not same or values["seeds"] != list(plan.seeds):
        raise RunFolderError(f"{file} is of another tuning; choose another folder with --out")
    return found


def _write(file: Path, comparison: Comparison, found: Sequence[Tuned]) -> None:
    plan = _plan(comparison)
    ended = all(len(each.trials) == plan.trials or not each.ranges for each in found)
    values = {
        "trials": plan.trials,
        "seeds": list(plan.seeds),
        "candidates": [each.values() for each in found],
        "notes": trials.notes(found, comparison.base.privacy.level is not None) if ended else [],
    }
    checkpoints.write(file, (to_json(values, indent=2) + "\n").encode())


def _remove(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)


def _line(now: Tuned, count: int) -> str:
    number, trial = len(now.trials), now.trials[-1]
    figures = "".join(
        f"{'-' if math.isnan(each) else f'{each:.4f}':>11}" for each in (trial.score, now.best_so_far[-1])
    )
    return f"{f'{number}/{count}':>9}  {shortened(now.name, 36):<36}{figures}{trial.seconds:>9.1f}"
