"""The run folder: everything that one execution of a scenario leaves behind. docs/run-folder.md describes it.

A round is committed as its checkpoint first, then one database transaction that names the checkpoint, so a
kill at any instant loses at most the round in progress.
"""

import hashlib
import os
import re
import shutil
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from torch import Tensor

from fedsim import checkpoints, records
from fedsim.errors import RunFolderError
from fedsim.parameters import Layout, Weights
from fedsim.records import Account, Event, Records, RoundRecord

_LONGEST_SLUG = 80  # a file system allows 255 bytes for the whole name


class RunFolder:
    """A run's folder, for the one process that writes it. Use it as a context manager, or `close` it.

    Attributes:
        path: the folder.
        keep: how many of the last rounds keep their checkpoint.
    """

    def __init__(self, path: Path, keep: int = 2) -> None:
        """Open an existing folder for writing."""
        self.path = path
        self.keep = keep
        self._database = records.connect(path / "run.db")

    @classmethod
    def create(
        cls,
        path: Path | None,
        slug: str,
        scenario_text: str,
        sources: Sequence[Path],
        environment: Mapping[str, Any],
        *,
        keep: int = 2,
    ) -> Self:
        """Make the folder of a new run, at once or not at all.

        Args:
            path: the run folder itself, which must not exist; None for runs/<time>-<slug>-<id> under the
                current folder.
            slug: the scenario's short name, such as its file's.
            scenario_text: the resolved scenario in TOML.
            sources: the user's own files; copied into `sources/`, and their SHA-256 into `environment.json`.
            environment: from `fedsim.environment`.
            keep: how many of the last rounds keep their checkpoint.

        Raises:
            RunFolderError: the folder exists or cannot be written.
        """
        check_out(path)
        path = _default_path(slug) if path is None else path.absolute()
        unfinished = path.with_name(f".{path.name}-{os.urandom(4).hex()}{checkpoints.UNFINISHED}")
        try:
            with _writing(path):
                unfinished.mkdir(parents=True)
                _fill(unfinished, scenario_text, sources, environment)
                unfinished.rename(path)
                checkpoints.sync_folder(path.parent)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
        return cls(path, keep)

    def commit(
        self,
        record: RoundRecord,
        layout: Layout,
        weights: Weights,
        extra: Mapping[str, Tensor] | None = None,
        *,
        constants: Mapping[str, Tensor] | None = None,
        ledger: Iterable[Account] = (),
        best: bool = False,
    ) -> None:
        """Make a round permanent; when this returns it is on the disk.

        Args:
            record: the round and its clients.
            layout, weights: the model after the round.
            extra: the server's other vectors, by name, such as "shared/control".
            constants: the model's frozen parameters and integer buffers, by name.
            ledger: accounts that changed in the round.
            best: whether it is the best round so far on validation; its model is kept.

        Raises:
            RunFolderError: the disk is full or the folder has gone.
        """
        name = f"round-{record.number:06d}.safetensors"
        tensors = checkpoints.named_tensors(layout, weights, "model/")
        tensors |= {f"server/{key}": tensor for key, tensor in (extra or {}).items()}
        notes = {"round": str(record.number), "fingerprint": record.fingerprint}
        with _writing(self.path):
            digest = checkpoints.save(self.path / "checkpoints" / name, tensors, notes)
            if best:
                checkpoints.save_model(
                    self.path / "model" / "best.safetensors", layout, weights, constants or {}, notes
                )
            records.insert_round(self._database, record, (name, digest), best=best, ledger=ledger)
            self._remove_old_checkpoints()

    @property
    def committed(self) -> int:
        """Rounds that are in the database."""
        count: int = self._database.execute("SELECT count(*) FROM rounds").fetchone()[0]
        return count

    def finish(
        self,
        summary: Mapping[str, Any],
        model: Mapping[str, Any],
        layout: Layout,
        weights: Weights,
        *,
        constants: Mapping[str, Tensor] | None = None,
        ledger: Iterable[Account] = (),
        events: Iterable[Event] = (),
    ) -> None:
        """Write the last model, its description and the summary.

        Args:
            summary: plain values by name; a run with a summary has finished.
            model: `model.json`: architecture, preprocessing, classes, metrics with their protocol, epsilon
                with its assumptions.
            layout, weights: the last model.
            constants: its frozen parameters and integer buffers, by name.
            ledger: every client's account at the end.
            events: why the run ended.

        Raises:
            RunFolderError: the disk is full or the folder has gone.
        """
        folder = self.path / "model"
        with _writing(self.path):
            checkpoints.save_model(folder / "last.safetensors", layout, weights, constants or {}, {})
            checkpoints.write(folder / "model.json", _json_file(model))
            records.insert_summary(self._database, summary, ledger=ledger, events=events)

    def close(self) -> None:
        """Let go of the database, which becomes one plain file."""
        records.disconnect(self._database)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _remove_old_checkpoints(self) -> None:
        last = self._database.execute("SELECT checkpoint FROM rounds ORDER BY number DESC LIMIT ?", (self.keep,))
        kept = {name for (name,) in last}
        for file in (self.path / "checkpoints").iterdir():
            if file.name not in kept:
                file.unlink()


def check_out(path: Path | None) -> None:
    """Refuse a run folder that is there already or cannot be there, before anything is trained."""
    if path is None:
        return
    with _writing(path.absolute()), suppress(FileNotFoundError):
        path.lstat()
        raise RunFolderError(f"run folder {path.absolute()} exists already; choose another with --out, or remove it")


def open_run(path: Path) -> Records:
    """The records of a run, read-only, also while it is still going on.

    Raises:
        RunFolderError: not a run folder, or one of another version.
    """
    if not (path / "run.db").is_file():
        raise RunFolderError(f"{path} is not a run folder: it has no run.db")
    return Records(path / "run.db")


def _default_path(slug: str) -> Path:
    name = re.sub(r"[^a-z0-9]+", "-", slug.lower()).strip("-")[:_LONGEST_SLUG] or "run"
    return Path.cwd() / "runs" / f"{datetime.now():%Y%m%d-%H%M}-{name}-{os.urandom(2).hex()}"


def _fill(folder: Path, scenario_text: str, sources: Sequence[Path], environment: Mapping[str, Any]) -> None:
    for name in ("sources", "checkpoints", "model"):
        (folder / name).mkdir()
    copied = {name: _copy(source, folder / "sources" / name) for name, source in _names(sources).items()}
    checkpoints.write(folder / "scenario.toml", scenario_text.encode())
    checkpoints.write(folder / "environment.json", _json_file({**environment, "sources": copied}))
    records.create_tables(folder / "run.db")


def _names(sources: Sequence[Path]) -> dict[str, Path]:
    """A name in `sources/` for every file: its own, with a number where two files share one."""
    named: dict[str, Path] = {}
    for source in dict.fromkeys(path.resolve() for path in sources):
        name, count = source.name, 2
        while name in named:
            name, count = f"{source.stem}-{count}{source.suffix}", count + 1
        named[name] = source
    return named


def _copy(source: Path, target: Path) -> str:
    content = source.read_bytes()
    checkpoints.write(target, content)
    return hashlib.sha256(content).hexdigest()


def _json_file(value: Mapping[str, Any]) -> bytes:
    return (records.to_json(value, indent=2) + "\n").encode()


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Turn what the system says about files and disks into one line for the user."""
    try:
        yield
    except (OSError, sqlite3.OperationalError) as error:
        reason = f"{error.strerror}: {error.filename}" if isinstance(error, OSError) and error.filename else str(error)
        raise RunFolderError(f"run folder {path} cannot be written ({reason}); choose another with --out") from error
