"""The page and the picture of benchmarks/strategies.py."""

import os
import platform
import statistics
from collections.abc import Sequence
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes

TEST, OWN = "global/central-test/rows/accuracy", "personal/client-test/clients/accuracy"
BEGIN, END = "<!-- results -->", "<!-- /results -->"


def write(page: Path, tables: Sequence[Sequence[str]], seeds: int) -> None:
    """Put tables and picture between the page's two marks; what is around them stays."""
    distances, catalogue, siege = ("\n".join(["```", *lines, "```"]) for lines in tables)
    text = f"""
Measured by `python benchmarks/strategies.py` on {date.today()}: torch {version("torch")}, {os.cpu_count()} cores of
{platform.machine()}. Every strategy with its defaults and one local learning rate; nothing is tuned, so a figure says
that an algorithm does what it is for, not that it is better than another.

A strongly convex problem whose optimum is known (ten uneven quadratic clients, 2 to 20 local steps):

{distances}

MNIST and Fashion-MNIST over 50 clients, Dirichlet(0.1), 10 of them a round with 20 steps each, 60 rounds, a perceptron
of 32 hidden units (FedBN: a small CNN with batch norm), {seeds} seeds. *to*: median first round with that validation
accuracy; *final*: test accuracy of the last global model, mean and standard deviation over seeds; *own*: mean over
clients of their own models' accuracy on their own test rows. `local` shares nothing, so its global model is the
initial one; FedNova is FedAvg where all take as many steps.

{catalogue}

A fifth of 20 clients attacks, MNIST iid, everyone in each of 30 rounds; test accuracy in per cent, of the backdoor
also how often the trigger succeeds. ALIE's own z is 0.16 for four of 20, hardly an attack; 1.5 is its usual strength
with more attackers. Where rows are alike, updates are too, and it finds no room; a backdoor passes whatever only
bounds or averages:

{siege}

![Final accuracy of every strategy, and every defence under every attack](strategies.svg)
"""
    before, _, rest = page.read_text(encoding="utf-8").partition(BEGIN)
    _, _, after = rest.partition(END)
    page.write_text(f"{before}{BEGIN}\n{text}\n{END}{after}", encoding="utf-8")


def picture(
    catalogue: Sequence[Any],
    siege: Sequence[Any],
    datasets: Sequence[str],
    defences: Sequence[str],
    attacks: Sequence[str],
    path: Path,
) -> None:
    """Dots for the catalogue, one panel a data set, and a field of numbers for attacks and defences."""
    figure, axes = plt.subplots(1, len(datasets) + 1, figsize=(16, 9), width_ratios=[*[1] * len(datasets), 1.5])
    for axis, data in zip(axes, datasets, strict=False):
        _dots(axis, [figures for figures in catalogue if figures.case.column == data], data)
    _field(axes[-1], siege, defences, attacks)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})


def _dots(axis: Axes, runs: Sequence[Any], title: str) -> None:
    names = list(dict.fromkeys(run.case.row for run in runs))[::-1]
    for key, marker, label in ((TEST, "o", "global model, central test"), (OWN, "D", "own models, own test rows")):
        for height, name in enumerate(names):
            values = [float(run.test[key]) for run in runs if run.case.row == name and key in run.test]
            if values:
                spread = statistics.stdev(values) if len(values) > 1 else 0.0
                axis.errorbar(
                    statistics.mean(values),
                    height,
                    xerr=spread,
                    fmt=marker,
                    color="C0" if key == TEST else "C1",
                    label=label if name == names[-1] or (key == OWN and label not in _labels(axis)) else None,
                )
    axis.set_yticks(range(len(names)), names)
    axis.set_title(title)
    axis.set_xlabel("accuracy after 60 rounds")
    axis.grid(axis="x", alpha=0.4)
    axis.legend(loc="lower left", fontsize="small")


def _labels(axis: Axes) -> list[str]:
    return axis.get_legend_handles_labels()[1]


def _field(axis: Axes, siege: Sequence[Any], defences: Sequence[str], attacks: Sequence[str]) -> None:
    values = [
        [
            next(100 * float(run.test.get(TEST, 0.0)) for run in siege if run.case[:2] == (defence, attack))
            for attack in attacks
        ]
        for defence in defences
    ]
    axis.imshow(values, cmap="cividis", vmin=0, vmax=100, aspect="auto")
    for row, line in enumerate(values):
        for column, value in enumerate(line):
            axis.text(column, row, f"{value:.0f}", ha="center", va="center", color="black" if value > 55 else "white")
    axis.set_xticks(range(len(attacks)), attacks, rotation=40, ha="right")
    axis.set_yticks(range(len(defences)), defences)
    axis.set_title("test accuracy, %, under attack by a fifth")
