"""Our engine beside pfl-research and FedJAX: milliseconds per client on two cores, and the first round.

    python benchmarks/peers.py                       some ten minutes on 2 cores, and as long to install once
    python benchmarks/peers.py --case mlp,100 --only "ours,pfl 2 processes"
    python benchmarks/peers.py --quick               a smoke test; peers that are not installed are left out

The work is that of `engine.py`: 100 clients of 50 images, batches of 10, one epoch of SGD, the model measured on 100
rows after every round. Each peer lives in a virtual environment of its own, made by this script in the user's cache
with the versions below, and runs its own FedAvg in every way in which it can use two cores. One that does not install
is left out, with the reason. The first round, in which FedJAX compiles, is told apart.
"""

import argparse
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import engine
from _contenders import HERE, Case, Contender, Timing, as_rows, check_alike, cost, measure, render, write

CASES = [Case("mlp", 100, 8), Case("cnn", 10, 8)]
LEGEND = """\
ours              the command `fedsim run`, 2 Ray workers; replies checked, records and checkpoints written
ours compiled     the same with engine.compile = true
pfl 1 thread      pfl-research's simulation in one process on one core
pfl 2 threads     the same on two cores, torch's operations sharing them
pfl 2 processes   two processes under torchrun with one thread each, as its documentation advises
fedjax jit        FedJAX with its usual backend; XLA uses both cores
fedjax jit, 1     the same on one core
fedjax pmap       its parallel backend on two devices of one core each"""


class Peer(NamedTuple):
    """A package to compare with: its name, what is installed, and its ways to run.

    The ways' commands begin with a program of the environment: "python" or "torchrun".
    """

    name: str
    packages: Sequence[str]
    ways: Mapping[str, Contender]


def peers() -> list[Peer]:
    """The peers, in versions that work together; pfl runs on the torch that we run on."""
    torch = version("torch").partition("+")[0]
    fedjax = ["fedjax==0.0.17", "jax==0.5.3", "jaxlib==0.5.3", "dm-haiku==0.0.17", "optax==0.2.8", "numpy==2.4.6"]
    one_core = {"XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"}
    # FedJAX's pmap backend expects the axis of devices to go, as it did before jax 0.5.
    two_devices = {"XLA_FLAGS": "--xla_force_host_platform_device_count=2", "JAX_PMAP_NO_RANK_REDUCTION": "0"}
    pfl_script, fedjax_script = str(HERE / "_peer_pfl.py"), str(HERE / "_peer_fedjax.py")
    return [
        Peer(
            "pfl",
            ["pfl==0.6.0", f"torch=={torch}", f"numpy=={version('numpy')}"],
            {
                "pfl 1 thread": Contender(("python", pfl_script), ("1",)),
                "pfl 2 threads": Contender(("python", pfl_script), ("2",), environment={"OMP_NUM_THREADS": "2"}),
                "pfl 2 processes": Contender(("torchrun", "--nproc-per-node=2", pfl_script), ("1",)),
            },
        ),
        Peer(
            "fedjax",
            fedjax,
            {
                "fedjax jit": Contender(("python", fedjax_script), ("jit",)),
                "fedjax jit, 1": Contender(("python", fedjax_script), ("jit",), environment=one_core),
                "fedjax pmap": Contender(("python", fedjax_script), ("pmap",), environment=two_devices),
            },
        ),
    ]


def main() -> None:
    """Install what is missing, run every contender in every case, print the table and write it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=2, help="how often each contender runs in each case")
    parser.add_argument("--case", action="append", help="net,cohort; may be given several times; all by default")
    parser.add_argument("--only", help="contenders, separated by semicolons as some have a comma; all by default")
    parser.add_argument("--quick", action="store_true", help="one small case, once, with what is installed")
    options = parser.parse_args()
    contenders = {name: engine.CONTENDERS[name] for name in ("ours", "ours compiled")}
    installed: dict[str, list[str]] = {}
    for peer in peers():
        place = environment(peer, may_install=not options.quick)
        if place is not None:
            contenders |= {name: _inside(place, way) for name, way in peer.ways.items()}
            installed[peer.name] = list(peer.packages)
    cases, repeats = ([Case("mlp", 10, 3)], 1) if options.quick else (CASES, options.repeats)
    wanted = options.only.split(";") if options.only else list(contenders)
    table = {
        case: measure(case, {name: contenders[name] for name in wanted if name in contenders}, repeats)
        for case in cases
        if not options.case or f"{case.net},{case.cohort}" in options.case
    }
    print("\n".join([render(table, "ours"), "", LEGEND, "", *map(against, table.items())]))
    check_alike(table)
    if not options.quick:
        name = "part-peers" if options.only else "peers"
        print(f"\nwritten to {write(name, {'packages': installed, 'timings': as_rows(table)})}")


def environment(peer: Peer, *, may_install: bool) -> Path | None:
    """The folder of a peer's environment, made if it is not there; none, with a line that says why, where it fails."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    place = cache / "fedsim" / "peers" / f"{peer.name}-{'-'.join(peer.packages[:2])}"
    stamp, python = place / "installed", place / "bin" / "python"
    if stamp.exists():
        print(f"{peer.name}: {', '.join(peer.packages)}", file=sys.stderr)
        return place
    if not may_install:
        print(f"{peer.name} is left out: not installed; run without --quick", file=sys.stderr)
        return None
    print(f"installing {', '.join(peer.packages)} into {place} ...", file=sys.stderr, flush=True)
    for command in (
        [sys.executable, "-m", "venv", "--clear", str(place)],
        [str(python), "-m", "pip", "install", "--quiet", "--only-binary=:all:", *peer.packages],
    ):
        process = subprocess.run(command, capture_output=True, text=True, check=False)
        if process.returncode != 0:
            reason = (process.stderr.strip().splitlines() or ["no reason given"])[-1]
            print(f"{peer.name} is left out: it does not install: {reason}", file=sys.stderr)
            return None
    stamp.touch()
    return place


def _inside(place: Path, way: Contender) -> Contender:
    """A way to run a peer, its program taken from its environment."""
    program, *rest = way.before
    return way._replace(before=(str(place / "bin" / program), *rest))


def against(row: tuple[Case, Mapping[str, Timing]]) -> str:
    """How ours stands against the best of every peer in a case."""
    case, timings = row
    best = {
        peer.name: min(
            (name for name in timings if name in peer.ways), key=lambda name: cost(timings[name]), default=None
        )
        for peer in peers()
    }
    ratios = [
        f"{name} costs {cost(timings[name]) / cost(timings['ours']):.2f} times ours"
        for name in best.values()
        if name is not None and "ours" in timings
    ]
    return f"{case.title}: {'; '.join(ratios) or 'no peer was run'}"


if __name__ == "__main__":
    main()
