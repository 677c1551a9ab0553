"""Findings of a comparison that was never run, with something to see in every part."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from fedsim.comparison.facts import RunFacts
from fedsim.comparison.findings import Asked, Findings, conclude
from fedsim.comparison.plan import Target, left_out_name, reference_name
from fedsim.comparison.statistics import interval
from tests.comparison import made

CANDIDATES = ("fedavg", "fedprox", "mine_2 & 50 %", "slow")
REFERENCES = ("local", "constant")
CLIENTS, ROUNDS = 12, 30
_LEVELS = dict(zip(CANDIDATES, (0.80, 0.81, 0.86, 0.70), strict=True))
_BYTES = dict(zip(CANDIDATES, (1e6, 1e6, 2e6, 3e6), strict=True))
_EPSILONS = dict(zip(CANDIDATES, (4.0, 4.0, 8.0, 2.0), strict=True))


def findings(conditions: Sequence[str] = ("",), seeds: int = 7) -> Findings:
    """Four candidates and two references, with privacy, a target, gains, clients left out, intervals over test rows."""
    rng = np.random.default_rng(0)
    runs = [run for where in conditions for seed in range(1, seeds + 1) for run in _of_seed(where, seed, rng)]
    asked = Asked(
        "Four ways",
        None,
        made.METRIC,
        CANDIDATES,
        tuple(conditions),
        CANDIDATES[0],
        REFERENCES,
        tuple(range(1, seeds + 1)),
        Target(made.VALIDATION, at_least=0.6),
    )
    found = conclude(asked, runs)
    resampled = {key: interval(rng.normal(pair.mean, 0.01, 50)) for key, pair in found.family.items()}
    return replace(found, resampled=resampled)


def _of_seed(condition: str, seed: int, rng: np.random.Generator) -> list[RunFacts]:
    runs = [_run(name, seed, condition, level + 0.01 * float(rng.normal()), rng) for name, level in _LEVELS.items()]
    local = _run(reference_name("local"), seed, condition, 0.75, rng)
    own = {"personal/client-test/clients/accuracy": 0.75}
    constant = _run(reference_name("constant"), seed, condition, 0.1, rng)
    without = [
        made.facts(left_out_name(client), seed, 0.78 + 0.01 * client + 0.002 * float(rng.normal()), condition)
        for client in range(3)
    ]
    local = replace(local, last={made.METRIC: 0.05, **own}, headline=next(iter(own)))  # an untrained global model
    return [*runs, local, replace(constant, own_figures={}), *without]


def _run(name: str, seed: int, condition: str, score: float, rng: np.random.Generator) -> RunFacts:
    rounds = np.arange(1, ROUNDS + 1)
    curve = score * (1 - np.exp(-rounds / 8)) + 0.01 * rng.normal(size=ROUNDS)
    curve[::7] = np.nan  # not measured in every round
    return made.facts(
        name,
        seed,
        score,
        condition,
        rounds_planned=ROUNDS,
        rounds=rounds,
        metrics={made.VALIDATION: curve},
        seconds=0.5 * rounds,
        bytes=_BYTES.get(name, 0.0) * rounds,
        epsilon=_EPSILONS.get(name),
        delta=1e-3 if name in _EPSILONS else None,
        own_figures={client: score + 0.1 * float(rng.normal()) for client in range(CLIENTS)},
        cohorts=tuple(f"seed {seed}, round {number}" for number in rounds),
    )
