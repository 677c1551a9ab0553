"""Our engine beside a bare torch loop and Flower's own simulation: milliseconds per client, and the first round.

    python benchmarks/engine.py                                some fifteen minutes on 2 cores
    python benchmarks/engine.py --case mlp,100 --only ours,bare
    python benchmarks/engine.py --quick                        a smoke test of a minute

100 clients of 50 rows, batches of 10, one epoch of SGD; after every round the model is measured on 100 rows. Each
contender runs in a fresh process, one after another and in turn, so that a busy moment of the machine hits all of
them. A round lasts from the end of the one before to its own end; the first is counted from the start of the process.
A full run ends with `private_step.py`.
"""

import argparse
import statistics
import subprocess
import sys
from collections.abc import Mapping
from typing import NamedTuple

from _contenders import HERE, Case, Contender, Timing, as_rows, check_alike, cost, measure, render, write

OURS, BARE, STOCK = ((sys.executable, str(HERE / f"_{name}.py")) for name in ("ours", "bare", "stock_flower"))
CONTENDERS: dict[str, Contender] = {
    "ours": Contender(OURS),
    "ours compiled": Contender(OURS, ("engine.compile=true",), ("mlp", "small-cnn")),
    "bare": Contender(BARE, ("1",)),
    "two bare": Contender(BARE, ("2",)),
    "stock": Contender(STOCK, ("usual",)),
    "stock tight": Contender(STOCK, ("tight",), ("mlp", "cnn")),
}
LEGEND = """\
ours           the command `fedsim run`, 2 Ray workers; replies checked, records and checkpoints written
ours compiled  the same with engine.compile = true
bare           one core: slices, autograd.grad and torch._foreach_add_, and the same measuring, nothing else
two bare       two such processes at once, each with half of every round, that never wait for each other
stock          Flower's simulation, 2 actors, its FedAvg, the client of its PyTorch template
stock tight    the same with the bare loop as client and a net kept between messages"""
CASES = [
    Case("mlp", 10, 16),
    Case("mlp", 100, 6),
    Case("cnn", 10, 6),
    Case("cnn", 100, 3),
    Case("small-cnn", 100, 4),
    Case("lstm", 10, 4),
    Case("transformer", 10, 4),
]


class Aim(NamedTuple):
    """A ratio that the engine is held to."""

    text: str
    value: float
    least: float


def main() -> None:
    """Run every contender in every case, print the tables and write them as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=2, help="how often each contender runs in each case")
    parser.add_argument("--case", action="append", help="net,cohort; may be given several times; all by default")
    parser.add_argument("--only", help="contenders, separated by commas; all by default")
    parser.add_argument("--quick", action="store_true", help="one small case, once")
    options = parser.parse_args()
    cases, repeats = ([Case("mlp", 10, 3)], 1) if options.quick else (chosen_cases(options.case), options.repeats)
    contenders = chosen_contenders(options.only)
    table = {case: measure(case, contenders, repeats) for case in cases}
    print("\n".join([render(table, "ours"), "", LEGEND, "", *map(told, aims(table))]))
    check_alike(table)
    if not options.quick:
        print(f"\nwritten to {write('part-engine' if options.only else 'engine', {'timings': as_rows(table)})}")
    if not (options.quick or options.case or options.only):
        sys.exit(subprocess.run([sys.executable, str(HERE / "private_step.py")], check=False).returncode)


def chosen_cases(names: list[str] | None) -> list[Case]:
    """The cases of these names, "net,cohort"."""
    known = {f"{case.net},{case.cohort}": case for case in CASES}
    unknown = [name for name in names or () if name not in known]
    if unknown:
        sys.exit(f"--case {unknown[0]} is not known; there are {', '.join(known)}")
    return [known[name] for name in names or known]


def chosen_contenders(names: str | None) -> dict[str, Contender]:
    """The contenders of these names, separated by commas."""
    wanted = [name.strip() for name in names.split(",")] if names else list(CONTENDERS)
    unknown = [name for name in wanted if name not in CONTENDERS]
    if unknown:
        sys.exit(f"--only {unknown[0]} is not known; there are {', '.join(CONTENDERS)}")
    return {name: CONTENDERS[name] for name in wanted}


def aims(table: Mapping[Case, Mapping[str, Timing]]) -> list[Aim]:
    """What the engine is held to, as far as it was measured."""
    timings = {(case.net, case.cohort): found for case, found in table.items()}
    mlp, cnn = ("mlp", 100), ("cnn", 10)
    wanted = [
        ("stock over ours, mlp, 100 a round", mlp, "stock", "ours", 20.0),
        ("stock over ours, cnn, 10 a round", cnn, "stock", "ours", 2.4),
        ("share of two bare loops, mlp, 100 a round", mlp, "two bare", "ours", 0.75),
        ("share of two bare loops, cnn, 10 a round", cnn, "two bare", "ours", 0.92),
        ("two bare loops over ours compiled, mlp, 100 a round", mlp, "two bare", "ours compiled", 1.3),
    ]
    found = [
        Aim(text, cost(timings[case][slower]) / cost(timings[case][quicker]), least)
        for text, case, slower, quicker, least in wanted
        if _measured(timings.get(case, {}), slower, quicker)
    ]
    first = timings.get(mlp, {})
    if _measured(first, "stock", "ours"):
        ratio = statistics.median(first["stock"].first_round) / statistics.median(first["ours"].first_round)
        found.append(Aim("stock over ours, to the end of round 1, mlp", ratio, 1 / 0.6))
    return found


def _measured(timings: Mapping[str, Timing], *names: str) -> bool:
    return all(name in timings and timings[name].per_client for name in names)


def told(aim: Aim) -> str:
    """A line of the table of aims."""
    return f"{aim.text:54}{aim.value:>8.2f}  at least {aim.least:.2f}  {'yes' if aim.value >= aim.least else 'no'}"


if __name__ == "__main__":
    main()
