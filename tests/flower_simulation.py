"""Our strategies and clients under Flower's own simulation; a program, since Flower starts a Ray of its own.

Prints one line for each algorithm: its name, and the fingerprint of the model that `Strategy.start` ended with.
"""

import logging
import os
from functools import cache

os.environ |= {"FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1", "RAY_USAGE_STATS_ENABLED": "0"}

import torch
from flwr.app import ConfigRecord, Context, Message
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.simulation import run_simulation

from fedsim.flower import AlgorithmStrategy
from fedsim.local import Work
from fedsim.parameters import fingerprint, from_record, to_record
from fedsim.worker import client_app
from tests import small

NAMES = ("fedavg", "scaffold")


def changes(name: str) -> small.Changes:
    """Three clients, two rounds."""
    partition = {"kind": "dirichlet", "clients": 3, "alpha": 0.5}
    return {"strategy": {"name": name}, "rounds": 2, "data.partition": partition}


@cache
def work(name: str) -> Work:
    """This process' work for an algorithm."""
    torch.set_num_threads(1)
    return Work(small.job(changes(name)))


def clients() -> ClientApp:
    """One app for both algorithms: the strategy's config, which is sent along, says which is meant."""
    app = ClientApp()

    def handle(message: Message, context: Context) -> Message:
        config = message.content.config_records.get("config", ConfigRecord())
        name = str(config.get("algorithm", NAMES[0]))
        return client_app(lambda: work(name))(message, context)

    for register in (app.train(), app.evaluate(), app.query()):
        register(handle)
    return app


def server() -> ServerApp:
    """Runs one algorithm after the other."""
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        for name in NAMES:
            mine = work(name)
            result = AlgorithmStrategy(mine).start(
                grid,
                to_record(mine.layout, mine.initial),
                num_rounds=mine.job.scenario.rounds,
                train_config=ConfigRecord({"algorithm": name}),
                evaluate_config=ConfigRecord({"algorithm": name}),
            )
            print(name, fingerprint(from_record(mine.layout, result.arrays)), flush=True)

    return app


def main() -> None:
    """Run the simulation."""
    logging.getLogger("flwr").setLevel(logging.ERROR)
    run_simulation(server(), clients(), num_supernodes=3, backend_config={"client_resources": {"num_cpus": 1}})
