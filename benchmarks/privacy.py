"""What the privacy of whole clients costs: test accuracy against epsilon on MNIST's writers, by noise and without any.

    python benchmarks/privacy.py           some ten minutes on 2 cores; writes docs/privacy.svg
    python benchmarks/privacy.py --quick   a smoke test of two rounds; writes nothing

Runs mnist-dp-writers at three noise multipliers and without privacy, all else equal, from one seed and on one engine,
and measures the model of every round, which epsilon covers, on the central test rows. MNIST and its writers are looked
for in FEDSIM_DATA.
"""

import argparse
import math
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

from fedsim.cohorts import expected_size
from fedsim.data.corpus import Folders
from fedsim.data.federation import Rows
from fedsim.engine import Engine, start_engine
from fedsim.errors import FedsimError
from fedsim.evaluation import central_metrics
from fedsim.federating import federate
from fedsim.job import Job, prepare_on
from fedsim.local import Work, one_thread
from fedsim.parameters import Weights
from fedsim.privacy.accountant import rounded_up
from fedsim.privacy.noise import noise_over_clip
from fedsim.progress import Lines
from fedsim.rounds import run_job
from fedsim.scenario import Scenario, load
from fedsim.stored import kept_checkpoints, open_run, read_checkpoint

Changes = Mapping[str, Any]
ROOT = Path(__file__).resolve().parents[1]
SCENARIO = "mnist-dp-writers"
NOISES = (1.2, 2.4, 5.7)
TEST = "global/central-test/rows/accuracy"
STYLES = (("o", "-", "#0072B2"), ("s", "--", "#B85000"), ("^", "-.", "#008060"))
"""Marker, line and colour of each noise; the first two tell curves apart without the third."""


class Point(NamedTuple):
    """A round's model: epsilon spent so far, infinite without privacy, and its accuracy on the test rows."""

    round: int
    epsilon: float
    accuracy: float


class Curve(NamedTuple):
    """A run: z, the norm of a round's noise over the clip norm, a point a round, and what it took."""

    noise: float
    noise_over_clip: float
    points: Sequence[Point]
    chosen: Point
    seconds: float
    fingerprint: str


def main() -> None:
    """Run all noises, print the table and draw the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="two rounds; nothing is written")
    quick = parser.parse_args().quick
    began = time.perf_counter()
    scenario = load(SCENARIO, ["rounds=2"] if quick else [])
    scenario = scenario.changed({"checkpoint.keep": scenario.rounds})
    federation = federate(scenario, Folders.of(None, scenario.folder))
    changes: list[Changes] = [{"privacy.client.noise_multiplier": noise} for noise in NOISES]
    jobs = [prepare_on(federation, scenario.changed(change)) for change in [*changes, {"privacy": {}}]]
    with closing(start_engine(scenario.engine)) as engine:
        curves = [measured(job, engine) for job in jobs]
    print("\n".join(table(scenario, curves)))
    print(f"{time.perf_counter() - began:.0f} s in all")
    if not quick:
        picture(scenario, curves, ROOT / "docs" / "privacy.svg")


def measured(job: Job, engine: Engine) -> Curve:
    """Run a job, and measure every round's model on the test rows once it is done."""
    began, work = time.perf_counter(), Work(job)
    with tempfile.TemporaryDirectory() as place:
        out = Path(place) / "run"
        values = run_job(job, engine, out, Lines(sys.stderr)).values
        with one_thread(), closing(open_run(out)) as records:
            rounds = [
                (row, read_checkpoint(out, records, row, work.layout, job.federation.clients, stateful=False))
                for row in reversed(kept_checkpoints(out, records))
            ]
            points = [
                Point(
                    row.number, math.inf if row.epsilon is None else row.epsilon, accuracy(work, found.snapshot.weights)
                )
                for row, found in rounds
            ]
    chosen = next(point for point in points if point.round == values["best_round"])
    return Curve(*noises(work), points, chosen, time.perf_counter() - began, values["fingerprint"])


