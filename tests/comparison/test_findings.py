"""What a comparison finds: in real run folders, and of scores that are known."""

import math
import re
import shutil
import sqlite3
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import ttest_rel

from fedsim import seeds
from fedsim.comparison.facts import facts
from fedsim.comparison.findings import Asked, Findings, RunFacts, compared, conclude, findings
from fedsim.comparison.lines import findings_lines
from fedsim.comparison.pairing import obstacle
from fedsim.comparison.plan import Target, left_out_name
from fedsim.comparison.written import parse
from fedsim.errors import RunFolderError
from fedsim.local import Work
from fedsim.parameters import fingerprint
from fedsim.rounds import run
from tests import small
from tests.comparison import made
from tests.comparison.made import METRIC, VALIDATION, WORST

VERSION_1 = Path(__file__).resolve().parents[1] / "fixtures" / "run-v1"
FEDAVG: small.Changes = {"cohort.size": 3, "rounds": 2, "data.partition.clients": 12}
FEDPROX: small.Changes = {**FEDAVG, "strategy.name": "fedprox"}


def asked(runs: list[RunFacts], **changes: object) -> Asked:
    """The first run's candidate is the reference."""
    candidates = tuple(dict.fromkeys(run.candidate for run in runs))
    conditions = tuple(dict.fromkeys(run.condition for run in runs))
    numbers = tuple(sorted({run.seed for run in runs}))
    return Asked("Made", None, METRIC, candidates, conditions, candidates[0], (), numbers)._replace(**changes)  # type: ignore[arg-type]


def found(runs: list[RunFacts], **changes: object) -> Findings:
    return conclude(asked(runs, **changes), runs)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """FedAvg and FedProx without its term at two seeds, and two that are others."""
    place = tmp_path_factory.mktemp("runs")
    for seed in (1, 2):
        for name, changes in (("fedavg", FEDAVG), ("fedprox", {**FEDPROX, "strategy.mu": 0.0})):
            small.run(small.job({**changes, "seed": seed}), place / f"{name}-{seed}")
    small.run(small.job({**FEDPROX, "strategy.mu": 0.0, "data.partition.alpha": 5.0}), place / "even")
    small.run(small.job({**FEDPROX, "strategy.mu": 0.0, "engine.workers": 1}), place / "again")
    return place


# A run as its folder tells it


@pytest.mark.parametrize("strategy", ["fedavg", "ditto", "local"])
def test_a_folder_tells_what_the_run_came_to(strategy: str, tmp_path: Path) -> None:
    job = small.job({**FEDAVG, "strategy.name": strategy, "evaluate.min_rows": 3})
    result, initial = small.run(job, tmp_path / "run"), fingerprint(Work(job).initial)
    told = facts(tmp_path / "run")
    assert (told.status, told.fingerprint, told.initial) == ("done", result.fingerprint, initial)
    assert told.own_figures == result.own_figures and told.own_figures
    shared = set[str]() if strategy == "local" else {"global"}  # else it is the model before training that was measured
    measured = result.values["metrics_last_round"].items()
    assert told.last == {name: value for name, value in measured if name.split("/")[0] in {"personal", *shared}}
    assert told.headline == result.values["headline"]["metric"] and "loss" in told.lower
    assert told.rounds.tolist() == [1, 2] and told.seconds[1] > told.seconds[0] > 0
    with closing(sqlite3.connect(tmp_path / "run" / "run.db")) as database:
        (moved,) = database.execute("SELECT sum(bytes_up + bytes_down) FROM clients WHERE phase = 'train'").fetchone()
    assert told.bytes[-1] == moved


def test_trees_have_no_model_before_training_to_be_compared(tmp_path: Path) -> None:
    trees = {
        "train": {"learning_rate": 0.3, "batch_size": 10_000},
        "rounds": 2,
        "model": {"name": "xgboost", "max_depth": 2},
        "strategy.name": "flower:FedXgbCyclic",
    }
    result = run(small.scenario(trees), out=tmp_path / "fast")
    run(small.scenario({**trees, "train.learning_rate": 0.1}), out=tmp_path / "slow")
    one, other = facts(tmp_path / "fast"), facts(tmp_path / "slow")
    assert one.own_figures == result.own_figures and one.own_figures
    assert one.score(METRIC) == result.values["metrics_last_round"][METRIC]
    assert obstacle(one, other) is None and one.cohorts == other.cohorts and not one.initial


def test_the_worst_tenth_stands_beside_what_chance_would_give(tmp_path: Path) -> None:
    result = small.run(small.job({**FEDAVG, "evaluate.min_rows": 3}), tmp_path / "run")
    assert result.values["best_round"] == 2  # the run tells it of its best round's model, findings of the last
    standing = compared([tmp_path / "run"]).standings["", "all runs"]
    assert f"  {standing.by_chance:.4f} by chance, were all clients equal" in result.lines
    assert standing.clients == result.values["clients_counted"]
    assert standing.worst == result.values["metrics"][WORST]


