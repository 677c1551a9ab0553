"""What scores over seeds can tell about candidates and the reference they are compared with.

Scores of one seed belong together: partition, initial model and cohorts are the same. So what is judged is the
difference at each seed (paired), of one metric named beforehand, in one family: all comparisons that are made with it.

    test        paired t (Student, "The Probable Error of a Mean", 1908)
    family      Holm, "A Simple Sequentially Rejective Multiple Test Procedure", 1979: 5 % over all verdicts together
    intervals   Bonferroni: each at 1 - 0.05 / m, so that all m hold together at 95 %
    pattern     Shapiro and Wilk, "An Analysis of Variance Test for Normality", 1965
    check       exact sign-flip test (Fisher, "The Design of Experiments", 1935, section 21)
    power       noncentral t at Holm's strictest step, 0.05 / m

Holm's own two-sided intervals end at 0 for what is rejected and say no size; Bonferroni's do, need no word on how
comparisons depend on each other, and are the same for all. They are a little wider than Holm's tests are strict: a
comparison may be decided although its interval touches 0.

A run that fails is no missing value. Left out, it would flatter the candidate that breaks down, so it is a difference
of infinite size, and only the sign-flip test judges it, which is exact whatever sizes differences have.
"""

import math
from collections.abc import Hashable, Iterable, Mapping, Sequence
from functools import cache
from typing import Literal, NamedTuple, TypeVar

import numpy as np

Better = Literal["higher", "lower"]
Verdict = Literal["better", "worse", "no difference shown", "identical", "no verdict"]
"""Of a candidate beside the reference, in the sense of the metric."""
Key = TypeVar("Key", bound=Hashable)

LEVEL, POWER = 0.05, 0.8
FEWEST = 5
"""Seeds that a verdict needs: with four, the t-test rests on normality that four differences cannot show."""
FEWEST_FLIPS = 7
"""Seeds that the sign-flip test needs: its least p is 2 / 2^n, at 7 seeds 0.016, and passes Holm among three."""
_ODD = 0.01  # of Shapiro-Wilk: 1 % of normal patterns are withheld for nothing
_EXACT = 40  # seeds up to which all sign flips are counted
_ROUNDING = 1e-9
_PLACES = 10_000  # quantiles over which a power is averaged


class Interval(NamedTuple):
    """A mean over seeds with its t interval; nan for what so few seeds do not give.

    Attributes:
        n: seeds that gave a finite value.
        mean, sd: of these; sd of a sample (n - 1).
        low, high: ends.
    """

    n: int
    mean: float
    sd: float
    low: float
    high: float


class Paired(NamedTuple):
    """A candidate's differences from the reference, and what they show.

    Attributes:
        n: seeds with a finite difference; `mean` to `normal` are of these.
        failed: seeds at which one of the two, or both, gave no score.
        mean, sd, se: of candidate minus reference.
        t, p: of the paired t-test, two-sided; p is 1 where all differences are 0, nan of fewer than two.
        holm: Holm's p within the family, of the test that decides: below the level, a verdict falls.
        low, high: ends of the simultaneous interval.
        smallest: difference that would have been found with a probability of 0.8, given this sd.
        normal: whether the pattern can pass for normal; None where there is nothing to judge.
        sign_flip: p of the sign-flip test over all seeds, two-sided; None for fewer than 7.
        verdict: see `Verdict`.
        why: for people, why there is no verdict, or what else decided; empty after a plain t-test.
    """

    n: int
    failed: int
    mean: float
    sd: float
    se: float
    t: float
    p: float
    holm: float
    low: float
    high: float
    smallest: float
    normal: bool | None
    sign_flip: float | None
    verdict: Verdict
    why: str


def differences(candidate: Sequence[float], reference: Sequence[float], better: Better) -> np.ndarray:
    """[S] candidate minus reference at each seed; a seed at which not both were run is left out beforehand.

    Args:
        candidate, reference: [S] scores; one that is not finite is of a run that failed or diverged. A run that never
            measures the metric has none that could be compared, and is left out likewise.
        better: which scores are.

    Returns:
        Differences; infinite in favour of the other where one failed, nan where both did.
    """
    ours, theirs = np.asarray(candidate, np.float64), np.asarray(reference, np.float64)
    lost = math.inf if better == "lower" else -math.inf
    ours_failed, theirs_failed = ~np.isfinite(ours), ~np.isfinite(theirs)
    with np.errstate(invalid="ignore"):
        plain = ours - theirs
    one = np.where(ours_failed, lost, np.where(theirs_failed, -lost, plain))
    return np.where(ours_failed & theirs_failed, math.nan, one)


