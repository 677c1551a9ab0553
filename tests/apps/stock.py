"""Flower apps under Flower's own simulation; a program, since Flower starts a Ray of its own.

    python -m tests.apps.stock NODES RESULTS APP...

has each app write its result into the folder RESULTS, as APP.json. All run on one Ray.
"""

import logging
import os
import sys
from pathlib import Path

os.environ |= {"FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1", "RAY_USAGE_STATS_ENABLED": "0"}

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

import ray
from _app_stock import simulate


def main() -> None:
    """Run all apps, one after another."""
    nodes, results, folders = int(sys.argv[1]), Path(sys.argv[2]), [Path(name).resolve() for name in sys.argv[3:]]
    logging.getLogger("flwr").setLevel(logging.ERROR)
    sys.path[:0] = [str(folder) for folder in folders]
    packages = {"env_vars": {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}}
    ray.init(
        num_cpus=2, include_dashboard=False, logging_level=logging.ERROR, log_to_driver=False, runtime_env=packages
    )
    stop, ray.shutdown = ray.shutdown, lambda: None  # each run would stop it
    try:
        for number, folder in enumerate(folders, start=1):
            simulate(folder, nodes, {"result": str(results / f"{folder.name}.json")}, number)
    finally:
        stop()


if __name__ == "__main__":
    main()
