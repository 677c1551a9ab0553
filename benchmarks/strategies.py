"""The catalogue of strategies at work: what each comes to on uneven data, and each defence under each attack.

    python benchmarks/strategies.py             about half an hour on 2 cores; writes into docs/strategies.md
    python benchmarks/strategies.py --quick     a smoke test of a minute; writes nothing

Three parts. A strongly convex problem whose optimum is known: how far from it algorithms end. Every strategy with its
defaults on MNIST and Fashion-MNIST, spread unevenly over 50 clients, over several seeds. And every defence under every
attack by a fifth of 20 clients, iid. Nothing is tuned: it shows that algorithms do what they are for, not which one
is best.
MNIST and Fashion-MNIST are looked for in FEDSIM_DATA.
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from fedsim import registry
from fedsim.data.corpus import Folders
from fedsim.engine.inline import InlineEngine
from fedsim.errors import FedsimError, StoppedByPolicy
from fedsim.job import prepare
from fedsim.progress import Silent
from fedsim.records import RoundRecord
from fedsim.rounds import run_job
from fedsim.scenario import parse
from fedsim.scenario_files import override
from fedsim.strategies.fedavg import fedavg
from fedsim.strategies.feddyn import feddyn
from fedsim.strategies.scaffold import scaffold
from fedsim.summary import Result

ROOT = Path(__file__).resolve().parents[1]
Changes = Mapping[str, Any]
DATASETS = {"mnist": 0.85, "fashion-mnist": 0.70}
"""Data sets, and the validation accuracy to be reached."""
VALIDATION, TEST = "global/central-validation/rows/accuracy", "global/central-test/rows/accuracy"
OWN, OF_GLOBAL = "personal/client-test/clients/accuracy", "global/client-test/clients/accuracy"
SUCCESS = "global/central-test/rows/attack-success"
UNEVEN: dict[str, Any] = {
    "title": "Strategies",
    "seed": 1,
    "rounds": 60,
    "data": {"name": "mnist", "partition": {"kind": "dirichlet", "clients": 50, "alpha": 0.1}, "min_rows": 20},
    "model": {"name": "mlp", "hidden": [32]},
    "train": {"learning_rate": 0.1, "batch_size": 32, "steps": 20},
    "cohort": {"size": 10},
    "evaluate": {"clients_every": 60},
    "engine": {"kind": "inline"},
    "checkpoint": {"every": 60},
    "records": {"clients": "failed"},
}
SUITED: dict[str, Changes] = {
    "fedbn": {"model": {"name": "cnn", "channels": [8, 8], "norm": "batch"}},
}
"""What a strategy needs besides its name."""
ATTACKED: Changes = {
    "rounds": 30,
    "data.partition": {"kind": "iid", "clients": 20},
    "cohort": {},
    "evaluate.clients_every": 0,
    "checkpoint.every": 30,
}
ATTACKS: dict[str, Changes] = {
    "none": {},
    "label-flip": {},
    "sign-flip x10": {"name": "sign-flip", "scale": 10.0},
    "scale": {},
    "noise": {},
    "free-ride": {},
    "alie": {},
    "alie z=1.5": {"name": "alie", "z": 1.5},
    "inner-product": {},
    "backdoor": {},
}
DEFENCES: dict[str, Changes] = {
    "fedavg": {"weights": "uniform"},
    "median": {},
    "trimmed-mean": {},
    "krum": {"f": 4},
    "multi-krum": {"f": 4},
    "bulyan": {"f": 4},
    "rfa": {},
    "centred-clipping": {},
    "norm-bounding": {},
}


class Case(NamedTuple):
    """One run: changes to `UNEVEN`, under the names of its place in a table."""

    row: str
    column: str
    changes: Changes


class Figures(NamedTuple):
    """What a run came to: validation accuracy round by round, and test metrics of the last model."""

    case: Case
    curve: list[float]
    test: Changes
    seconds: float


class Watching:
    """Notes the validation accuracy of every round."""

    def __init__(self) -> None:
        self.curve: list[float] = []

    def round_finished(self, record: RoundRecord) -> None:
        """Take it from the round's record."""
        self.curve.append(record.metrics[VALIDATION])

    def run_finished(self, result: Result) -> None:
        """Nothing more."""


