"""Verdicts over seeds: figures against other ways to compute them, error rates by drawing scores."""

import contextlib
import io
import itertools
import math
import re
import textwrap
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from fedsim.comparison.conclusions import sentence
from fedsim.comparison.statistics import (
    Better,
    Paired,
    compare_family,
    differences,
    holm,
    interval,
    sign_flip,
    smallest_difference,
)

FINITE = st.floats(-10, 10).map(lambda value: round(value, 3))
PROBABILITIES = st.lists(st.floats(0, 1), min_size=1, max_size=6)


def one(values: list[float], better: Better = "higher") -> Paired:
    """A family of one comparison."""
    return compare_family({"": np.array(values)}, better)[""]


def drawn(families: int, size: int, seeds: int, shift: float = 0.0, failing: float = 0.0) -> np.ndarray:
    """[families, size, seeds] differences of normal scores with one reference, whose sd is 1; the first is shifted.

    Scores of a seed have a part in common, as those of runs on the same rows do. Runs fail by coins.
    """
    rng = np.random.default_rng(5)
    noise = rng.normal(0, math.sqrt(0.5), (families, size + 1, seeds))
    scores = noise + rng.normal(0, 3, (families, 1, seeds))
    scores[:, 1] += shift
    scores[rng.random(scores.shape) < failing] = math.nan
    return np.stack([[differences(each, family[0], "higher") for each in family[1:]] for family in scores])


def decided(differences: np.ndarray) -> list[list[str]]:
    """The verdicts of every family."""
    return [[pair.verdict for pair in compare_family(dict(enumerate(each)), "higher").values()] for each in differences]


@given(st.lists(FINITE, min_size=5, max_size=12), st.integers(1, 5))
@settings(deadline=None)
def test_a_plain_comparison_is_the_paired_t_test(values: list[float], others: int) -> None:
    """scipy's, with Bonferroni's interval; other comparisons widen the interval and change nothing else."""
    if np.ptp(values) < 1e-3:
        return
    rest = {number: np.arange(5.0) for number in range(others)}
    pair = compare_family({**rest, "asked": np.array(values)}, "higher")["asked"]
    told = stats.ttest_rel(np.array(values) + 1, np.ones(len(values)))
    ends = told.confidence_interval(1 - 0.05 / (others + 1))
    assert pair.n == len(values) and pair.failed == 0
    assert [pair.t, pair.p] == pytest.approx([told.statistic, told.pvalue], abs=1e-6)
    assert [pair.low, pair.high] == pytest.approx([ends.low, ends.high], abs=1e-6)


@given(PROBABILITIES)
@settings(deadline=None)
def test_holm_is_the_closed_test(p: list[float]) -> None:
    """A comparison falls where every set of comparisons that has it in it falls by Bonferroni (Marcus et al. 1976)."""
    sets = [chosen for size in range(1, len(p) + 1) for chosen in itertools.combinations(range(len(p)), size)]
    expected = [max(min(1.0, len(s) * min(p[i] for i in s)) for s in sets if place in s) for place in range(len(p))]
    assert holm(p) == pytest.approx(expected)


def test_holm_of_nothing_and_of_what_was_not_tested() -> None:
    assert holm([]) == []
    assert holm([math.nan, 0.01]) == [1.0, 0.02]


@given(st.lists(st.integers(-6, 6), min_size=1, max_size=9))
@settings(deadline=None)
def test_sign_flips_are_counted_exactly(values: list[int]) -> None:
    """Whole numbers, whose sums are exact, under every assignment of signs."""
    flips = itertools.product((-1, 1), repeat=len(values))
    sums = [abs(sum(sign * value for sign, value in zip(signs, values, strict=True))) for signs in flips]
    expected = sum(each >= abs(sum(values)) for each in sums) / len(sums)
    assert sign_flip(np.array(values, np.float64)) == pytest.approx(expected)


