"""The run folder: everything that one execution of a scenario leaves behind. docs/run-folder.md describes it.

A round is committed as its checkpoint first, then one database transaction that names the checkpoint, so a
kill at any instant loses at most the round in progress.
"""

import os
import re
import shutil
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

from torch import Tensor

from fedsim import checkpoints, records
from fedsim.checkpoints import Snapshot
from fedsim.errors import RunFolderError
from fedsim.machine import sync
from fedsim.origins import Origin, contents
from fedsim.parameters import Layout, Weights, fingerprint
from fedsim.reading import Records, RoundRow
from fedsim.records import CheckpointFiles, ClientRow, Event, LedgerRow, MeasuredRow, RoundRecord, StateRow
from fedsim.states import STATES, Kept, named_states, states_file
from fedsim.stored import reading, source_hashes

_LONGEST_SLUG = 80  # a file system allows 255 bytes for the whole name


class Best(NamedTuple):
    """The best round so far on validation and its model; round 0 is the model before training."""

    round: int
    weights: Weights


class Restored(NamedTuple):
    """A run as it was after a checkpoint.

    Attributes:
        round: the last that is done.
        snapshot: what the next one depends on.
        best: the best round so far.
        places: where clients' states are.
        history: every round so far with its metrics.
        clients: the recorded rows of its last round.
    """

    round: int
    snapshot: Snapshot
    best: Best
    places: Sequence[StateRow]
    history: Sequence[tuple[RoundRow, Mapping[str, float]]]
    clients: Sequence[ClientRow]


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
        with writing(path, "make room, or make it writable"):
            self._database = records.connect(path / "run.db")
        self._closed = False

    @classmethod
    def create(
        cls,
        path: Path | None,
        slug: str,
        scenario_text: str,
        sources: Sequence[Origin],
        environment: Mapping[str, Any],
        *,
        partition: Mapping[str, Any] | None = None,
        keep: int = 2,
    ) -> Self:
        """Make the folder of a new run, at once or not at all.

        Args:
            path: the run folder itself, which must not exist; None for runs/<time>-<slug>-<id> under the
                current folder.
            slug: the scenario's short name, such as its file's.
            scenario_text: the resolved scenario in TOML.
            sources: the user's own files and notebook cells; copied into `sources/`, and their SHA-256 into
                `environment.json`.
            environment: from `fedsim.environment`.
            partition: from `fedsim.data.holdings`.
            keep: how many of the last rounds keep their checkpoint.

        Raises:
            RunFolderError: the folder exists or cannot be written.
        """

        def fill(made: Path) -> None:
            _fill(made, scenario_text, sources, environment, partition)

        return cls(new_folder(path, slug, fill), keep)

    def commit(
        self,
        record: RoundRecord,
        layout: Layout,
        snapshot: Snapshot,
        best: Best,
        *,
        states: Mapping[int, Kept] | None = None,
        ledger: Iterable[LedgerRow] = (),
    ) -> None:
        """Make a round permanent; when this returns it is on the disk.

        Args:
            record: the round and its clients.
            layout: of the model.
            snapshot: what the next round depends on.
            best: the best round so far on validation; its model stays as long as a kept checkpoint may need it.
            states: clients' states that the checkpoint must hold, by client; None where the round has no
                checkpoint of its own, so that a kill would lose it.
            ledger: accounts that changed in the round.

        Raises:
            RunFolderError: the disk is full or the folder has gone.
        """
        number = record.number
        with writing(self.path, f"make room, then go on with: fedsim resume {self.whole}"):
            files, rows = None, [StateRow(client, number, kept.round) for client, kept in (states or {}).items()]
            if states is not None:
                files = self._write_checkpoint(record, layout, snapshot, states)
                self._keep_best(number, layout, best)
            records.insert_round(self._database, record, files, best=best.round == number, ledger=ledger, states=rows)
            if files is not None:
                self._remove_old_checkpoints()

    def _write_checkpoint(
        self, record: RoundRecord, layout: Layout, snapshot: Snapshot, states: Mapping[int, Kept]
    ) -> CheckpointFiles:
        name, notes = _checkpoint_name(record.number), {"round": str(record.number)}
        states_name = states_sha256 = None
        if states:
            states_name = states_file(record.number)
            states_sha256 = checkpoints.save(self.checkpoints / states_name, named_states(states), notes)
        digest = checkpoints.save(self.checkpoints / name, snapshot.tensors(layout), notes)
        return CheckpointFiles(name, digest, states_name, states_sha256)

    def _keep_best(self, number: int, layout: Layout, best: Best) -> None:
        """Store the model of a best round that has no checkpoint; others are in theirs, which stays."""
        if 0 < best.round < number and not self._best_file(best.round).exists():
            tensors = checkpoints.named_tensors(layout, best.weights, "model/")
            checkpoints.save(self.checkpoints / _best_name(best.round), tensors, {"round": str(best.round)})

    def _best_file(self, round: int) -> Path:
        checkpoint = self.checkpoints / _checkpoint_name(round)
        return checkpoint if checkpoint.exists() else self.checkpoints / _best_name(round)

    def _best_round(self, last: int) -> int:
        """The best round of those up to `last`; 0 where none was."""
        query = "SELECT coalesce(max(number), 0) FROM rounds WHERE best AND number <= ?"
        best: int = self._database.execute(query, (last,)).fetchone()[0]
        return best

    @property
    def whole(self) -> Path:
        """The folder that `fedsim resume` takes: this one, or that of the run in whose folder it lies."""
        above = (self.path.parents[1], self.path.parent) if len(self.path.parents) > 1 else ()
        return next((folder for folder in above if (folder / "run.db").exists()), self.path)

    @property
    def checkpoints(self) -> Path:
        """Where checkpoints and clients' states lie."""
        return self.path / "checkpoints"

    @property
    def committed(self) -> int:
        """Rounds that are in the database."""
        count: int = self._database.execute("SELECT count(*) FROM rounds").fetchone()[0]
        return count

    def restore(
        self, layout: Layout, clients: int, initial: Weights, tell: Callable[[str], None] = lambda text: None
    ) -> Restored | None:
        """Go back to the last sound checkpoint: what came after it is forgotten. None where there is none.

        Args:
            layout: of the model.
            clients: K.
            initial: the model before training.
            tell: is told what was damaged.

        Raises:
            RunFolderError: no checkpoint that was written is sound, one does not fit the model, or the folder cannot
                be read or written. Nothing is forgotten then.
        """
        warnings: list[str] = []
        with reading(self.path):
            found = self._last_sound(layout, clients, initial, warnings)
        for warning in warnings:
            tell(warning)
        with reading(self.path), writing(self.path, "make room"):
            self.checkpoints.mkdir(exist_ok=True)
            records.rewind(self._database, found.round if found is not None else 0)
            self._remove_old_checkpoints()
            self.note(Event("resumed", f"from round {found.round if found is not None else 0}"))
            for warning in warnings:
                self.note(Event("warning", warning))
        return found

    def _last_sound(self, layout: Layout, clients: int, initial: Weights, warnings: list[str]) -> Restored | None:
        for number, name, digest in self._candidates():
            file = self.checkpoints / name
            places = [StateRow(*map(int, place)) for place in records.live_states(self._database, number)]
            try:
                tensors = checkpoints.load(file, digest)
                self._check_states({place.checkpoint for place in places})
            except RunFolderError as damage:
                warnings.append(f"{damage}; the checkpoint before it is used")
                continue
            snapshot = checkpoints.snapshot_of(tensors, layout, clients, file, initial.vector.dtype)
            if snapshot.accepted[self._first_later(number)].any():
                warnings.append(f"{file}: clients' states that belong to it are no longer kept")
                continue
            best = self._restored_best(number, layout, snapshot, initial, warnings)
            return Restored(number, snapshot, best, places, *self._history(number))
        if warnings:
            raise RunFolderError(f"no checkpoint is sound ({warnings[-1]}); restore {self.checkpoints}, or begin anew")
        return None

    def write_scenario(self, text: str) -> None:
        """Put another resolved scenario in the place of the first, when a run goes on for more rounds."""
        with writing(self.path, "make room"):
            checkpoints.write(self.path / "scenario.toml", text.encode())

    def note(self, event: Event) -> None:
        """Record an event at once."""
        records.insert_event(self._database, event)

    def _candidates(self) -> list[tuple[int, str, str]]:
        """Number, checkpoint and its hash of the rounds that may be gone back to, newest first.

        Those that are kept, and others whose file is still there: until now more may have been kept.
        """
        query = "SELECT number, checkpoint, checkpoint_sha256 FROM rounds WHERE checkpoint IS NOT NULL"
        rounds = self._database.execute(f"{query} ORDER BY number DESC").fetchall()
        return [row for place, row in enumerate(rounds) if place < self.keep or (self.checkpoints / row[1]).exists()]

    def _first_later(self, checkpoint: int) -> list[int]:
        """Clients whose first state that is still recorded came after a checkpoint: an older one may be gone."""
        query = "SELECT client FROM states GROUP BY client HAVING min(checkpoint) > ?"
        return [client for (client,) in self._database.execute(query, (checkpoint,))]

    def _kept_rounds(self) -> list[int]:
        """The rounds whose checkpoints are kept, newest first."""
        query = "SELECT number FROM rounds WHERE checkpoint IS NOT NULL ORDER BY number DESC LIMIT ?"
        return [number for (number,) in self._database.execute(query, (self.keep,))]

    def _history(self, last: int) -> tuple[list[tuple[RoundRow, Mapping[str, float]]], list[ClientRow]]:
        with closing(Records(self.path / "run.db")) as read:
            series = read.metrics()
            rounds = [row._replace(seconds=float(row.seconds)) for row in read.rounds() if row.number <= last]
            clients = read.clients(round=last)
        metrics: dict[int, dict[str, float]] = {}
        for name, values in series.items():
            for number, value in values.items():
                metrics.setdefault(number, {})[name] = float(value)
        return [(row, metrics.get(row.number, {})) for row in rounds], clients

    def _check_states(self, made: set[int]) -> None:
        for number in sorted(made):
            query = "SELECT states_sha256 FROM rounds WHERE number = ?"
            (digest,) = self._database.execute(query, (number,)).fetchone() or (None,)
            checkpoints.verify(self.checkpoints / states_file(number), digest)

    def _restored_best(
        self, number: int, layout: Layout, snapshot: Snapshot, initial: Weights, warnings: list[str]
    ) -> Best:
        """The best round up to `number`, as it is kept."""
        round = self._best_round(number)
        if round == number:
            return Best(round, snapshot.weights)
        if not round:
            return Best(0, initial)
        path = self._best_file(round)
        try:
            dtype = initial.vector.dtype
            weights = checkpoints.weights_of(checkpoints.load(path), layout, "model/", path, dtype)
            query = "SELECT fingerprint FROM rounds WHERE number = ?"
            if self._database.execute(query, (round,)).fetchone() == (fingerprint(weights),):
                return Best(round, weights)
            warnings.append(f"{path} is damaged: its model is not the one that was recorded")
        except RunFolderError as damage:
            warnings.append(str(damage))
        warnings.append(f"the best model, of round {round}, is lost; that of round {number} stands for it")
        return Best(number, snapshot.weights)

    def finish(
        self,
        summary: Mapping[str, Any],
        card: Mapping[str, Any],
        layout: Layout,
        last: Weights,
        best: Best,
        *,
        constants: Mapping[str, Tensor] | None = None,
        ledger: Iterable[LedgerRow] = (),
        events: Iterable[Event] = (),
        tests: Iterable[MeasuredRow] = (),
    ) -> None:
        """Write the last and the best model, their description and the summary.

        Args:
            summary: plain values by name; a run with a summary has finished.
            card: `model.json`: architecture, preprocessing, classes, metrics with their protocol, epsilon
                with its assumptions.
            layout: of the models.
            last, best: the models.
            constants: their frozen parameters and integer buffers, by name.
            ledger: every client's account at the end.
            events: why the run ended.
            tests: the last models on clients' own test rows.

        Raises:
            RunFolderError: the disk is full or the folder has gone.
        """
        folder, fixed = self.path / "model", constants or {}
        with writing(self.path, f"make room, then go on with: fedsim resume {self.whole}"):
            checkpoints.save_model(folder / "last.safetensors", layout, last, fixed, {"round": str(self.committed)})
            checkpoints.save_model(folder / "best.safetensors", layout, best.weights, fixed, {"round": str(best.round)})
            checkpoints.write(folder / "model.json", _json_file(card))
            records.insert_summary(self._database, summary, ledger=ledger, events=events, tests=tests)

    def close(self) -> None:
        """Let go of the database, which becomes one plain file; once is enough."""
        if not self._closed:
            self._closed = True
            records.disconnect(self._database)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _remove_old_checkpoints(self) -> None:
        """Remove the files that no kept checkpoint and no best model of theirs needs, and what a kill left.

        A checkpoint goes before the states that it needs: what is there can be gone back to.
        """
        rounds = self._kept_rounds()
        kept = {*map(_checkpoint_name, rounds), *(self._best_file(self._best_round(round)).name for round in rounds)}
        self._remove(lambda name: not name.startswith(STATES) and name not in kept)
        records.prune_states(self._database, rounds)
        living = self._database.execute("SELECT DISTINCT checkpoint FROM states")
        needed = {states_file(number) for (number,) in living}
        self._remove(lambda name: name.startswith(STATES) and name not in needed)

    def _remove(self, chosen: Callable[[str], bool]) -> None:
        for file in self.checkpoints.iterdir():
            if chosen(file.name):
                file.unlink()


