"""Running contenders in turn, each in a process of its own, and what `engine.py` and `peers.py` note of them."""

import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

HERE = Path(__file__).parent
QUIET = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "OMP_NUM_THREADS": "1",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
}
ALIKE = 2.5
"""Models of contenders that do the same work have moved by lengths that differ by less than this factor."""


class Case(NamedTuple):
    """What is run: a net, clients a round, and rounds."""

    net: str
    cohort: int
    rounds: int

    @property
    def title(self) -> str:
        """As tables say it."""
        return f"{self.net}, {self.cohort} a round"


class Contender(NamedTuple):
    """How a contender is started: what stands before and after net, cohort and rounds; and the nets it is tried on."""

    before: Sequence[str]
    after: Sequence[str] = ()
    nets: Sequence[str] = ()
    environment: Mapping[str, str] = {}


class Timing(NamedTuple):
    """One contender in one case.

    Attributes:
        per_client: ms per client in each round after the first.
        first_round: seconds from the start of the process to the end of the first round.
        moved: distance of the last model from the first.
        refused: why it does not run here, where it says so.
    """

    per_client: list[float]
    first_round: list[float]
    moved: list[float]
    refused: str = ""


def measure(case: Case, contenders: Mapping[str, Contender], repeats: int) -> dict[str, Timing]:
    """Run the contenders of one case in turn, `repeats` times."""
    tried = [name for name, contender in contenders.items() if case.net in contender.nets or not contender.nets]
    timings = {name: Timing([], [], []) for name in tried}
    for name in repeats * tried:
        if not (timing := timings[name]).refused:
            print(f"{case.title}: {name} ...", file=sys.stderr, flush=True)
            timings[name] = _once(name, contenders[name], case, timing)
    return timings


def _once(name: str, contender: Contender, case: Case, timing: Timing) -> Timing:
    """A timing and one run more; a contender that refuses a case ends with status 2 and says why in its last line."""
    command = [*contender.before, *map(str, case), *contender.after]
    started = time.time()
    process = subprocess.run(
        command, env={**os.environ, **QUIET, **contender.environment}, capture_output=True, text=True, check=False
    )
    if process.returncode == 2:
        return timing._replace(refused=(process.stderr.strip().splitlines() or ["no reason given"])[-1])
    lines = [line for line in process.stdout.splitlines() if line.startswith('{"ended"')]
    if process.returncode != 0 or not lines:
        sys.exit(f"{name} failed:\n{process.stdout[-1000:]}\n{process.stderr[-3000:]}")
    found: dict[str, Any] = json.loads(lines[-1])
    ended: list[float] = found["ended"]
    if len(ended) != case.rounds:
        sys.exit(f"{name} ended {len(ended)} of {case.rounds} rounds:\n{process.stderr[-3000:]}")
    costs = [1000 * (stop - start) / case.cohort for start, stop in pairwise(ended)]
    return Timing(
        [*timing.per_client, *costs], [*timing.first_round, ended[0] - started], [*timing.moved, found["moved"]]
    )


def check_alike(table: Mapping[Case, Mapping[str, Timing]]) -> None:
    """End with a line about the first case in which contenders' models have not moved alike: they did other work."""
    for case, timings in table.items():
        moved = {name: statistics.median(timing.moved) for name, timing in timings.items() if timing.moved}
        least = min(moved.values(), default=0.0)
        if not all(0 < length < ALIKE * least for length in moved.values()):
            lengths = ", ".join(f"{name} {length:.3g}" for name, length in moved.items())
            sys.exit(f"{case.title}: contenders did other work, as their models have moved by {lengths}")


def cost(timing: Timing) -> float:
    """Median ms per client; not a number where there is none."""
    return statistics.median(timing.per_client) if timing.per_client else float("nan")


def render(table: Mapping[Case, Mapping[str, Timing]], reference: str) -> str:
    """The table as text: medians, the range in brackets, and how many times the cost of the reference that is."""
    lines = [f"{'':26}{'':24}{'ms per client':>24}{f'times {reference}':>14}{'to end of round 1':>19}"]
    for case, timings in table.items():
        for place, (name, timing) in enumerate(timings.items()):
            head = f"{case.title if place == 0 else '':26}{name:24}"
            if not timing.per_client:
                lines.append(f"{head}  {timing.refused}")
                continue
            spread = f"{cost(timing):.2f} [{min(timing.per_client):.2f}-{max(timing.per_client):.2f}]"
            ratio = f"{cost(timing) / cost(timings[reference]):.2f}x" if reference in timings else "-"
            lines.append(f"{head}{spread:>24}{ratio:>14}{statistics.median(timing.first_round):>17.1f} s")
    return "\n".join(lines)


def as_rows(table: Mapping[Case, Mapping[str, Timing]]) -> list[dict[str, Any]]:
    """Every timing, as JSON has it."""
    return [
        {**case._asdict(), "contender": name, **timing._asdict()}
        for case, timings in table.items()
        for name, timing in timings.items()
    ]


def from_rows(rows: Iterable[Mapping[str, Any]]) -> dict[Case, dict[str, Timing]]:
    """The table that `as_rows` was made of."""
    table: dict[Case, dict[str, Timing]] = {}
    for row in rows:
        case = Case(*(row[key] for key in Case._fields))
        table.setdefault(case, {})[row["contender"]] = Timing(*(row[key] for key in Timing._fields))
    return table


def write(name: str, found: Mapping[str, Any]) -> Path:
    """Keep what was found, and what it was measured on."""
    from torch.backends.cpu import get_cpu_capability

    machine = {
        "platform": platform.platform(),
        "python": platform.python_version(),
        "cores": os.cpu_count(),
        "instructions": get_cpu_capability(),
    }
    path = HERE / "results" / f"{name}-{datetime.now():%Y%m%d-%H%M%S}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({"machine": machine, **found}, indent=2) + "\n", encoding="utf-8")
    return path
