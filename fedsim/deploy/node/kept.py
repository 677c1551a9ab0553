"""What a node keeps of a run on its disk: its client's states of a few rounds, and replies that it has given.

Room for both is taken before a ledger is charged, so that a full disk costs nothing and the same message can be
answered once there is room. A file is whole and on the disk, or it is not there.
"""

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save as arrays_as_bytes
from safetensors.torch import load_file
from safetensors.torch import save as tensors_as_bytes

from fedsim.arrays import encode, recorded, view
from fedsim.errors import DeployError, Refused
from fedsim.machine import sync
from fedsim.states import State

ROUNDS, RUNS, REPLIES = 3, 8, 8
"""Of how many rounds states are kept, of how many runs, and how many replies."""
_NOT_ASKED = ("counter", "fedsim")
_TAKEN = ".room"
_MARGIN = 65_536  # bytes for the header of a file and for figures


class Room:
    """Disk that is taken for a file before its content is known."""

    def __init__(self, path: Path, size: int) -> None:
        """Take room for a file of `size` bytes of arrays.

        Raises:
            DeployError: there is not so much.
        """
        self._path, self._taken = path, path.with_name(f"{path.name}{_TAKEN}")
        with without_room(path):
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._file = os.open(self._taken, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)
            try:
                os.posix_fallocate(self._file, 0, size + _MARGIN)
            except OSError:
                self.leave()
                raise

    def fill(self, content: bytes) -> None:
        """Put the file in its place; it is on the disk when this returns."""
        with without_room(self._path):
            os.pwrite(self._file, content, 0)
            os.ftruncate(self._file, len(content))
            os.fsync(self._file)
            self._taken.replace(self._path)
            sync(self._path.parent)
        self.leave()

    def leave(self) -> None:
        """Give back what was not needed."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1
            self._taken.unlink(missing_ok=True)


def leave_rooms(*folders: Path) -> None:
    """Give back what a process had taken that was killed over its work, which may be as large as a model."""
    for folder in folders:
        for taken in folder.rglob(f"*{_TAKEN}"):
            taken.unlink(missing_ok=True)


@contextmanager
def without_room(path: Path) -> Iterator[None]:
    """A disk that is full, inside the block, is told in one line."""
    try:
        yield
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        reason = "the node's disk is full; its owner must make room" if full else f"{error.strerror or error}"
        raise DeployError(f"{path.parent} cannot be written: {reason}") from error


class States:
    """The client's states of one run, by the round that made them.

    A message names the last round of the client that counted; the state after just that round is given out. So it
    does not matter whether a later round was lost, or the server went back to an earlier one.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def get(self, round: int) -> State | None:
        """The state after a round, None for round 0.

        Raises:
            Refused: it is not kept, or its file is damaged.
        """
        if round == 0:
            return None
        path = self._file(round)
        try:
            return load_file(path)
        except FileNotFoundError as error:
            kept = ", ".join(map(str, self._rounds())) or "none"
            raise Refused(
                f"the client's state after round {round} is no longer kept (kept are those of rounds: {kept}); "
                "start the run anew"
            ) from error
        except (OSError, SafetensorError) as error:
            raise Refused(f"the client's state after round {round} is damaged; start the run anew") from error

    def room(self, round: int, size: int) -> Room:
        """Room for the state after a round, of `size` bytes."""
        return Room(self._file(round), size)

    def put(self, room: Room, round: int, state: State) -> None:
        """Keep the state after a round. Later ones are of a past that the server has taken back."""
        room.fill(tensors_as_bytes({name: value.detach().clone().contiguous() for name, value in state.items()}))
        rounds = self._rounds()
        lasting = [each for each in rounds if each <= round][-ROUNDS:]
        for other in set(rounds) - set(lasting):
            self._file(other).unlink(missing_ok=True)

    def _rounds(self) -> list[int]:
        names = (path.stem for path in self._folder.glob("*.safetensors"))
        return sorted(int(name) for name in names if name.isdecimal())

    def _file(self, round: int) -> Path:
        return self._folder / f"{round:06d}.safetensors"


class Replies:
    """The last replies that were given to messages whose repetition must not cost anything again."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def get(self, run: str, round: int, digest: str) -> RecordDict | None:
        """What was answered to a message of this run, round and content; None where nothing was, or it has gone."""
        path = self._file(run, round, digest)
        with suppress(OSError, SafetensorError, ValueError, KeyError):
            return _opened(path)
        return None

    def room(self, run: str, round: int, digest: str, size: int) -> Room:
        """Room for a reply whose arrays have `size` bytes."""
        return Room(self._file(run, round, digest), size)

    def put(self, room: Room, content: RecordDict) -> None:
        """Keep a reply, and of the older ones the last few."""
        room.fill(_closed(content))
        prune(self._folder, "*.safetensors", REPLIES)

    def _file(self, run: str, round: int, digest: str) -> Path:
        return self._folder / f"{run}-{round:06d}-{digest[:32]}.safetensors"


def prune(folder: Path, pattern: str, most: int) -> None:
    """Remove what is oldest of a folder, up to `most` files or folders of a pattern."""
    with suppress(OSError):
        paths = sorted(folder.glob(pattern), key=lambda path: path.stat().st_mtime_ns)
        for path in paths[:-most]:
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def digest_of(message: Message) -> str:
    """SHA-256 of what a message asks: its type and records, whatever their order.

    Without what a coordinator that asks again may say otherwise: the ledger's counter, and its own version.
    """
    total = hashlib.sha256(message.metadata.message_type.encode())
    for name in sorted(message.content):
        record = message.content[name]
        _add(total.update, name, type(record).__name__)
        if isinstance(record, ArrayRecord):
            for key, array in record.items():  # whose order says where in the model an array is
                _add(total.update, key, array.dtype, str(tuple(array.shape)), array.stype)
                total.update(array.data)
            continue
        for key in sorted(record):
            if name != "config" or key not in _NOT_ASKED:
                _add(total.update, key, type(record[key]).__name__, repr(record[key]))
    return total.hexdigest()


def _add(update: Callable[[bytes], Any], *words: str) -> None:
    for word in words:
        update(f"{len(word)}:{word}".encode())


def _closed(content: RecordDict) -> bytes:
    """Records as the bytes of a safetensors file; its note has what are no arrays."""
    arrays: dict[str, np.ndarray] = {}
    layout: dict[str, Any] = {}
    for name, record in content.items():
        if isinstance(record, ArrayRecord):
            layout[name] = {"arrays": list(record)}
            arrays |= {f"{name}/{key}": np.ascontiguousarray(view(array)) for key, array in record.items()}
        else:
            layout[name] = {type(record).__name__: dict(record)}
    return arrays_as_bytes(arrays or {"": np.zeros(0)}, {"records": json.dumps(layout)})


def _opened(path: Path) -> RecordDict:
    content = RecordDict()
    with safe_open(path, framework="np") as file:
        for name, described in json.loads(file.metadata()["records"]).items():
            ((kind, values),) = described.items()
            if kind == "arrays":
                content[name] = recorded({key: encode(file.get_tensor(f"{name}/{key}")) for key in values})
            else:
                content[name] = MetricRecord(values) if kind == "MetricRecord" else ConfigRecord(values)
    return content


def size_of(tensors: Sequence[torch.Tensor]) -> int:
    """Bytes of tensors."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
