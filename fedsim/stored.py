"""What a run's folder keeps, for those who read it: while the run goes on, and after it."""

import hashlib
import json
import sqlite3
import tomllib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fedsim import checkpoints
from fedsim.checkpoints import Snapshot
from fedsim.errors import RunFolderError, one_line
from fedsim.origins import Origin, contents
from fedsim.parameters import Layout
from fedsim.reading import Records, RoundRow
from fedsim.records import StateRow
from fedsim.states import states_file

DEPLOYMENT = "deployment"
"""Under which `environment.json` says where a run went on whose clients were real ones."""


class Checkpoint(NamedTuple):
    """A run as a checkpoint has it, for who does not write the folder.

    Attributes:
        round: the last that is done.
        snapshot: what the next one depends on.
        places: where clients' states are.
    """

    round: int
    snapshot: Snapshot
    places: Sequence[StateRow]


def is_run(path: Path) -> bool:
    """Whether a folder has the records of a run."""
    return (path / "run.db").is_file()


def open_run(path: Path) -> Records:
    """The records of a run, read-only, also while it is still going on.

    Raises:
        RunFolderError: not a run folder, or one of another version.
    """
    return Records(path / "run.db")


def stored_scenario(path: Path) -> dict[str, Any]:
    """The resolved scenario of a run, as tables.

    Raises:
        RunFolderError: not a run folder, or its scenario cannot be read.
    """
    try:
        return tomllib.loads((path / "scenario.toml").read_text(encoding="utf-8"))
    except OSError as error:
        if (path / "pyproject.toml").exists():
            text = "is the run of a Flower app, which has no scenario; fedsim show and fedsim export read it"
            raise RunFolderError(f"{path} {text}") from error
        raise RunFolderError(f"{path} is not a run folder: scenario.toml: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise RunFolderError(f"{path / 'scenario.toml'} is damaged: {one_line(error)}") from error


def stored_environment(path: Path) -> dict[str, Any]:
    """What a run was made with.

    Raises:
        RunFolderError: it cannot be read.
    """
    try:
        content = json.loads((path / "environment.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise RunFolderError(f"{path / 'environment.json'} cannot be read: {' '.join(str(error).split())}") from error
    kinds = {"packages": dict, "sources": dict, "scenario_folder": str}
    sound = isinstance(content, dict) and all(isinstance(content.get(key, kind()), kind) for key, kind in kinds.items())
    if not sound or "\0" in content.get("scenario_folder", ""):
        raise RunFolderError(f"{path / 'environment.json'} is damaged: it does not say what it should")
    return dict(content)


def source_hashes(sources: Sequence[Origin]) -> dict[str, str]:
    """SHA-256 of the user's own files and cells, by the names that a run folder gives them."""
    return {name: hashlib.sha256(content).hexdigest() for name, content in contents(sources).items()}


def kept_checkpoints(path: Path, records: Records) -> list[RoundRow]:
    """Rounds whose checkpoint is there, newest first; while the run goes on one may go before it is read."""
    folder = path / "checkpoints"
    return [row for row in reversed(records.rounds()) if row.checkpoint and (folder / row.checkpoint).is_file()]


def read_checkpoint(
    path: Path, records: Records, row: RoundRow, layout: Layout, clients: int, *, stateful: bool
) -> Checkpoint:
    """A checkpoint that a run keeps.

    Args:
        path, records: of the run, which may be going on.
        row: of `kept_checkpoints`.
        layout: of the model.
        clients: K.
        stateful: whether every client that was ever accepted has a state, as the algorithm says.

    Raises:
        RunFolderError: it is damaged, or has gone, or a client's state that it needs; the best round's checkpoint
            stays when the states beside it go.
    """
    folder, hashes = path / "checkpoints", {each.number: each.states_sha256 for each in records.rounds()}
    file = folder / str(row.checkpoint)
    snapshot = checkpoints.snapshot_of(checkpoints.load(file, row.checkpoint_sha256), layout, clients, file)
    places = records.live_states(row.number)
    there = {place.client: place.made for place in places}
    for client in np.flatnonzero(snapshot.accepted).tolist() if stateful else ():
        if there.get(client) != snapshot.accepted[client]:
            raise RunFolderError(f"{file}: the state of client {client} that belongs to it is no longer kept")
    for number in sorted({place.checkpoint for place in places}):
        checkpoints.verify(folder / states_file(number), hashes.get(number))
    return Checkpoint(row.number, snapshot, places)


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn what is read of records that are not what this program wrote into one line for the user."""
    try:
        yield
    except (sqlite3.Error, TypeError, ValueError, OverflowError, LookupError) as error:
        raise RunFolderError(f"{path / 'run.db'} cannot be read as the records of a run: {one_line(error)}") from error
