"""Reading a data file whole, with one clear error when it is missing or not the one expected."""

import hashlib
from pathlib import Path
from typing import Literal

from fedsim.errors import DataError


def contents(path: Path) -> bytes:
    """The bytes of a file.

    Raises:
        DataError: it cannot be read.
    """
    try:
        if path.exists() and not path.is_file():  # a device may have no end
            raise DataError(f"{path}: is no file; name one in data.path")
        return path.read_bytes()
    except MemoryError as error:
        raise DataError(f"{path}: does not fit into memory; name a smaller file in data.path") from error
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"{path}: {reason}; check data.path and the file's permissions") from error


def verify(path: Path, data: bytes, digest: str, algorithm: Literal["md5", "sha256"]) -> None:
    """Make sure that `data`, read from `path`, is the published file.

    Args:
        path: for the message.
        data: the file's bytes.
        digest: hexadecimal digest, or its first digits.
        algorithm: of the digest. MD5 is what the data sets' authors publish; it guards against accidents only.

    Raises:
        DataError: the digest differs.
    """
    found = hashlib.new(algorithm, data, usedforsecurity=False).hexdigest()
    if not found.startswith(digest):
        kind = {"md5": "MD5", "sha256": "SHA-256"}[algorithm]
        raise DataError(
            f"{path}: {kind} is {found[: len(digest)]} and should be {digest}; the file is damaged or another "
            "one, fetch it again"
        )
