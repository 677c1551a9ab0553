"""Tuning is equal: the same trials of the same length for everybody, on validation rows of other seeds, to the bit."""

import inspect
import json
import math
import re
import tomllib
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsim import ranges, registry, rounds
from fedsim.comparison import trials, tuning
from fedsim.comparison.plan import Cell, Comparison, Tuning
from fedsim.comparison.proposals import propose
from fedsim.comparison.trials import Trial, Tuned
from fedsim.comparison.written import parse
from fedsim.errors import FedsimError, ScenarioError, StoppedByPolicy
from fedsim.ranges import Range
from fedsim.reading import Records
from tests.small import PRIVATE, SMALL, job

RATE = "train.learning_rate"
SEED = 1001
BASE: dict[str, Any] = {**SMALL, "rounds": 2, "model": {"name": "mlp", "hidden": [8]}}
VALIDATION = "global/central-validation/rows/accuracy"
NOT_TUNED = {
    ("fedadagrad", "beta1"): "the paper's 0",
    ("fedadam", "beta1"): "as the paper sets it",
    ("fedadam", "beta2"): "as the paper sets it",
    ("fedyogi", "beta1"): "as the paper sets it",
    ("fedyogi", "beta2"): "as the paper sets it",
    ("apfl", "alpha_lr"): "0 keeps alpha, which is tuned",
    ("trimmed-mean", "beta"): "what is guarded against, not what suits honest clients",
    ("centred-clipping", "tau"): "adapts where it is not given",
    ("norm-bounding", "bound"): "adapts where it is not given",
    ("rfa", "nu"): "a numerical tolerance",
    ("constant", "smoothing"): "a reference that learns nothing",
}
"""Numbers of strategies that declare no range, and why."""


def comparison(trials: int = 4, **changes: Any) -> Comparison:
    """FedAvg and FedProx on the small scenario; no references."""
    table: dict[str, Any] = {
        "base": BASE,
        "vary": {"strategy.name": ["fedavg", "fedprox"]},
        "seeds": 2,
        "references": [],
        "tune": {"trials": trials, "seeds": [SEED]},
    }
    return parse({**table, **changes}, Path(), "comparison.toml")


def runner(folder: Path, ran: list[Cell] | None = None, stop_at: int | None = None) -> Callable[[Cell], object]:
    """Runs cells in this process, and is interrupted before its run number `stop_at`."""
    done = ran if ran is not None else []

    def run(cell: Cell) -> None:
        if len(done) == stop_at:
            raise KeyboardInterrupt
        done.append(cell)
        if not (folder / cell.folder / "run.db").exists():
            (folder / cell.folder).parent.mkdir(parents=True, exist_ok=True)
            with suppress(StoppedByPolicy):
                rounds.run(cell.scenario, out=folder / cell.folder)

    return run


def content(folder: Path) -> dict[str, Any]:
    """tuning.json without what a clock says."""
    values = tuning.read(folder)
    assert values is not None
    return dict(
        json.loads(json.dumps(values), object_hook=lambda table: {k: v for k, v in table.items() if k != "seconds"})
    )


def trial(score: float, **values: Any) -> Trial:
    return Trial(values, (score,), None, 1, 0.0, True)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Comparison, list[Cell], list[str]]:
    """A small tuning: its folder, what came of it, its runs and its lines."""
    folder, ran, lines = tmp_path_factory.mktemp("tuning"), list[Cell](), list[str]()
    return folder, tuning.tune(comparison(), folder, runner(folder, ran), lines.append), ran, lines


def test_everybody_gets_equal_trials_of_equal_gradient_steps(
    finished: tuple[Path, Comparison, list[Cell], Any],
) -> None:
    """Four each; as many steps as rounds of batches of 32 rows come to, which the plan of the data says."""
    folder, _, ran, lines = finished
    values = content(folder)
    assert [len(each["trials"]) for each in values["candidates"]] == [4, 4]
    assert {cell.scenario.seed for cell in ran} == {SEED}
    assert len(lines) - 1 == len(ran) == 8
    assert max(map(len, lines)) <= 80
    steps = {each["steps"] for candidate in values["candidates"] for each in candidate["trials"]}
    assert steps == {candidate["gradient_steps"] for candidate in values["candidates"]}
    assert len(steps) == 1