def main() -> None:
    """Run all parts, print their tables, and write them down."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few strategies and rounds; nothing is written")
    parser.add_argument("--seeds", type=int, default=3, help="of the catalogue (3)")
    parser.add_argument("--processes", type=int, default=2)
    asked = parser.parse_args()
    names = registry.members("fedsim.strategies")
    quick = {"rounds": 3, "checkpoint.every": 3, "evaluate.clients_every": 3} if asked.quick else {}
    chosen = ["fedavg", "scaffold", "ditto", "median"] if asked.quick else names
    datasets = ["mnist"] if asked.quick else list(DATASETS)
    seeds = range(1, 2 if asked.quick else asked.seeds + 1)
    uneven = [
        Case(name, data, {"data.name": data, "seed": seed, "strategy": {"name": name}, **SUITED.get(name, {}), **quick})
        for name in chosen
        for data in datasets
        for seed in seeds
    ]
    attacks = ["none", "sign-flip x10"] if asked.quick else list(ATTACKS)
    defences = ["fedavg", "median"] if asked.quick else list(DEFENCES)
    attacked = [_attacked(defence, attack, quick) for defence in defences for attack in attacks]
    distances = closed_form()
    print("\n".join(distance_lines(distances)), flush=True)
    done = list(_run(uneven + attacked, asked.processes))
    catalogue, siege = done[: len(uneven)], done[len(uneven) :]
    tables = [catalogue_lines(catalogue, datasets), siege_lines(siege, defences, attacks)]
    print("\n\n".join("\n".join(lines) for lines in tables))
    if not asked.quick:
        from _strategies_page import picture, write

        picture(catalogue, siege, datasets, defences, attacks, ROOT / "docs" / "strategies.svg")
        write(ROOT / "docs" / "strategies.md", [distance_lines(distances), *tables], len(seeds))


def closed_form(rounds: int = 200) -> dict[str, float]:
    """Distance to the optimum of the mean of uneven quadratic losses after rounds of everybody, over that at first.

    Ten clients in ten dimensions with curvatures from 0.5 to 2.5, other optima and 2 to 20 local steps of rate 0.05,
    in float64.
    """
    sys.path.append(str(ROOT))
    from tests.strategies.quadratic import clients, optimum, simulate

    distances = {}
    for algorithm in (fedavg("uniform"), scaffold(), feddyn(alpha=0.5)):
        uneven = clients(10, 10)
        best = optimum(uneven)
        end = simulate(algorithm, uneven, rounds, lambda _: range(10)).params
        distances[algorithm.name] = float((end - best).norm() / best.norm())
    return distances


def distance_lines(distances: Mapping[str, float]) -> list[str]:
    """A table of the closed-form problem."""
    lines = ["distance to the optimum after 200 rounds, over the distance at first"]
    own = distances["fedavg"]
    return lines + [f"  {name:<12}{value:10.2e}   {own / value:10.3g}x closer" for name, value in distances.items()]


def catalogue_lines(done: Sequence[Figures], datasets: Sequence[str]) -> list[str]:
    """Rounds to the target, and final test accuracy with its spread over seeds; clients' own models beside it."""
    heading = "".join(f"{data:>31}" for data in datasets)
    columns = "".join(f"{'to ' + format(DATASETS[data], '.0%'):>8}{'final':>15}{'own':>8}" for data in datasets)
    lines = [f"{'':<17}{heading}", f"{'strategy':<17}{columns}"]
    for name in dict.fromkeys(figures.case.row for figures in done):
        cells = ""
        for data in datasets:
            runs = [figures for figures in done if figures.case[:2] == (name, data)]
            finals = [float(run.test.get(TEST, float("nan"))) for run in runs]
            own = [float(run.test[OWN]) for run in runs if OWN in run.test]
            cells += f"{_rounds_to(runs, DATASETS[data]):>8}{_spread(finals):>15}"
            cells += f"{statistics.mean(own):>8.3f}" if own else f"{'-':>8}"
        lines.append(f"{name:<17}{cells}")
    return lines


