"""What an app's run tells, for tests."""

import io

from fedsim.apps.grid import Batch
from fedsim.apps.lines import Lines


class Heard(Lines):
    """Lines into a text, and the batches that they are about.

    Attributes:
        batches: as they were answered.
    """

    def __init__(self) -> None:
        self.text = io.StringIO()
        super().__init__(self.text)
        self.batches: list[Batch] = []

    def batch(self, batch, means):  # type: ignore[no-untyped-def]
        """Keep it too."""
        self.batches.append(batch)
        super().batch(batch, means)
