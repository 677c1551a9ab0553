"""Candidates compared under the same conditions: tuned, run, judged, reported; `fedsim.compare`.

plan      what is compared, from a file, from lists of values, or from Python
compare   what is left of it: data, checks, engine, tuning, runs, findings, report
forecast  what it would take, from a few rounds of each candidate
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from fedsim import checkpoints, records
from fedsim.comparison import dry, tuning, written
from fedsim.comparison.checks import Given, Jobs, check, counted
from fedsim.comparison.execution import (
    Bench,
    Executed,
    claimed,
    ended,
    execute,
    opened,
    settled_before,
    write_plan,
)
from fedsim.comparison.findings import Findings, findings
from fedsim.comparison.lines import as_values, findings_lines
from fedsim.comparison.plan import REFERENCES, Cell, Comparison
from fedsim.comparison.view import View
from fedsim.data.transform import Transform
from fedsim.engine import starting
from fedsim.errors import Interrupted, ScenarioError
from fedsim.federating import DataSource
from fedsim.job import ModelSource
from fedsim.origins import contents, origins
from fedsim.origins import reference as called
from fedsim.own import Loss, Metric, Own
from fedsim.progress import Progress, clock, short_path
from fedsim.report.comparison import report
from fedsim.scenario import Scenario

FINDINGS = "findings.json"
REPORT = "compare.html"


def compare(
    base: Comparison | Scenario | Mapping[str, Any] | str | Path,
    *,
    candidates: Mapping[str, Mapping[str, Any]] | None = None,
    vary: Mapping[str, Sequence[Any]] | None = None,
    seeds: int | Sequence[int] | None = None,
    metric: str | None = None,
    reference: str | None = None,
    references: Sequence[str] = REFERENCES,
    leave_one_out: bool = False,
    target: Mapping[str, Any] | None = None,
    tune: int | None = None,
    budget: float | None = None,
    model: ModelSource | None = None,
    data: DataSource | None = None,
    loss: str | Loss | None = None,
    metrics: Sequence[str | Metric] = (),
    transform: str | Transform | None = None,
    data_dir: Path | None = None,
    out: Path | None = None,
    progress: Progress | None = None,
) -> Findings:
    """Compare candidates, or go on with it where it was left: the same call finds what it has done.

    Args:
        base: a scenario, its values, its file or name; or a comparison's file, which says all but what is given
            besides; or a comparison that was planned, beside which nothing that it says is given.
        candidates: settings by dotted key, by the candidate's name.
        vary: values by dotted key. Keys of data, task and adversary make conditions, others candidates.
        seeds: a number, for 1, 2, ..., or a list; 5 unless given.
        metric: full name of the test metric on which verdicts rest; by default the task's, on the server's rows.
        reference: the candidate with which the others are compared; the first unless given.
        references: strategies that are shown beside.
        leave_one_out: whether the reference is also run without each client.
        target: {"metric": name, "at_least": value}, or at_most, for rounds, bytes and seconds until then.
        tune: trials that every candidate gets first.
        budget: seconds; only seeds that end in time are run.
        model, data, loss, metrics, transform: as for `run`, the same for all.
        data_dir: where data sets are looked for first.
        out: the folder; comparisons/<name>-<digest> by default.
        progress: is told what goes on; nothing is printed by default.

    Raises:
        FedsimError: something cannot be run as it is; told before anything trains, with the candidate and the key.
        Interrupted: the same call goes on.
    """
    given = Given(model, data, Own(loss, metrics, transform), data_dir)
    changes = {
        "candidate": [{"name": name, "set": dict(each)} for name, each in candidates.items()] if candidates else None,
        "vary": {key: list(values) for key, values in vary.items()} if vary else None,
        "seeds": list(seeds) if isinstance(seeds, Sequence) else seeds,
        "metric": metric,
        "reference": reference,
        "references": list(references) if tuple(references) != REFERENCES else None,
        "leave_one_out": leave_one_out or None,
        "target": target,
        "tune": {"trials": tune} if tune is not None else None,
    }
    asked, objects = {key: value for key, value in changes.items() if value is not None}, _digest(given)
    if not isinstance(base, Comparison):
        comparison = plan(base, {**asked, **({"objects": objects} if objects else {})})
    elif asked:
        raise ScenarioError(
            f"{base.origin}: {', '.join(asked)}: a planned comparison says that itself; give it to plan"
        )
    else:
        comparison = replace(base, objects=objects or base.objects)
    view = progress if isinstance(progress, View) else View(progress)
    folder, comparison = opened(comparison, out)
    with _same_again(folder), claimed(folder):
        return _compared(comparison, folder, given, view, budget)


def plan(
    base: Scenario | Mapping[str, Any] | str | Path,
    changes: Mapping[str, Any],
    settings: Sequence[str] = (),
) -> Comparison:
    """What is compared.

    Args:
        base: of a comparison, or the comparison's file; as for `compare`.
        changes: keys of a comparison's file.
        settings: "rounds=20" and the like, for the base.

    Raises:
        ScenarioError: names the key.
    """
    if isinstance(base, str | Path) and written.is_comparison(str(base)):
        return written.load(base, changes, settings)
    scenario = base if isinstance(base, Scenario | Mapping) else str(base)
    return written.parse({"base": scenario, **changes}, Path.cwd(), _called(base), settings)


def forecast(
    comparison: Comparison, out: Path | None = None, data_dir: Path | None = None, progress: Progress | None = None
) -> list[dry.Estimate]:
    """What the runs would take that are not there yet; nothing is written.

    Raises:
        FedsimError: something cannot be run as it is.
    """
    view, jobs = View(progress), Jobs(Given(data_dir=data_dir))
    folder = (comparison.folder if out is None else out).absolute()
    comparison = settled_before(comparison, folder)
    with starting(comparison.base.engine, view.note) as started:
        view.phase("loading the data")
        comparison = counted(comparison, jobs)
        cells, _ = _fitting(comparison, folder, jobs, view)
        view.phase("starting the workers")
        waiting = [cell for cell in cells if not ended(folder / cell.folder)]
        found = dry.estimates(waiting, Bench(started(), jobs, view), view)
        if comparison.tune is not None:
            runs = list(found)
            found += dry.trials(runs, _trials(comparison), comparison.tune.trials)
            if not comparison.tuned:
                found += dry.untuned(runs, [spot.key for spot in tuning.spots(comparison) if spot.ranges])
    view.phase("")
    return found


def result_lines(found: Findings) -> list[str]:
    """For people: what was found, and where it is."""
    where = [f"{short_path(found.folder / REPORT)}"] if found.folder is not None else []
    return [*findings_lines(found), *where]


def _compared(comparison: Comparison, folder: Path, given: Given, view: View, budget: float | None) -> Findings:
    """Do what is left to be done, and say what was found."""
    if _complete(comparison, folder):
        return _found_again(comparison, folder)
    jobs = Jobs(given)
    with starting(comparison.base.engine, view.note) as started:
        view.phase("loading the data")
        comparison = counted(comparison, jobs)
        write_plan(comparison, folder)
        cells, left = _fitting(comparison, folder, jobs, view)
        view.phase("starting the workers")
        bench = Bench(started(), jobs, view)
        if comparison.tune is not None and not comparison.tuned:
            comparison = tuning.tune(comparison, folder, lambda cell: bench.run(cell, folder), view.line, left)
            write_plan(comparison, folder)
            cells = [cell for cell in comparison.cells() if cell.folder not in left]
        first = _first(comparison, folder, cells, bench, view, budget)
        executed = execute(comparison, folder, cells, bench, view, budget, first)
    view.phase("")
    return _found(comparison, folder, executed, [*comparison.unfit(), *dict.fromkeys(left.values())])


def _fitting(comparison: Comparison, folder: Path, jobs: Jobs, view: View) -> tuple[list[Cell], dict[Path, str]]:
    """The runs, checked as far as they are not there, and those of references that do not fit and are left out.

    Returns:
        All runs but these; and these, trials too, by folder with what is to be said of them.
    """
    cells, trials = comparison.cells(), _trials(comparison)
    left = check(comparison, jobs, [*(cell for cell in cells if not ended(folder / cell.folder)), *trials], view)
    return [cell for cell in cells if cell.folder not in left], left


def _trials(comparison: Comparison) -> list[Cell]:
    """The first runs of tuning, where there is any left to be done; wrong ranges are told."""
    if comparison.tune is None or comparison.tuned:
        return []
    tuning.spots(comparison)
    return tuning.first_trials(comparison)


def _first(
    comparison: Comparison, folder: Path, cells: Sequence[Cell], bench: Bench, view: View, budget: float | None
) -> float:
    """Seconds that the runs of one seed will take, measured where there is a budget.

    Raises:
        ScenarioError: more than the budget.
    """
    if budget is None:
        return 0.0
    waiting = [cell for cell in cells if not ended(folder / cell.folder)]
    if not waiting:
        return 0.0
    seed = [cell for cell in cells if cell.seed == waiting[0].seed]
    seconds = dry.total_seconds(dry.estimates(seed, bench, view))
    begun = [cell for cell in seed if cell not in waiting]
    if not begun and seconds > budget:
        raise ScenarioError(
            f"{comparison.origin}: the runs of one seed take about {clock(seconds)}, more than the budget of "
            f"{clock(budget)}; give more, or fewer candidates or rounds"
        )
    return seconds


def _found(comparison: Comparison, folder: Path, executed: Executed, notes: Sequence[str]) -> Findings:
    """What was found of the seeds that were run, written down."""
    found = findings(replace(comparison, seeds=executed.seeds), folder)
    found = replace(found, notes=(*found.notes, *notes, *executed.notes))
    checkpoints.write(folder / FINDINGS, (records.to_json(as_values(found), indent=2) + "\n").encode())
    report(found, folder / REPORT)
    return found


def _found_again(comparison: Comparison, folder: Path) -> Findings:
    """What was found of runs that are all there, with what was noted when they were made, and its page anew."""
    found = findings(comparison, folder)
    found = replace(found, notes=tuple(dict.fromkeys((*found.notes, *_written(folder)["notes"]))))
    report(found, folder / REPORT)
    return found


def _written(folder: Path) -> dict[str, Any]:
    """What was found when the runs were made."""
    return dict(json.loads((folder / FINDINGS).read_text(encoding="utf-8")))


def _complete(comparison: Comparison, folder: Path) -> bool:
    """Whether everything was run and told; references that do not fit were left out then."""
    if not (folder / FINDINGS).is_file() or (comparison.leave_one_out and not comparison.clients):
        return False
    if _written(folder)["seeds"] != list(comparison.seeds):
        return False  # a budget's, and what came later was killed before it was told
    return all(ended(folder / cell.folder) for cell in comparison.cells() if not cell.is_reference)


@contextmanager
def _same_again(folder: Path) -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        text = f"interrupted; {short_path(folder)} keeps what was done, and the same command goes on with it"
        raise Interrupted(text) from None


def _called(base: Scenario | Mapping[str, Any] | str | Path) -> str:
    """What errors call a comparison that is in no file."""
    if isinstance(base, Scenario):
        return base.origin
    return "comparison" if isinstance(base, Mapping) else str(base)


def _digest(given: Given) -> str:
    """SHA-256 of what a Python program gives, as it is written; empty where it gives nothing."""
    total, any_given = hashlib.sha256(), False
    for name, part in [("model", given.model), ("data", given.data), *given.own.parts()]:
        if part is None:
            continue
        any_given = True
        total.update(name.encode())
        if isinstance(part, Sequence) and not isinstance(part, str):
            for array in part:
                total.update(f"{array.dtype}{array.shape}".encode() + np.ascontiguousarray(array).tobytes())
            continue
        total.update(called(part).encode())
        for text in contents(origins(part)).values():
            total.update(text)
    return total.hexdigest() if any_given else ""
