"""Where the time of a run goes: start-up, the driver, Ray's processes, the workers, and a client's own work.

    python benchmarks/profile_round.py              MLP, 100 clients a round, and CNN, 10 a round: two minutes
    python benchmarks/profile_round.py --quick      a smoke test

The work is that of `engine.py`. Each net runs twice, in processes of their own: with 2 Ray workers, where processor
time is read from /proc (Linux) and the driver's threads are looked at every millisecond; and inline, where the same
look tells what a client's work is made of. The first round belongs to the start-up.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

from _contenders import QUIET, Case, write

CASES = [Case("mlp", 100, 8), Case("cnn", 10, 10)]
SHOWN = 16
"""Lines of a table; the rest are summed."""


class Mark(NamedTuple):
    """When something began: its name, the Unix time, and processor seconds by kind of process until then."""

    name: str
    time: float
    work: dict[str, float]


def main() -> None:
    """Profile every case, print the tables and write them as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one small case")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(profiled(Case(*json.loads(options.one[0])), float(options.one[1]))))
        return
    found = []
    for case in [Case("mlp", 10, 3)] if options.quick else CASES:
        engines = {engine: _in_fresh_process(case, engine) for engine in ("ray", "inline")}
        found.append({**case._asdict(), **engines})
        print(render(case, engines), end="\n\n")
    if not options.quick:
        print(f"written to {write('profile', {'profiles': found})}")


def _in_fresh_process(case: Case, engine: str) -> dict[str, Any]:
    print(f"{case.title}: {engine} ...", file=sys.stderr, flush=True)
    command = [sys.executable, __file__, "--one", json.dumps([*case]), str(time.time())]
    environment = {**os.environ, **QUIET, "PROFILED_ENGINE": engine}
    process = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if process.returncode != 0:
        sys.exit(f"{case.title}, {engine} failed:\n{process.stderr[-3000:]}")
    found: dict[str, Any] = json.loads(process.stdout.splitlines()[-1])
    return found


def profiled(case: Case, started: float) -> dict[str, Any]:
    """Run a case here and say where its time went; `started` is when this process was."""
    from _ours import WORKERS, scenario

    from fedsim.rounds import run
    from fedsim.stored import open_run

    engine = os.environ["PROFILED_ENGINE"]
    watch = Watch(started)
    with tempfile.TemporaryDirectory() as folder:
        described = {**scenario(*case), "engine": {"kind": engine, **({"workers": WORKERS} if engine == "ray" else {})}}
        with watch.looking(inner=engine == "inline"):
            run(described, out=Path(folder) / "run", progress=watch)
        with closing(open_run(Path(folder) / "run")) as records:
            clients = [row for row in records.clients() if row.phase == "train" and row.round > 1]
    rounds, (first, last) = case.rounds - 1, (watch.of("round 2: training"), watch.of("testing"))
    wall = 1000 * (last.time - first.time) / rounds
    return {
        "start_up": watch.start_up(),
        "round_ms": wall,
        "work_ms": {kind: 1000 * (work - first.work.get(kind, 0)) / rounds for kind, work in last.work.items()},
        "seen_ms": {name: 1000 * seconds / rounds for name, seconds in by_size(watch.seen)},
        "busy": 1000 * sum(row.seconds for row in clients) / rounds / wall / (WORKERS if engine == "ray" else 1),
        "client_ms": 1000 * sum(row.seconds for row in clients) / len(clients),
        "bytes_down": clients[0].bytes_down,
        "bytes_up": clients[0].bytes_up,
    }


class Watch:
    """Is told what a run does, as its `Progress`; looks at this process' threads from round 2 on.

    Attributes:
        seen: seconds by what a thread was doing.
    """

    def __init__(self, started: float) -> None:
        self.marks = [Mark("python and imports", started, {})]
        self.seen: defaultdict[str, float] = defaultdict(float)
        self._over = threading.Event()

    def phase(self, text: str) -> None:
        """Note when it begins."""
        self.marks.append(Mark(text, time.time(), processor_seconds()))

    def begin(self, title: str, facts: Sequence[str], notes: Sequence[str], rounds: int) -> None:
        """Ignore it."""

    def note(self, text: str) -> None:
        """Ignore it."""

    def round(self, record: Any, shown: Any) -> None:
        """Ignore it."""

    def end(self, lines: Sequence[str]) -> None:
        """Ignore it."""

    def of(self, name: str) -> Mark:
        """The mark whose name begins so."""
        return next(mark for mark in self.marks if mark.name.startswith(name))

    def start_up(self) -> dict[str, float]:
        """Seconds of every phase until the second round."""
        until = self.marks.index(self.of("round 2: training"))
        pairs = zip(self.marks[:until], self.marks[1 : until + 1], strict=True)
        return {mark.name: following.time - mark.time for mark, following in pairs}

    @contextmanager
    def looking(self, *, inner: bool) -> Iterator[None]:
        """Look every millisecond inside the block: what steps of a round do or, within, what a client's work does."""
        thread = threading.Thread(target=self._look, args=(inner, threading.main_thread().ident), daemon=True)
        kept = sys.getswitchinterval()
        sys.setswitchinterval(0.0002)  # else the look waits for pauses of Python code, and would see these alone
        thread.start()
        try:
            yield
        finally:
            self._over.set()
            thread.join()
            sys.setswitchinterval(kept)

    def _look(self, inner: bool, main_thread: int | None) -> None:
        before = time.perf_counter()
        while not self._over.wait(0.001):
            now = time.perf_counter()
            if any(mark.name.startswith("round 2") for mark in self.marks) and not self._testing:
                for thread, frame in sys._current_frames().items():
                    name = step(frame, inner=inner, main=thread == main_thread)
                    if name is not None:
                        self.seen[name] += now - before
            before = now

    @property
    def _testing(self) -> bool:
        return self.marks[-1].name.startswith("testing")


