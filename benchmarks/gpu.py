"""Clients trained together on a GPU beside the same clients one after another there: milliseconds per client.

    python benchmarks/gpu.py            some minutes on a GPU; without one it says so and ends

A client trains one epoch on 50 random 28x28 images in batches of 10, by plain SGD, or privately on Poisson batches of
ten on average, with clip 1 and noise multiplier 1. All of what a worker does for a stack counts: rows to the GPU,
draws, steps, updates back, checks. One by one is the same for stacks of one client; bare is a torch loop on the GPU.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _contenders import write
from _ours import scenario
from _rows import ROWS
from _workload import NETS, client_rows, train

from fedsim.data.corpus import Corpus, Folders
from fedsim.job import prepare
from fedsim.local import Received, Work
from fedsim.scenario import parse
from fedsim.together import Member, train_together

CLIENTS = (16, 64, 256)
CASES = ("mlp", "small-cnn")
AIM = 20.0
"""How many times faster than one by one 256 clients of the small CNN are to be."""
_ALONE = 8
"""Clients that are enough to tell what one by one costs."""
_PRIVATE = {"noise_multiplier": 1.0, "delta": 1e-5, "max_grad_norm": 1.0}

Row = dict[str, Any]


def main() -> None:
    """Measure every case, print the table and write it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5, help="how often each is measured, after two to warm up")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print("no GPU is here: nothing is measured, and what docs/performance.md says of GPUs stays open")
        return
    name = torch.cuda.get_device_name(0)
    rows = [
        row
        for net in CASES
        for private in (False, True)
        for row in measured(net, private, CLIENTS, "cuda:0", options.repeats)
    ]
    text = render(rows)
    path = write("gpu", {"gpu": name, "text": text, "timings": rows})
    print(f"{name}, torch {torch.__version__}\n{text}\n\nwritten to {path}")


def measured(net: str, private: bool, clients: tuple[int, ...], device: str, repeats: int) -> list[Row]:
    """Ms per client, one by one and in stacks of each width."""
    title = f"{net}{', private' if private else ''}"
    print(f"{title} ...", file=sys.stderr, flush=True)
    alone = timed(partial(stacked, work(net, private, max(clients), 1, device), _ALONE), _ALONE, repeats)
    bare = None if private else timed(partial(bare_loop, NETS[net]().to(device), net), _ALONE, repeats)
    found = []
    for count in clients:
        cost = timed(partial(stacked, work(net, private, max(clients), count, device), count), count, repeats)
        found.append({"case": title, "clients": count, "stacked": cost, "one by one": alone, "bare": bare})
    return found


def work(net: str, private: bool, clients: int, width: int, device: str) -> Work:
    """A worker's own, for stacks of `width` on a device."""
    tables = scenario(net, clients, 1)
    tables["data"]["partition"]["clients"] = clients
    tables["engine"] = {"stack": width, "devices": [device]}
    if private:
        tables["privacy"] = {"example": _PRIVATE}
    return Work(prepare(parse(tables, Path(), "benchmark"), Folders.of(None, Path()), None, partial(images, clients)))


def images(clients: int, folders: Folders) -> Corpus:
    """As many random images as the clients need; some besides, which the split keeps for a test."""
    rng = np.random.default_rng(1)
    count = clients * ROWS + 200
    x, y = rng.random((count, 1, 28, 28), dtype=np.float32), rng.integers(0, 10, count)
    return Corpus("random rows", "classification", x, y, tuple("0123456789"), own_test=np.arange(count) >= count - 200)


def stacked(work: Work, clients: int) -> None:
    """The first clients' round, in stacks of the job's width."""
    for first in range(0, clients, work.width):
        members = [Member(number, None) for number in range(first, min(first + work.width, clients))]
        for result in train_together(work, members, 1, Received(work.initial, {})):
            if isinstance(result, Exception):
                raise result


def bare_loop(net: torch.nn.Module, name: str) -> None:
    """As tight a loop as torch allows, on the device of the net, rows carried there."""
    device = next(net.parameters()).device
    for client in range(_ALONE):
        x, y = client_rows(client, name)
        train(net, x.to(device), y.to(device))


def timed(once: Callable[[], None], clients: int, repeats: int) -> float:
    """Median of ms per client."""
    costs = []
    for place in range(2 + repeats):
        _wait()
        started = time.perf_counter()
        once()
        _wait()
        if place >= 2:
            costs.append(1000 * (time.perf_counter() - started) / clients)
    return statistics.median(costs)


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def render(rows: list[Row]) -> str:
    """The table as text."""
    lines = [f"{'':22}{'clients':>8}{'stacked':>10}{'one by one':>12}{'bare':>8}{'one by one over stacked':>26}"]
    for row in rows:
        ratio = row["one by one"] / row["stacked"]
        aimed = (row["case"], row["clients"]) == ("small-cnn", max(CLIENTS))
        aim = f"  at least {AIM:.0f}x: {'met' if ratio >= AIM else 'missed'}" if aimed else ""
        bare = "" if row["bare"] is None else f"{row['bare']:.2f}"
        cells = f"{row['case']:22}{row['clients']:>8}{row['stacked']:>10.3f}{row['one by one']:>12.2f}{bare:>8}"
        lines.append(f"{cells}{ratio:>25.1f}x{aim}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