def test_sign_flips_of_many_seeds_go_on_where_the_count_ends() -> None:
    """40 seeds are counted, 41 are not; a difference of 0 more is no other evidence."""
    values = np.random.default_rng(0).normal(0.2, 1, 40)
    assert sign_flip(np.append(values, 0.0)) == pytest.approx(sign_flip(values), abs=0.01)


def test_a_failed_run_counts_as_the_largest_difference() -> None:
    """Whoever fails where the other does not has lost that seed; where both fail nobody has."""
    rest = [0.1, 0.2, -0.3, 0.2, 0.1, 0.1]
    assert sign_flip(np.array([*rest, -math.inf])) == sign_flip(np.array([*rest, -0.3]))
    assert sign_flip(np.array([*rest, math.nan])) == sign_flip(np.array([*rest, 0.0]))
    assert sign_flip(np.full(7, -math.inf)) == 2 / 2**7
    assert sign_flip(np.full(7, math.nan)) == 1.0


@pytest.mark.parametrize("better", ["higher", "lower"])
def test_differences_say_who_failed(better: Better) -> None:
    nan, worst = math.nan, -math.inf if better == "higher" else math.inf
    found = differences([1.0, nan, 3.0, nan, math.inf], [0.5, 1.0, nan, nan, 1.0], better)
    np.testing.assert_array_equal(found, [0.5, worst, -worst, nan, worst])


def test_equal_strategies_are_rarely_told_apart() -> None:
    """2,000 families of three comparisons at 5 seeds: at most 6.5 % have any verdict; 5 % are meant."""
    families = decided(drawn(2_000, 3, 5))
    assert sum(any(v in ("better", "worse") for v in each) for each in families) <= 0.065 * 2_000


def test_equal_strategies_that_fail_are_rarely_told_apart() -> None:
    """Every tenth run fails, whosever it is; 8 seeds, so that the sign-flip test has its say."""
    families = decided(drawn(1_000, 3, 8, failing=0.1))
    verdicts = sum(any(v in ("better", "worse") for v in each) for each in families)
    assert verdicts <= 0.065 * 1_000
    assert not any("identical" in each for each in families)


@pytest.mark.proof
@pytest.mark.parametrize("seeds", [5, 7, 12])
@pytest.mark.parametrize("kind", ["uniform", "laplace", "with ties", "failing"])
def test_equal_strategies_of_other_patterns_are_rarely_told_apart(seeds: int, kind: str) -> None:
    """Scores that are flat, have heavy tails, are coarse, or of which every fifth is missing; 4,000 families."""
    rng = np.random.default_rng(7)
    shape = (4_000, 4, seeds)
    scores = rng.laplace(size=shape) if kind == "laplace" else rng.uniform(-1, 1, shape)
    if kind == "with ties":
        scores = np.round(2 * scores) / 2
    values = drawn(4_000, 3, seeds, failing=0.2) if kind == "failing" else scores[:, 1:] - scores[:, :1]
    families = decided(values)
    assert sum(any(v in ("better", "worse") for v in each) for each in families) <= 0.065 * 4_000


def test_a_shift_of_three_sd_is_found_with_five_seeds() -> None:
    """In at least 80 % of families of three, and as an improvement; the other two are equal."""
    found = [each[0] for each in decided(drawn(500, 3, 5, shift=3.0))]
    assert found.count("better") >= 0.8 * 500
    assert found.count("worse") == 0


def test_intervals_of_a_family_hold_together() -> None:
    """All three hold in 95 % of 2,000 families, whatever the first is shifted by."""
    held = 0
    for family in drawn(2_000, 3, 5, shift=1.5):
        pairs = compare_family(dict(enumerate(family)), "higher")
        held += all(pairs[key].low <= (1.5 if key == 0 else 0) <= pairs[key].high for key in pairs)
    assert held >= 0.94 * 2_000