def test_a_score_is_what_an_ordinary_run_says_of_its_last_round_on_validation_rows(
    finished: tuple[Path, Comparison, Any, Any], tmp_path: Path
) -> None:
    folder, _, _, _ = finished
    candidate = content(folder)["candidates"][1]
    tried = candidate["trials"][2]
    assert candidate["metric"] == VALIDATION
    assert set(tried["settings"]) == {RATE, "strategy.mu"}
    scenario = comparison().base.changed({"strategy.name": "fedprox", "seed": SEED, **tried["settings"]})
    rounds.run(scenario, out=tmp_path / "run")
    assert tried["score"] == Records(tmp_path / "run" / "run.db").metrics()[VALIDATION][2]


def test_the_tuned_comparison_has_the_best_settings_and_the_untuned_one_is_trial_0(
    finished: tuple[Path, Comparison, Any, Any],
) -> None:
    folder, tuned, _, _ = finished
    for each in content(folder)["candidates"]:
        scores = [tried["score"] for tried in each["trials"]]
        first = scores.index(max(scores))
        assert each["best"] == first
        assert tuned.tuned.get(("", each["candidate"]), {}) == (each["trials"][first]["settings"] if first else {})
        assert each["trials"][0]["settings"][RATE] == comparison().base.train.learning_rate
    assert tuned.digest == comparison().digest, "what was chosen follows from what was asked for"


def test_run_folders_of_trials_do_not_stay(finished: tuple[Path, Any, Any, Any]) -> None:
    """Trials are many; each can be made again from its settings and seed."""
    folder, _, _, _ = finished
    assert [path.name for path in (folder / "tuning").iterdir()] == ["tuning.json"]


def test_a_tuning_that_is_there_is_not_run_again(finished: tuple[Path, Comparison, Any, Any]) -> None:
    folder, tuned, _, _ = finished
    assert tuning.tune(comparison(), folder, runner(folder, stop_at=0)).tuned == tuned.tuned


@pytest.mark.parametrize("stop_at", [1, 6])
def test_killed_and_repeated_is_as_if_uninterrupted(
    finished: tuple[Path, Comparison, Any, Any], tmp_path: Path, stop_at: int
) -> None:
    with pytest.raises(KeyboardInterrupt):
        tuning.tune(comparison(), tmp_path, runner(tmp_path, stop_at=stop_at))
    tuned = tuning.tune(comparison(), tmp_path, runner(tmp_path))
    assert tuned.tuned == finished[1].tuned
    assert content(tmp_path) == content(finished[0])


def test_another_tuning_in_the_same_folder_is_refused(finished: tuple[Path, Any, Any, Any]) -> None:
    folder = finished[0]
    other = comparison(candidate=[{"name": "fedavg", "tune": {RATE: {"low": 0.1, "high": 1.0}}}], vary={})
    with pytest.raises(FedsimError, match="is of another tuning; choose another folder"):
        tuning.tune(other, folder, runner(folder, stop_at=0))


def test_a_trial_that_diverges_is_the_worst_and_nothing_breaks(tmp_path: Path) -> None:
    """Between rates that learn and rates that overflow; and where all overflow the own settings stay."""
    wild = {"low": 0.05, "high": 1e30, "log": True}
    own = {"name": "fedavg", "set": {"strategy.name": "fedavg"}, "tune": {RATE: wild}}
    lost = {"name": "lost", "set": {RATE: 1e20}, "tune": {RATE: {"low": 1e19, "high": 1e30, "log": True}}}
    tuned = tuning.tune(comparison(6, vary={}, candidate=[own, lost]), tmp_path, runner(tmp_path))
    first, second = content(tmp_path)["candidates"]
    scores = [each["score"] for each in first["trials"]]
    assert None in scores
    assert first["trials"][first["best"]]["score"] == max(score for score in scores if score is not None)
    assert [each["score"] for each in second["trials"]] == [None] * 6
    assert ("", "lost") not in tuned.tuned
    assert any(note.startswith("lost: no trial came to a score") for note in content(tmp_path)["notes"])


