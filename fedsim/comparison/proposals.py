"""The settings of a tuning's next trial: drawn evenly at first, then proposed by Optuna's TPE from the scores so far.

Bergstra et al., "Algorithms for Hyper-Parameter Optimization", NeurIPS 2011. Draws are named by the trial's number. So
a proposal follows from that and from the trials before it, and evenly drawn values of the first key are the same for
all that search the same range.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from fedsim import seeds
from fedsim.comparison.plan import Tuning
from fedsim.comparison.trials import Trial
from fedsim.ranges import Range

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

_RANDOM = 10  # drawn evenly, at most; as Optuna has it


def propose(ranges: Mapping[str, Range], before: Sequence[Trial], lower: bool, plan: Tuning) -> dict[str, Any]:
    """The settings of the next trial: at first drawn evenly, then by TPE from the trials before; three digits each.

    Args:
        ranges: of the tuned keys.
        before: all trials so far; one whose score is nan counts as the worst.
        lower: whether a lower score is better.
        plan: how many trials there will be, half of which are drawn evenly, and whose first seed names the draws.
    """
    import optuna

    distributions = {key: _distribution(given) for key, given in ranges.items()}
    named = seeds.integer(plan.seeds[0], "tuning trial", len(before)) % 2**32
    random = min(_RANDOM, max(1, plan.trials // 2))
    with _quiet(optuna):
        sampler = optuna.samplers.TPESampler(seed=named, n_startup_trials=random)
        study = optuna.create_study(sampler=sampler, direction="minimize" if lower else "maximize")
        worst = math.inf if lower else -math.inf
        for trial in before:
            if all(key in trial.settings and given.contains(trial.settings[key]) for key, given in ranges.items()):
                study.add_trial(
                    optuna.trial.create_trial(
                        params=dict(trial.settings),
                        distributions=distributions,
                        value=worst if math.isnan(trial.score) else trial.score,
                    )
                )
        asked = study.ask(distributions).params
    return {key: _rounded(asked[key], given) for key, given in ranges.items()}


def _distribution(given: Range) -> "BaseDistribution":
    """A range as Optuna has it."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if given.choices:
        return CategoricalDistribution(given.choices)
    low, high = given.ends
    return (IntDistribution if given.whole else FloatDistribution)(low, high, log=given.log)


def _rounded(value: Any, given: Range) -> Any:
    """With three digits, within the range, so that a person can write it down."""
    if given.choices or given.whole:
        return value
    return min(max(float(f"{value:.3g}"), given.low), given.high)


@contextmanager
def _quiet(optuna: Any) -> Iterator[None]:
    """Optuna tells the terminal of every study that it makes."""
    level = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(level)
