"""Certificates: who they say they are, and how they are followed while they change."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography import x509

from libs.common.clock import ManualClock, SystemClock
from libs.common.pki import CERTIFICATE_TTL, Certificates, LocalCa, peer_name, spiffe_id


@pytest.fixture
def ca(tmp_path: Path) -> LocalCa:
    authority = LocalCa(tmp_path, now=SystemClock().now)
    authority.create()
    return authority


def test_names_and_life(ca: LocalCa) -> None:
    certificate = x509.load_pem_x509_certificate(ca.sign("dataset")[0])
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.UniformResourceIdentifier) == ["spiffe://argosy.local/svc/dataset"]
    assert "dataset.argosy.local" in names.get_values_for_type(x509.DNSName)
    life = certificate.not_valid_after_utc - certificate.not_valid_before_utc
    assert life - CERTIFICATE_TTL < datetime.timedelta(minutes=2)
    usage = x509.load_pem_x509_certificate(ca.sign("operator")[0]).extensions.get_extension_for_class(
        x509.ExtendedKeyUsage
    )
    assert len(usage.value) == 1, "the operator's certificate is for clients only"


def test_keys_are_private(ca: LocalCa, tmp_path: Path) -> None:
    ca.issue("dataset")
    for name in ("ca.key", "dataset.key"):
        assert (tmp_path / name).stat().st_mode & 0o777 == 0o600


def test_creating_twice_keeps_the_authority(ca: LocalCa) -> None:
    before = ca.certificate
    ca.create()
    assert ca.certificate == before


def test_renewal_in_the_last_third(tmp_path: Path) -> None:
    clock = ManualClock()
    ca = LocalCa(tmp_path, now=clock.now)
    ca.create()
    assert ca.renew("dataset")
    clock.advance(15 * 3600)
    assert not ca.renew("dataset")
    clock.advance(2 * 3600)
    assert ca.renew("dataset")


def test_followed_when_replaced(ca: LocalCa, tmp_path: Path) -> None:
    ca.issue("dataset")
    certificates = Certificates(tmp_path, "dataset")
    first = certificates.current
    assert certificates.current is first
    ca.issue("dataset")
    assert certificates.current.certificate != first.certificate


def test_a_server_is_given_a_certificate_once(ca: LocalCa, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Anything but None makes gRPC replace what handshakes of this moment are made from."""
    monkeypatch.setattr(grpc, "dynamic_ssl_server_credentials", lambda _first, newer, _required: newer)
    ca.issue("dataset")
    newer: Any = Certificates(tmp_path, "dataset").server_credentials()
    assert newer() is None
    ca.issue("dataset")
    assert newer() is not None
    assert newer() is None


def test_half_a_pair_is_not_used(ca: LocalCa, tmp_path: Path) -> None:
    ca.issue("dataset")
    certificates = Certificates(tmp_path, "dataset")
    first = certificates.current
    certificate, key = ca.sign("dataset")
    (tmp_path / "dataset.key").write_bytes(key)
    assert certificates.current == first
    (tmp_path / "dataset.crt").write_bytes(b"-----BEGIN")
    assert certificates.current == first
    (tmp_path / "dataset.crt").write_bytes(certificate)
    assert certificates.current.certificate == certificate


@pytest.mark.parametrize(
    ("uri", "name"),
    [
        (spiffe_id("dataset"), "dataset"),
        (spiffe_id("operator"), "operator"),
        ("spiffe://argosy.local/svc/operator", ""),
        ("spiffe://example.com/svc/dataset", ""),
        ("https://argosy.local/svc/dataset", ""),
    ],
)
def test_peer_name(uri: str, name: str) -> None:
    assert peer_name({"peer_spiffe_id": [uri.encode()]}) == name
    assert peer_name({}) == ""