def step(frame: FrameType, *, inner: bool, main: bool) -> str | None:
    """What a thread is doing, by the functions it is in; None for nothing of ours."""
    calls = _calls(frame)
    ours = [
        (Path(file).name, name) for file, name in calls if f"{os.sep}fedsim{os.sep}" in file or "strategies" in file
    ]
    if not main:
        theirs = [call for call in ours if call[0] not in ("background.py", "progress.py")]
        return f"another thread: {_told(theirs[0])}" if theirs and not inner else None
    names = [name for _, name in ours]
    within = ours[names.index("_round") + 1 :] if "_round" in names else []
    if inner:
        return _told(within[-1]) if any(file == "worker.py" for file, _ in within) else None
    if within and any(name == "wait" and f"{os.sep}ray{os.sep}" in file for file, name in calls):
        return f"{within[0][1]}: waiting for workers"
    return f"{within[0][1]}: {_told(within[-1])}" if within else None


def _calls(frame: FrameType) -> list[tuple[str, str]]:
    """Files and names of the functions that a thread is in, the outermost first."""
    calls: list[tuple[str, str]] = []
    place: FrameType | None = frame
    while place is not None:
        calls.append((place.f_code.co_filename, place.f_code.co_name))
        place = place.f_back
    return calls[::-1]


def _told(call: tuple[str, str]) -> str:
    return f"{call[0]}: {call[1]}"


def by_size(seconds: Mapping[str, float]) -> list[tuple[str, float]]:
    """The largest first."""
    return sorted(seconds.items(), key=lambda item: -item[1])


def processor_seconds() -> dict[str, float]:
    """Processor seconds so far of this process and of those below it, by kind; of this one alone without /proc."""
    total: dict[str, float] = {"driver": time.process_time()}
    stats: dict[int, tuple[int, float]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:  # it has ended
            continue
        stats[int(path.parent.name)] = int(fields[1]), (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    below, known = {os.getpid()}, 0
    while len(below) > known:
        known = len(below)
        below |= {process for process, (parent, _) in stats.items() if parent in below}
    for process in below - {os.getpid()}:
        kind = _kind(process)
        total[kind] = total.get(kind, 0.0) + stats[process][1]
    return total


def _kind(process: int) -> str:
    try:
        command = Path(f"/proc/{process}/cmdline").read_bytes()
    except OSError:
        return "other"
    if command.startswith(b"ray::"):
        return "workers"
    return next((name for name in ("raylet", "gcs_server") if name.encode() in command.split(b"\0")[0]), "other")


def render(case: Case, engines: dict[str, dict[str, Any]]) -> str:
    """The tables of a case as text."""
    ray, inline = engines["ray"], engines["inline"]
    received = f"{ray['bytes_down'] / 1e6:.2f} MB down and {ray['bytes_up'] / 1e6:.2f} MB up for every client"
    heads = {
        "start-up": (ray["start_up"], "s"),
        f"processor time of a round, which takes {ray['round_ms']:.0f} ms": (ray["work_ms"], "ms"),
        "the driver's threads in a round": (ray["seen_ms"], "ms"),
        f"a client's work, {inline['client_ms']:.2f} ms inline (with two workers: {ray['client_ms']:.2f})": (
            {name: value / case.cohort for name, value in inline["seen_ms"].items()},
            "ms",
        ),
    }
    lines = [f"{case.title}; workers train for {100 * ray['busy']:.0f} % of a round; {received}"]
    for head, (figures, unit) in heads.items():
        lines += ["", head, *(f"  {name:58}{value:>10.2f} {unit}" for name, value in _largest(figures))]
    return "\n".join(lines)


def _largest(figures: dict[str, float]) -> list[tuple[str, float]]:
    """The figures that matter, and the sum of the others."""
    shown = list(figures.items())[:SHOWN]
    rest = sum(list(figures.values())[SHOWN:])
    return [*shown, *([("others", rest)] if rest else [])]


if __name__ == "__main__":
    main()