def test_references_are_tuned_as_equals(tmp_path: Path) -> None:
    """What federation is held against gets its own rate; each is judged by what it can be judged by."""
    tuning.tune(comparison(2, references=["local", "central", "constant"]), tmp_path, runner(tmp_path))
    found = {each["candidate"]: each for each in content(tmp_path)["candidates"]}
    assert list(found) == ["fedavg", "fedprox", "reference: local", "reference: central"]
    assert {len(each["trials"]) for each in found.values()} == {2}
    assert found["reference: local"]["metric"] == "personal/client-validation/clients/accuracy"
    assert found["reference: central"]["metric"] == VALIDATION
    assert [set(found[name]["ranges"]) for name in ("reference: local", "reference: central")] == [{RATE}, {RATE}]


def test_conditions_are_tuned_apart(tmp_path: Path) -> None:
    """A problem's best rate is its own."""
    plan = comparison(2, vary={"data.partition.alpha": [0.1, 100.0], "strategy.name": ["fedavg"]})
    tuned = tuning.tune(plan, tmp_path, runner(tmp_path))
    assert [each["condition"] for each in content(tmp_path)["candidates"]] == [each.name for each in plan.conditions]
    for (condition, name), chosen in tuned.tuned.items():
        cells = [cell for cell in tuned.cells() if (cell.condition, cell.candidate) == (condition, name)]
        assert {cell.scenario.train.learning_rate for cell in cells} == {chosen[RATE]}


LONGER = """
from typing import Annotated
from fedsim.algorithm import Algorithm, Upload, add_update
from fedsim.ranges import Range

def mine(passes: Annotated[int, Range(1, 9, whole=True)] = 1) -> Algorithm:
    def client(local):
        return Upload(local.train(local.received, epochs=passes).params - local.received)

    return Algorithm("mine", client, add_update)
"""
"""A user's strategy with a range of its own, which makes some trials longer than others."""


def test_a_trial_that_took_other_gradient_steps_is_no_equal(tmp_path: Path) -> None:
    """Whatever a strategy says of itself: steps are counted in the records."""
    (tmp_path / "mine.py").write_text(LONGER)
    base = {**BASE, "strategy": {"name": "mine.py:mine"}}
    plan = parse(
        {"base": base, "references": [], "tune": {"trials": 4}, "seeds": 2}, tmp_path, str(tmp_path / "comparison.toml")
    )
    with pytest.raises(FedsimError, match=r"trial \d took .* gradient steps, others .*leave .* out of tune: .*passes"):
        tuning.tune(plan, tmp_path, runner(tmp_path))


@pytest.mark.parametrize(
    ("key", "given", "reason"),
    [
        ("train.epochs", {"low": 1, "high": 4, "whole": True}, "tune.train.epochs changes how many gradient steps"),
        ("train.batch_size", {"choices": [8, 16]}, "tune.train.batch_size changes how many gradient steps"),
        ("cohort.fraction", {"low": 0.1, "high": 1.0}, "tune.cohort.fraction changes how many gradient steps"),
        ("data.min_rows", {"choices": [1, 2]}, "tune.data.min_rows cannot be tuned"),
        ("evaluate.every", {"choices": [1, 2]}, "tune.evaluate.every cannot be tuned"),
        ("strategy.name", {"choices": ["fedavg", "fedprox"]}, "tune.strategy.name cannot be tuned"),
        ("strategy.mu", {"low": -1.0, "high": 1.0}, r"tune.strategy.mu: .*mu = -1.0 should be at least 0"),
        ("strategy.my", {"low": 0.1, "high": 1.0}, "strategy.my is not known. Did you mean mu?"),
        ("train.momentun", {"low": 0.1, "high": 0.9}, "train.momentun is not known"),
    ],
)
def test_a_range_that_does_not_go_is_told_before_anything_trains(key: str, given: Any, reason: str) -> None:
    """With the candidate's name."""
    candidate = {"name": "mine", "set": {"strategy.name": "fedprox"}, "tune": {key: given}}
    with pytest.raises(ScenarioError, match=rf"candidate 'mine'.*{reason}"):
        tuning.spots(comparison(vary={}, candidate=[candidate]))


