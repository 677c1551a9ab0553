"""A user's own callbacks on a run: `fedsim.run(..., observers=[Mine()])`."""

from typing import Protocol

from fedsim.records import RoundRecord
from fedsim.summary import Result


class Observer(Protocol):
    """Is called in the run's own thread, between rounds; what it raises ends the run, which can be resumed."""

    def round_finished(self, record: RoundRecord) -> None:
        """A round is on the disk."""

    def run_finished(self, result: Result) -> None:
        """The run has ended, by itself or by its rules, and its summary is on the disk."""