@pytest.mark.parametrize(("n", "m"), [(5, 1), (5, 3), (8, 6)])
def test_the_smallest_difference_is_found_with_its_probability(n: int, m: int) -> None:
    """Drawn t statistics at Holm's strictest step; the share found has a standard error of 0.002."""
    sd = 0.3
    shift = smallest_difference(sd, n, m)
    values = np.random.default_rng(3).normal(shift, sd, (40_000, n))
    p = stats.ttest_1samp(values, 0, axis=1).pvalue
    assert float((p <= 0.05 / m).mean()) == pytest.approx(0.8, abs=0.01)


def test_the_smallest_difference_follows_the_design() -> None:
    """More spread or comparisons ask for a larger one, more seeds for a smaller; nothing to go by is nan."""
    assert smallest_difference(2.0, 5, 3) == pytest.approx(2 * smallest_difference(1.0, 5, 3))
    assert smallest_difference(1.0, 5, 3) > smallest_difference(1.0, 5, 1) > smallest_difference(1.0, 10, 1)
    assert math.isnan(smallest_difference(math.nan, 1, 1))
    assert smallest_difference(0.0, 5, 1) == 0


@given(st.lists(FINITE, min_size=5, max_size=9), st.integers(0, 2))
@settings(max_examples=50, deadline=None)
def test_to_change_places_changes_sides(values: list[float], failed: int) -> None:
    """The reference beside the candidate; likewise a metric that is better when lower."""
    found = one([*values, *[math.inf] * failed])
    back = one([-value for value in [*values, *[math.inf] * failed]])
    other = {"better": "worse", "worse": "better"}
    assert back.verdict == other.get(found.verdict, found.verdict)
    assert one([*values, *[math.inf] * failed], "lower").verdict == back.verdict


def test_the_same_scores_are_identical() -> None:
    """It needs no test, so it is said of any number of seeds; and is no evidence of a difference."""
    for seeds in (1, 5, 9):
        pair = one([0.0] * seeds)
        assert pair.verdict == "identical" and pair.why == ""
    assert one([0.0, 0.0, 0.0, 0.0, 1e-9]).verdict != "identical"
    assert one([0.0, 0.0, 0.0, 0.0, 0.0, math.nan, 0.0]).verdict == "no verdict"


def test_fewer_than_five_seeds_give_no_verdict() -> None:
    """However clear it seems; figures are shown."""
    pair = one([1.0, 1.1, 0.9, 1.0])
    assert pair.verdict == "no verdict" and "4 seeds" in pair.why
    assert pair.p < 0.001 and pair.low > 0
    assert one([1.0, 1.1, 0.9, 1.0, 1.05]).verdict == "better"
    single = one([1.0])
    assert (single.mean, single.verdict) == (1.0, "no verdict") and math.isnan(single.p)
    nothing = one([])
    assert nothing.verdict == "no verdict" and math.isnan(nothing.mean)


CLEAR = [1.0, 1.1, 0.9, 1.05, 0.95, 1.02]


def test_a_failed_run_withholds_the_verdict() -> None:
    """With six seeds always; from seven on unless the sign-flip test agrees. The finite differences are shown."""
    few = one([*CLEAR[:5], -math.inf])
    assert few.verdict == "no verdict" and "1 of 6 seeds" in few.why and few.mean == pytest.approx(1.0)
    against = one([*CLEAR, -math.inf])
    assert against.p < 1e-3 and against.verdict == "no verdict" and "does not decide" in against.why
    assert one([*CLEAR, math.inf]).verdict == "better"
    never = one([-math.inf] * 7)
    assert never.verdict == "worse" and never.n == 0 and "agrees" in never.why
    assert one([math.nan] * 7).verdict == "no verdict"


def test_an_odd_pattern_withholds_the_verdict() -> None:
    """One difference a hundred times as large as the rest, or the same difference at every seed."""
    odd = one([1.0, 1.01, 1.02, 1.0, 0.99, 100.0])
    assert odd.normal is False and odd.verdict == "no verdict" and "normal" in odd.why
    assert one([0.25] * 5).verdict == "no verdict"
    same = one([0.25] * 8)
    assert same.normal is False and same.verdict == "better" and "agrees" in same.why