@pytest.mark.parametrize(
    ("changes", "metric", "reason"),
    [
        ({}, "global/client-test/rows/accuracy", None),
        ({"evaluate.clients_every": 0}, "global/client-test/rows/accuracy", "never measured: evaluate.clients_every"),
        ({"data.split.central": 0.0, "evaluate.clients_every": 0}, None, "nothing is measured on validation rows"),
        ({"strategy.name": "local"}, None, None),
        (PRIVATE, None, None),
        (PRIVATE, "global/client-test/rows/accuracy", "not covered by epsilon"),
        ({**PRIVATE, "data.split.central": 0.0}, None, "not covered by epsilon"),
    ],
)
def test_what_judges_trials_must_be_measured_and_may_not_leak(
    changes: Any, metric: str | None, reason: str | None
) -> None:
    """A choice by clients' own rows would not be private, whatever the runs promise."""
    judged = comparison(metric=metric)
    if reason is None:
        tuning.check_judged(judged, job(changes))
        return
    with pytest.raises(FedsimError, match=reason):
        tuning.check_judged(judged, job(changes))


def test_a_parameter_that_takes_more_passes_is_refused() -> None:
    candidate = {
        "name": "fedrep",
        "set": {"strategy.name": "fedrep"},
        "tune": {"strategy.head_epochs": {"choices": [1, 2]}},
    }
    with pytest.raises(ScenarioError, match=r"strategy.head_epochs = 2 changes how many gradient steps a trial takes"):
        tuning.spots(comparison(vary={}, candidate=[candidate]))


def test_what_is_compared_is_not_tuned_away() -> None:
    """Candidates that differ in mu keep theirs, unless a range is given for it."""
    plan = comparison(vary={"strategy.name": ["fedprox"], "strategy.mu": [0.0, 0.1]})
    assert [set(spot.ranges) for spot in tuning.spots(plan)] == [{RATE}, {RATE}]
    given = {"name": "a", "set": {"strategy.name": "fedprox", RATE: 0.5}, "tune": {RATE: {"low": 0.1, "high": 1.0}}}
    (spot,) = tuning.spots(comparison(vary={}, candidate=[given]))
    assert spot.ranges == {RATE: Range(0.1, 1.0), "strategy.mu": Range(1e-4, 1.0, log=True)}
    assert spot.own == {RATE: 0.5, "strategy.mu": 0.01}


def test_parts_of_other_strategies_are_tuned_too() -> None:
    table = {"name": "a", "set": {"strategy.name": "fedprox", "strategy.server": {"name": "fedavgm"}}}
    (spot,) = tuning.spots(comparison(vary={}, candidate=[table]))
    assert set(spot.ranges) == {RATE, "strategy.mu", "strategy.server.beta", "strategy.server.server_lr"}
    assert spot.own["strategy.server.beta"] == 0.9


# Proposals.

PLAN = Tuning(16, (SEED,))
SPACE = {"rate": Range(1e-3, 10.0, log=True), "beta": Range(0.0, 1.0), "kind": Range(choices=("a", "b"))}


@settings(max_examples=25, deadline=None)
@given(st.lists(st.floats(-1, 1) | st.just(math.nan), max_size=14), st.booleans())
def test_a_proposal_lies_in_its_range_and_follows_from_the_trials_before(scores: list[float], lower: bool) -> None:
    generator = np.random.default_rng(len(scores))
    before = [
        trial(score, rate=float(generator.uniform(1e-3, 10)), beta=float(generator.uniform()), kind="a")
        for score in scores
    ]
    first = propose(SPACE, before, lower, PLAN)
    assert first == propose(SPACE, list(before), lower, PLAN)
    assert all(SPACE[key].contains(value) for key, value in first.items())
    assert first["rate"] == float(f"{first['rate']:.3g}")


def test_the_first_proposals_of_a_common_rate_are_the_same_for_all() -> None:
    """So that nobody is lucky: as many numbers as a candidate has besides, and whatever it scored."""
    alone = {RATE: Range(0.01, 1.0, log=True)}
    wider = {**alone, "strategy.mu": Range(1e-4, 1.0, log=True)}
    mine, other = [trial(0.1, **{RATE: 0.1})], [trial(0.9, **{RATE: 0.1, "strategy.mu": 0.01})]
    for _ in range(7):
        first, second = propose(alone, mine, False, PLAN), propose(wider, other, False, PLAN)
        assert first[RATE] == second[RATE]
        mine.append(trial(0.2, **first))
        other.append(trial(0.1, **second))
    assert len({each.settings[RATE] for each in mine}) == 8


