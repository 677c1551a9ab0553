"""What runs have spent, from their folders: each at any delta, and all on the same data together.

Every charge is in `run.db`, so epsilon is computed again rather than read: at the run's own delta it is what the run
printed, to the last digit. Runs compose by the identity of the data that were charged. Nothing is enforced here.
"""

import math
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple, cast, get_args

import numpy as np

from fedsim.errors import RunFolderError, ScenarioError
from fedsim.overview import Overview, Values, beside, overview, plain_scenario, runs
from fedsim.privacy.accountant import Accountant, Charge, Relation, Sampling, composed, composed_anywhere, epsilons
from fedsim.privacy.ledger import EVERYBODY
from fedsim.privacy.plan import Level
from fedsim.reading import Records
from fedsim.records import LedgerRow
from fedsim.stored import reading, stored_environment


class Figures(NamedTuple):
    """Epsilon at `delta` over the clients that were charged.

    Attributes:
        client: whose is the largest, the lowest number among equals; `EVERYBODY` where all are charged alike; None
            where nobody was.
        participations: that it was charged for.
    """

    delta: float
    largest: float
    median: float
    smallest: float
    client: int | None
    participations: int


@dataclass(frozen=True)
class Account:
    """What a run has spent.

    Attributes:
        run: in a few figures.
        corpus: name of its data.
        dealt: how they came to its clients: "natural", or the digest of the rows as they were dealt.
        level, accountant, delta: of its scenario; None where it promises nothing.
        unit: what is protected at example level, where it is not a row.
        seed: of its scenario.
        rows: every charged client's account.
        rounds: epsilon after each round.
        statement: what the run said of it at its end.
    """

    run: Overview
    corpus: str
    dealt: str
    level: str | None
    unit: str | None
    seed: int | None
    accountant: Accountant | None
    delta: float | None
    rows: Sequence[LedgerRow]
    rounds: Sequence[tuple[int, float | None]]
    statement: Sequence[str]

    @property
    def composable(self) -> bool:
        """Whether it says by what mechanism clients were charged; runs of earlier versions do not."""
        return all(row.noise is not None for row in self.rows)

    @cached_property
    def charges(self) -> list[Charge]:
        """Of each of `rows`."""
        return [_charge(row) for row in self.rows]

    @property
    def relation(self) -> str:
        """Between data sets that cannot be told apart; empty where nobody was charged."""
        return self.charges[0].relation if self.rows else ""

    def at(self, delta: float) -> Figures:
        """Epsilon at any delta, computed from the charges."""
        assert self.accountant is not None
        kinds = list(dict.fromkeys(self.charges))
        found = dict(zip(kinds, epsilons(kinds, delta, self.accountant).tolist(), strict=True))
        return _figures(delta, self.rows, [found[charge] for charge in self.charges])

    @property
    def own(self) -> Figures:
        """Epsilon at the run's delta; what it recorded where it does not say how clients were charged."""
        assert self.delta is not None
        if self.composable:
            return self.at(self.delta)
        known = [(row, row.epsilon) for row in self.rows if row.epsilon is not None]
        return _figures(self.delta, [row for row, _ in known], [epsilon for _, epsilon in known])


class Together(NamedTuple):
    """Runs at one level on one corpus, composed.

    Attributes:
        corpus, level, relation, delta, accountant: of all; the accountant is RDP where they differ.
        runs: their folders, oldest first.
        alone: epsilon of each at that delta, likewise.
        largest: of all together, over identities.
        clients: the number under which each run knew who spent that much; None where it did not charge it.
        anywhere: an upper bound where the data were dealt to clients anew, so that the same row may have been with any
            client of each run: by Renyi DP; None where they were not.
    """

    corpus: str
    level: str
    relation: str
    delta: float
    accountant: Accountant
    runs: list[str]
    alone: list[float]
    largest: float
    clients: list[int | None]
    anywhere: float | None


@dataclass(frozen=True)
class Spending:
    """What runs have spent.

    Attributes:
        accounts: of those that promise something, oldest first.
        deltas: at which their figures are wanted, besides their own.
        together: compositions of two runs or more.
        warnings: what no epsilon here covers.
    """

    accounts: Sequence[Account]
    deltas: Sequence[float]
    together: Sequence[Together]
    warnings: Sequence[str]


