"""What a population and a cohort cost: time per client, the driver's own work, and peak memory.

    python benchmarks/scale.py            some six minutes on 2 cores
    python benchmarks/scale.py --quick    a smoke test

Clients of 20 drawn rows (`data.name = "synthetic"`), a perceptron of 2,282 parameters, two steps each: little work, so
that what surrounds it shows. Records and checkpoints are written. Every setting runs in a process of its own. The
driver's time is all processor time of its process, commits in their thread and Ray's threads included; Ray's own
processes are not. A round lasts from the end of the one before to its own end; the first is not counted.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from _contenders import write

HERE = Path(__file__).parent
LEGEND = """\
ms/client    wall time of a round over its clients
driver ms    processor time of the driver's process in a round over its clients
peak MB      largest resident memory of the driver, and of the largest worker"""


class Setting(NamedTuple):
    """What is run: clients in all, clients a round, workers, and rounds."""

    clients: int
    cohort: int
    workers: int
    rounds: int


class Cost(NamedTuple):
    """What it took: ms per client in each round after the first, and peak megabytes."""

    per_client: list[float]
    driver: list[float]
    driver_memory: float
    worker_memory: float | None


SETTINGS = [
    *(Setting(clients, 1_000, 2, 6) for clients in (1_000, 10_000, 100_000, 1_000_000)),
    *(Setting(100_000, cohort, 2, rounds) for cohort, rounds in ((10, 21), (100, 11), (10_000, 4))),
    *(Setting(1_000_000, cohort, workers, 4) for cohort in (1_000, 10_000) for workers in (1, 2)),
]
QUICK_SETTINGS = [Setting(1_000, 20, 1, 2)]


def main() -> None:
    """Run every setting in a process of its own, print the table and write it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one small setting")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(cost(Setting(*json.loads(options.one)))))
        return
    table = {setting: measured(setting) for setting in dict.fromkeys(QUICK_SETTINGS if options.quick else SETTINGS)}
    print(render(table))
    if not options.quick:
        costs = [{**setting._asdict(), **found._asdict()} for setting, found in table.items()]
        print(f"\nwritten to {write('scale', {'costs': costs})}")


def measured(setting: Setting) -> Cost:
    """The cost of a setting, in a fresh process."""
    print(f"{setting.clients:,} clients, {setting.cohort:,} a round ...", file=sys.stderr, flush=True)
    command = [sys.executable, __file__, "--one", json.dumps(setting)]
    process = subprocess.run(command, capture_output=True, text=True, check=False)
    if process.returncode != 0:
        sys.exit(f"{setting} failed:\n{process.stderr[-3000:]}")
    return Cost(*json.loads(process.stdout.splitlines()[-1]))


def cost(setting: Setting) -> Cost:
    """Run a setting here."""
    from fedsim.rounds import run

    watching = Watching()
    with tempfile.TemporaryDirectory() as folder:
        run(scenario(setting), out=Path(folder) / "run", observers=[watching])
    walls, works = (
        [1000 * (stop - start) / setting.cohort for start, stop in pairwise(times)]
        for times in (watching.ended, watching.worked)
    )
    return Cost(walls, works, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, watching.worker_memory)


class Watching:
    """Notes when rounds end, what the driver has worked by then, and what its workers have needed."""

    def __init__(self) -> None:
        self.ended: list[float] = []
        self.worked: list[float] = []
        self.worker_memory: float | None = None

    def round_finished(self, record: Any) -> None:
        """A round is on the disk."""
        self.ended.append(time.perf_counter())
        self.worked.append(time.process_time())
        self.worker_memory = max(map(peak_memory, workers()), default=None)

    def run_finished(self, result: Any) -> None:
        """Nothing more to note."""


def scenario(setting: Setting) -> dict[str, Any]:
    """Training alone; nothing is evaluated."""
    return {
        "title": "scale",
        "seed": 1,
        "rounds": setting.rounds,
        "data": {
            "name": "synthetic",
            "clients": setting.clients,
            "rows": 20,
            "central_clients": 0,
            "partition": {"kind": "natural"},
            "split": {"central": 0.0, "train": 1.0, "validation": 0.0, "test": 0.0},
        },
        "model": {"name": "mlp", "hidden": [32]},
        "train": {"learning_rate": 0.05, "batch_size": 10, "epochs": 1},
        "cohort": {"size": setting.cohort, "on_client_error": "fail"},
        "evaluate": {"clients_every": 0},
        "engine": {"kind": "ray", "workers": setting.workers},
    }


def workers() -> list[Path]:
    """Ray's workers on this machine that a process of ours has started; none where there is no /proc."""
    parents = dict(filter(None, map(parent, Path("/proc").glob("[0-9]*"))))
    below, found = {os.getpid()}, 0
    while len(below) > found:
        found = len(below)
        below |= {process for process, above in parents.items() if above in below}
    names = {process: Path(f"/proc/{process}/cmdline") for process in below}
    return [path.parent for path in names.values() if path.read_bytes().startswith(b"ray::Worker")]


def parent(process: Path) -> tuple[int, int] | None:
    """Number of a process and of the one that started it; None where it has just ended."""
    try:
        return int(process.name), int((process / "stat").read_text().rpartition(")")[2].split()[1])
    except (FileNotFoundError, ProcessLookupError):
        return None


def peak_memory(process: Path) -> float:
    """The most megabytes that a process has had in memory."""
    lines = (process / "status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024


def render(table: dict[Setting, Cost]) -> str:
    """The table as text: medians, the range in brackets."""
    sizes = f"{'clients':>10}{'cohort':>8}{'workers':>9}"
    heads = f"{sizes}{'ms/client':>22}{'driver ms':>24}{'driver MB':>11}{'worker MB':>11}"
    lines = [heads]
    for setting, found in table.items():
        worker = "-" if found.worker_memory is None else f"{found.worker_memory:.0f}"
        lines.append(
            f"{setting.clients:>10,}{setting.cohort:>8,}{setting.workers:>9}{spread(found.per_client, 2):>22}"
            f"{spread(found.driver, 3):>24}{found.driver_memory:>11.0f}{worker:>11}"
        )
    return "\n".join([*lines, "", LEGEND])


def spread(values: list[float], digits: int) -> str:
    """Median, least and most."""
    return f"{statistics.median(values):.{digits}f} [{min(values):.{digits}f}-{max(values):.{digits}f}]"


if __name__ == "__main__":
    main()