@pytest.mark.parametrize("lower", [False, True])
def test_sixteen_trials_come_near_the_best_rate(lower: bool) -> None:
    """The score falls with the squared distance, in decades, from a best rate that is elsewhere each time, and rates
    ten times the best diverge. Of 15 even draws over three decades one comes so near in 64 of 100 cases."""
    near = 0
    for seed in range(20):
        best = -2.5 + 2 * seed / 20
        plan, found = Tuning(16, (seed,)), list[Trial]()
        for _ in range(16):
            proposed = propose({"rate": Range(1e-3, 1.0, log=True)}, found, lower, plan)
            away = math.log10(proposed["rate"]) - best
            score = math.nan if away > 1 else away**2 * (1 if lower else -1)
            found.append(trial(score, **proposed))
        chosen = Tuned("", "a", "m", lower, {}, tuple(found))
        near += abs(math.log10(found[chosen.best].settings["rate"]) - best) < 0.1
    assert near >= 18


# What is said of trials.


@given(st.lists(st.floats(-10, 10) | st.just(math.nan), min_size=1, max_size=20), st.booleans())
def test_best_and_best_so_far_are_what_a_plain_search_finds(scores: list[float], lower: bool) -> None:
    found = Tuned("", "a", "m", lower, {}, tuple(trial(score) for score in scores))
    pick = np.nanmin if lower else np.nanmax
    for number, best in enumerate(found.best_so_far, 1):
        finite = [score for score in scores[:number] if not math.isnan(score)]
        assert best == pick(finite) if finite else math.isnan(best)
    finite = [score for score in scores if not math.isnan(score)]
    assert found.best == (scores.index(pick(finite)) if finite else 0)


def test_a_mean_over_seeds_is_nan_where_one_diverged() -> None:
    assert Trial({}, (0.25, 0.75), None, 1, 0.0, True).score == 0.5
    assert math.isnan(Trial({}, (0.25, math.nan), "diverged", 1, 0.0, False).score)


@pytest.mark.parametrize(
    ("given_range", "value", "edge"),
    [
        (Range(0.01, 1.0, log=True), 0.0125, "lower"),
        (Range(0.01, 1.0, log=True), 0.05, None),
        (Range(0.01, 1.0, log=True), 0.9, "upper"),
        (Range(0.0, 1.0), 0.04, "lower"),
        (Range(0.0, 1.0), 0.9, None),
        (Range(choices=(0.1, 1.0)), 0.1, None),
    ],
)
def test_an_optimum_at_the_edge_is_flagged(given_range: Range, value: float, edge: str | None) -> None:
    """Within a twentieth of the width, of the logarithm where that is searched."""
    found = Tuned("", "a", "m", False, {RATE: given_range}, (trial(0.1), trial(0.9, **{RATE: value})))
    assert found.edges == ({RATE: edge} if edge else {})
    assert sum(f"lies at the {edge} end" in note for note in trials.notes([found], private=False)) == bool(edge)


def test_what_was_not_tuned_alike_is_said() -> None:
    mine = Tuned("", "fedavg", "m", False, {RATE: Range(0.1, 1.0)}, (trial(0.1),))
    other = Tuned(
        "", "ditto", "m", False, {"strategy.lamda": Range(0.1, 1.0)}, (Trial({}, (0.1,), None, 2, 0.0, True),)
    )
    steps, rate, private = trials.notes([mine, other], private=True)
    assert steps.endswith("fedavg 1, ditto 2")
    assert "train.learning_rate is set, and not tuned, for ditto" in rate
    assert private.startswith("epsilon is of each single run")


def test_lines_show_untuned_beside_tuned(finished: tuple[Path, Any, Any, Any]) -> None:
    values = tuning.read(finished[0])
    assert values is not None
    text = trials.lines(values)
    assert max(map(len, text)) <= 80
    for each in values["candidates"]:
        (line,) = [line for line in text if line.strip().startswith(each["candidate"] + " ")]
        figures = [f"{each['trials'][number]['score']:.4f}" for number in (0, each["best"])]
        assert line.split()[1:] == figures


