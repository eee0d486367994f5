"""The keys that sign tokens: created when there is none, renewed monthly, published while their tokens live."""

from __future__ import annotations

import asyncio
from datetime import timedelta

from libs.common.auth.tokens import SigningKey
from libs.common.clock import Clock
from libs.common.db.uow import Database
from libs.common.secrets import Keyring
from services.identity.store.repositories import SigningKeys

# How long one key signs. A leaked key is useless after this; there is no other reason to change it.
RENEW_AFTER = timedelta(days=30)
# Verifiers must know a key before the first token that it signed: they ask for unknown keys, so a short time is enough.
_PUBLISHED_BEFORE_USE = timedelta(minutes=1)
_RELOAD_SECONDS = 30.0


class Signer:
    """Signs with the newest key that has been published long enough. Shared by all processes through the database."""

    def __init__(self, database: Database, keyring: Keyring, clock: Clock) -> None:
        self._database = database
        self._keyring = keyring
        self._clock = clock
        self._keys: list[SigningKey] = []
        self._current: SigningKey | None = None
        self._loaded = 0.0
        self._loading = asyncio.Lock()

    async def current(self) -> SigningKey:
        """The key to sign with."""
        await self._load()
        assert self._current is not None
        return self._current

    async def published(self) -> list[SigningKey]:
        """Every key that a living token may have been signed with."""
        await self._load()
        return self._keys

    async def _load(self) -> None:
        async with self._loading:
            if self._keys and self._clock.monotonic() - self._loaded < _RELOAD_SECONDS:
                return
            now = self._clock.now()
            async with self._database.system() as uow:
                store = SigningKeys(uow)
                rows = await store.all()
                if not rows or now - rows[0][2] > RENEW_AFTER:
                    await store.lock()
                    rows = await store.all()
                if not rows or now - rows[0][2] > RENEW_AFTER:
                    key = SigningKey.generate()
                    sealed = self._keyring.seal(key.to_pem(), _aad(key.kid))
                    await store.add(key.kid, sealed, now)
                    await store.delete_before(now - 2 * RENEW_AFTER)
                    rows = await store.all()
            self._keys = [SigningKey.from_pem(self._keyring.open(sealed, _aad(kid))) for kid, sealed, _ in rows]
            ready = [key for key, row in zip(self._keys, rows, strict=True) if now - row[2] >= _PUBLISHED_BEFORE_USE]
            self._current = ready[0] if ready else self._keys[-1]
            self._loaded = self._clock.monotonic()


def _aad(kid: str) -> bytes:
    return f"identity/signing_keys/{kid}".encode()