@given(st.lists(FINITE | st.just(math.nan) | st.just(math.inf), max_size=8))
@settings(deadline=None)
def test_an_interval_is_of_the_finite_values(values: list[float]) -> None:
    """scipy's t interval; nan where so few give none."""
    finite = [value for value in values if math.isfinite(value)]
    found = interval(values)
    assert found.n == len(finite)
    if len(finite) < 2:
        assert math.isnan(found.low) and math.isnan(found.sd)
        return
    if np.ptp(finite) <= 1e-9 * np.abs(finite).max():
        assert found.low == found.high == found.mean
        return
    low, high = stats.t.interval(0.95, len(finite) - 1, np.mean(finite), stats.sem(finite))
    scale = max(abs(low), abs(high))
    assert [found.low, found.high] == pytest.approx([low, high], rel=1e-6, abs=1e-6 * scale)


def test_the_sentence_says_of_every_candidate_what_was_found() -> None:
    """Sizes with their interval, what was not shown with what would have been, and why there is no verdict."""
    family = {
        "good": np.array([*CLEAR, 1.01]),
        "bad": -2 * np.array([*CLEAR, 1.03]),
        "same": np.zeros(7),
        "close": np.array([0.1, -0.2, 0.15, -0.1, 0.05, 0.02, -0.05]),
        "broken": np.array([*CLEAR, -math.inf]),
    }
    found = compare_family(family, "higher")
    text = sentence(found, "fedavg", "accuracy")
    assert text.startswith("In accuracy, over 7 seeds: good is better than fedavg by 1.0")
    assert "bad is worse than fedavg by 2.0" in text
    assert "same and fedavg are identical at every seed" in text
    assert f"No difference is shown for close; one of {found['close'].smallest:.2g} or more" in text
    assert "No verdict on broken: runs failed at 1 of 7 seeds" in text


def test_the_sentence_of_little() -> None:
    few = compare_family({"other": np.array([1.0, 1.1])}, "higher")
    text = sentence(few, "fedavg", "accuracy")
    assert "no candidate is shown to differ from fedavg" in text
    assert "No verdict on other: 2 seeds, and a verdict needs 5." in text
    broken = compare_family({"other": np.append([0.1] * 2, np.full(12, -math.inf))}, "higher")
    text = sentence(broken, "fedavg", "accuracy")
    assert "other is worse than fedavg: runs failed at 12 of 14 seeds." in text and "0.1" not in text


@pytest.mark.parametrize("scale", [1e-4, 0.01, 1.0, 1e3])
def test_the_sentence_is_as_exact_as_the_interval(scale: float) -> None:
    """Both ends can be told apart, to one or two digits of their distance."""
    found = compare_family({"other": scale * np.array([1.0, 1.01, 0.99, 1.005, 0.995])}, "higher")
    text = sentence(found, "fedavg", "loss")
    told = [float(each) for each in re.findall(r"\d+\.?\d*", text.partition("by ")[2])]
    pair = found["other"]
    assert told == pytest.approx([pair.mean, pair.low, pair.high], abs=0.6 * (pair.high - pair.low) / 2)
    assert told[1] < told[0] < told[2]


def test_the_page_prints_what_it_says() -> None:
    """Each of its examples, run as it stands there, and the table of what could have been found."""
    page = (Path(__file__).resolve().parents[2] / "docs" / "statistics.md").read_text()
    examples = re.findall(r'^    python -c "\n(.*?)"\n', page, flags=re.MULTILINE | re.DOTALL)
    printed = []
    for example in examples:
        with contextlib.redirect_stdout(io.StringIO()) as told:
            exec(textwrap.dedent(example), {})
        printed.append(told.getvalue())
    assert len(printed) == 2 and f"```\n{printed[0]}```" in page
    for line in printed[1].splitlines():
        assert f"| {' | '.join(line.split())} |" in page
