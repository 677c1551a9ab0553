"""fedsim: federated learning, simulated, compared and deployed.

`fedsim.run` runs a scenario, `fedsim.resume` goes on with a run; everything else is imported from its own room.
Nothing is loaded before it is used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fedsim.resuming import resume as resume
    from fedsim.rounds import run as run
    from fedsim.scenario import Scenario as Scenario
    from fedsim.summary import Result as Result

_HOME = {
    "run": "fedsim.rounds",
    "resume": "fedsim.resuming",
    "Scenario": "fedsim.scenario",
    "Result": "fedsim.summary",
}

__all__ = ["Result", "Scenario", "resume", "run"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'fedsim' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)