def compare_family(
    family: Mapping[Key, np.ndarray], better: Better, level: float = LEVEL, power: float = POWER
) -> dict[Key, Paired]:
    """Judge all comparisons of one family.

    A verdict falls where Holm's p of the deciding test is at most the level:

    * the paired t-test, where all differences are finite and can pass for normal;
    * the larger p of t and sign-flip test, where they cannot: both must reject, and 7 seeds are needed;
    * the sign-flip test alone, where runs failed; again of 7 seeds.

    A pattern can only raise the deciding p or hand it to an exact test, so false verdicts of a family stay within the
    level as far as the t-test's do: exactly of normal differences, nearly of differences of alike scores.

    Args:
        family: [S] `differences` of every comparison.
        better: which scores are.
        level: chance of any false verdict in the family.
        power: of `Paired.smallest`.

    Returns:
        What each comparison shows, under the same keys.
    """
    each = {key: np.asarray(values, np.float64) for key, values in family.items()}
    tested = [_tested(values, len(each), level, power) for values in each.values()]
    adjusted = holm([_deciding(pair) for pair in tested])
    return {
        key: _judged(pair._replace(holm=p), values, better, level)
        for (key, values), pair, p in zip(each.items(), tested, adjusted, strict=True)
    }


def _tested(values: np.ndarray, count: int, level: float, power: float) -> Paired:
    """A comparison's figures; Holm's p and the verdict are still to come."""
    finite = values[np.isfinite(values)]
    mean, sd = _mean_sd(finite)
    n, se = len(finite), sd / math.sqrt(max(len(finite), 1))
    t, p = _t_test(mean, se, n)
    half = _critical(n, level / count) * se if n > 1 else math.nan
    return Paired(
        n=n,
        failed=len(values) - n,
        mean=mean,
        sd=sd,
        se=se,
        t=t,
        p=p,
        holm=math.nan,
        low=mean - half,
        high=mean + half,
        smallest=smallest_difference(sd, n, count, level, power),
        normal=_looks_normal(finite),
        sign_flip=sign_flip(values) if len(values) >= FEWEST_FLIPS else None,
        verdict="no verdict",
        why="",
    )


def _t_test(mean: float, se: float, n: int) -> tuple[float, float]:
    """t and its two-sided p; of equal differences 0 and 1, or infinite and 0."""
    if n < 2:
        return math.nan, math.nan
    if se == 0:
        return (0.0, 1.0) if mean == 0 else (math.copysign(math.inf, mean), 0.0)
    from scipy.special import stdtr

    t = mean / se
    return t, float(2 * stdtr(n - 1, -abs(t)))


def _critical(n: int, level: float) -> float:
    """What |t| of n differences passes with a probability of `level` where there is no difference."""
    from scipy.special import stdtrit

    return float(stdtrit(n - 1, 1 - level / 2))


def _mean_sd(finite: np.ndarray) -> tuple[float, float]:
    """nan for what so few values do not give; no spread of rounding alone."""
    mean = float(finite.mean()) if len(finite) else math.nan
    if len(finite) < 2:
        return mean, math.nan
    return mean, 0.0 if _alike(finite) else float(finite.std(ddof=1))


def _alike(finite: np.ndarray) -> bool:
    """Whether values differ by no more than rounding."""
    return bool(np.ptp(finite) <= _ROUNDING * np.abs(finite).max())


def _looks_normal(finite: np.ndarray) -> bool | None:
    """Shapiro-Wilk at 1 %, of three differences or more.

    Of five differences it notices one that lies far from four, and hardly more; that they are normal it cannot show.
    Equal differences other than 0 leave no spread to judge by, and are odd.
    """
    if len(finite) < 3 or not finite.any():
        return None
    if _alike(finite):
        return False
    from scipy.stats import shapiro

    return bool(shapiro(finite / np.abs(finite).max()).pvalue >= _ODD)


def _deciding(pair: Paired) -> float:
    """The p that Holm orders; 1 where no test may decide."""
    if pair.failed or pair.normal is False:
        if pair.sign_flip is None:
            return 1.0
        return pair.sign_flip if pair.failed else max(pair.p, pair.sign_flip)
    return pair.p if pair.n > 1 else 1.0


def _judged(pair: Paired, values: np.ndarray, better: Better, level: float) -> Paired:
    """With its verdict, whose side is that to which the differences lean."""
    seeds = len(values)
    if seeds and (values == 0).all():
        return pair._replace(verdict="identical")
    if seeds < FEWEST:
        return pair._replace(why=f"{counted_seeds(seeds)}, and a verdict needs {FEWEST}")
    odd = oddness(pair)
    if odd and pair.sign_flip is None:
        return pair._replace(why=f"{odd}, and the sign-flip test that could decide needs {FEWEST_FLIPS} seeds")
    if pair.holm <= level:
        told = f"{odd}; the sign-flip test agrees (p = {pair.sign_flip:.2g})" if odd else ""
        up = _sizes(values).sum() > 0
        return pair._replace(verdict="better" if up == (better == "higher") else "worse", why=told)
    if odd:
        return pair._replace(why=f"{odd}, and the sign-flip test does not decide (p = {pair.sign_flip:.2g})")
    return pair._replace(verdict="no difference shown")