# Ranges, and what strategies declare.

NUMBERS = [
    (name, parameter.name, parameter.default)
    for name in registry.members("fedsim.strategies")
    for parameter in inspect.signature(registry.find("fedsim.strategies", name, Path(), "name")).parameters.values()
    if isinstance(parameter.default, float) or "float" in str(parameter.annotation)
]


@pytest.mark.parametrize(("strategy", "key", "default"), NUMBERS)
def test_a_strategys_number_has_a_range_with_its_default_in_it_or_a_reason(
    strategy: str, key: str, default: Any
) -> None:
    """And the strategy takes both ends."""
    function = registry.find("fedsim.strategies", strategy, Path(), "name")
    declared = registry.ranges(function, "name").get(key)
    assert (declared is None) == ((strategy, key) in NOT_TUNED)
    if declared is not None:
        assert declared.contains(default)
        for end in declared.ends:
            function(**{key: end})


numbers = st.floats(-1e6, 1e6)


@given(st.tuples(numbers, numbers).filter(lambda ends: ends[0] < ends[1]), st.booleans(), st.floats(0, 1))
def test_a_range_is_written_and_read(ends: tuple[float, float], log: bool, place: float) -> None:
    low, high = ends
    given_range = Range(low, high, log and low > 0)
    assert ranges.read(given_range.table(), "key") == given_range
    assert given_range.contains(low)
    assert given_range.contains(high)
    assert not given_range.contains(math.nextafter(high, math.inf))


@pytest.mark.parametrize(
    "table",
    [
        {},
        0.1,
        {"low": 1.0},
        {"low": 1.0, "high": 1.0},
        {"low": 0.0, "high": 1.0, "log": True},
        {"low": 0.5, "high": 2.0, "whole": True},
        {"low": 1.0, "high": 2.0, "step": 1},
        {"low": True, "high": 2.0},
        {"low": "a", "high": 2.0},
        {"choices": []},
        {"choices": [1]},
        {"choices": [1, 1]},
        {"choices": [1, 2], "low": 1.0},
        {"low": math.nan, "high": 1.0},
        {"low": 0.0, "high": math.inf},
    ],
)
def test_what_is_no_range_is_refused_in_a_line_that_names_the_key(table: Any) -> None:
    with pytest.raises(ScenarioError, match=r"^tune\.key: [^\n]+$"):
        ranges.read(table, "tune.key")


def test_what_tuning_changed_is_run_untuned_beside_it() -> None:
    """On the same seeds; whoever stayed as it was is there once."""
    plan = replace(comparison(), tuned={("", "fedprox"): {RATE: 0.7}})
    rates = {cell.candidate: cell.scenario.train.learning_rate for cell in plan.cells()}
    assert rates == {"fedavg": 0.2, "fedprox": 0.7, "untuned: fedprox": 0.2}
    assert len({cell.folder for cell in plan.cells()}) == 6
    again = parse(tomllib.loads(plan.to_toml()), Path(), "comparison.toml")
    assert [cell.scenario.to_toml() for cell in again.cells()] == [cell.scenario.to_toml() for cell in plan.cells()]


# docs/tuning.md.

PAGE = (Path(__file__).resolve().parents[2] / "docs/tuning.md").read_text(encoding="utf-8")


def test_the_pages_tables_are_a_comparisons() -> None:
    """With a base they are a whole file, and its ranges can be tuned."""
    (text,) = re.findall(r"```toml\n(.*?)```", PAGE, flags=re.DOTALL)
    plan = parse({"base": BASE, **tomllib.loads(text)}, Path(), "comparison.toml")
    assert plan.tune == Tuning(16, (1001, 1002))
    assert set(tuning.spots(plan)[0].ranges) == {RATE, "strategy.mu", "train.momentum"}


def test_the_pages_line_of_code_is_fedproxs() -> None:
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)
    assert code in inspect.getsource(registry.find("fedsim.strategies", "fedprox", Path(), "name"))
