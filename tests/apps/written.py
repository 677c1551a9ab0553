"""Tiny Flower apps that tests write: clients that draw, count and fail as the run's settings say."""

from pathlib import Path
from typing import Any

from fedsim.apps.running import Outcome, run
from fedsim.engine import Engine
from tests.apps.told import Heard

PYPROJECT = """
[project]
name = "tiny"
version = "1.0.0"

[tool.flwr.app]
publisher = "nobody"

[tool.flwr.app.components]
serverapp = "tiny.server_app:app"
clientapp = "tiny.client_app:app"

[tool.flwr.app.config]
num-server-rounds = 3
fault = ""
place = ""
rates.first = 0.5
"""
CLIENT = '''
"""Moves the model by what the global generators draw, and counts in the context how often it was asked."""

import os
import random
import signal
import sys
from pathlib import Path

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, Context, Error, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

app = ClientApp()
UNDECLARED = random.random()


def counted(context: Context) -> int:
    record = context.state.setdefault("count", MetricRecord({"asked": 0}))
    record["asked"] += 1
    return record["asked"]


@app.train()
def train(msg: Message, context: Context) -> Message:
    asked, number, round = counted(context), context.node_config["partition-id"], msg.content["config"]["server-round"]
    fault, place = context.run_config["fault"], Path(context.run_config["place"])
    if fault and number == 1:
        if fault == "raise" and asked == 2:
            raise ValueError("I will not\\n twice")
        if fault == "exit":
            sys.exit("gone")
        if fault == "kill once" and not (place / "killed").exists():
            (place / "killed").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        if fault == "kill always":
            os._exit(1)
        if fault == "config":
            context.run_config["fault"] = ""
        if fault == "no message":
            return None
        if fault == "no reply":
            return Message(RecordDict(), 2, "train")
        if fault == "own error":
            return Message(Error(77, "mine"), reply_to=msg)
        if fault == "unkept":
            context.state = lambda: None
        if fault == "pop":
            msg.content["config"].clear()
            msg.content["arrays"].clear()
    model = msg.content["arrays"]["w"].numpy() if fault != "pop" or number != 1 else np.zeros(8, np.float32)
    draws = np.array([random.random(), np.random.rand(), torch.rand(()).item(), UNDECLARED], np.float32)
    model += np.concatenate([draws, draws * draws]) / (3 + number)
    arrays = ArrayRecord({"w": Array(model)})
    metrics = MetricRecord({"num-examples": 10 + number, "asked": asked, "loss": float(model.sum())})
    return Message(RecordDict({"arrays": arrays, "metrics": metrics}), reply_to=msg)


@app.evaluate()
def evaluate(msg: Message, context: Context) -> Message:
    metrics = MetricRecord({"num-examples": 5, "accuracy": float(msg.content["arrays"]["w"].numpy().mean())})
    return Message(RecordDict({"metrics": metrics}), reply_to=msg)
'''
SERVER = '''
"""FedAvg over half of the clients, from drawn arrays."""

import random

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, Context
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

app = ServerApp()
UNDECLARED = random.random()


@app.main()
def main(grid: Grid, context: Context) -> None:
    draws = [random.random(), np.random.rand(), torch.rand(()).item()]
    start = np.array([*draws, UNDECLARED, 0, 0, 0, context.run_config["rates.first"]], np.float32)
    strategy = FedAvg(fraction_train=FRACTION, fraction_evaluate=0.5)
    rounds = context.run_config["num-server-rounds"]
    result = strategy.start(grid, ArrayRecord({"w": Array(start)}), num_rounds=rounds)
    if result.arrays:
        context.state["best"] = ArrayRecord({"w": result.arrays["w"]})
'''
ALL = {"tiny/client_app.py": CLIENT, "tiny/server_app.py": SERVER.replace("FRACTION", "1.0")}
HALF = {**ALL, "tiny/server_app.py": SERVER.replace("FRACTION", "0.5")}


def write(folder: Path, files: dict[str, str] = ALL, pyproject: str = PYPROJECT) -> Path:
    """An app's folder."""
    for name, text in {"tiny/__init__.py": "", "pyproject.toml": pyproject, **files}.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


def ran(app: Path, out: Path, engine: Engine, nodes: int = 4, seed: int = 0, **settings: Any) -> tuple[Outcome, Heard]:
    """Run an app with some settings, and hear what it tells."""
    heard, texts = Heard(), [f"{key}={value!r}" for key, value in settings.items()]
    return run(app, nodes=nodes, overrides=texts, seed=seed, out=out, engine=engine, lines=heard), heard