def spending(folders: Sequence[Path], delta: float | None = None) -> Spending:
    """Look at runs and compose them.

    Args:
        folders: of runs, or folders that hold runs.
        delta: in (0, 1), at which figures are wanted too, and at which runs are composed; by default at the smallest of
            their own.

    Raises:
        RunFolderError: no run, or one that cannot be read, or none that promises anything.
        ScenarioError: a delta out of range.
    """
    if delta is not None and not 0 < delta < 1:
        raise ScenarioError(f"--delta {delta:g}: it lies between 0 and 1, below 1 / units")
    paths, warnings = _runs(folders)
    found = [account for path in paths for account in _all(path)]
    private = sorted((one for one in found if one.level is not None), key=lambda one: one.run.started)
    if not private:
        names = ", ".join(str(folder) for folder in folders)
        raise RunFolderError(
            f"{names}: no run here promises privacy, so none spent any; see [privacy] of the scenarios"
        )
    old = [one for one in private if not one.composable]
    if delta is not None and old:
        raise RunFolderError(f"{old[0].run.folder}: {_OLD}, so it has no epsilon at another delta; leave --delta out")
    together = [_together(group, delta) for group in _groups(private)]
    return Spending(private, [delta] if delta is not None else [], together, [*warnings, *_warnings(found)])


_OLD = "an earlier fedsim wrote it and did not record by what mechanism clients were charged"


def _runs(folders: Sequence[Path]) -> tuple[list[Path], list[str]]:
    """Run folders, each once, and what is said of those that cannot be read."""
    found: dict[Path, Path] = {}
    warnings = []
    for folder in folders:
        if (folder / "run.db").exists():
            found.setdefault(folder.resolve(), folder)
            continue
        held, unreadable = runs(folder)
        if not held:
            raise RunFolderError(f"{folder} holds no run; name a run folder, or a folder of runs")
        for run in held:
            found.setdefault(Path(run.folder).resolve(), Path(run.folder))
        warnings += [f"{path} is left out, whatever it spent: {reason}" for path, reason in unreadable.items()]
    return list(found.values()), warnings


def _all(folder: Path) -> list[Account]:
    """The account of a run and of those beside it."""
    return [account(folder), *(account(Path(run.folder)) for run in beside(folder))]


def account(folder: Path) -> Account:
    """What one run has spent so far.

    Raises:
        RunFolderError: no run folder, or it cannot be read.
    """
    scenario, environment = plain_scenario(folder), stored_environment(folder)
    level, table = _promise(scenario)
    with closing(Records(folder / "run.db")) as records, reading(folder):
        summary = records.summary().get("privacy", {})
        natural = scenario.get("data", {}).get("partition", {}).get("kind") == "natural"
        rows = records.privacy() if level is not None else []
        return Account(
            run=overview(folder, records, scenario),
            corpus=str(environment.get("corpus", "")),
            dealt="natural" if natural else str(environment.get("data_sha256", "")),
            level=level,
            unit=table.get("unit"),
            seed=scenario.get("seed"),
            accountant=_accountant(table, rows) if level is not None else None,
            delta=float(table["delta"]) if level is not None else None,
            rows=rows,
            rounds=[(row.number, row.epsilon) for row in records.rounds()] if level is not None else [],
            statement=[str(line) for line in summary.get("statement", [])],
        )


def _promise(scenario: Values) -> tuple[str | None, Values]:
    """The level at which a scenario promises something, and its table."""
    privacy = scenario.get("privacy", {})
    return next(((level, privacy[level]) for level in get_args(Level) if level in privacy), (None, {}))


def _accountant(table: Values, rows: Sequence[LedgerRow]) -> Accountant:
    """The scenario's; by default RDP where chance hides units, and exact where it does not."""
    sampled = any(row.rate is None or row.rate < 1 for row in rows)
    return cast(Accountant, table.get("accountant") or ("rdp" if sampled else "exact"))


def _charge(row: LedgerRow) -> Charge:
    assert row.noise is not None and row.rate is not None and row.steps is not None
    return Charge(row.noise, row.rate, row.steps, cast(Relation, row.relation), cast(Sampling, row.sampling))


def _figures(delta: float, rows: Sequence[LedgerRow], spent: Sequence[float]) -> Figures:
    if not spent:
        return Figures(delta, 0.0, 0.0, 0.0, None, 0)
    place = int(np.argmax(spent))
    return Figures(
        delta=delta,
        largest=max(spent),
        median=float(np.median(spent)),
        smallest=min(spent),
        client=rows[place].client,
        participations=rows[place].participations,
    )


def _groups(accounts: Sequence[Account]) -> list[list[Account]]:
    """Runs that compose: of one unit at one level and relation, on one corpus, two at least."""
    groups: dict[tuple[str, str | None, str | None, str], list[Account]] = {}
    for each in accounts:
        if each.rows and each.composable:
            groups.setdefault((each.corpus, each.level, each.unit, each.relation), []).append(each)
    return [group for group in groups.values() if len(group) > 1]