def test_seeds_with_too_few_clients_for_a_worst_tenth_are_left_out_and_named() -> None:
    """Its mean is over the others, so the number of clients is theirs too."""
    many, few = (dict.fromkeys(range(count), 9) for count in (12, 9))
    runs = [made.facts(name, 1, 0.8, last={METRIC: 0.8, WORST: 0.4}, own_rows=many) for name in ("a", "b")] + [
        made.facts(name, 2, 0.8, last={METRIC: 0.8}, own_rows=few) for name in ("a", "b")
    ]
    told = found(runs)
    standing = told.standings["", "a"]
    assert (standing.worst, standing.clients, standing.too_few) == (0.4, 12, (2,))
    text = " ".join(line.strip() for line in findings_lines(told))
    assert "worst 10 % over 12 clients with enough test rows, without seed 2, where fewer than ten have; by" in text


def test_seeds_with_too_few_clients_for_a_worst_gain_are_named() -> None:
    """As for the worst tenth: its mean is over the others."""
    many, few = ({client: 0.1 * client for client in range(count)} for count in (10, 9))
    runs = [
        made.facts(name, seed, 0.8, own_figures={client: lift + figure for client, figure in own.items()})
        for name, lift in (("a", 0.2), ("reference: local", 0.0))
        for seed, own in ((1, many), (2, few), (3, many))
    ]
    told = found(runs, candidates=("a",), references=("local",))
    gain = told.gains["", "a"]
    assert gain.worst_tenth == pytest.approx(0.2) and gain.too_few == (2,)
    text = " ".join(line.strip() for line in findings_lines(told))
    assert "worst 10 %, without seed 2, where fewer than ten clients have figures of both" in text
    alike = found([run for run in runs if run.seed != 2], candidates=("a",), references=("local",))
    assert alike.gains["", "a"].too_few == () and "fewer than ten" not in " ".join(findings_lines(alike))


def test_epsilon_is_of_the_client_that_spent_most(tmp_path: Path) -> None:
    promise = {"privacy.client": {"epsilon": 8.0, "delta": 1e-3, "clip": 1.0}, "strategy.weights": "uniform"}
    result = small.run(small.job({**FEDAVG, **promise}), tmp_path / "run")
    told = facts(tmp_path / "run")
    assert (told.epsilon, told.delta) == (result.values["privacy"]["largest"], 1e-3)


def test_what_records_leave_out_is_not_known_and_said(tmp_path: Path) -> None:
    small.run(small.job({**FEDAVG, "records.clients": "failed"}), tmp_path / "run")
    told = facts(tmp_path / "run")
    assert np.isnan(told.bytes).all() and not told.own_figures
    assert len(set(told.cohorts)) == 2 and "" not in told.cohorts  # who was asked can be compared all the same
    assert "records.clients leaves clients out" in compared([tmp_path / "run"]).notes[0]


def test_cohorts_are_the_same_when_the_same_clients_were_asked(folder: Path) -> None:
    first, second, prox = (facts(folder / name).cohorts for name in ("fedavg-1", "fedavg-2", "fedprox-1"))
    assert first == prox and first != second and all(len(digest) == 64 for digest in first)


def test_a_run_that_has_not_ended_has_no_score(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "fedavg-1", tmp_path / "going")
    with closing(sqlite3.connect(tmp_path / "going" / "run.db")) as database, database:
        for table in ("summary", "tests"):
            database.execute(f"DELETE FROM {table}")
    going = facts(tmp_path / "going")
    assert going.status == "unfinished" and math.isnan(going.score(METRIC)) and not going.own_figures
    assert len(going.metrics[VALIDATION]) == 2
    beside = compared([folder / "fedprox-1", tmp_path / "going"])
    assert beside.family["", "fedavg"].n == 0 and "have not finished" in " ".join(beside.notes)


def test_a_run_that_diverges_is_one_that_has(tmp_path: Path) -> None:
    from fedsim.errors import StoppedByPolicy

    with pytest.raises(StoppedByPolicy):
        small.run(small.job({**FEDAVG, "stop.diverged_above": 1e-6}), tmp_path / "run")
    told = facts(tmp_path / "run")
    assert told.status == "diverged" and "diverged" in str(told.reason) and math.isnan(told.score(METRIC))


# Runs beside each other


