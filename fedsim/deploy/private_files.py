"""Files that hold a secret: readable by their owner alone, from their first byte on.

The mode is given when a file is opened, so there is no moment at which another user could open it, whatever the umask.
A mode that somebody loosened later is refused, with the command that mends it.
"""

import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fedsim.errors import DeployError
from fedsim.machine import sync


def create(path: Path, content: bytes) -> None:
    """Write a new file of mode 600, synced.

    Raises:
        DeployError: it exists already, or cannot be written; then nothing of it is left.
    """
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    except FileExistsError as error:
        raise DeployError(f"{path} exists already; it is not written over") from error
    except OSError as error:
        raise DeployError(f"{path} cannot be written: {error.strerror}") from error
    try:
        with os.fdopen(descriptor, "wb") as file:
            os.fchmod(file.fileno(), 0o600)
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        path.unlink(missing_ok=True)
        raise DeployError(f"{path} cannot be written: {error.strerror}") from error


def replace(path: Path, content: bytes) -> None:
    """Put a new content of mode 600 in the place of a file: after a kill there is the old one or the new one.

    Raises:
        DeployError: it cannot be written; the old one is then still there.
    """
    new = path.with_name(f".{path.name}.new")
    new.unlink(missing_ok=True)  # of an earlier one that was killed
    create(new, content)
    try:
        new.replace(path)
        sync(path.parent)
    except OSError as error:
        new.unlink(missing_ok=True)
        raise DeployError(f"{path} cannot be written: {error.strerror}") from error


def folder(path: Path) -> Path:
    """Make a folder of mode 700, or tighten it where it is there.

    Raises:
        DeployError: it cannot be made.
    """
    try:
        path.mkdir(mode=0o700, exist_ok=True)
        path.chmod(0o700)
    except OSError as error:
        raise DeployError(f"{path} cannot be made: {error.strerror}") from error
    return path


def check(path: Path) -> None:
    """Whether a file or folder is its owner's alone.

    Raises:
        DeployError: it is missing, somebody else's, or open to others; the line says what to run.
    """
    try:
        found = path.stat()
    except OSError as error:
        raise DeployError(f"{path} cannot be read: {error.strerror}") from error
    if found.st_uid not in (os.geteuid(), 0):
        raise DeployError(f"{path} belongs to another user; run `chown {os.geteuid()} {path}` as root")
    if stat.S_IMODE(found.st_mode) & 0o077:
        right = "700" if stat.S_ISDIR(found.st_mode) else "600"
        raise DeployError(
            f"{path} is open to other users of this machine (mode {stat.S_IMODE(found.st_mode):o}); "
            f"run `chmod {right} {path}`"
        )


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Build a folder beside its place, of mode 700; it comes there when all of it is written, or not at all.

    Args:
        path: what is not there yet, or is an empty folder.

    Raises:
        DeployError: there is something, or it cannot be written.
    """
    if not str(path).isprintable():  # its name goes into configurations, one line each
        raise DeployError(f"{str(path)!a} has a sign that cannot be printed; choose another place")
    if path.is_symlink() or (path.exists() and not (path.is_dir() and not any(path.iterdir()))):
        raise DeployError(f"{path} exists already; choose another place, or remove it")
    try:
        built = Path(tempfile.mkdtemp(prefix=f".{path.name}-", dir=path.parent))
        built.chmod(0o700)
    except OSError as error:
        raise DeployError(f"{path} cannot be made: {path.parent}: {error.strerror}") from error
    try:
        yield built
        sync(built)
        built.rename(path)
        sync(path.parent)
    except OSError as error:
        raise DeployError(f"{path} cannot be made: {error.strerror}") from error
    finally:
        shutil.rmtree(built, ignore_errors=True)
