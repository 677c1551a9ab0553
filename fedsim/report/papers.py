"""What papers need of runs and comparisons: a LaTeX table, and stills with their numbers."""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path

from fedsim.comparison.facts import RunFacts, facts
from fedsim.comparison.findings import Findings, Key
from fedsim.errors import RunFolderError
from fedsim.privacy.accountant import rounded_up
from fedsim.report.candidates import names, score, short
from fedsim.report.latex import Column, Tabular, latex, number
from fedsim.stored import is_run

_BESIDE = ("without-privacy", "references/local", "references/central", "references/constant")


def comparison_table(told: Findings) -> str:
    """A comparison as a LaTeX table: scores, differences from the reference with intervals and Holm's p, and costs.

    Columns in which no candidate has anything are left out.

    Raises:
        RunFolderError: no run has finished.
    """
    if not told.metric:
        raise RunFolderError(f"{told.folder or told.title}: no run has finished, so there is nothing for a table")
    keys = [(condition, name) for condition in told.conditions for name in names(told, condition)]
    several = len(told.conditions) > 1
    columns = [
        *([Column("condition", "l")] if several else []),
        Column("", "l"),
        Column(short(told.metric)),
        Column(f"less {told.reference}"),
        Column("95 % interval"),
        Column("p"),
        Column("verdict", "l"),
        Column("worst 10 %"),
        Column("ε"),
        Column("MB"),
    ]
    rows = {key: [*([key[0]] if several else []), *_cells(told, key)] for key in keys}
    groups = [[row for key, row in rows.items() if key[0] == condition] for condition in told.conditions]
    for group in groups if several else ():
        for row in group[1:]:
            row[0] = ""
    caption = (
        f"{told.title}: {told.metric} after the last round, mean and standard deviation over {len(told.seeds)} seeds."
    )
    return latex(_lean(Tabular(columns, groups, caption, "tab:comparison", [*_notes(told)])))


def runs_table(folders: Sequence[Path]) -> str:
    """Runs, and those made beside them, as a LaTeX table.

    Raises:
        RunFolderError: no run folder, or one that cannot be read.
    """
    groups = [[_run_cells(run, name) for name, run in _with_beside(folder)] for folder in folders]
    columns = [
        Column("run", "l"),
        Column("metric", "l"),
        Column("test"),
        Column("worst 10 %"),
        Column("ε"),
        Column("rounds"),
        Column("MB"),
    ]
    caption = "Test figures after the last round."
    return latex(_lean(Tabular(columns, groups, caption, "tab:runs")))


def _cells(told: Findings, key: Key) -> list[str]:
    standing, pair = told.standings[key], told.family.get(key)
    metric, mean = score(told, key)
    spread = f" ± {number(standing.sd)}" if math.isfinite(standing.sd) and metric == told.metric else ""
    compared = ["", "", "", "reference" if key[1] == told.reference else ""]
    if pair is not None:
        ends = f"{number(pair.low)} to {number(pair.high)}" if math.isfinite(pair.low) else "–"
        compared = [number(pair.mean), ends, number(pair.holm, 3), pair.verdict]
    mark = "*" if metric != told.metric else ""
    return [
        f"{key[1]}{mark}",
        f"{number(mean)}{spread}",
        *compared,
        *_costs(standing.worst, standing.epsilon, standing.bytes),
    ]


def _costs(worst: float | None, epsilon: float | None, sent: float) -> list[str]:
    return [
        number(worst) if worst is not None else "",
        rounded_up(epsilon) if epsilon is not None else "",
        f"{sent / 1e6:.3g}" if math.isfinite(sent) else "",
    ]


def _notes(told: Findings) -> Iterator[str]:
    if told.family:
        yield (
            f"Differences are paired by seed; intervals hold together at 95 % over seeds, for this test set; p is "
            f"Holm's over {len(told.family)} comparison{'s' if len(told.family) != 1 else ''} with {told.reference}."
        )
    keys = [(condition, name) for condition in told.conditions for name in names(told, condition)]
    others = dict.fromkeys(metric for key in keys if (metric := score(told, key)[0]) != told.metric)
    if others:
        yield f"* {', '.join(others)}."
    deltas = {standing.delta for standing in told.standings.values() if standing.epsilon is not None}
    if deltas:
        at = ", ".join(f"{delta:g}" for delta in sorted(filter(None, deltas)))
        yield f"ε of the client that spent most, at δ = {at}."


def _with_beside(folder: Path) -> Iterator[tuple[str, RunFacts]]:
    run = facts(folder)
    yield str(run.scenario.get("title") or folder.name), run
    for name in _BESIDE:
        if is_run(folder / name):
            yield f"{name.removeprefix('references/').replace('-', ' ')}", facts(folder / name)


def _run_cells(run: RunFacts, name: str) -> list[str]:
    metric = run.headline or ""
    parts = metric.split("/", 3)
    worst = run.last.get(f"{parts[0]}/client-test/worst-10%/{parts[-1]}")
    sent = float(run.bytes[-1]) if len(run.bytes) else math.nan
    costs = _costs(worst, run.epsilon, sent)
    return [name, metric, number(run.last.get(metric)), *costs[:2], str(len(run.rounds)), costs[2]]


def _lean(table: Tabular) -> Tabular:
    """Without the columns that are empty in every row."""
    rows = [row for group in table.groups for row in group]
    kept = [place for place in range(len(table.columns)) if any(row[place] for row in rows)]
    return table._replace(
        columns=[table.columns[place] for place in kept],
        groups=[[[row[place] for place in kept] for row in group] for group in table.groups],
    )
