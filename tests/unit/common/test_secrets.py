from __future__ import annotations

import os
from pathlib import Path

import pytest

from libs.common.secrets import KEY_BYTES, Keyring, SecretError


@pytest.fixture
def keyring(tmp_path: Path) -> Keyring:
    return Keyring.create_file(tmp_path / "keys")


def test_a_secret_opens_only_in_its_place(keyring: Keyring) -> None:
    sealed = keyring.seal(b"hunter2", b"acme|secrets|value|1")
    assert b"hunter2" not in sealed
    assert keyring.open(sealed, b"acme|secrets|value|1") == b"hunter2"
    with pytest.raises(SecretError):
        keyring.open(sealed, b"evil|secrets|value|1")


def test_every_altered_byte_is_refused(keyring: Keyring) -> None:
    sealed = keyring.seal(b"x", b"aad")
    for position in range(len(sealed)):
        altered = bytearray(sealed)
        altered[position] ^= 1
        with pytest.raises(SecretError):
            keyring.open(bytes(altered), b"aad")
    with pytest.raises(SecretError):
        keyring.open(sealed[:-1], b"aad")
    with pytest.raises(SecretError):
        keyring.open(b"", b"aad")


def test_rotation_keeps_old_secrets_readable() -> None:
    old_key, new_key = os.urandom(KEY_BYTES), os.urandom(KEY_BYTES)
    sealed = Keyring({"old": old_key}, "old").seal(b"value", b"aad")
    both = Keyring({"new": new_key, "old": old_key}, "new")
    assert both.open(sealed, b"aad") == b"value"
    assert not both.is_current(sealed)
    assert both.is_current(both.seal(b"value", b"aad"))
    with pytest.raises(SecretError):
        Keyring({"new": new_key}, "new").open(sealed, b"aad")


def test_a_key_file_is_made_once_and_must_be_private(tmp_path: Path) -> None:
    path = tmp_path / "secrets" / "keys"
    first = Keyring.create_file(path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert Keyring.create_file(path).primary == first.primary
    path.chmod(0o644)
    with pytest.raises(SecretError, match="chmod 600"):
        Keyring.from_file(path)


@pytest.mark.parametrize("text", ["", "id", "id !!!", "id c2hvcnQ=", "a b c"])
def test_a_malformed_key_file_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "keys"
    path.write_text(text)
    path.chmod(0o600)
    with pytest.raises(SecretError):
        Keyring.from_file(path)
