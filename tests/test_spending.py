"""What runs have spent, read from their folders: at any delta, together, interrupted, and of an earlier version."""

import copy
import json
import shutil
import sqlite3
from collections.abc import Mapping, Sequence
from contextlib import closing
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fedsim
from fedsim.errors import RunFolderError, ScenarioError
from fedsim.privacy.accountant import Charge, composed, composed_anywhere, epsilon, rounded_up
from fedsim.privacy.ledger import EVERYBODY, Ledger
from fedsim.privacy.plan import Plan
from fedsim.progress import WIDTH
from fedsim.records import to_json
from fedsim.resuming import resume
from fedsim.spending import Spending, account, spending
from fedsim.spending_page import as_data, spending_lines
from fedsim.stored import open_run
from fedsim.summary import Result
from tests import small
from tests.laws.test_resumed import stopped, whole

UNIFORM: small.Changes = {"strategy.weights": "uniform", "data.partition": {"kind": "iid", "clients": 12}}
EXAMPLE = {"noise_multiplier": 1.5, "delta": 1e-3, "max_grad_norm": 1.0}
CLIENT = {"noise_multiplier": 2.0, "delta": 1e-3, "clip": 0.5}
KINDS: dict[str, small.Changes] = {
    "example": {"privacy.example": EXAMPLE},
    "example, some": {"privacy.example": EXAMPLE, "cohort.size": 2, "rounds": 4},
    "example, prv": {"privacy.example": {**EXAMPLE, "accountant": "prv"}, "cohort.size": 2},
    "client": {**UNIFORM, "privacy.client": CLIENT, "cohort.poisson": 0.5},
    "client, fixed": {**UNIFORM, "privacy.client": CLIENT, "cohort.size": 4},
    "client, tree": {
        **UNIFORM,
        "privacy.client": {**CLIENT, "mechanism": "tree", "min_separation": 3},
        "cohort.size": 3,
        "rounds": 4,
    },
    "local": {**UNIFORM, "privacy.local": {**CLIENT, "delta": 1e-4}, "cohort.size": 6},
}


def changed(kind: str, changes: small.Changes = small.NOTHING) -> small.Changes:
    """Changes of their own: who sets a key of a table would set it for all that share the table."""
    return copy.deepcopy({**KINDS[kind], **changes})