def accuracy(work: Work, weights: Weights) -> float:
    """Of a model on the central test rows."""
    central = work.federation.central["test"]
    statistics = work.evaluate(weights, Rows(central.x, central.y), "central test set")
    return central_metrics(work.problem, statistics, "test")[TEST]


def noises(work: Work) -> tuple[float, float]:
    """z, and the norm of a round's noise over the clip norm; both 0 without privacy."""
    plan, clients = work.job.privacy, work.federation.clients
    if plan is None:
        return 0.0, 0.0
    cohort = expected_size(work.job.rule, clients)
    return plan.noise_multiplier, noise_over_clip(plan, work.contribution_size, cohort).ratio


def table(scenario: Scenario, curves: Sequence[Curve]) -> list[str]:
    """What every run came to, in lines of at most 80 columns."""
    assert scenario.privacy.client is not None
    lines = [
        f"{SCENARIO}, {scenario.rounds} rounds, delta {scenario.privacy.client.delta:g}, central test rows",
        f"{'noise':>7}{'a round':>9}{'epsilon':>9}{'accuracy':>10}{'chosen':>9}{'in round':>10}{'seconds':>9}  model",
    ]
    for curve in curves:
        last, private = curve.points[-1], curve.noise > 0
        cells = (
            f"{curve.noise:>7.3g}{curve.noise_over_clip:>9.2f}{rounded_up(last.epsilon):>9}"
            if private
            else f"{'none':>7}{'-':>9}{'-':>9}"
        )
        cells += f"{last.accuracy:>10.4f}{curve.chosen.accuracy:>9.4f}{curve.chosen.round:>10}{curve.seconds:>9.0f}"
        lines.append(f"{cells}  {curve.fingerprint[:12]}")
    return [
        *lines,
        "noise: standard deviation over clip; a round: norm of its noise over the clip;",
        "epsilon: of the final run, without what tuning on the same rows spent before;",
        "accuracy: of the last round's model; chosen: of the one that validation chose",
    ]


def picture(scenario: Scenario, curves: Sequence[Curve], path: Path) -> None:
    """A curve along the rounds for each noise, and where the run without privacy ends."""
    import matplotlib

    matplotlib.use("svg")
    import matplotlib.pyplot as plt
    from matplotlib.ticker import LogLocator, NullLocator

    plt.rcParams |= {"svg.hashsalt": SCENARIO, "font.size": 11}
    assert scenario.privacy.client is not None
    figure, axes = plt.subplots(figsize=(8, 5.5), layout="constrained")
    *private, plain = curves
    for curve, (marker, line, colour) in zip(private, STYLES, strict=True):
        x = [point.epsilon for point in curve.points]
        y = [100 * point.accuracy for point in curve.points]
        label = f"noise {curve.noise:g}: {y[-1]:.1f} % at epsilon {rounded_up(x[-1])}"
        axes.plot(x, y, line, marker=marker, markevery=4, markersize=5, color=colour, label=label)
        axes.plot(x[-1:], y[-1:], marker=marker, markersize=8, color=colour)
    end = 100 * plain.points[-1].accuracy
    axes.axhline(end, color="0.35", linestyle=":", label=f"without privacy: {end:.1f} %")
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_ylim(top=100)
    axes.set_xlabel(f"epsilon of the final run, delta {scenario.privacy.client.delta:g} (a client with all its rows)")
    axes.set_ylabel("test accuracy, %")
    axes.set_title(f"DP-FedAvg over MNIST's 539 writers, {scenario.rounds} rounds, a mark every fourth")
    axes.grid(alpha=0.4)
    figure.legend(loc="outside lower center", ncols=2)
    figure.savefig(path, metadata={"Date": None})


if __name__ == "__main__":
    try:
        main()
    except FedsimError as error:
        sys.exit(f"error: {error}")
