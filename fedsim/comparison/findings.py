"""What a comparison found: the runs of its folder, differences with the reference, and what can be concluded."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fedsim.comparison import conclusions, statistics, tuning
from fedsim.comparison.candidates import joined
from fedsim.comparison.facts import RunFacts, facts
from fedsim.comparison.horizon import Course, Spent, to_target
from fedsim.comparison.pairing import data_of, differing_lines, grouped, obstacle, own_ways, surroundings
from fedsim.comparison.plan import REFERENCES, Comparison, Target, left_out_name, reference_name, untuned_name
from fedsim.comparison.resampling import paired_bootstrap, read_resampled
from fedsim.comparison.standings import Gain, Key, Standing, gains, standing
from fedsim.comparison.statistics import Better, Interval, Paired
from fedsim.errors import RunFolderError
from fedsim.registry import nearest
from fedsim.stored import is_run

__all__ = ["Asked", "Findings", "Gain", "Key", "RunFacts", "Standing", "compared", "conclude", "findings"]

_ENDED = {"stopped": "was stopped", "diverged": "diverged"}


@dataclass(frozen=True)
class Findings:
    """A comparison's result; keys of mappings are (condition, candidate).

    Attributes:
        title: of the comparison.
        folder: where its runs lie; None where they were named one by one.
        metric: full name of the primary metric, measured after the last round; empty before any run has finished.
        lower: whether it is better when it is lower.
        seeds: of the comparison, in order.
        conditions: names; ("",) where there is one.
        candidates: names, without references.
        reference: the candidate that all others are compared with.
        references: names of reference strategies: "local", "central", "constant"; the candidates of their runs are
            called "reference: local" and so on.
        runs: that are there.
        standings: of candidates and references.
        family: of every candidate but the reference, its difference with the reference on the primary metric.
        pairs: of the same, the seeds whose runs are paired.
        intervals: of the same, the difference in every other test metric, by full name; no verdict.
        target: that runs were to reach; None without one.
        horizon: unit -> what it took to reach the target; empty without one.
        resampled: of the same as `family`, the difference's bootstrap interval over test rows; empty where rows were
            not kept.
        gains: over `local`; empty without that reference.
        left_out: (condition, client) -> what the reference loses without that client, positive when it helps.
        sentences: what can be concluded, in plain words.
        notes: what a reader should know: runs that are missing or ended early, seeds that are not paired and why,
            what differs between machines.
        tuning: what tuning.json says; None where nothing was tuned.
        differing: of runs that were named one by one, what they do not have in common, one line each: settings, own
            files, and what was given from Python; seeds are not among them.
    """

    title: str
    folder: Path | None
    metric: str
    lower: bool
    seeds: tuple[int, ...]
    conditions: tuple[str, ...]
    candidates: tuple[str, ...]
    reference: str
    references: tuple[str, ...]
    runs: tuple[RunFacts, ...]
    standings: Mapping[Key, Standing]
    family: Mapping[Key, Paired]
    pairs: Mapping[Key, Sequence[int]]
    intervals: Mapping[Key, Mapping[str, Interval]]
    target: Target | None
    horizon: Mapping[str, Mapping[Key, Spent]]
    resampled: Mapping[Key, Interval]
    gains: Mapping[Key, Gain]
    left_out: Mapping[tuple[str, int], Interval]
    sentences: tuple[str, ...]
    notes: tuple[str, ...]
    tuning: Mapping[str, Any] | None
    differing: tuple[str, ...] = ()

    def of(self, condition: str, candidate: str) -> list[RunFacts]:
        """The runs of a candidate in a condition, by seed."""
        mine = [run for run in self.runs if (run.condition, run.candidate) == (condition, candidate)]
        return sorted(mine, key=lambda run: run.seed)


class Asked(NamedTuple):
    """What is to be found out of runs; the names are those of `Findings`."""

    title: str
    folder: Path | None
    metric: str | None
    candidates: tuple[str, ...]
    conditions: tuple[str, ...]
    reference: str
    references: tuple[str, ...]
    seeds: tuple[int, ...]
    target: Target | None = None


def findings(comparison: Comparison, folder: Path) -> Findings:
    """What the runs show that a comparison's folder has, all of them or not yet.

    Raises:
        RunFolderError: a run cannot be read, or the primary metric was never measured.
    """
    cells = comparison.cells()
    there = [cell for cell in cells if is_run(folder / cell.folder)]
    runs = [facts(folder / cell.folder, cell.condition, cell.candidate) for cell in there]
    asked = Asked(
        comparison.title,
        folder,
        comparison.metric,
        tuple(candidate.name for candidate in comparison.candidates),
        tuple(condition.name for condition in comparison.conditions),
        comparison.reference,
        comparison.references,
        comparison.seeds,
        comparison.target,
    )
    planned = [cell for cell in cells if not cell.is_reference]  # a reference that does not fit is never run
    missing = len([cell for cell in planned if cell not in there])
    notes = [f"{missing} of {len(planned)} runs are not there yet"] if missing else []
    return replace(conclude(asked, runs, notes), tuning=tuning.read(folder))


def compared(paths: Sequence[Path], metric: str | None = None, reference: str | None = None) -> Findings:
    """What runs show beside each other; nothing is executed.

    Runs that differ in their seed alone are one candidate. The reference is the candidate of the first run. References
    that a run has beside it are taken along.

    Args:
        paths: run folders.
        metric: full name of the primary metric; by default the one by which the first run is judged.
        reference: name of a candidate.

    Raises:
        RunFolderError: a run cannot be read, or there is no such metric or candidate.
    """
    runs, notes = _once(grouped([facts(path) for path in paths]))
    candidates = tuple(dict.fromkeys(run.candidate for run in runs))
    if reference is not None and reference not in candidates:
        raise RunFolderError(f"there is no candidate {reference!r}.{nearest(reference, candidates)}")
    first = reference or candidates[0]
    places = [(run, name, run.folder / "references" / name) for run in runs for name in REFERENCES]
    beside = [(run, name, path) for run, name, path in places if run.candidate == first and is_run(path)]
    asked = Asked(
        f"{len(runs)} run{'s' if len(runs) > 1 else ''}",
        None,
        metric,
        candidates,
        tuple(dict.fromkeys(run.condition for run in runs)),
        first,
        tuple(dict.fromkeys(name for _, name, _ in beside)),
        tuple(sorted({run.seed for run in runs})),
    )
    others = [facts(path, run.condition, reference_name(name)) for run, name, path in beside]
    return replace(conclude(asked, [*runs, *others], notes), differing=tuple(differing_lines(runs)))


def _once(runs: Sequence[RunFacts]) -> tuple[list[RunFacts], list[str]]:
    """One run for each cell, the first; and what is to be said of the others."""
    first: dict[tuple[str, str, int], RunFacts] = {}
    notes = []
    for run in runs:
        kept = first.setdefault((run.condition, run.candidate, run.seed), run)
        if kept is not run:
            same = "the same model, to the bit" if kept.fingerprint == run.fingerprint else "another model"
            notes.append(f"{run.folder} repeats {kept.folder} ({same}) and is left out")
    return list(first.values()), notes


def conclude(asked: Asked, runs: Sequence[RunFacts], notes: Sequence[str] = ()) -> Findings:
    """What runs show that are at hand; `notes` are said before others.

    Raises:
        RunFolderError: the primary metric was never measured.
    """
    metric = asked.metric or _default_metric(asked, runs)
    known = {name for run in runs for name in run.last}
    if known and metric not in known:
        raise RunFolderError(f"no run has measured {metric!r} on test rows.{nearest(metric, sorted(known))}")
    lower = metric.split("/", 3)[-1] in frozenset[str]().union(*(run.lower for run in runs))
    of: dict[Key, list[RunFacts]] = {}
    for run in sorted(runs, key=lambda run: run.seed):
        of.setdefault((run.condition, run.candidate), []).append(run)
    pairs, why_not = _pairs(asked, of, metric)
    family = _family(metric, "lower" if lower else "higher", pairs)
    names = [*asked.candidates, *map(untuned_name, asked.candidates), *map(reference_name, asked.references)]
    shown = {key: of[key] for key in product(asked.conditions, names) if key in of}
    return Findings(
        title=asked.title,
        folder=asked.folder,
        metric=metric,
        lower=lower,
        seeds=asked.seeds,
        conditions=asked.conditions,
        candidates=asked.candidates,
        reference=asked.reference,
        references=asked.references,
        runs=tuple(runs),
        standings={key: standing(each, metric) for key, each in shown.items()},
        family=family,
        pairs={key: tuple(mine.seed for mine, _ in each) for key, each in pairs.items()},
        intervals={key: _intervals(each, metric) for key, each in pairs.items()},
        target=asked.target,
        horizon=_horizon(asked, shown),
        resampled=_resampled(pairs, metric),
        gains=gains(shown),
        left_out=_left_out(asked, of, metric, -1.0 if lower else 1.0),
        sentences=tuple(_sentences(asked, family, metric)),
        notes=(*notes, *_notes(asked, runs, pairs, why_not)),
        tuning=None,
    )


def _default_metric(asked: Asked, runs: Sequence[RunFacts]) -> str:
    """The metric by which the reference is judged, or else the first run that has finished."""
    first = sorted(runs, key=lambda run: (run.candidate != asked.reference, run.candidate not in asked.candidates))
    return next((run.headline for run in first if run.headline is not None), "")


Pair = tuple[RunFacts, RunFacts]
"""A candidate's run and the reference's of the same condition and seed."""


def _pairs(
    asked: Asked, runs: Mapping[Key, Sequence[RunFacts]], metric: str
) -> tuple[dict[Key, list[Pair]], dict[tuple[str, str], list[int]]]:
    """The pairs of every comparison of the family, and the seeds that are none, by what it is and why."""
    pairs: dict[Key, list[Pair]] = {}
    why_not: dict[tuple[str, str], list[int]] = {}
    others = [name for name in asked.candidates if name != asked.reference]
    for condition, name in product(asked.conditions, others):
        pairs[condition, name] = []
        for mine, theirs in _same_seeds(runs, (condition, name), (condition, asked.reference)):
            if (reason := obstacle(mine, theirs) or _unmeasured(metric, mine, theirs)) is None:
                pairs[condition, name].append((mine, theirs))
            else:
                why_not.setdefault((joined(condition, name), reason), []).append(mine.seed)
    return pairs, why_not


def _unmeasured(metric: str, *runs: RunFacts) -> str | None:
    """Why runs have no score that could be compared: one that has ended well does not measure it."""
    without = [run for run in runs if run.status == "done" and metric not in run.last]
    return f"{without[0].candidate} does not measure {metric}" if without else None


def _same_seeds(runs: Mapping[Key, Sequence[RunFacts]], one: Key, other: Key) -> Iterator[Pair]:
    """Runs of two candidates that have ended, by seed."""
    theirs = {run.seed: run for run in runs.get(other, ()) if run.status != "unfinished"}
    for mine in runs.get(one, ()):
        if mine.status != "unfinished" and mine.seed in theirs:
            yield mine, theirs[mine.seed]


def _family(metric: str, better: Better, pairs: Mapping[Key, Sequence[Pair]]) -> dict[Key, Paired]:
    scores = {key: [(mine.score(metric), theirs.score(metric)) for mine, theirs in each] for key, each in pairs.items()}
    return statistics.compare_family(
        {
            key: statistics.differences([mine for mine, _ in each], [theirs for _, theirs in each], better)
            for key, each in scores.items()
        },
        better,
    )


def _intervals(pairs: Sequence[Pair], primary: str) -> dict[str, Interval]:
    """Of the differences in every other test metric that both of a pair have measured."""
    done = [(mine.last, theirs.last) for mine, theirs in pairs if mine.status == theirs.status == "done"]
    names = dict.fromkeys(name for mine, theirs in done for name in mine if name in theirs and name != primary)
    nan = math.nan
    return {
        name: statistics.interval(mine.get(name, nan) - theirs.get(name, nan) for mine, theirs in done)
        for name in names
    }


def _resampled(pairs: Mapping[Key, Sequence[Pair]], metric: str) -> dict[Key, Interval]:
    """Intervals over test rows, which hold together as those of the family do."""
    runs = {id(run): run for each in pairs.values() for pair in each for run in pair if run.status == "done"}
    kept = {key: rows for key, run in runs.items() if (rows := read_resampled(run.folder)) is not None}
    found: dict[Key, Interval] = {}
    for key, each in pairs.items():
        both = [(mine, theirs) for mine, theirs in each if id(mine) in kept and id(theirs) in kept]
        ours, others = ({pair[side].seed: kept[id(pair[side])] for pair in both} for side in (0, 1))
        if (interval := paired_bootstrap(ours, others, metric, statistics.LEVEL / len(pairs))) is not None:
            found[key] = interval
    return found


def _horizon(asked: Asked, runs: Mapping[Key, Sequence[RunFacts]]) -> dict[str, dict[Key, Spent]]:
    """What each candidate of each condition took to reach the target."""
    spent: dict[str, dict[Key, Spent]] = {}
    if (target := asked.target) is None:
        return spent
    value, lower = (target.at_least, False) if target.at_least is not None else (target.at_most, True)
    assert value is not None  # a target has one of the two
    for condition in asked.conditions:
        courses = {
            key: {run.seed: _course(run, target.metric) for run in each if run.status != "unfinished"}
            for key, each in runs.items()
            if key[0] == condition and key[1] in asked.candidates
        }
        for unit, each in to_target(courses, (condition, asked.reference), value, lower=lower).items():
            spent.setdefault(unit, {}).update(each)
    return spent


def _course(run: RunFacts, metric: str) -> Course:
    values = run.metrics.get(metric, np.full(len(run.rounds), math.nan))
    rounds = np.asarray(run.rounds, dtype=float)
    whole = len(rounds) == run.rounds_planned
    return Course(values, {"rounds": rounds, "bytes": run.bytes, "seconds": run.seconds}, whole)


def _left_out(
    asked: Asked, runs: Mapping[Key, Sequence[RunFacts]], metric: str, sign: float
) -> dict[tuple[str, int], Interval]:
    """The reference's score less that without a client, which then is no pair: other rows are trained on."""
    found: dict[tuple[str, int], Interval] = {}
    for condition in asked.conditions:
        client = 0
        while (condition, left_out_name(client)) in runs:
            both = _same_seeds(runs, (condition, asked.reference), (condition, left_out_name(client)))
            scores = [sign * (whole.score(metric) - without.score(metric)) for whole, without in both]
            found[condition, client] = statistics.interval(scores)
            client += 1
    return found


