"""What happened at a node: one JSON line after another, each synced before its owner relies on it.

Every line has the SHA-256 of the one before, so a line that was changed or taken out is found. Lines taken off the end
are not: whoever must prove that none were keeps the last line's hash elsewhere.
"""

import fcntl
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

from fedsim.errors import DeployError
from fedsim.machine import sync

FIRST = "0" * 64
"""In the place of the hash before the first line."""
_BLOCK = 65536


class Log:
    """An owner's log; several processes may write it."""

    def __init__(self, file: Path) -> None:
        """The log in a file, which is begun by the first line."""
        self._file = file

    def write(self, kind: str, **facts: Any) -> None:
        """Append a line, on disk when this returns.

        What a kill or a full disk left of a line is kept aside in FILE.cut, and a line says so.

        Args:
            kind: of what happened.
            facts: JSON values; "time", "kind" and "previous" are the log's own.

        Raises:
            DeployError: it cannot be written.
        """
        with _told(self._file), _opened(self._file) as descriptor:
            previous, whole = _last(descriptor)
            if cut := os.pread(descriptor, os.fstat(descriptor).st_size - whole, whole):
                _keep(self._file.with_name(f"{self._file.name}.cut"), cut)
                os.ftruncate(descriptor, whole)
                about = {"bytes": len(cut), "sha256": hashlib.sha256(cut).hexdigest()}
                previous = _append(descriptor, _line("cut", previous, about))
            _append(descriptor, _line(kind, previous, facts))


def entries(file: Path) -> Iterator[dict[str, Any]]:
    """The whole lines of a log, in order; one that is damaged has the kind "damaged"."""
    for line in _lines(file)[0]:
        yield _parsed(line)


def verify(file: Path) -> list[str]:
    """What is wrong with a log, a line each; nothing where the chain is whole.

    Raises:
        DeployError: it cannot be read.
    """
    lines, cut = _lines(file)
    wrong, previous = [], FIRST
    for number, line in enumerate(lines, 1):
        entry = _parsed(line)
        if entry["kind"] == "damaged":
            wrong.append(f"{file}, line {number}: is no entry of a log; it was changed")
        elif entry["previous"] != previous:
            wrong.append(
                f"{file}, line {number}: does not follow the line before; one was changed, taken out or put in"
            )
        previous = hashlib.sha256(line).hexdigest()
    if cut:
        wrong.append(f"{file}: ends in {len(cut)} bytes of a line that was cut; the next entry puts them aside")
    return wrong


def _line(kind: str, previous: str, facts: Mapping[str, Any]) -> bytes:
    told = {"time": datetime.now().astimezone().isoformat(timespec="milliseconds"), "kind": kind, **facts}
    return json.dumps({**told, "previous": previous}, ensure_ascii=True).encode()


def _append(descriptor: int, line: bytes) -> str:
    """Write a line whole and sync it; its hash."""
    left = line + b"\n"
    while left:
        left = left[os.write(descriptor, left) :]
    os.fsync(descriptor)
    return hashlib.sha256(line).hexdigest()


def _last(descriptor: int) -> tuple[str, int]:
    """The hash of the last whole line, and how many bytes the whole lines have."""
    size = os.fstat(descriptor).st_size
    start, tail = size, b""
    while start > 0 and tail.count(b"\n") < 2:
        start = max(0, start - _BLOCK)
        tail = os.pread(descriptor, size - start, start)
    if b"\n" not in tail:
        return FIRST, 0
    whole, _, cut = tail.rpartition(b"\n")
    return hashlib.sha256(whole.rpartition(b"\n")[2]).hexdigest(), size - len(cut)


def _lines(file: Path) -> tuple[list[bytes], bytes]:
    """A log's whole lines, and what is left after them."""
    try:
        *lines, cut = file.read_bytes().split(b"\n")
    except FileNotFoundError:
        return [], b""
    except OSError as error:
        raise DeployError(f"{file} cannot be read: {error.strerror}") from error
    return lines, cut


def _parsed(line: bytes) -> dict[str, Any]:
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        entry = None
    sound = isinstance(entry, dict) and all(isinstance(entry.get(key), str) for key in ("time", "kind", "previous"))
    return entry if sound else {"time": "", "kind": "damaged", "previous": ""}


def _keep(file: Path, cut: bytes) -> None:
    """Put what is left of a line behind what was kept so far, on disk before it leaves the log."""
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        os.write(descriptor, cut + b"\n")
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _opened(file: Path) -> Iterator[int]:
    """The file, begun if need be, held by nobody else meanwhile."""
    begun = not file.exists()
    descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        if begun:
            sync(file.parent)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield descriptor
    finally:
        os.close(descriptor)


@contextmanager
def _told(file: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise DeployError(f"{file} cannot be written ({error.strerror}); make room, or check the disk") from error
