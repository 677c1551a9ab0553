"""fedsim: federated learning, simulated, compared and deployed.

`fedsim.run` runs a scenario, `fedsim.resume` goes on with a run, `fedsim.compare` compares strategies or settings over
seeds, `fedsim.load` gives the model of a run and `fedsim.Run` its tables; everything else is imported from its own
room. Nothing is loaded before it is used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fedsim.comparing import compare as compare
    from fedsim.frames import Run as Run
    from fedsim.handover import load as load
    from fedsim.own import Metric as Metric
    from fedsim.resuming import resume as resume
    from fedsim.rounds import run as run
    from fedsim.scenario import Scenario as Scenario
    from fedsim.summary import Result as Result

_HOME = {
    "run": "fedsim.rounds",
    "resume": "fedsim.resuming",
    "compare": "fedsim.comparing",
    "load": "fedsim.handover",
    "Metric": "fedsim.own",
    "Scenario": "fedsim.scenario",
    "Result": "fedsim.summary",
    "Run": "fedsim.frames",
}

__all__ = ["Metric", "Result", "Run", "Scenario", "compare", "load", "resume", "run"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'fedsim' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)
