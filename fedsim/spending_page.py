"""What runs have spent, as it is told: in lines for people, as values for programs."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from fedsim.overview import rounds_of
from fedsim.privacy.ledger import EVERYBODY
from fedsim.privacy.statement import shown
from fedsim.progress import wrapped
from fedsim.spending import Account, Figures, Spending, Together

SHOWN_ROUNDS = 15


def spending_lines(spent: Spending) -> list[str]:
    """For people, at most 80 columns."""
    if len(spent.accounts) == 1:
        parts = _account_lines(spent.accounts[0], spent.deltas)
    else:
        parts = [_overview_lines(spent), *(_together_lines(each) for each in spent.together)]
    parts.append([line for warning in spent.warnings for line in wrapped(f"warning: {warning}")])
    lines = [line for part in parts if part for line in ("", *part)]
    return lines[1:]


def as_data(spent: Spending) -> dict[str, Any]:
    """For programs."""
    return {
        "runs": [_account_data(each, spent.deltas) for each in spent.accounts],
        "together": [each._asdict() for each in spent.together],
        "warnings": list(spent.warnings),
    }


def _account_data(account: Account, deltas: Sequence[float]) -> dict[str, Any]:
    run = account.run
    return {
        "folder": run.folder,
        "title": run.title,
        "status": run.status,
        "corpus": account.corpus,
        "level": account.level,
        "accountant": account.accountant,
        "spent": [figures._asdict() for figures in _all_figures(account, deltas)],
        "clients": [row._asdict() for row in account.rows],
        "rounds": [{"round": number, "epsilon": epsilon} for number, epsilon in account.rounds],
        "statement": list(account.statement),
    }


def _all_figures(account: Account, deltas: Sequence[float]) -> list[Figures]:
    return [account.own, *(account.at(delta) for delta in deltas if delta != account.delta)]


def _account_lines(account: Account, deltas: Sequence[float]) -> list[list[str]]:
    run = account.run
    head = wrapped(f"{run.folder}: {run.title}, {run.status}, {rounds_of(run)} rounds")
    about = list(account.statement) or wrapped(
        f"level {account.level}, accountant {account.accountant}; what it covers is said when the run has ended"
    )
    table = [f"{'delta':>10}{'largest':>12}{'median':>12}{'smallest':>12}   the largest is of"]
    for each in _all_figures(account, deltas):
        cells = "".join(f"{shown(value):>12}" for value in (each.largest, each.median, each.smallest))
        table.append(f"{each.delta:>10g}{cells}   {_whose(each)}")
    return [[*head, *about], table, _round_lines(account)]


def _whose(figures: Figures) -> str:
    if figures.client is None:
        return "nobody was charged"
    who = "every client" if figures.client == EVERYBODY else f"client {figures.client}"
    return f"{who}, {figures.participations} rounds"


def _round_lines(account: Account) -> list[str]:
    """Epsilon after rounds, spread over the run."""
    count = len(account.rounds)
    places = np.unique(np.linspace(0, count - 1, min(count, SHOWN_ROUNDS)).round().astype(int)).tolist()
    lines = [f"{'round':>10}{'epsilon':>12}"] if count else []
    for number, epsilon in (account.rounds[place] for place in places):
        lines.append(f"{number:>10}{'-' if epsilon is None else shown(epsilon):>12}")
    return lines


def _overview_lines(spent: Spending) -> list[str]:
    """A line for each run, and its figures at other deltas."""
    lines = [f"{'run':<38}{'level':<9}{'rounds':>9}{'delta':>10}{'epsilon':>12}"]
    for account in spent.accounts:
        run = account.run
        name = [run.folder] if len(run.folder) < 38 else [*wrapped(run.folder), ""]
        for place, each in enumerate(_all_figures(account, spent.deltas)):
            facts = f"{account.level:<9}{rounds_of(run):>9}" if not place else " " * 18
            lines += name[:-1] if not place else []
            lines.append(f"{name[-1] if not place else '':<38}{facts}{each.delta:>10g}{shown(each.largest):>12}")
    return lines


def _together_lines(together: Together) -> list[str]:
    """The final run beside all of them."""
    count, charged = len(together.runs), [number for number in together.clients if number is not None]
    numbers = " or ".join(str(number) for number in sorted({*charged} - {EVERYBODY}))
    who = f"client {numbers}, in {len(charged)} of {count} runs" if numbers else "every client"
    most = f"epsilon {shown(together.largest)} ({who}; accountant {together.accountant})"
    head = f"{count} runs on {together.corpus}, level {together.level}, relation {together.relation}, delta"
    lines = [
        *wrapped(f"{head} {together.delta:g}"),
        *wrapped(f"final run, the last that was started: epsilon {shown(together.alone[-1])} ({together.runs[-1]})", 2),
    ]
    if together.anywhere is None:
        return [*lines, *wrapped(f"with tuning, all of them: {most}", 2)]
    rows = "rows that were one whole client" if together.level == "client" else "a row"
    bound = (
        f"with tuning, all of them: epsilon {shown(together.anywhere)} at most, for {rows} in each run, whichever "
        "client that was, since the data were dealt anew (accountant rdp)"
    )
    return [*lines, *wrapped(bound, 2), *wrapped(f"of a part that was dealt alike: {most}", 2)]
