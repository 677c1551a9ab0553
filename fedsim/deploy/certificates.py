"""The coordinator's certificates: an authority of the site's own, and the server's, which the authority signs.

Nodes trust this authority and no other, so a new server certificate needs nothing of them. X.509 as RFC 5280 has it;
keys are EC P-384. A certificate's fingerprint is `SHA256:` and the base64 of the SHA-256 of its DER form, without
padding: the form in which OpenSSH writes those of keys.
"""

import base64
import datetime
import ipaddress
import socket
import ssl
from typing import NamedTuple

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from fedsim.errors import DeployError

AUTHORITY_DAYS, SERVER_DAYS = 3650, 365
_EARLIER = datetime.timedelta(minutes=5)
"""A node's clock may be behind by so much on the day a certificate is made."""


class Pair(NamedTuple):
    """A secret key and its certificate, both PEM; of a server the chain: its own certificate, then the authority's."""

    key: bytes
    certificate: bytes


def make_authority(host: str) -> Pair:
    """A new authority, for ten years, that may sign servers and nothing that signs in its turn."""
    key = ec.generate_private_key(ec.SECP384R1())
    name = _name(f"fedsim authority of {host}")
    usage = _usage(sign_certificates=True)
    built = (
        _builder(name, name, key.public_key(), AUTHORITY_DAYS)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA384())
    )
    return Pair(_pem(key), built.public_bytes(serialization.Encoding.PEM))


def make_server(authority: Pair, host: str, days: int = SERVER_DAYS) -> Pair:
    """A new key and certificate of a server.

    Args:
        authority: who signs.
        host: as nodes call the server, a DNS name or an address; `localhost` and 127.0.0.1 are added.
        days: from now on; never beyond the authority's own end.

    Raises:
        DeployError: the authority's files are damaged or do not belong together.
    """
    signer, parent = _key(authority.key), _first(authority.certificate)
    if signer.public_key() != parent.public_key():
        raise DeployError("ca/ca.key is not the key of ca/ca.crt; bring back the two that belong together")
    key = ec.generate_private_key(ec.SECP384R1())
    names = dict.fromkeys((_general(host), x509.DNSName("localhost"), _general("127.0.0.1")))
    built = (
        _builder(_name(host), parent.subject, key.public_key(), days, parent.not_valid_after_utc)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(sign_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False)
        .sign(signer, hashes.SHA384())
    )
    return Pair(_pem(key), built.public_bytes(serialization.Encoding.PEM) + authority.certificate)


def fingerprint(pem: bytes) -> str:
    """Of the first certificate of a PEM text.

    Raises:
        DeployError: there is none.
    """
    return _printed(_first(pem).fingerprint(hashes.SHA256()))


def alone(pem: bytes) -> bytes:
    """The first certificate of a PEM text, written anew: what else is in the text has no fingerprint that was compared.

    Raises:
        DeployError: there is none.
    """
    return _first(pem).public_bytes(serialization.Encoding.PEM)


def days_left(pem: bytes) -> float:
    """Days until the first certificate of a PEM text ends; negative when it has ended."""
    return (_first(pem).not_valid_after_utc - _now()) / datetime.timedelta(days=1)


def certificate_problem(chain: bytes, authority: bytes, host: str) -> str | None:
    """Why a server's own certificate does not do, in one line, or None.

    Args:
        chain: PEM, the server's certificate first.
        authority: PEM of the authority that nodes trust.
        host: as nodes call the server.
    """
    try:
        own, parent = _first(chain), _first(authority)
    except DeployError as error:
        return str(error)
    for what, each, mend in (
        ("server's certificate", own, f"make a new one with {_RENEW}"),
        ("authority's certificate", parent, "make a new site with `fedsim deploy init`"),
    ):
        if (problem := _dated(what, each, mend)) is not None:
            return problem
    try:
        own.verify_directly_issued_by(parent)
    except (ValueError, TypeError, InvalidSignature):
        return "the server's certificate was not signed by this site's authority; make one that is with " + _RENEW
    named = own.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    if _general(host) not in list(named):
        return f"the server's certificate does not name {host}; make one that does with {_RENEW}"
    return None


def belongs(key: bytes, chain: bytes) -> bool:
    """Whether a secret key is that of the first certificate of a PEM text."""
    return _key(key).public_key() == _first(chain).public_key()