def _sentences(asked: Asked, family: Mapping[Key, Paired], metric: str) -> Iterator[str]:
    if len(asked.candidates) == 1:
        yield f"There is one candidate, {asked.reference}, and nothing to compare it with."
        return
    for condition in asked.conditions:
        here = {name: pair for (where, name), pair in family.items() if where == condition}
        text = conclusions.sentence(here, asked.reference, metric)
        yield f"{condition}: {text}" if condition else text


def _notes(
    asked: Asked,
    runs: Sequence[RunFacts],
    pairs: Mapping[Key, Sequence[Pair]],
    why_not: Mapping[tuple[str, str], Sequence[int]],
) -> Iterator[str]:
    """What a reader should know before trusting a verdict."""
    if going := [run for run in runs if run.status == "unfinished"]:
        yield f"{len(going)} of {len(runs)} runs have not finished, such as {_run(going[0])}"
    for run in runs:
        if run.status in _ENDED:
            yield f"{_run(run)} {_ENDED[run.status]}: {run.reason}"
    for (name, reason), seeds in why_not.items():
        yield f"{name}: seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))} not paired: {reason}"
    yield from data_of([run for run in runs if run.candidate in asked.candidates])
    ways: dict[str, list[str]] = {}
    for (condition, name), each in pairs.items():
        for way in dict.fromkeys(way for mine, theirs in each for way in own_ways(mine, theirs)):
            ways.setdefault(way, []).append(joined(condition, name))
    for way, names in ways.items():
        yield f"by their own settings other {way} than the reference: {', '.join(names)}"
    if any(run.scenario.get("records", {}).get("clients", "all") != "all" for run in runs):
        yield "records.clients leaves clients out, so there are no bytes, and gains only of clients that it keeps"
    for text in surroundings(runs):
        yield f"runs were not made alike: {text}"


def _run(run: RunFacts) -> str:
    return f"{joined(run.condition, run.candidate)}, seed {run.seed}"