def _together(group: Sequence[Account], delta: float | None) -> Together:
    delta = min(each.delta for each in group if each.delta is not None) if delta is None else delta
    accountants = {each.accountant for each in group if each.accountant is not None}
    accountant: Accountant = next(iter(accountants)) if len(accountants) == 1 else "rdp"
    most, identity = _largest(_histories(group), delta, accountant)
    dealt = {each.dealt for each in group if any(row.client != EVERYBODY for row in each.rows)}
    return Together(
        corpus=group[0].corpus,
        level=str(group[0].level),
        relation=group[0].relation,
        delta=delta,
        accountant=accountant,
        runs=[each.run.folder for each in group],
        alone=[each.at(delta).largest for each in group],
        largest=most,
        clients=[_number(each, identity) for each in group],
        anywhere=composed_anywhere([each.charges for each in group], delta) if len(dealt) > 1 else None,
    )


def _histories(group: Sequence[Account]) -> dict[str, tuple[Charge, ...]]:
    """All charges of each identity; those of everybody are everyone's."""
    histories: dict[str, list[Charge]] = {}
    pairs = [(row, charge) for each in group for row, charge in zip(each.rows, each.charges, strict=True)]
    for row, charge in pairs:
        histories.setdefault(str(row.identity), []).append(charge)
    common = {str(row.identity) for row, _ in pairs if row.client == EVERYBODY}
    shared = [charge for identity in sorted(common) for charge in histories[identity]]
    alone = {identity: charges for identity, charges in histories.items() if identity not in common}
    if not alone:
        return {sorted(common)[0]: tuple(sorted(shared))}
    return {identity: tuple(sorted([*charges, *shared])) for identity, charges in alone.items()}


def _largest(histories: Mapping[str, tuple[Charge, ...]], delta: float, accountant: Accountant) -> tuple[float, str]:
    """The largest epsilon over identities, and whose; as RDP bounds all accountants, slow ones compute few."""
    kinds: dict[tuple[Charge, ...], str] = {}
    for identity, charges in histories.items():
        kinds.setdefault(charges, identity)
    bounds = sorted(((composed(charges, delta, "rdp"), charges) for charges in kinds), reverse=True)
    most, whose = -math.inf, ""
    for bound, charges in bounds:
        if bound <= most:
            break
        if (found := composed(charges, delta, accountant)) > most:
            most, whose = found, kinds[charges]
    return most, whose


def _number(account: Account, identity: str) -> int | None:
    """The client that a run charged under an identity; all where it charged everybody."""
    numbers = [row.client for row in account.rows if row.identity == identity or row.client == EVERYBODY]
    return numbers[0] if numbers else None


def _warnings(found: Sequence[Account]) -> list[str]:
    """What no epsilon here covers."""
    private = [one for one in found if one.level is not None]
    corpora = sorted({one.corpus for one in private})
    plain = [one for one in found if one.level is None and one.corpus in corpora]
    warnings = [
        f"{one.run.folder} promises nothing and trained on the same data ({one.corpus}): no epsilon holds for who sees "
        "its model too"
        for one in plain
    ]
    warnings += [f"{one.run.folder}: {_OLD}; it cannot be composed" for one in private if not one.composable]
    for corpus in corpora:
        of_corpus = [one for one in private if one.corpus == corpus and one.composable and one.rows]
        kinds = sorted({_kind(one) for one in of_corpus})
        if len(kinds) > 1:
            warnings.append(
                f"runs on {corpus} at levels {' and '.join(kinds)} protect something else, or from somebody else: "
                "their epsilons are never added up"
            )
        warnings += _same_noise(of_corpus)
    return warnings


def _kind(account: Account) -> str:
    """What is protected, and how: "example (replace, patient_id)"."""
    return f"{account.level} ({', '.join([account.relation, *([account.unit] if account.unit else [])])})"


def _same_noise(accounts: Sequence[Account]) -> list[str]:
    """Runs whose random numbers are the same: the difference of their models can be all but free of noise."""
    by_seed: dict[int | None, list[str]] = {}
    for each in accounts:
        by_seed.setdefault(each.seed, []).append(each.run.folder)
    return [
        f"{' and '.join(folders)} share seed {seed}, and so their noise: what is composed holds of mechanisms that "
        "draw anew, and of these files nothing"
        for seed, folders in by_seed.items()
        if len(folders) > 1
    ]