def new_folder(path: Path | None, slug: str, fill: Callable[[Path], None]) -> Path:
    """Make the folder of a new run, at once or not at all.

    Args:
        path, slug: as of `RunFolder.create`.
        fill: writes what is in it from the beginning.

    Raises:
        RunFolderError: the folder exists or cannot be written.
    """
    check_out(path)
    path = default_path(slug) if path is None else path.absolute()
    unfinished = path.with_name(f".{path.name}-{os.urandom(4).hex()}{checkpoints.UNFINISHED}")
    try:
        with writing(path):
            unfinished.mkdir(parents=True)
            fill(unfinished)
            unfinished.rename(path)
            sync(path.parent)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return path


def check_out(path: Path | None) -> None:
    """Refuse a run folder that is there already or cannot be there, before anything is trained."""
    if path is None:
        return
    with writing(path.absolute()), suppress(FileNotFoundError):
        path.lstat()
        raise RunFolderError(f"run folder {path.absolute()} exists already; choose another with --out, or remove it")


def default_path(slug: str) -> Path:
    """Where a run of this short name goes if nobody says: runs/<time>-<slug>-<id> under the current folder."""
    name = re.sub(r"[^a-z0-9]+", "-", slug.lower()).strip("-")[:_LONGEST_SLUG] or "run"
    return Path.cwd() / "runs" / f"{datetime.now():%Y%m%d-%H%M}-{name}-{os.urandom(2).hex()}"