def test_fedprox_without_its_term_is_identical(folder: Path) -> None:
    """FedProx(0) is FedAvg, to the bit, so all differences are 0."""
    shown = compared([folder / f"{name}-{seed}" for name in ("fedavg", "fedprox") for seed in (2, 1)])
    assert shown.candidates == ("fedavg", "fedprox") and shown.seeds == (1, 2)
    assert shown.pairs == {("", "fedprox"): (1, 2)} and not shown.notes
    assert shown.differing == ("strategy.name: fedavg (2), fedprox (2)", "strategy.mu: 0.0 (2)")
    assert shown.family["", "fedprox"].verdict == "identical"
    assert all(each.mean == 0 for each in shown.intervals["", "fedprox"].values())
    assert "identical" in shown.sentences[0]


def test_another_partition_is_another_condition_and_a_repeat_is_left_out(folder: Path) -> None:
    shown = compared([folder / name for name in ("fedavg-1", "fedprox-1", "even", "again")])
    assert len(shown.conditions) == 2 and shown.pairs["alpha=0.5", "fedprox"] == (1,)
    assert shown.pairs["alpha=5", "fedprox"] == ()  # FedAvg was not run there
    assert any("again repeats" in note and "to the bit" in note for note in shown.notes)


def test_what_is_not_there_is_named(folder: Path, tmp_path: Path) -> None:
    paths = [folder / "fedavg-1", folder / "fedprox-1"]
    with pytest.raises(RunFolderError, match=r"no run has measured .*Did you mean global/central-test/rows/accuracy\?"):
        compared(paths, metric="global/central-test/rows/acuracy")
    with pytest.raises(RunFolderError, match=r"no candidate 'fedprx'\. Did you mean fedprox\?"):
        compared(paths, reference="fedprx")
    with pytest.raises(RunFolderError, match="not a run folder"):
        compared([tmp_path])
    assert compared(paths, reference="fedprox").family.keys() == {("", "fedavg")}


def test_gain_is_that_of_a_run_with_references(tmp_path: Path) -> None:
    values = run(small.scenario({**FEDAVG, "references": ["local", "central"]}), out=tmp_path / "run").values
    shown = compared([tmp_path / "run"])
    gain, expected = shown.gains["", "all runs"], values["gain_over_local"]
    assert (gain.mean, gain.share_gained, gain.worst_tenth) == (
        expected["mean"],
        expected["share_gained"],
        expected["worst_tenth"],
    )
    assert shown.references == ("local", "central") and ("", "reference: central") in shown.gains
    assert (
        shown.standings["", "reference: central"].mean == values["references"]["central"]["metrics_last_round"][METRIC]
    )


def test_a_planned_comparison_is_read_from_its_folder(folder: Path, tmp_path: Path) -> None:
    base = small.scenario({**FEDAVG, "strategy.mu": 0.0, "strategy.name": "fedprox"})
    candidates = [
        {"name": "plain", "set": {"strategy.name": "fedavg"}},
        {"name": "prox", "set": {"strategy.name": "fedprox", "strategy.mu": 0.0}},
    ]
    content = {"base": base, "candidate": candidates, "seeds": [1, 2], "references": []}
    comparison = parse(content, tmp_path, "test")
    for cell in comparison.cells()[:3]:
        name = "fedavg" if cell.candidate == "plain" else "fedprox"
        shutil.copytree(folder / f"{name}-{cell.seed}", tmp_path / cell.folder)
    shown = findings(comparison, tmp_path)
    assert shown.candidates == ("plain", "prox") and shown.pairs["", "prox"] == (1,)
    assert shown.notes[0] == "1 of 4 runs are not there yet"
    assert shown.standings["", "plain"].scores.keys() == {1, 2}


def test_strategies_without_a_common_metric_get_no_verdict(folder: Path, tmp_path: Path) -> None:
    """A strategy that shares no model has none to be measured on the server's rows."""
    small.run(small.job({**FEDAVG, "strategy.name": "local"}), tmp_path / "alone")
    shown = compared([folder / "fedavg-1", tmp_path / "alone"])
    assert shown.pairs["", "local"] == () and shown.family["", "local"].verdict == "no verdict"
    assert shown.notes == (f"local: seed 1 not paired: local does not measure {METRIC}",)


def test_a_run_of_version_1_is_read_and_not_paired(tmp_path: Path) -> None:
    """It did not record its model before training, which nobody may take for granted then."""
    other = tmp_path / "other"
    shutil.copytree(VERSION_1, other)
    text = (other / "scenario.toml").read_text()
    (other / "scenario.toml").write_text(re.sub(r"(?m)^learning_rate = .*$", "learning_rate = 0.123", text))
    shown = compared([VERSION_1, other])
    assert len(shown.candidates) == 2 and shown.standings["", shown.reference].mean > 0
    assert shown.notes == (f"{shown.candidates[1]}: seed 1 not paired: the model before training was not recorded",)


# Scores that are known


SCORES = st.lists(st.floats(0, 1).map(lambda score: round(score, 3)), min_size=5, max_size=8)


