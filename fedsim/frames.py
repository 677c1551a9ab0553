"""A run's records as pandas data frames: `fedsim.Run("runs/first").frame("clients")`.

docs/run-folder.md describes every table and column. What they hold as JSON becomes columns and values.
"""

import json
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedsim.errors import RunFolderError
from fedsim.extras import needed
from fedsim.reading import Records
from fedsim.records import HOLD_JSON, schema
from fedsim.registry import nearest
from fedsim.stored import reading

if TYPE_CHECKING:
    import pandas


class Run:
    """A run as its folder has it, while it goes on too: every look is at what has been committed then.

    Attributes:
        path: its folder.
    """

    def __init__(self, path: str | Path) -> None:
        """Look at a run.

        Raises:
            RunFolderError: not a run folder, or one of a newer version.
        """
        self.path = Path(path)
        Records(self.path / "run.db").close()

    def __repr__(self) -> str:
        return f"fedsim.Run({str(self.path)!r})"

    @property
    def summary(self) -> dict[str, Any]:
        """What the run said at its end; empty when it has not finished."""
        with closing(Records(self.path / "run.db")) as records, reading(self.path):
            return records.summary()

    def frame(self, table: str) -> "pandas.DataFrame":
        """A table of the records.

        NULL is nan. In "clients" and "tests" every metric of a client is a column, named `metric/<name>`; in "metrics"
        every full name is one, and rows are rounds; what other tables hold as JSON are values and lists.

        Args:
            table: of docs/run-folder.md.

        Raises:
            RunFolderError: there is no such table, or it cannot be read.
            FedsimError: pandas is not installed.
        """
        if table not in schema():
            raise RunFolderError(f"there is no table {table!r}.{nearest(table, list(schema()))}")
        pandas = needed("pandas", "frames", "a data frame")
        with closing(Records(self.path / "run.db")) as records, reading(self.path):
            rows = records.select(f"SELECT {', '.join(schema()[table])} FROM {table}")
            frame = pandas.DataFrame.from_records([tuple(row) for row in rows], columns=list(schema()[table]))
            return _shaped(table, frame)


def _shaped(table: str, frame: "pandas.DataFrame") -> "pandas.DataFrame":
    """A table as people ask for it."""
    if table in ("clients", "tests"):
        parsed = [json.loads(text) for text in frame.pop("metrics")]
        for name in dict.fromkeys(name for values in parsed for name in values):
            frame[f"metric/{name}"] = [values.get(name) for values in parsed]
            frame[f"metric/{name}"] = frame[f"metric/{name}"].astype(float)
        return frame
    if table == "metrics":
        wide = frame.pivot(index="round", columns="name", values="value").reset_index()
        return wide.rename_axis(columns=None)
    for column in HOLD_JSON.get(table, ()):
        frame[column] = [json.loads(text) for text in frame[column]]
    return frame
