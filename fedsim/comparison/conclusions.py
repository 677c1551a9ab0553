"""What can be concluded from a family of comparisons, in plain English."""

import math
from collections.abc import Mapping, Sequence

from fedsim.comparison.statistics import POWER, Paired, Verdict, counted_seeds, oddness


def sentence(family: Mapping[str, Paired], reference: str, metric: str) -> str:
    """What can be concluded, in plain English.

    Args:
        family: what each comparison shows, by the name that people know it by; one at least.
        reference: its name.
        metric: what was measured, as people call it.
    """
    sides: tuple[Verdict, ...] = ("better", "worse")
    shown = [f"{name} is {side} than {reference}{_size(pair)}" for side in sides for name, pair in _of(family, side)]
    alike = [name for name, _ in _of(family, "identical")]
    if alike:
        shown.append(f"{listed(alike)} and {reference} are identical at every seed")
    told = [f"In {metric}, over {counted_seeds(max(pair.n + pair.failed for pair in family.values()))}: "]
    told[0] += f"{'; '.join(shown)}." if shown else f"no candidate is shown to differ from {reference}."
    told += _open(family)
    told += [f"No verdict on {name}: {pair.why}." for name, pair in _of(family, "no verdict")]
    return " ".join(told)


def _open(family: Mapping[str, Paired]) -> list[str]:
    """Of what no difference was shown, and which this design could have found."""
    rest = _of(family, "no difference shown")
    if not rest:
        return []
    least = max(pair.smallest for _, pair in rest)
    return [
        f"No difference is shown for {listed([name for name, _ in rest])}; one of {least:.2g} or more would have been "
        f"found with a probability of {POWER:g}."
    ]


def _of(family: Mapping[str, Paired], verdict: Verdict) -> list[tuple[str, Paired]]:
    return [(name, pair) for name, pair in family.items() if pair.verdict == verdict]


def _size(pair: Paired) -> str:
    """By how much, as exact as the interval is; where runs failed, the mean of the others is not the reason."""
    if pair.failed:
        return f": {oddness(pair)}"
    half = (pair.high - pair.low) / 2
    decimals = max(0, -math.floor(math.log10(half))) if half > 0 else 3
    near, far = sorted((abs(pair.low), abs(pair.high)))
    apart = pair.low * pair.high > 0  # an interval over 0 is no pair of sizes
    ends = f" ({near:.{decimals}f} to {far:.{decimals}f})" if apart and half > 0 else ""
    return f" by {abs(pair.mean):.{decimals}f}{ends}"


def listed(names: Sequence[str]) -> str:
    """Names as a sentence has them: "a, b and c"."""
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