@settings(max_examples=25, deadline=None)
@given(SCORES, st.randoms(use_true_random=False))
def test_seeds_are_paired_whatever_the_order_of_runs(reference: list[float], random: object) -> None:
    noise = seeds.numpy_generator(len(reference), "test").normal(0, 0.1, len(reference))
    candidate = [score + extra for score, extra in zip(reference, noise, strict=True)]
    runs = made.runs({"one": reference, "two": candidate})
    request = asked(runs)
    random.shuffle(runs)  # type: ignore[attr-defined]
    shown = conclude(request, runs)
    pair = shown.family["", "two"]
    assert pair.p == pytest.approx(ttest_rel(candidate, reference).pvalue)
    assert pair.mean == pytest.approx(np.mean(noise))
    assert shown.standings["", "one"].mean == pytest.approx(np.mean(reference))
    assert shown.standings["", "one"].worst == pytest.approx(np.mean(reference) / 2)


def test_a_run_that_failed_counts_against_its_candidate_and_a_missing_one_for_nobody() -> None:
    runs = made.runs({"one": [0.5, 0.6, 0.7, 0.8, 0.9, 0.5, 0.6], "two": [0.6, 0.7, 0.8, 0.9, 1.0, 0.6, 0.7]})
    failed = replace(runs[-1], status="diverged", reason="the loss is not finite", last={METRIC: 0.9})
    shown = found([*runs[:-1], failed])
    assert (shown.family["", "two"].n, shown.family["", "two"].failed) == (6, 1)
    assert shown.notes == ("two, seed 7 diverged: the loss is not finite",)
    assert math.isnan(shown.standings["", "two"].scores[7])
    missing = found(runs[:-1])
    assert (missing.family["", "two"].n, missing.family["", "two"].failed) == (6, 0)
    assert WORST in missing.intervals["", "two"] and METRIC not in missing.intervals["", "two"]


def test_one_family_over_all_conditions() -> None:
    """A verdict of ten comparisons is less easily had than one of two."""
    scores = {"one": [0.50, 0.51, 0.52, 0.50, 0.53], "two": [0.60, 0.60, 0.63, 0.61, 0.62]}
    few = found(made.runs(scores, "even"))
    many = found([run for number in range(10) for run in made.runs(scores, f"condition {number}")])
    assert len(many.sentences) == 10 and many.sentences[0].startswith("condition 0: ")
    narrow, wide = few.family["even", "two"], many.family["condition 3", "two"]
    assert narrow.p == wide.p and narrow.holm < wide.holm and wide.low < narrow.low


def test_a_metric_is_lower_when_its_runs_say_so() -> None:
    runs = [
        replace(run, last={"global/central-test/rows/loss": run.last[METRIC]})
        for run in made.runs({"one": [0.5, 0.6, 0.55, 0.52, 0.58], "two": [0.3, 0.41, 0.36, 0.31, 0.37]})
    ]
    shown = found(runs, metric="global/central-test/rows/loss")
    assert shown.lower and shown.family["", "two"].verdict == "better"


def test_the_target_counts_rounds_bytes_and_seconds() -> None:
    runs = [
        replace(
            run,
            rounds=np.arange(1, 7),
            rounds_planned=6,
            metrics={VALIDATION: np.linspace(0, 1 if run.candidate == "fast" else 0.5, 6)},
            seconds=np.arange(1.0, 7) * 2,
            bytes=np.arange(1.0, 7) * 1e6,
        )
        for run in made.runs({"slow": [0.5] * 3, "fast": [0.6] * 3})
    ]
    shown = found(runs, target=Target(VALIDATION, at_least=0.6))
    fast, slow = (shown.horizon["rounds"]["", name] for name in ("fast", "slow"))
    assert (fast.reached, fast.spent.mean, slow.reached, slow.spent.mean) == (3, 5, 0, 6)
    assert shown.horizon["seconds"]["", "fast"].spent.mean == 10
    assert shown.horizon["bytes"]["", "fast"].spent.mean == 5e6
    assert "  fast, less slow: rounds -1 (-1 to -1), MB -1 (-1 to -1), seconds -2 (-2 to -2)" in findings_lines(shown)


def test_clients_left_out_are_told_by_what_the_reference_loses() -> None:
    runs = made.runs({"one": [0.5, 0.6], left_out_name(0): [0.4, 0.5], left_out_name(1): [0.6, 0.7]})
    shown = conclude(asked(runs)._replace(candidates=("one",)), runs)
    assert [shown.left_out["", client].mean for client in (0, 1)] == pytest.approx([0.1, -0.1])
    assert shown.candidates == ("one",) and not shown.family
    assert shown.sentences == ("There is one candidate, one, and nothing to compare it with.",)
