"""fedsim: federated learning, simulated, compared and deployed.

`fedsim.run` runs a scenario; everything else is imported from its own room. Nothing is loaded before it is
used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fedsim.rounds import run as run
    from fedsim.scenario import Scenario as Scenario
    from fedsim.summary import Result as Result

_HOME = {"run": "fedsim.rounds", "Scenario": "fedsim.scenario", "Result": "fedsim.summary"}

__all__ = ["Result", "Scenario", "run"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'fedsim' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)
