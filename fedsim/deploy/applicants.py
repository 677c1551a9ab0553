"""Public keys that nodes sent, found by their fingerprints."""

from pathlib import Path

from fedsim.deploy import keys
from fedsim.deploy.keys import Public
from fedsim.deploy.site import Site
from fedsim.errors import DeployError

_LARGEST = 10_000
"""Bytes; a public key has some 200."""


def requested(site: Site, fingerprint: str, file: Path | None = None) -> Public:
    """The key that somebody wants to take part with.

    Args:
        site: whose folder `requests/` is looked into where no file is named.
        fingerprint: as the node's owner told it.
        file: the key.pub that came.

    Raises:
        DeployError: no key has this fingerprint.
    """
    wanted = keys.checked_fingerprint(fingerprint)
    if file is not None:
        public = _read(file)
        if public.fingerprint != wanted:
            raise DeployError(
                f"{file} has the fingerprint {public.fingerprint}, not {wanted}: it is another key; "
                "ask the node's owner for both again"
            )
        return public
    unsound = 0
    for path in sorted(site.requests.glob("*.pub")):
        try:
            public = _read(path)
        except DeployError:
            unsound += 1
            continue
        if public.fingerprint == wanted:
            return public
    unread = f" ({unsound} of them cannot be read)" if unsound else ""
    raise DeployError(
        f"no file of {site.requests} has a key with this fingerprint{unread}; "
        "put the node's key.pub there as NAME.pub, or name it with --key"
    )


def _read(path: Path) -> Public:
    try:
        with path.open("rb") as file:
            return keys.read_public(file.read(_LARGEST), str(path))
    except OSError as error:
        raise DeployError(f"{path} cannot be read: {error.strerror}") from error
