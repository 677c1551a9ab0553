"""A contender of `flower_apps.py`: the app under Flower's own simulation, with two Ray actors of one core each.

Flower's public Python call for a simulation gives an app no `run_config`, so this starts it as the process does that
`flwr run` starts; what comes before that process, the SuperLink and the unpacking of the app, takes no time here.
"""

import logging
import os
import sys
from pathlib import Path
from typing import Any

from flwr.app import Context, RecordDict
from flwr.common.config import get_fused_config_from_dir, get_project_config
from flwr.simulation.run_simulation import _run_simulation
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity
from flwr.supercore.telemetry import EventType

WORKERS = 2
APP = Path(__file__).parent / "flower_app"


def simulate(folder: Path, nodes: int, override: dict[str, Any], number: int = 1) -> None:
    """Run the app of a folder on so many nodes, as run `number` of this process."""
    components = get_project_config(folder)["tool"]["flwr"]["app"]["components"]
    run = Run.create_empty(run_id=number)
    run.override_config, run.primary_task_id = override, number
    run.federation_id = "@none/default"
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = number, 1, number
    _run_simulation(
        num_supernodes=nodes,
        exit_event=EventType.FLWR_SIMULATION_RUN_LEAVE,
        server_app_attr=components["serverapp"],
        client_app_attr=components["clientapp"],
        server_app_context=Context(number, 1, {}, RecordDict(), get_fused_config_from_dir(folder, override)),
        app_dir=str(folder),
        run=run,
        is_app=True,
        backend_config={
            "client_resources": {"num_cpus": 1, "num_gpus": 0.0},
            "init_args": {"num_cpus": WORKERS, "logging_level": logging.CRITICAL, "log_to_driver": False},
        },
    )


def config(cohort: int, rounds: int, body: str) -> dict[str, Any]:
    """What the app is told."""
    return {"clients": cohort, "num-server-rounds": rounds, "body": body}


def main() -> None:
    """Run the app; it reports by itself."""
    import torch

    logging.getLogger("flwr").setLevel(logging.CRITICAL)
    torch.set_num_threads(WORKERS)  # the actors wait while the server measures
    body, cohort, rounds = sys.argv[1:]
    sys.path.insert(0, str(APP))  # actors of Ray look where their driver looks
    os.environ["PYTHONPATH"] = str(APP)
    simulate(APP, int(cohort), config(int(cohort), int(rounds), body))


if __name__ == "__main__":
    main()