def _checkpoint_name(round: int) -> str:
    return f"round-{round:06d}.safetensors"


def _best_name(round: int) -> str:
    return f"best-{round:06d}.safetensors"


def _fill(
    folder: Path,
    scenario_text: str,
    sources: Sequence[Origin],
    environment: Mapping[str, Any],
    partition: Mapping[str, Any] | None,
) -> None:
    for name in ("sources", "checkpoints", "model"):
        (folder / name).mkdir()
    for name, content in contents(sources).items():
        checkpoints.write(folder / "sources" / name, content)
    checkpoints.write(folder / "scenario.toml", scenario_text.encode())
    checkpoints.write(folder / "environment.json", _json_file({**environment, "sources": source_hashes(sources)}))
    if partition is not None:
        checkpoints.write(folder / "partition.json", records.to_json(partition).encode())
    records.create_tables(folder / "run.db")


def _json_file(value: Mapping[str, Any]) -> bytes:
    return (records.to_json(value, indent=2) + "\n").encode()


@contextmanager
def writing(path: Path, advice: str = "choose another with --out") -> Iterator[None]:
    """Turn what the system says about files and disks into one line for the user."""
    try:
        yield
    except (OSError, sqlite3.Error) as error:
        reason = f"{error.strerror}: {error.filename}" if isinstance(error, OSError) and error.filename else str(error)
        raise RunFolderError(f"run folder {path} cannot be written ({reason}); {advice}") from error
