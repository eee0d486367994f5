"""Hashes of API keys: argon2id, with a short memory of keys that were verified."""

from __future__ import annotations

import asyncio
import hashlib
from collections import OrderedDict

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError
from argon2.low_level import Type

# A key holds 256 random bits, so the hash need not be slow to keep guessers out; these costs keep one verification
# below ten milliseconds on the reference machine. RFC 9106 section 4 gives the parameters for passwords.
_HASHER = PasswordHasher(time_cost=1, memory_cost=8 * 1024, parallelism=1, type=Type.ID)
_REMEMBERED = 10_000


class KeyHasher:
    """Hashes and verifies keys off the event loop.

    Remembers which (key, hash) pairs matched, by SHA-256 of the key, so that a key in use costs argon2 once. Whether
    it may be used (revoked, expired) is not remembered: that is read from its row each time.
    """

    def __init__(self) -> None:
        self._matched: OrderedDict[bytes, str] = OrderedDict()

    async def hash(self, text: str) -> str:
        return await asyncio.to_thread(_HASHER.hash, text)

    async def matches(self, text: str, key_hash: str) -> bool:
        digest = hashlib.sha256(text.encode()).digest()
        if self._matched.get(digest) == key_hash:
            return True
        if not await asyncio.to_thread(_verify, key_hash, text):
            return False
        self._matched[digest] = key_hash
        if len(self._matched) > _REMEMBERED:
            self._matched.popitem(last=False)
        return True


def _verify(key_hash: str, text: str) -> bool:
    try:
        return _HASHER.verify(key_hash, text)
    except (VerificationError, InvalidHashError):
        return False
