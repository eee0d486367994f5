"""Mutual TLS: a small local authority, 24-hour certificates, credentials that follow them while they rotate.

Identities are SPIFFE ids in the certificate's URI name: `spiffe://argosy.local/svc/<service>` for services and
`spiffe://argosy.local/operator` for the operator. A client checks the DNS name `<service>.argosy.local`, so the
certificate of one service does not pass for another.
"""

from __future__ import annotations

import datetime
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path

import grpc
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

TRUST_DOMAIN = "argosy.local"
OPERATOR = "operator"
CERTIFICATE_TTL = datetime.timedelta(hours=24)
CA_TTL = datetime.timedelta(days=3650)
# Certificates count from a little earlier, for peers whose clock is behind.
_BACKDATE = datetime.timedelta(minutes=1)
_SPIFFE_SERVICE = f"spiffe://{TRUST_DOMAIN}/svc/"
_SPIFFE_OPERATOR = f"spiffe://{TRUST_DOMAIN}/{OPERATOR}"

Now = Callable[[], datetime.datetime]


def spiffe_id(name: str) -> str:
    """The SPIFFE id of a service or of the operator."""
    return _SPIFFE_OPERATOR if name == OPERATOR else _SPIFFE_SERVICE + name


def server_name(service: str) -> str:
    """The DNS name that a client expects in the certificate of a service."""
    return f"{service}.{TRUST_DOMAIN}"


def peer_name(auth_context: Mapping[str, Iterable[bytes]]) -> str:
    """Name of the calling service, or `operator`, from gRPC's auth context; empty without a certificate of the mesh."""
    ids = auth_context.get("peer_spiffe_id")
    if not ids:
        return ""
    uri = next(iter(ids)).decode()
    if uri == _SPIFFE_OPERATOR:
        return OPERATOR
    name = uri.removeprefix(_SPIFFE_SERVICE)
    # `svc/operator` would otherwise pass for the operator.
    return name if name != uri and name != OPERATOR else ""


class LocalCa:
    """The certificate authority of one mesh, in a folder: `ca.crt`, `ca.key` (0600).

    Args:
        folder: is created when it does not exist.
        now: the time, UTC.
    """

    def __init__(self, folder: Path, *, now: Now) -> None:
        self._folder = folder
        self._now = now

    @property
    def certificate(self) -> bytes:
        """The CA certificate, PEM."""
        return (self._folder / "ca.crt").read_bytes()

    def create(self) -> None:
        """Makes the authority unless the folder holds one."""
        if (self._folder / "ca.key").exists() and (self._folder / "ca.crt").exists():
            return
        self._folder.mkdir(parents=True, exist_ok=True)
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Argosy local CA")])
        usage = x509.KeyUsage(
            digital_signature=False,
            content_commitment=False,
            key_encipherment=False,
            data_encipherment=False,
            key_agreement=False,
            key_cert_sign=True,
            crl_sign=True,
            encipher_only=False,
            decipher_only=False,
        )
        certificate = (
            self._builder(name, name, key.public_key(), CA_TTL)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(usage, critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .sign(key, hashes.SHA256())
        )
        _write(self._folder / "ca.key", _pem(key), 0o600)
        _write(self._folder / "ca.crt", certificate.public_bytes(serialization.Encoding.PEM), 0o644)

    def issue(self, name: str, ttl: datetime.timedelta = CERTIFICATE_TTL) -> None:
        """Writes `<name>.crt` and `<name>.key` (0600), replacing what is there. Readers check that the two fit.

        Args:
            name: service name, or `operator`, who gets a client certificate.
            ttl: its life.
        """
        certificate, key = self.sign(name, ttl)
        _write(self._folder / f"{name}.key", key, 0o600)
        _write(self._folder / f"{name}.crt", certificate, 0o644)

    def sign(self, name: str, ttl: datetime.timedelta = CERTIFICATE_TTL) -> tuple[bytes, bytes]:
        """A new certificate and its key, PEM, without writing them."""
        issuer = x509.load_pem_x509_certificate(self.certificate)
        issuer_key = serialization.load_pem_private_key((self._folder / "ca.key").read_bytes(), password=None)
        if not isinstance(issuer_key, ec.EllipticCurvePrivateKey):
            raise ValueError("ca.key is not an elliptic curve key")
        key = ec.generate_private_key(ec.SECP256R1())
        names: list[x509.GeneralName] = [x509.UniformResourceIdentifier(spiffe_id(name))]
        usages = [ExtendedKeyUsageOID.CLIENT_AUTH]
        if name != OPERATOR:
            names += [
                x509.DNSName(server_name(name)),
                x509.DNSName("localhost"),
                x509.IPAddress(ip_address("127.0.0.1")),
            ]
            usages.append(ExtendedKeyUsageOID.SERVER_AUTH)
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        certificate = (
            self._builder(subject, issuer.subject, key.public_key(), ttl)
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .add_extension(x509.ExtendedKeyUsage(usages), critical=False)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .sign(issuer_key, hashes.SHA256())
        )
        return certificate.public_bytes(serialization.Encoding.PEM), _pem(key)

    def renew(self, name: str, ttl: datetime.timedelta = CERTIFICATE_TTL) -> bool:
        """Issues again when a third of the life is left, or when there is none. Tells whether it did."""
        path = self._folder / f"{name}.crt"
        if path.exists():
            left = x509.load_pem_x509_certificate(path.read_bytes()).not_valid_after_utc - self._now()
            if left > ttl / 3:
                return False
        self.issue(name, ttl)
        return True

    def _builder(
        self, subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, ttl: datetime.timedelta
    ) -> x509.CertificateBuilder:
        now = self._now()
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(issuer)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - _BACKDATE)
            .not_valid_after(now + ttl)
        )


