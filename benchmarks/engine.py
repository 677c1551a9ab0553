"""Our engine beside a bare torch loop and Flower's own simulation: milliseconds per client, and the first round.

    python benchmarks/engine.py            some ten minutes on 2 cores
    python benchmarks/engine.py --quick    a smoke test of a minute or two

100 clients of 50 random 28x28 images, batches of 10, one epoch of SGD. Each contender runs in a fresh process,
one after another and in turn, so that a busy moment of the machine hits all of them. A round lasts from the
end of the one before to its own end; the first is counted from the start of the process.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

HERE = Path(__file__).parent
CONTENDERS: dict[str, tuple[str, ...]] = {
    "ours": ("_ours.py",),
    "bare": ("_bare.py",),
    "stock": ("_stock_flower.py", "usual"),
    "stock, tight": ("_stock_flower.py", "tight"),
}
LEGEND = """\
ours          fedsim, 2 Ray workers, records and checkpoints included
bare          one core: slices, autograd.grad and torch._foreach_add_, nothing else
stock         Flower's simulation, 2 actors, its FedAvg, the client of its PyTorch template
stock, tight  the same with the bare loop as client and a net kept between messages"""
QUIET = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "OMP_NUM_THREADS": "1",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
}


class Case(NamedTuple):
    """What is run: a net, clients a round, and rounds."""

    net: str
    cohort: int
    rounds: int


class Timing(NamedTuple):
    """One contender in one case: ms per client in each round after the first, and seconds to the first's end."""

    per_client: list[float]
    first_round: list[float]


CASES = [Case("mlp", 10, 16), Case("mlp", 100, 6), Case("cnn", 10, 6), Case("cnn", 100, 4)]
QUICK_CASES = [Case("mlp", 10, 3)]


def main() -> None:
    """Run every contender in every case, print the table and write it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=2, help="how often each contender runs in each case")
    parser.add_argument("--quick", action="store_true", help="one small case, once")
    options = parser.parse_args()
    cases, repeats = (QUICK_CASES, 1) if options.quick else (CASES, options.repeats)
    table = {case: measure(case, repeats) for case in cases}
    print(render(table))
    print(f"\nwritten to {write(table)}")


def measure(case: Case, repeats: int) -> dict[str, Timing]:
    """Run the contenders of one case in turn, `repeats` times."""
    timings = {contender: Timing([], []) for contender in CONTENDERS}
    for _ in range(repeats):
        for contender, timing in timings.items():
            print(f"{case.net}, {case.cohort} clients a round: {contender} ...", file=sys.stderr, flush=True)
            started, ended = time.time(), rounds_ended(contender, case)
            timing.first_round.append(ended[0] - started)
            timing.per_client.extend(1000 * (stop - start) / case.cohort for start, stop in pairwise(ended))
    return timings


def rounds_ended(contender: str, case: Case) -> list[float]:
    """Unix times at which the rounds of a contender ended, run in a process of its own."""
    script, *rest = CONTENDERS[contender]
    command = [sys.executable, str(HERE / script), *map(str, case), *rest]
    process = subprocess.run(command, env={**os.environ, **QUIET}, capture_output=True, text=True, check=False)
    if process.returncode != 0:
        sys.exit(f"{contender} failed:\n{process.stderr[-3000:]}")
    ended: list[float] = json.loads(process.stdout.splitlines()[-1])
    if len(ended) != case.rounds:
        sys.exit(f"{contender} ended {len(ended)} of {case.rounds} rounds:\n{process.stderr[-3000:]}")
    return ended


def render(table: dict[Case, dict[str, Timing]]) -> str:
    """The table as text: medians, the range in brackets, and how many times slower than ours."""
    lines = [f"{'':24}{'':14}{'ms per client':>22}{'times ours':>12}{'to end of round 1':>20}"]
    for case, timings in table.items():
        for contender, timing in timings.items():
            head = f"{case.net}, {case.cohort} a round" if contender == "ours" else ""
            cost, first = statistics.median(timing.per_client), statistics.median(timing.first_round)
            spread = f"{cost:.2f} [{min(timing.per_client):.2f}-{max(timing.per_client):.2f}]"
            ratio = cost / statistics.median(timings["ours"].per_client)
            lines.append(f"{head:24}{contender:14}{spread:>22}{ratio:>11.2f}x{first:>18.1f} s")
    return "\n".join([*lines, "", LEGEND])


def write(table: dict[Case, dict[str, Timing]]) -> Path:
    """Keep every timing, and what it was measured on."""
    rows: list[dict[str, Any]] = [
        {**case._asdict(), "contender": contender, **timing._asdict()}
        for case, timings in table.items()
        for contender, timing in timings.items()
    ]
    machine = {"platform": platform.platform(), "python": platform.python_version(), "cores": os.cpu_count()}
    path = HERE / "results" / f"engine-{datetime.now():%Y%m%d-%H%M%S}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({"machine": machine, "timings": rows}, indent=2) + "\n")
    return path


if __name__ == "__main__":
    main()
