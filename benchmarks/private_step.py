"""What example-level privacy costs on one core: ours beside Opacus' hooks, its ghost clipping, and no privacy.

    python benchmarks/private_step.py            some five minutes
    python benchmarks/private_step.py --quick    a smoke test of half a minute

Every client trains one epoch on 50 rows: five Poisson batches of ten on average, gradients of rows clipped to 1, noise
multiplier 1, plain SGD. Each contender runs in a process of its own, in turn, so that a busy moment hits all of them.
Opacus' contenders are bare loops around what its engine makes of every client's net, optimiser and loader; ours is the
client that a worker trains.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from _contenders import QUIET, write
from _ours import scenario
from _rows import BATCH, CLIENTS, LEARNING_RATE
from _workload import NETS, client_rows, train
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

WARM = 2
"""Clients that are not counted: the first ones make what the others use."""
COUNTED = {"mlp": 40, "cnn": 8, "small-cnn": 20, "lstm": 2, "transformer": 6}
LEGEND = """\
ours    fedsim's client, from the received model to its update, checked
hooks   Opacus, PrivacyEngine.make_private: every row's gradient
ghost   Opacus, the same with grad_sample_mode="ghost": norms alone, and a second backward pass
plain   the bare loop without privacy, batches of exactly ten"""
AIMS = {"mlp": {"hooks": 4.0, "ghost": 2.5}, "cnn": {"hooks": 3.0, "ghost": 1.4}}
"""How many times faster ours is to be."""


class Found(NamedTuple):
    """Ms of every client of a contender, or why it failed."""

    ms: list[float]
    failed: str = ""


Client = Callable[[int], None]
"""Trains the client of a number."""


def main() -> None:
    """Run every contender on every net, print the table and write it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3, help="how often each contender runs on each net")
    parser.add_argument("--net", action="append", choices=COUNTED, help="may be given several times; all by default")
    parser.add_argument("--quick", action="store_true", help="one net, once, two clients")
    parser.add_argument("--one", nargs=3, metavar=("NET", "CONTENDER", "CLIENTS"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one is not None:
        net, contender, clients = options.one
        print(json.dumps(list(timed(CONTENDERS[contender](net), int(clients)))))
        return
    nets, repeats = (["mlp"], 1) if options.quick else (options.net or list(COUNTED), options.repeats)
    table = {net: measure(net, 2 if options.quick else COUNTED[net], repeats) for net in nets}
    text = render(table)
    rows = [
        {"net": net, "contender": name, **found._asdict()}
        for net, each in table.items()
        for name, found in each.items()
    ]
    print(text)
    if not options.quick:
        print(f"\nwritten to {write('private_step', {'text': text, 'timings': rows})}")


def measure(net: str, clients: int, repeats: int) -> dict[str, Found]:
    """What was found of every contender, run in turn; Opacus may fail on a net."""
    found = {name: Found([]) for name in CONTENDERS}
    for name in repeats * list(CONTENDERS):
        print(f"{net}: {name} ...", file=sys.stderr, flush=True)
        command = [sys.executable, __file__, "--one", net, name, str(clients)]
        process = subprocess.run(command, env={**os.environ, **QUIET}, capture_output=True, text=True, check=False)
        if process.returncode == 0:
            found[name] = Found(found[name].ms + json.loads(process.stdout.splitlines()[-1]))
        elif name in ("ours", "plain"):
            sys.exit(f"{name} failed on {net}:\n{process.stderr[-3000:]}")
        else:
            found[name] = Found([], process.stderr.strip().splitlines()[-1])
    return found


def timed(client: Client, count: int) -> Iterator[float]:
    """Ms of each client on one thread, after some that are not counted."""
    torch.set_num_threads(1)
    for number in range(WARM + count):
        started = time.perf_counter()
        client(number % CLIENTS)
        if number >= WARM:
            yield 1000 * (time.perf_counter() - started)


def render(table: dict[str, dict[str, Found]]) -> str:
    """The table as text: medians, the range in brackets, and how many times the cost of ours that is."""
    lines = [f"{'':14}{'':10}{'ms per client':>26}{'times ours':>14}{'at least':>12}"]
    for net, found in table.items():
        for name, (costs, failed) in found.items():
            if not costs:
                lines.append(f"{'':14}{name:10}  {failed[:80]}")
                continue
            cost, ratio = statistics.median(costs), statistics.median(costs) / statistics.median(found["ours"].ms)
            spread = f"{cost:.2f} [{min(costs):.2f}-{max(costs):.2f}]"
            least = AIMS.get(net, {}).get(name)
            aim = "" if least is None else f"{least:.1f}x {'met' if ratio >= least else 'missed'}"
            lines.append(f"{net if name == 'ours' else '':14}{name:10}{spread:>26}{ratio:>13.2f}x{aim:>12}".rstrip())
    return "\n".join([*lines, "", LEGEND])


def ours(net: str) -> Client:
    """The client that a worker of our engine trains."""
    from fedsim.data.corpus import Folders
    from fedsim.job import prepare
    from fedsim.local import Received, Work
    from fedsim.scenario import parse

    privacy = {"noise_multiplier": 1.0, "delta": 1e-5, "max_grad_norm": 1.0}
    tables: dict[str, Any] = {**scenario(net, 10, 1), "privacy": {"example": privacy}}
    work = Work(prepare(parse(tables, Path(), "benchmark"), Folders.of(None, Path()), None, None))

    def client(number: int) -> None:
        work.train(number, 1, Received(work.initial, {}), None)

    return client


def opacus(net: str, mode: str) -> Client:
    """What Opacus' users run: its engine makes model, optimiser and Poisson loader of every client private."""
    from opacus import PrivacyEngine
    from opacus.validators import ModuleValidator

    module = ModuleValidator.fix(NETS[net]()).train()

    def client(number: int) -> None:
        sgd = torch.optim.SGD(module.parameters(), lr=LEARNING_RATE)
        private, optimizer, *criterion, loader = PrivacyEngine().make_private(
            module=module,
            optimizer=sgd,
            data_loader=DataLoader(TensorDataset(*client_rows(number, net)), batch_size=BATCH),
            criterion=RowMeans(),
            noise_multiplier=1.0,
            max_grad_norm=1.0,
            grad_sample_mode=mode,
        )
        loss = criterion[0] if criterion else lambda output, targets: RowMeans()(output, targets).mean()
        for x, y in loader:
            if len(x):
                loss(private(x), y).backward()
                optimizer.step()
                optimizer.zero_grad()
        private.to_standard_module()

    return client


class RowMeans(nn.Module):
    """[B] the mean over places of each row's cross-entropy, of [B, C] or [B, L, C] logits."""

    reduction = "mean"  # Opacus sets it to "none" where it takes the mean itself

    def forward(self, output: Tensor, targets: Tensor) -> Tensor:
        """See the class."""
        if output.ndim == 2:
            return functional.cross_entropy(output, targets, reduction="none")
        return functional.cross_entropy(output.mT, targets, reduction="none").mean(1)


def plain(net: str) -> Client:
    """No privacy."""
    module = NETS[net]()
    return lambda number: train(module, *client_rows(number, net))


CONTENDERS: dict[str, Callable[[str], Client]] = {
    "ours": ours,
    "hooks": partial(opacus, mode="hooks"),
    "ghost": partial(opacus, mode="ghost"),
    "plain": plain,
}


if __name__ == "__main__":
    main()
