"""A node's key: EC P-384 in OpenSSH's form, as Flower reads it; its secret half never leaves the node.

Fingerprints are those of `ssh-keygen -l`: `SHA256:` and the base64 of the SHA-256 of the public key's wire form
(RFC 4253, section 6.6), without padding.
"""

import base64
import hashlib
import re
from pathlib import Path
from typing import NamedTuple

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from fedsim.deploy import private_files
from fedsim.errors import DeployError

_CURVES = (ec.SECP256R1, ec.SECP384R1, ec.SECP521R1)


class Public(NamedTuple):
    """The half of a node's key that it gives away.

    Attributes:
        text: one line of OpenSSH's form, without a comment.
        fingerprint: `SHA256:...`.
    """

    text: str
    fingerprint: str


def make_key(folder: Path) -> Public:
    """Make a node's key: the files `key`, mode 600, and `key.pub`.

    Raises:
        DeployError: there is one already, or it cannot be written.
    """
    key = ec.generate_private_key(ec.SECP384R1())
    private_files.create(folder / "key", _secret(key))
    return _write_public(folder, key)


def replace_key(folder: Path) -> Public:
    """Put a new key in the place of a node's old one.

    Raises:
        DeployError: there is none yet, or it cannot be written.
    """
    read_key(folder / "key")
    key = ec.generate_private_key(ec.SECP384R1())
    private_files.replace(folder / "key", _secret(key))
    return _write_public(folder, key)


def read_key(path: Path) -> Public:
    """The public half of a node's key.

    Raises:
        DeployError: the file is missing, open to others, locked with a passphrase, or of a kind that Flower refuses.
    """
    private_files.check(path)
    try:
        key = serialization.load_ssh_private_key(path.read_bytes(), None)
    except OSError as error:
        raise DeployError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise DeployError(
            f"{path} is not an OpenSSH key without a passphrase; make one with `fedsim deploy join`"
        ) from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise DeployError(f"{path} is not an EC key; make one with `fedsim deploy join`")
    return _public(key.public_key())


def read_public(text: str | bytes, origin: str) -> Public:
    """A public key as a node sent it.

    Args:
        text: the content of its `key.pub`; a comment is left out.
        origin: the file, for messages.

    Raises:
        DeployError: it is none, a secret one, or of a kind that Flower refuses.
    """
    data = text.encode() if isinstance(text, str) else text
    if b"PRIVATE KEY" in data:
        raise DeployError(f"{origin} is a secret key, which must not leave its node; the node sends key.pub")
    try:
        key = serialization.load_ssh_public_key(data.strip())
    except (ValueError, UnsupportedAlgorithm) as error:
        raise DeployError(f"{origin} is not a public key of OpenSSH's form, as key.pub of a node is") from error
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, _CURVES):
        raise DeployError(f"{origin} is not an EC key of a NIST curve; a node makes one with `fedsim deploy join`")
    return _public(key)


def of_flower(pem: str) -> Public:
    """A public key as Flower keeps it.

    Raises:
        DeployError: it is none of a node.
    """
    key = serialization.load_pem_public_key(pem.encode())
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise DeployError("Flower knows a key that is no node's")
    return _public(key)


def checked_fingerprint(text: str) -> str:
    """A fingerprint as somebody typed it.

    Raises:
        DeployError: it has not the form of one.
    """
    if not re.fullmatch(r"SHA256:[A-Za-z0-9+/]{43}", text.strip().rstrip("=")):
        raise DeployError(f"{text} is not a fingerprint; it is SHA256: and 43 letters, digits, + or /")
    return text.strip().rstrip("=")


def _public(key: ec.EllipticCurvePublicKey) -> Public:
    line = key.public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH).decode("ascii")
    digest = hashlib.sha256(base64.b64decode(line.split()[1])).digest()
    return Public(line, f"SHA256:{base64.b64encode(digest).decode('ascii').rstrip('=')}")


def _secret(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
    )


def _write_public(folder: Path, key: ec.EllipticCurvePrivateKey) -> Public:
    public = _public(key.public_key())
    private_files.replace(folder / "key.pub", f"{public.text}\n".encode())
    return public