def oddness(pair: Paired) -> str:
    """Why the t-test alone may not decide."""
    if pair.failed:
        return f"runs failed at {pair.failed} of {counted_seeds(pair.n + pair.failed)}"
    return "the differences do not look normal" if pair.normal is False else ""


def holm(p: Sequence[float]) -> list[float]:
    """Holm's adjusted p of a family: rejected are those at most the level, in the order given.

    The smallest of m is taken m times, the next m - 1 times, and none counts less than one before it. nan counts as 1.
    """
    values = np.nan_to_num(np.asarray(p, np.float64), nan=1.0)
    order = np.argsort(values, kind="stable")
    steps = np.maximum.accumulate(values[order] * np.arange(len(values), 0, -1))
    adjusted = np.empty_like(values)
    adjusted[order] = np.minimum(steps, 1.0)
    return [float(each) for each in adjusted]


def _sizes(values: np.ndarray) -> np.ndarray:
    """Differences as the sign-flip test has them.

    An infinite one counts as the largest that was seen, nan (both failed) as 0. The test is exact whatever sizes are
    given, as long as they do not depend on signs.
    """
    finite = np.abs(values[np.isfinite(values)])
    largest = float(finite.max()) if finite.any() else 1.0
    return np.asarray(np.nan_to_num(values, nan=0.0, posinf=largest, neginf=-largest))


def sign_flip(values: np.ndarray) -> float:
    """p of the two-sided sign-flip test: of all 2^S ways to give the differences signs, the share with as large a sum.

    Exact where candidate and reference could change places at each seed. Sums of two halves are counted against each
    other, so that 40 seeds take 2^20 steps; of more, the sum's normal limit is taken.

    Args:
        values: [S] `differences`.
    """
    sizes = _sizes(values)
    seen, scale = abs(float(sizes.sum())), float(np.abs(sizes).sum())
    if scale == 0:
        return 1.0
    if len(sizes) > _EXACT:
        return math.erfc(seen / math.sqrt(2 * float(sizes @ sizes)))
    halves = [_signed_sums(half) for half in np.array_split(sizes, 2)]
    ordered, least = np.sort(halves[1]), seen - _ROUNDING * scale
    above = len(ordered) - np.searchsorted(ordered, least - halves[0])
    below = np.searchsorted(ordered, -least - halves[0], side="right")
    return min(float((above + below).sum()) / 2.0 ** len(sizes), 1.0)


def _signed_sums(sizes: np.ndarray) -> np.ndarray:
    """[2^n] sums of n numbers under all signs."""
    sums = np.zeros(1)
    for size in sizes:
        sums = np.concatenate([sums - size, sums + size])
    return sums


def interval(values: Iterable[float], level: float = LEVEL) -> Interval:
    """The mean over seeds and its t interval at 1 - level, of the finite values.

    One interval by itself, without a verdict: of a candidate's scores, of a metric that is not the primary one.
    """
    given = np.asarray(list(values), np.float64)
    finite = given[np.isfinite(given)]
    (mean, sd), n = _mean_sd(finite), len(finite)
    half = _critical(n, level) * sd / math.sqrt(n) if n > 1 else math.nan
    return Interval(n, mean, sd, mean - half, mean + half)


def smallest_difference(sd: float, n: int, m: int, level: float = LEVEL, power: float = POWER) -> float:
    """The mean difference that a paired t-test finds with a given probability at Holm's strictest step, level / m.

    Args:
        sd: of the differences; taken for known, while of 5 seeds it is known to a factor of about 2.
        n: seeds.
        m: comparisons of the family.
        level: of the family.
        power: the probability.

    Returns:
        The difference, above 0; nan of fewer than two seeds, 0 without spread.
    """
    return sd * _shift(n, level / m, power) / math.sqrt(n) if n > 1 and sd > 0 else (math.nan if n < 2 else 0.0)


@cache
def _shift(n: int, level: float, power: float) -> float:
    """The noncentrality of t, mean / se, at which |t| of n passes its critical value with a probability of `power`.

    Noncentral t is (Z + shift) / S of a normal Z and an S whose square is chi-square over its degrees of freedom: the
    probability given S is averaged over quantiles of S.
    """
    from scipy.optimize import brentq
    from scipy.special import gammaincinv, ndtr

    half, places = (n - 1) / 2, (np.arange(_PLACES) + 0.5) / _PLACES
    bounds = _critical(n, level) * np.sqrt(gammaincinv(half, places) / half)

    def missing(shift: float) -> float:
        return float((ndtr(shift - bounds) + ndtr(-shift - bounds)).mean()) - power

    return float(brentq(missing, 0.0, 10.0 * float(bounds[-1]) + 10.0))


def counted_seeds(count: int) -> str:
    """For people, a number of seeds."""
    return f"{count} seed{'s' if count != 1 else ''}"