class Runs:
    """Makes each run once."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._made: dict[str, Result] = {}

    def __call__(self, kind: str, changes: small.Changes = small.NOTHING, **objects: Any) -> Result:
        name = json.dumps([kind, changes, sorted(objects)])
        if name not in self._made:
            made = small.scenario(changed(kind, changes))
            self._made[name] = fedsim.run(made, out=self._folder / str(len(self._made)), **objects)
        return self._made[name]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    return Runs(tmp_path_factory.mktemp("runs"))


def lines_of(spent: Spending) -> list[str]:
    """What is printed; it fits, and programs are told as much."""
    lines, data = spending_lines(spent), json.loads(to_json(as_data(spent)))
    assert max(map(len, lines)) <= WIDTH
    assert len(data["runs"]) == len(spent.accounts) and len(data["together"]) == len(spent.together)
    assert data["warnings"] == list(spent.warnings)
    return lines


def spent_by(plan: Plan, counts: np.ndarray, delta: float) -> list[float]:
    """Epsilon of every client that was charged so often, one by one."""
    kinds, index = plan.kinds
    charges = [
        kinds[kind]._replace(steps=kinds[kind].steps * int(n)) for kind, n in zip(index, counts, strict=True) if n
    ]
    return [epsilon(charge, delta, plan.accountant) for charge in charges]


def counts_of(result: Result, clients: int) -> np.ndarray:
    """How often each client was charged, as its own rows tell."""
    with closing(open_run(result.folder)) as records:
        trained = [row.client for row in records.clients() if row.phase == "train"]
    return np.bincount(trained, minlength=clients)


# One run


@pytest.mark.parametrize("kind", KINDS)
def test_epsilon_is_what_the_run_printed_and_at_any_delta_what_its_ledger_says(kind: str, runs: Runs) -> None:
    """To the last digit."""
    result, plan = runs(kind), small.job(changed(kind)).privacy
    assert plan is not None
    (found,) = spending([result.folder], 1e-6).accounts
    printed = result.values["privacy"]
    for name in ("delta", "largest", "median", "smallest"):
        assert getattr(found.own, name) == printed[name]
    clients = len(plan.rates)
    counts = np.full(clients, plan.rounds) if plan.by_round else counts_of(result, clients)
    every = spent_by(plan, counts, 1e-6)
    figures = found.at(1e-6)
    assert (figures.largest, figures.median, figures.smallest) == (max(every), np.median(every), min(every))
    ledger = Ledger(plan, str)
    ledger.restore(counts, plan.rounds)
    assert figures.largest == ledger.spent(1e-6).largest
    if plan.by_round:
        assert figures.client == EVERYBODY
    else:
        charged = np.flatnonzero(counts)
        assert figures.client == charged[int(np.argmax(every))] == ledger.spent(1e-6).client
        assert figures.participations == counts[figures.client]


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_is_told_with_its_statement_its_rounds_and_whose_it_is(kind: str, runs: Runs) -> None:
    result = runs(kind)
    spent = spending([result.folder], 1e-6)
    lines = lines_of(spent)
    assert all(line in lines for line in result.values["privacy"]["statement"])
    (found,) = spent.accounts
    with closing(open_run(result.folder)) as records:
        assert list(found.rounds) == [(row.number, row.epsilon) for row in records.rounds()]
    whose = "every client" if kind == "client" else f"client {found.own.client}"
    start = next(place for place, line in enumerate(lines) if line.split()[:1] == ["delta"])
    table = [line.split(maxsplit=4) for line in lines[start + 1 : start + 3]]
    assert [row[0] for row in table] == [f"{found.delta:g}", "1e-06"]
    assert all(row[4].startswith(f"{whose}, ") for row in table)
    assert [row[1] for row in table] == [rounded_up(each.largest) for each in (found.own, found.at(1e-6))]
    assert as_data(spent)["runs"][0]["rounds"][-1]["epsilon"] == found.rounds[-1][1]


@pytest.mark.parametrize("delta", [0.0, 1.0, -1e-5])
def test_delta_lies_between_0_and_1(delta: float, runs: Runs) -> None:
    with pytest.raises(ScenarioError, match=r"^--delta .*between 0 and 1"):
        spending([runs("client").folder], delta)


def test_a_run_that_promises_nothing_has_spent_nothing(runs: Runs, tmp_path: Path) -> None:
    plain = fedsim.run(small.scenario({"rounds": 1}), out=tmp_path / "plain")
    with pytest.raises(RunFolderError, match="no run here promises privacy"):
        spending([plain.folder])
    with pytest.raises(RunFolderError, match="holds no run"):
        spending([tmp_path / "plain" / "model"])
    with pytest.raises(RunFolderError, match="there is no folder"):
        spending([tmp_path / "absent"])


# Interrupted runs


@pytest.mark.parametrize("kind", ["example, some", "client", "client, tree", "local"])
def test_a_resumed_run_has_spent_what_an_uninterrupted_one_has(kind: str, tmp_path: Path) -> None:
    """And an interrupted one what its rounds cost: to the last digit, client by client."""
    part, other = (
        stopped(changed(kind, {"rounds": 4}), 2, tmp_path),
        whole(changed(kind, {"rounds": 4}), tmp_path).folder,
    )
    expected, before = account(other), account(part)
    with closing(open_run(other)) as records:
        assert before.rows == records.privacy(2)
    assert list(before.rounds) == list(expected.rounds[:2]) and before.own.largest == expected.rounds[1][1]
    assert any(line.startswith("level ") for line in lines_of(spending([part])))
    resume(part)
    after = account(part)
    assert (after.own, after.rows, after.rounds) == (expected.own, expected.rows, expected.rounds)
    assert after.at(1e-7) == expected.at(1e-7)


# Several runs


def test_two_poisson_runs_are_one_of_twice_the_rounds(runs: Runs) -> None:
    """Whatever their seeds: everybody is charged for all rounds of both."""
    one, other, both = runs("client"), runs("client", {"seed": 2}), runs("client", {"rounds": 6})
    (together,) = spending([one.folder, other.folder]).together
    assert together.largest == both.values["privacy"]["largest"]
    assert together.anywhere is None and together.clients == [EVERYBODY, EVERYBODY]
    assert any("every client" in line for line in lines_of(spending([one.folder, other.folder])))


def test_two_runs_of_the_same_data_are_one_of_twice_the_rounds(runs: Runs, tmp_path: Path) -> None:
    """At example level, where everybody takes part."""
    one, both = runs("example"), runs("example", {"rounds": 6})
    other = shutil.copytree(one.folder, tmp_path / "other")
    (together,) = spending([one.folder, other]).together
    printed = both.values["privacy"]
    assert together.largest == printed["largest"] and set(together.clients) == {printed["client"]}
    assert together.alone == [one.values["privacy"]["largest"]] * 2 and together.anywhere is None


def test_runs_compose_by_participations(runs: Runs) -> None:
    """Client by client, as often as it was drawn in both."""
    kind = "example, some"
    one, other = runs(kind), runs(kind, {"rounds": 6})
    plan = small.job(changed(kind)).privacy
    assert plan is not None
    counts = sum(counts_of(each, len(plan.rates)) for each in (one, other))
    (together,) = spending([one.folder, other.folder], 1e-4).together
    every = spent_by(plan, np.asarray(counts), 1e-4)
    assert together.largest == max(every)
    assert max(together.alone) < together.largest < sum(together.alone)


def test_natural_clients_are_the_same_in_every_run(runs: Runs) -> None:
    """Whatever the seed says of their train and test rows."""
    changes = {**small.POINTS, "data.split.central": 0.2, "rounds": 2}
    both = [runs("example", {**changes, "seed": seed}, data=small.points(0.0)).folder for seed in (1, 2)]
    (together,) = spending(both).together
    pairs = zip(account(both[0]).charges, account(both[1]).charges, strict=True)
    assert together.anywhere is None
    assert together.largest == max(composed(pair, 1e-3, "rdp") for pair in pairs)


def test_where_data_are_dealt_anew_a_row_may_have_been_with_any_client(runs: Runs) -> None:
    """An upper bound over all pairs of clients, and not far above the largest."""
    both = [runs("example", {"seed": seed}).folder for seed in (1, 5)]
    (together,) = spending(both).together
    first, second = (set(account(folder).charges) for folder in both)
    worst = max(composed(pair, together.delta, "rdp") for pair in product(first, second))
    assert together.anywhere is not None
    assert max(together.alone) < worst <= together.anywhere <= 1.1 * worst
    assert together.largest in together.alone
    text = " ".join(" ".join(lines_of(spending(both))).split())
    assert f"epsilon {rounded_up(together.anywhere)} at most" in text and "in 1 of 2 runs" in text


def test_a_bound_for_any_client_holds_where_orders_of_clients_change() -> None:
    """Who costs most alone need not cost most in company: few sharp releases, or many soft ones."""
    kinds = [Charge(0.9, 0.01, 2000), Charge(2.0, 1.0, 4), Charge(4.0, 0.2, 150)]
    for by_run in product([kinds, kinds[:2], kinds[1:]], repeat=2):
        worst = max(composed(pair, 1e-5, "rdp") for pair in product(*by_run))
        assert worst <= composed_anywhere(by_run, 1e-5)


def test_other_accountants_compose_by_rdp_and_the_same_by_their_own(runs: Runs) -> None:
    by_rdp, by_prv = runs("example, some", {"rounds": 3}), runs("example, prv")
    (mixed,) = spending([by_rdp.folder, by_prv.folder]).together
    assert mixed.accountant == "rdp"
    fixed = [runs("client, fixed"), runs("client, fixed", {"rounds": 4})]
    (exact,) = spending([each.folder for each in fixed]).together
    assert exact.accountant == "exact"
    counts = sum(counts_of(each, 12) for each in fixed)
    plan = small.job(changed("client, fixed")).privacy
    assert plan is not None
    assert exact.largest == pytest.approx(max(spent_by(plan, np.asarray(counts), 1e-3)), rel=1e-9)


def test_everybodys_rounds_count_for_each_client(runs: Runs) -> None:
    """A Poisson run charges all, one with fixed cohorts those it draws."""
    hidden, drawn = runs("client"), runs("client, fixed")
    (together,) = spending([hidden.folder, drawn.folder]).together
    (all_rounds,), some = account(hidden.folder).charges, account(drawn.folder).charges
    assert together.largest == max(composed((all_rounds, each), 1e-3, "rdp") for each in some)


def test_levels_and_relations_are_never_added_up(runs: Runs) -> None:
    folders = [runs(kind).folder for kind in ("example", "client", "local")]
    spent = spending(folders)
    assert spent.together == [] and len(spent.accounts) == 3
    assert any("never added up" in warning for warning in spent.warnings)
    assert lines_of(spent)
    replace = runs("example", {"privacy.example": {**EXAMPLE, "relation": "replace"}})
    spent = spending([folders[0], replace.folder])
    assert spent.together == [] and any("example (replace) and example (zero-out)" in line for line in spent.warnings)


def test_runs_compose_at_the_smallest_of_their_deltas(runs: Runs) -> None:
    one, other = runs("example"), runs("example", {"privacy.example": {**EXAMPLE, "delta": 1e-4}})
    spent = spending([one.folder, other.folder])
    (together,) = spent.together
    assert together.delta == 1e-4
    assert together.alone == [each.at(1e-4).largest for each in spent.accounts]
    assert spending([one.folder, other.folder], 1e-2).together[0].delta == 1e-2


def test_the_final_run_is_told_beside_all(runs: Runs, tmp_path: Path) -> None:
    """A folder of runs is all of them; a run that is named twice counts once."""
    for place, kind in enumerate(("client", "client, fixed", "example")):
        shutil.copytree(runs(kind).folder, tmp_path / "of" / f"{place}")
    spent = spending([tmp_path / "of", tmp_path / "of" / "0"])
    assert len(spent.accounts) == 3
    assert [each.run.started for each in spent.accounts] == sorted(each.run.started for each in spent.accounts)
    (together,) = spent.together
    last = spent.accounts[-1]
    assert last.run.folder == together.runs[-1] and together.alone[-1] == last.own.largest
    text = " ".join(" ".join(lines_of(spent)).split())
    assert f"final run, the last that was started: epsilon {rounded_up(last.own.largest)} (" in text
    assert f"with tuning, all of them: epsilon {rounded_up(together.largest)} (" in text


def test_a_model_without_privacy_on_the_same_data_is_told(runs: Runs, tmp_path: Path) -> None:
    """Whether it was run beside, or by itself; of other data nothing is said."""
    private = fedsim.run(small.scenario(changed("example", {"privacy.without": {}})), out=tmp_path / "private")
    plain = fedsim.run(small.scenario({"rounds": 1}), out=tmp_path / "plain")
    other = small.run(small.job(small.POINTS, data=small.points(0.0)), tmp_path / "other")
    told = spending([private.folder, plain.folder, other.folder]).warnings
    assert [line.split(" promises nothing")[0] for line in told] == [
        str(private.folder / "without-privacy"),
        str(plain.folder),
    ]
    assert any(line.startswith("warning: ") for line in lines_of(spending([private.folder])))


# Earlier versions


@pytest.fixture
def old(runs: Runs, tmp_path: Path) -> Path:
    """A run as version 2 wrote it, without mechanisms."""
    out = shutil.copytree(runs("example").folder, tmp_path / "old")
    with closing(sqlite3.connect(out / "run.db")) as database:
        for column in ("identity", "level", "relation", "sampling", "noise", "rate", "steps"):
            database.execute(f"ALTER TABLE privacy DROP COLUMN {column}")
        database.execute("PRAGMA user_version = 2")
        database.commit()
    return out


def test_a_run_of_an_earlier_version_is_shown_and_not_composed(old: Path, runs: Runs) -> None:
    spent = spending([old])
    assert spent.accounts[0].own == account(runs("example").folder).own
    assert [warning.endswith("it cannot be composed") for warning in spent.warnings] == [True]
    assert f"{rounded_up(spent.accounts[0].own.largest)}" in " ".join(lines_of(spent))
    both = spending([old, runs("example").folder])
    assert both.together == [] and len(both.accounts) == 2
    with pytest.raises(RunFolderError, match="earlier fedsim"):
        spending([old], 1e-5)


def test_runs_that_cannot_be_read_are_named(runs: Runs, tmp_path: Path) -> None:
    shutil.copytree(runs("client").folder, tmp_path / "of" / "sound")
    (tmp_path / "of" / "broken").mkdir()
    (tmp_path / "of" / "broken" / "run.db").write_bytes(b"no database, but something else altogether")
    told: Mapping[str, Any] = as_data(spending([tmp_path / "of"]))
    assert len(told["runs"]) == 1
    warnings: Sequence[str] = told["warnings"]
    assert any("broken is left out" in warning for warning in warnings)
    with pytest.raises(RunFolderError, match="cannot be read"):
        spending([tmp_path / "of" / "broken"])


def test_runs_of_one_seed_share_their_noise(runs: Runs) -> None:
    """Two models of the same noise tell by their difference what each of them hides."""
    first, other = runs("client"), runs("client", {"train.learning_rate": 0.1})
    anew = runs("client", {"seed": 9})
    shared, apart = spending([first.folder, other.folder]), spending([first.folder, anew.folder])
    assert f"{first.folder} and {other.folder} share seed 1, and so their noise" in shared.warnings[-1]
    assert not any("share seed" in warning for warning in apart.warnings)
    lines_of(shared)


def test_persons_and_rows_are_never_added_up(tmp_path: Path) -> None:
    """Removing one row moves a person's mean gradient by up to twice the clip: neither's charge covers the other."""
    rng = np.random.default_rng(0)
    lines = [
        f"{a:.3f},{b:.3f},{'yes' if a > b else 'no'},p{n // 3}" for n, (a, b) in enumerate(rng.normal(size=(240, 2)))
    ]
    (tmp_path / "table.csv").write_text("\n".join(["first,second,label,patient", *lines]))
    data = {"name": "csv", "path": "table.csv", "label": "label", "group": "patient"}
    table = {**data, "preprocess": {"kind": "constants"}, "partition": {"kind": "iid", "clients": 3}}
    folders = []
    for seed, own in ((1, {"unit": "patient"}), (2, {})):
        changes = {"data": table, "seed": seed, "privacy.example": {**EXAMPLE, **own}}
        small.run(small.job(changes, tmp_path), tmp_path / f"run-{seed}")
        folders.append(tmp_path / f"run-{seed}")
    spent = spending(folders)
    assert not spent.together
    assert "at levels example (zero-out) and example (zero-out, patient) protect something else" in spent.warnings[-1]