def connection_problem(host: str, port: int, authority: bytes, seconds: float = 10.0) -> str | None:
    """Why a node cannot speak with a server over TLS, in one line, or None; nothing is sent but the handshake.

    Args:
        host, port: of the server.
        authority: PEM; the only one that is trusted.
        seconds: how long to wait for an answer.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_verify_locations(cadata=authority.decode("ascii"))
    except (ssl.SSLError, ValueError):
        return "the authority's certificate is damaged; take part again with `fedsim deploy join`"
    try:
        with (
            socket.create_connection((host, port), timeout=seconds) as plain,
            context.wrap_socket(plain, server_hostname=host),
        ):
            return None
    except (OSError, ValueError) as error:
        return _explained(error, host, port)


def fetch_authority(host: str, port: int, seconds: float = 10.0) -> bytes:
    """The authority's certificate, PEM, as a server sends it behind its own; *not* verified in any way.

    Raises:
        DeployError: the server does not answer, does not speak TLS, or sends no authority.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    try:
        with (
            socket.create_connection((host, port), timeout=seconds) as plain,
            context.wrap_socket(plain, server_hostname=host) as connection,
        ):
            sent = _sent_chain(connection)
    except (OSError, ValueError) as error:
        raise DeployError(_explained(error, host, port)) from error
    if len(sent) < 2:
        raise DeployError(
            f"{host}:{port} sends no authority with its certificate, so it is not a fedsim server; "
            "ask the coordinator for invitation.toml and give it with --invitation"
        )
    return ssl.DER_cert_to_PEM_cert(sent[-1]).encode("ascii")


_RENEW = "`fedsim deploy rotate --server --on DIR`"
_EXPIRED, _NOT_YET, _WRONG_NAME, _WRONG_ADDRESS = 10, 9, 62, 64
"""X509_V_ERR_* of OpenSSL's x509_vfy.h; every other one comes to: not signed by whom we trust."""


def _explained(error: Exception, host: str, port: int) -> str:
    """What to do about an error of a connection."""
    where = f"{host}:{port}"
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"the certificate of {where} " + {
            _EXPIRED: f"has expired; the coordinator makes a new one with {_RENEW}",
            _NOT_YET: "is not valid yet; set the clock of this machine",
            _WRONG_NAME: f"is not for {host}; use the name that the coordinator gave",
            _WRONG_ADDRESS: f"is not for {host}; use the name that the coordinator gave",
        }.get(
            error.verify_code,
            "was not signed by the authority that this node trusts: it is another server, or somebody is in between; "
            "ask the coordinator for the authority's fingerprint",
        )
    reason = getattr(error, "reason", None) or getattr(error, "strerror", None) or "the connection was closed"
    # The kinds are in order: each is also an OSError.
    told = {
        ssl.SSLError: f"{where} does not speak TLS as a fedsim server does ({reason})",
        socket.gaierror: f"no machine is called {host}; check the name and this machine's network",
        TimeoutError: f"{where} does not answer; check the address, the network and the server's firewall",
        ConnectionRefusedError: f"nothing listens at {where}; ask the coordinator whether the server runs",
    }
    return next(
        (text for kind, text in told.items() if isinstance(error, kind)), f"{where} cannot be reached: {reason}"
    )


def _sent_chain(connection: ssl.SSLSocket) -> list[bytes]:
    """The certificates that a server sent, DER; the method is public since Python 3.13."""
    public = getattr(connection, "get_unverified_chain", None)
    if public is not None:
        return list(public())
    inside = connection._sslobj  # type: ignore[attr-defined]
    return [each.public_bytes(2) for each in inside.get_unverified_chain() or ()]  # 2: _ssl.ENCODING_DER


def _dated(what: str, certificate: x509.Certificate, mend: str) -> str | None:
    if certificate.not_valid_after_utc < _now():
        return f"the {what} expired on {certificate.not_valid_after_utc:%Y-%m-%d}; {mend}"
    if certificate.not_valid_before_utc > _now():
        since = certificate.not_valid_before_utc
        return f"the {what} is valid from {since:%Y-%m-%d %H:%M} UTC only; set the clock of this machine"
    return None


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    public: ec.EllipticCurvePublicKey,
    days: int,
    latest: datetime.datetime | None = None,
) -> x509.CertificateBuilder:
    end = _now() + datetime.timedelta(days=days)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(_now() - _EARLIER)
        .not_valid_after(end if latest is None else min(end, latest))
    )


def _usage(*, sign_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not sign_certificates,
        key_cert_sign=sign_certificates,
        crl_sign=sign_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _general(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _name(common: str) -> x509.Name:
    # RFC 5280 allows 64 signs; what counts for a server are its alternative names.
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common[:64])])


def _first(pem: bytes) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(pem)
    except ValueError as error:
        raise DeployError("a certificate is damaged: it is not PEM of an X.509 certificate") from error


def _key(pem: bytes) -> ec.EllipticCurvePrivateKey:
    try:
        key = serialization.load_pem_private_key(pem, None)
    except (ValueError, TypeError) as error:
        raise DeployError("the secret key of a certificate is damaged; bring it back from a backup") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise DeployError("the secret key of a certificate is not an EC key as `fedsim deploy init` makes it")
    return key


def _pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _printed(digest: bytes) -> str:
    return f"SHA256:{base64.b64encode(digest).decode('ascii').rstrip('=')}"


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)