def _pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _write(path: Path, data: bytes, mode: int) -> None:
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
    with os.fdopen(descriptor, "wb") as file:
        os.fchmod(file.fileno(), mode)
        file.write(data)
    draft.replace(path)


@dataclass(frozen=True, slots=True)
class KeyPair:
    """One state of the files of a service: its certificate, its key and the authority it trusts, all PEM."""

    certificate: bytes
    key: bytes
    authority: bytes


def _configuration(pair: KeyPair) -> grpc.ServerCertificateConfiguration:
    return grpc.ssl_server_certificate_configuration([(pair.key, pair.certificate)], pair.authority)


class Certificates:
    """The certificate of this process, followed as its files are replaced.

    Args:
        folder: holds ca.crt, <name>.crt, <name>.key.
        name: service name, or `operator`.
    """

    def __init__(self, folder: Path, name: str) -> None:
        self._paths = (folder / f"{name}.crt", folder / f"{name}.key", folder / "ca.crt")
        self._stamp = self._read_stamp()
        self._pair = self._read()

    @property
    def current(self) -> KeyPair:
        """The newest whole pair. Reads the files only when one of them has changed."""
        stamp = self._read_stamp()
        if stamp != self._stamp:
            try:
                self._pair = self._read()
                self._stamp = stamp
            except (ValueError, OSError):
                # The files are just being replaced one after the other: keep the pair that fits, look again at the
                # next call.
                pass
        return self._pair

    def _read_stamp(self) -> tuple[tuple[int, int], ...]:
        stats = [path.stat() for path in self._paths]
        return tuple((stat.st_mtime_ns, stat.st_ino) for stat in stats)

    def _read(self) -> KeyPair:
        certificate, key, authority = (path.read_bytes() for path in self._paths)
        public = x509.load_pem_x509_certificate(certificate).public_key()
        if serialization.load_pem_private_key(key, password=None).public_key() != public:
            raise ValueError("certificate and key do not belong together")
        return KeyPair(certificate, key, authority)

    def server_credentials(self) -> grpc.ServerCredentials:
        """Credentials that ask for the newest certificate at each handshake and demand one from the client."""
        given = self.current

        def newer() -> grpc.ServerCertificateConfiguration | None:
            """None where nothing has changed. gRPC replaces what its handshakes are made from by whatever it is given,
            and ends the process where others are just using it: that must happen as seldom as it can."""
            nonlocal given
            pair = self.current
            if pair is given:
                return None
            given = pair
            return _configuration(pair)

        # Its stubs do not know of None.
        return grpc.dynamic_ssl_server_credentials(_configuration(given), newer, True)  # pyrefly: ignore[bad-argument-type]

    def channel_credentials(self) -> grpc.ChannelCredentials:
        """Credentials with the certificate of now; make a new channel when `current` changes."""
        pair = self.current
        return grpc.ssl_channel_credentials(pair.authority, pair.key, pair.certificate)
