"""A cluster of two Ray nodes on this machine, for test_cluster.py, which runs this in a process of its own.

Prints as JSON what a small job came to on it: on both nodes; with the argument `whole` also when one is lost in
mid-round, and when the run has to wait for another one.
"""

import json
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from fedsim.engine.ray import RayEngine, alone  # before Ray, whose environment it sets
from fedsim.progress import Silent
from fedsim.records import RoundRecord
from fedsim.rounds import run_job
from fedsim.summary import Result
from fedsim.tables import Engine
from tests import small

import ray  # isort: skip
import ray.cluster_utils  # isort: skip

SLOW = """
import time
from torch import nn

class Slow(nn.Module):
    def __init__(self, shape: tuple[int, ...], classes: int):
        super().__init__()
        self.layer = nn.Linear(64, classes)

    def forward(self, x):
        if self.training:
            time.sleep(0.02)
        return self.layer(x.flatten(1))
"""
CHANGES: small.Changes = {
    "model": {"name": "slow.py:Slow"},
    "data.partition": {"kind": "iid", "clients": 24},
    "strategy": {"name": "scaffold"},
    "rounds": 3,
}
NODE: dict[str, Any] = {"num_cpus": 1, "include_log_monitor": False}


class Soon:
    """Does something while round 2 trains."""

    def __init__(self, event: Callable[[], None]) -> None:
        self._timer = threading.Timer(0.1, event)

    def round_finished(self, record: RoundRecord) -> None:
        """The next one begins."""
        if record.number == 1:
            self._timer.start()

    def run_finished(self, result: Result) -> None:
        """It must have happened."""
        self._timer.join()


def alive() -> int:
    """Nodes of which Ray knows nothing bad."""
    return sum(node["Alive"] for node in ray.nodes())  # type: ignore[no-untyped-call]


def main(folder: Path, whole: bool) -> None:
    """Run the job on both nodes; as a whole also in the other two ways."""
    (folder / "slow.py").write_text(SLOW)
    job = small.job(CHANGES, folder)
    with alone():
        cluster = ray.cluster_utils.Cluster(initialize_head=True, head_node_args=NODE)
        second = cluster.add_node(**NODE)
    settings, found = Engine(address=cluster.address), dict[str, Any]()

    def fingerprint(engine: RayEngine, name: str, *observers: Soon) -> str:
        return run_job(job, engine, folder / name, Silent(), observers).fingerprint

    found["inline"] = small.run(job, folder / "inline").fingerprint
    engine = RayEngine(None, settings)
    found["places"] = len({place["NodeID"] for place in ray.nodes()}), engine.workers  # type: ignore[no-untyped-call]
    found["both"] = fingerprint(engine, "both")
    if whole:
        found["lost"] = fingerprint(engine, "lost", Soon(partial(cluster.remove_node, second, allow_graceful=False)))
        while alive() > 1:  # Ray takes a while to see it
            time.sleep(0.1)
        found["alive"] = alive()
    engine.close()
    told: list[str] = []

    def tell(text: str) -> None:
        if not told:
            cluster.add_node(**NODE)
        told.append(text)

    if whole:
        engine = RayEngine(2, settings, tell)
        found["waited"], found["told"] = fingerprint(engine, "waited"), told
        engine.close()
    ray.init(address=cluster.address, log_to_driver=False)
    found["free"] = ray.available_resources().get("CPU")  # type: ignore[no-untyped-call]
    ray.shutdown()
    cluster.shutdown()  # type: ignore[no-untyped-call]
    print(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]), "whole" in sys.argv)