def siege_lines(done: Sequence[Figures], defences: Sequence[str], attacks: Sequence[str]) -> list[str]:
    """Final test accuracy under every attack of every defence; of the backdoor also how often it succeeds."""
    found = {figures.case[:2]: figures.test for figures in done}
    lines = [f"{'test accuracy, %':<17}" + "".join(f"{_short(defence):>7}" for defence in defences)]
    for attack in attacks:
        rows = {attack: TEST} | ({f"{attack} succeeds": SUCCESS} if attack == "backdoor" else {})
        for name, metric in rows.items():
            cells = (found[defence, attack].get(metric) for defence in defences)
            lines.append(
                f"{name:<17}" + "".join("   lost" if cell is None else f"{100 * cell:>7.1f}" for cell in cells)
            )
    return lines


def _attacked(defence: str, attack: str, quick: Changes) -> Case:
    adversary = {"name": attack, "fraction": 0.2, **ATTACKS[attack]}
    changes: dict[str, Any] = {**ATTACKED, "strategy": {"name": defence, **DEFENCES[defence]}, **quick}
    if attack != "none":
        changes["adversary"] = adversary
    return Case(defence, attack, {**changes, "evaluate.clients_every": 0})


def _run(cases: Sequence[Case], processes: int) -> Iterable[Figures]:
    """Run cases, some at a time, and say how far it is."""
    began = time.perf_counter()
    with ProcessPoolExecutor(processes) as pool:
        for number, figures in enumerate(pool.map(_figures, cases), 1):
            spent = time.perf_counter() - began
            final = figures.curve[-1] if figures.curve else float("nan")
            print(
                f"{number}/{len(cases)}  {figures.case.row}, {figures.case.column}: {final:.4f} in "
                f"{figures.seconds:.1f} s; {spent / number * (len(cases) - number):.0f} s left",
                file=sys.stderr,
                flush=True,
            )
            yield figures


def _figures(case: Case) -> Figures:
    """Run one case in this process."""
    scenario = parse(override(UNEVEN, case.changes), ROOT, f"{case.row}, {case.column}")
    began, watching = time.perf_counter(), Watching()
    job = prepare(scenario, Folders.of(None, ROOT))
    with tempfile.TemporaryDirectory() as place:
        try:
            result = run_job(job, InlineEngine(), Path(place) / "run", Silent(), [watching])
            test = dict(result.values["metrics_last_round"])
        except StoppedByPolicy as error:  # a run that an attack has ended is a result
            print(f"{case.row}, {case.column}: {error}", file=sys.stderr)
            test = {}
    return Figures(case, watching.curve, test, time.perf_counter() - began)


def _rounds_to(runs: Sequence[Figures], target: float) -> str:
    """The median over seeds of the first round that reaches the target; '-' where not all do."""
    first = [next((number for number, value in enumerate(run.curve, 1) if value >= target), None) for run in runs]
    reached = [number for number in first if number is not None]
    return f"{statistics.median(reached):g}" if len(reached) == len(runs) else "-"


def _spread(values: Sequence[float]) -> str:
    """The mean over seeds and, of several, their standard deviation."""
    deviation = f" ±{statistics.stdev(values):.3f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.3f}{deviation}"


def _short(defence: str) -> str:
    names = {"trimmed-mean": "trim", "multi-krum": "m-krum", "centred-clipping": "clip", "norm-bounding": "norm"}
    return names.get(defence, defence)


if __name__ == "__main__":
    try:
        main()
    except FedsimError as error:
        sys.exit(f"error: {error}")
