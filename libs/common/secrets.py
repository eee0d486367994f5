"""Envelope encryption of small secrets: AES-256-GCM under a data key of its own, which the key ring's key wraps."""

from __future__ import annotations

import base64
import os
import secrets
from collections.abc import Mapping
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

KEY_BYTES = 32
NONCE_BYTES = 12
TAG_BYTES = 16
_MAGIC = b"AS1"
_WRAPPED_BYTES = NONCE_BYTES + KEY_BYTES + TAG_BYTES


class SecretError(Exception):
    """A sealed secret cannot be opened: wrong key, wrong place (AAD) or altered bytes. Never says which."""


class Keyring:
    """Keys by id. The primary one seals; all of them open, so that keys can be rotated one row at a time.

    Args:
        keys: 32-byte keys by id (at most 32 characters).
        primary: Id of the key that seals.
    """

    def __init__(self, keys: Mapping[str, bytes], primary: str) -> None:
        if primary not in keys:
            raise SecretError("the key ring has no primary key")
        for key_id, key in keys.items():
            if len(key) != KEY_BYTES or not 1 <= len(key_id.encode()) <= 32:
                raise SecretError("a key of the key ring is not 32 bytes long or has no proper id")
        self._keys = dict(keys)
        self.primary = primary

    @classmethod
    def from_file(cls, path: Path | str) -> Keyring:
        """Reads a key file: a line `<id> <base64 of 32 bytes>` a key, the newest (primary) first; `#` begins a comment.

        Raises:
            SecretError: The file is missing, malformed, or readable by others.
        """
        path = Path(path)
        try:
            mode = path.stat().st_mode
            text = path.read_text(encoding="ascii")
        except (OSError, UnicodeDecodeError) as error:
            raise SecretError(f"key file {path} cannot be read") from error
        if mode & 0o077:
            raise SecretError(f"key file {path} is open to other users: chmod 600 it")
        keys: dict[str, bytes] = {}
        for line in text.splitlines():
            words = line.split("#", 1)[0].split()
            if not words:
                continue
            try:
                key_id, encoded = words
                keys[key_id] = base64.b64decode(encoded, validate=True)
            except ValueError as error:
                raise SecretError(f"key file {path} has a malformed line") from error
        return cls(keys, next(iter(keys), ""))

    @classmethod
    def create_file(cls, path: Path | str) -> Keyring:
        """Makes a key file with one new key, mode 0600; one that exists is read and kept."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        line = f"{secrets.token_hex(4)} {base64.b64encode(os.urandom(KEY_BYTES)).decode()}\n"
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except FileExistsError:
            return cls.from_file(path)
        with os.fdopen(descriptor, "w") as file:
            file.write(line)
            file.flush()
            os.fsync(file.fileno())
        return cls.from_file(path)

    def key(self, key_id: str) -> bytes:
        """The key of that id.

        Raises:
            SecretError: It is not on the ring.
        """
        key = self._keys.get(key_id)
        if key is None:
            raise SecretError("the key that sealed this is not on the key ring")
        return key

    def wrap(self, key: bytes, aad: bytes) -> bytes:
        """Encrypts a data key. The answer starts with the id of the key that did it."""
        key_id = self.primary.encode()
        return bytes([len(key_id)]) + key_id + encrypt(self.key(self.primary), key, aad)

    def unwrap(self, wrapped: bytes, aad: bytes) -> bytes:
        """Decrypts what `wrap` gave.

        Raises:
            SecretError: The key is unknown, or the AAD or the bytes are not those of `wrap`.
        """
        length = wrapped[0] if wrapped else 0
        key = self.key(wrapped[1 : 1 + length].decode("utf-8", "replace"))
        return decrypt(key, wrapped[1 + length :], aad)

    def seal(self, plaintext: bytes, aad: bytes) -> bytes:
        """Encrypts a secret under a new data key.

        Args:
            plaintext: The secret.
            aad: Where it belongs, for example b"acme|secrets|value|<uid>". It opens only with the same.
        """
        key = os.urandom(KEY_BYTES)
        wrapped = self.wrap(key, aad)
        return _MAGIC + len(wrapped).to_bytes(2, "big") + wrapped + encrypt(key, plaintext, aad)

    def open(self, sealed: bytes, aad: bytes) -> bytes:
        """Decrypts what `seal` gave.

        Raises:
            SecretError: Wrong key, wrong AAD or altered bytes.
        """
        wrapped, body = _split(sealed)
        return decrypt(self.unwrap(wrapped, aad), body, aad)

    def is_current(self, sealed: bytes) -> bool:
        """Whether the primary key sealed it; otherwise it should be opened and sealed again."""
        wrapped, _ = _split(sealed)
        return wrapped[1 : 1 + wrapped[0]] == self.primary.encode()


def encrypt(key: bytes, plaintext: bytes, aad: bytes) -> bytes:
    """AES-256-GCM with a random nonce, which comes first in the answer (NIST SP 800-38D, 8.2.2)."""
    nonce = os.urandom(NONCE_BYTES)
    return nonce + AESGCM(key).encrypt(nonce, plaintext, aad)


def decrypt(key: bytes, body: bytes, aad: bytes) -> bytes:
    """Opens what `encrypt` gave.

    Raises:
        SecretError: Wrong key, wrong AAD or altered bytes.
    """
    if len(body) < NONCE_BYTES + TAG_BYTES:
        raise SecretError("sealed bytes are too short")
    try:
        return AESGCM(key).decrypt(body[:NONCE_BYTES], body[NONCE_BYTES:], aad)
    except InvalidTag as error:
        raise SecretError("sealed bytes cannot be opened here") from error


def _split(sealed: bytes) -> tuple[bytes, bytes]:
    start = len(_MAGIC) + 2
    if sealed[: len(_MAGIC)] != _MAGIC or len(sealed) < start:
        raise SecretError("these bytes are not a sealed secret")
    end = start + int.from_bytes(sealed[len(_MAGIC) : start], "big")
    if end - start < 2 + _WRAPPED_BYTES or end > len(sealed):
        raise SecretError("these bytes are not a sealed secret")
    return sealed[start:end], sealed[end:]
