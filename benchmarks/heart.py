"""Heart disease in four hospitals: whom federation helps, with intervals.

    python benchmarks/heart.py              about five minutes on a core; prints the tables of docs/heart-disease.md
    python benchmarks/heart.py --keep F     likewise; what was found is kept in F, and a second call goes on from there
    python benchmarks/heart.py --quick      a smoke test of seconds

Every way to train is given the same few settings, from which the mean loss of all validation rows over three splits
chooses; then it is judged on other splits, all ways on the same. Differences are paired, hospital by hospital. Splits
of the same rows overlap, so a plain interval would be too narrow: it is Nadeau and Bengio's corrected one, "Inference
for the Generalization Error", Machine Learning 52, 2003: the variance of a mean over n splits is taken to be
(1/n + test rows / train rows) times that of a split.
The data set is looked for in FEDSIM_DATA.
"""

import argparse
import itertools
import json
import math
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from fedsim.data.corpus import Folders
from fedsim.engine.inline import InlineEngine
from fedsim.job import prepare
from fedsim.progress import Silent
from fedsim.rounds import run_job
from fedsim.scenario import Scenario, load
from fedsim.stored import open_run

HOSPITALS = ("cleveland", "hungarian", "switzerland", "va")
WAYS: dict[str, Mapping[str, Any]] = {
    "local": {"strategy": {"name": "local"}},
    "this scenario": {},
    "ditto": {"strategy": {"name": "ditto", "lamda": 1.0}},
    "fedavg": {"strategy": {"name": "fedavg"}},
    "central": {"strategy": {"name": "central"}},
}
"""Ways to train; the first is what the others are compared with."""
RATES, ROUNDS = (0.03, 0.1), (20, 40)
TUNING_SEED = 1000


def main(arguments: Sequence[str]) -> None:
    """Tune, judge, print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0] if __doc__ else "")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--keep", type=Path)
    asked = parser.parse_args(arguments)
    quick = asked.quick
    seeds, tuning = (range(1, 3), 1) if quick else (range(1, 21), 3)
    grid = [(0.1, 2)] if quick else list(itertools.product(RATES, ROUNDS))
    base = load("heart-disease").changed(
        {
            "references": [],
            "engine.kind": "inline",
            "evaluate": {"every": 1000, "clients_every": 1000},  # the last round is always measured
            "checkpoint.every": 1000,
            "records.clients": "failed",
        }
    )
    folders = Folders.of(None, base.folder)
    kept = asked.keep is not None and asked.keep.exists()
    found: dict[str, dict[str, list[list[float]]]] = json.loads(asked.keep.read_text()) if kept else {}
    for name, way in WAYS.items():
        if name in found:
            continue
        settings = _chosen(base.changed(way), grid, tuning, folders)
        print(f"{name}: learning_rate {settings['train.learning_rate']}, {settings['rounds']} rounds", flush=True)
        scenario = base.changed({**way, **settings})
        found[name] = {
            metric: [_own_figures(scenario, seed, metric, folders) for seed in seeds] for metric in ("loss", "accuracy")
        }
        if asked.keep is not None:
            asked.keep.write_text(json.dumps(found))
    split = base.data.split
    for metric, sign in (("loss", -1.0), ("accuracy", 1.0)):
        print(f"\n{metric} on a hospital's own test rows, mean of {len(seeds)} splits\n")
        print("\n".join(_table({name: np.array(found[name][metric]) for name in WAYS}, sign, split.test / split.train)))


def _chosen(scenario: Scenario, grid: Sequence[tuple[float, int]], splits: int, folders: Folders) -> dict[str, Any]:
    """The settings with the least mean loss on validation rows."""
    options = [{"train.learning_rate": rate, "rounds": rounds} for rate, rounds in grid]
    seeds = range(TUNING_SEED, TUNING_SEED + splits)
    return min(
        options,
        key=lambda option: sum(_validation_loss(scenario.changed(option), seed, folders) for seed in seeds),
    )


def _validation_loss(scenario: Scenario, seed: int, folders: Folders) -> float:
    """The mean loss of all validation rows after the last round, of hospitals' own models where there are such."""
    with tempfile.TemporaryDirectory() as place:
        run = Path(place) / "run"
        run_job(prepare(scenario.changed({"seed": seed}), folders), InlineEngine(), run, Silent())
        with closing(open_run(run)) as records:
            last = {name: by_round[scenario.rounds] for name, by_round in records.metrics().items()}
    own, common = (f"{model}/client-validation/rows/loss" for model in ("personal", "global"))
    return float(last.get(own, last.get(common, math.nan)))


def _own_figures(scenario: Scenario, seed: int, metric: str, folders: Folders) -> list[float]:
    """[hospitals] a metric on each hospital's test rows after the last round."""
    judged = scenario.changed({"seed": seed, "task": {"headline": metric}})
    with tempfile.TemporaryDirectory() as place:
        result = run_job(prepare(judged, folders), InlineEngine(), Path(place) / "run", Silent())
    return [result.own_figures[hospital] for hospital in range(len(HOSPITALS))]


def _table(figures: Mapping[str, np.ndarray], sign: float, test_by_train: float) -> list[str]:
    """Rows of a Markdown table: every way's mean, and what it gains over the first, with a 95 % interval."""
    first = next(iter(figures))
    lines = [f"| | {' | '.join(HOSPITALS)} | mean |", "|---|" + "---|" * (len(HOSPITALS) + 1)]
    for name, values in figures.items():
        means = [*values.mean(axis=0), values.mean()]
        lines.append(f"| {name} | {' | '.join(f'{mean:.3f}' for mean in means)} |")
    for name, values in figures.items():
        if name != first:
            gains = sign * (values - figures[first])
            cells = [_interval(column, test_by_train) for column in (*gains.T, gains.mean(axis=1))]
            lines.append(f"| gain of {name} over {first} | {' | '.join(cells)} |")
    return lines


def _interval(gains: np.ndarray, test_by_train: float) -> str:
    count = len(gains)
    half = stats.t.ppf(0.975, count - 1) * math.sqrt((1 / count + test_by_train) * float(gains.var(ddof=1)))
    return f"{gains.mean():+.3f} ± {half:.3f}"


if __name__ == "__main__":
    main(sys.argv[1:])
