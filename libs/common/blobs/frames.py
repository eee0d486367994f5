"""Encryption at rest that still allows ranged reads: AES-256-GCM in frames of 64 KiB.

File: header, then frames of 65,536 bytes of plaintext (the last one may be shorter, an empty blob has one empty frame),
each followed by its 16-byte tag. Every file has a random key, so the frame's number is a safe nonce (NIST SP 800-38D,
8.2.1). The associated data say whether a frame is the last: frames cannot be moved, nor the end cut off.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import BinaryIO

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from libs.common.secrets import KEY_BYTES, TAG_BYTES, Keyring, SecretError, decrypt, encrypt

FRAME = 65_536
_MAGIC = b"ABF1"
_SEALED = FRAME + TAG_BYTES
_WRAPPED_KEY_BYTES = 12 + KEY_BYTES + TAG_BYTES
_MORE, _LAST = b"\x00", b"\x01"


def label_key(keyring: Keyring, key_id: str, label: str) -> bytes:
    """The key that wraps the file keys of one label, derived from a key of the ring (HKDF, RFC 5869)."""
    derive = HKDF(algorithm=hashes.SHA256(), length=KEY_BYTES, salt=None, info=f"argosy blobs {label}".encode())
    return derive.derive(keyring.key(key_id))


def write_header(out: BinaryIO, key_id: str, wrapping_key: bytes, label: str) -> bytes:
    """Writes a header with a new file key and returns that key."""
    file_key = os.urandom(KEY_BYTES)
    identity = key_id.encode()
    out.write(_MAGIC + bytes([len(identity)]) + identity + encrypt(wrapping_key, file_key, label.encode()))
    return file_key


def read_header(file: BinaryIO) -> tuple[str, bytes, int]:
    """Reads the header at the start of a file.

    Returns:
        Id of the key, the wrapped file key, the length of the header in bytes.

    Raises:
        SecretError: It is not an encrypted blob.
    """
    start = file.read(len(_MAGIC) + 1)
    if start[: len(_MAGIC)] != _MAGIC or len(start) != len(_MAGIC) + 1:
        raise SecretError("not an encrypted blob")
    identity = file.read(start[-1])
    return (
        identity.decode("utf-8", "replace"),
        file.read(_WRAPPED_KEY_BYTES),
        len(start) + start[-1] + _WRAPPED_KEY_BYTES,
    )


def unwrap(wrapping_key: bytes, wrapped: bytes, label: str) -> bytes:
    """The file key behind `read_header`'s second answer."""
    return decrypt(wrapping_key, wrapped, label.encode())


class FrameWriter:
    """Encrypts a stream of chunks of any size into `out`."""

    def __init__(self, out: BinaryIO, file_key: bytes) -> None:
        self._out = out
        self._cipher = AESGCM(file_key)
        self._buffer = bytearray()
        self._index = 0

    def write(self, chunk: bytes | memoryview) -> None:
        for start in range(0, len(chunk), FRAME):  # a chunk may be half of the memory; no copy of all of it
            self._buffer += chunk[start : start + FRAME]
            if len(self._buffer) > FRAME:  # the last frame is only known at the end, so a full buffer waits
                self._put(bytes(self._buffer[:FRAME]), _MORE)
                del self._buffer[:FRAME]

    def close(self) -> None:
        """Writes the last frame; `out` stays open."""
        self._put(bytes(self._buffer), _LAST)

    def _put(self, plain: bytes, place: bytes) -> None:
        self._out.write(self._cipher.encrypt(_nonce(self._index), plain, place))
        self._index += 1


def plain_size(file_size: int, header: int) -> int:
    """Bytes of plaintext in an encrypted file of `file_size` bytes."""
    body = file_size - header
    frames = max(1, -(-body // _SEALED))
    return max(0, body - frames * TAG_BYTES)


def read_frames(file: BinaryIO, file_key: bytes, header: int, size: int, offset: int, length: int) -> Iterator[bytes]:
    """Decrypts the plaintext bytes [offset, offset + length), a frame at a time.

    Args:
        file: Seekable file.
        header: Length of its header.
        size: Length of the whole plaintext.

    Raises:
        SecretError: The file was altered.
    """
    cipher = AESGCM(file_key)
    last = max(0, size - 1) // FRAME
    end = min(size, offset + length)
    index = min(offset // FRAME, last)
    file.seek(header + index * _SEALED)
    while index * FRAME < end or (size == 0 and index == 0):
        sealed = file.read(_SEALED)
        try:
            plain = cipher.decrypt(_nonce(index), sealed, _LAST if index == last else _MORE)
        except (InvalidTag, ValueError) as error:
            raise SecretError("an encrypted blob was altered") from error
        piece = plain[max(0, offset - index * FRAME) : end - index * FRAME]
        if piece:
            yield piece
        index += 1


def _nonce(index: int) -> bytes:
    return index.to_bytes(12, "big")
