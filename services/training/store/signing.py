"""The platform's signature of model versions: Ed25519, with a key that this service alone can open."""

from __future__ import annotations

import base64
from datetime import datetime

from cryptography.exceptions import InvalidSignature
from sqlalchemy import func, insert, select

from libs.common.auth.tokens import SigningKey
from libs.common.clock import Clock
from libs.common.db.uow import Database, UnitOfWork
from libs.common.secrets import Keyring
from services.training.domain.models import ModelVersion, Signature, signed_text
from services.training.store import tables

# Any number that no other advisory lock of this database has.
_LOCK = 7_301_001


class ModelSigner:
    """Signs versions and checks signatures. Make one with `load`.

    Args:
        keys: by id; the last one signs.
    """

    def __init__(self, keys: dict[str, SigningKey]) -> None:
        self._keys = keys

    @classmethod
    async def load(cls, database: Database, keyring: Keyring, clock: Clock) -> ModelSigner:
        """Reads the keys; makes the first one when there is none.

        Raises:
            SecretError: The key ring is not the one that sealed them.
        """
        async with database.system() as uow:
            await (await uow.connection()).execute(select(func.pg_advisory_xact_lock(_LOCK)))
            rows = await _rows(uow)
            if not rows:
                key = SigningKey.generate()
                sealed = keyring.seal(key.to_pem(), _aad(key.kid))
                made = insert(tables.model_signing_keys).values(key_id=key.kid, sealed=sealed, create_time=clock.now())
                await (await uow.connection()).execute(made)
                rows = await _rows(uow)
        return cls({key_id: SigningKey.from_pem(keyring.open(sealed, _aad(key_id))) for key_id, sealed in rows})

    def sign(self, version: ModelVersion, now: datetime) -> None:
        """Puts the signature on a version that has its name and its digest."""
        key = list(self._keys.values())[-1]
        value = key.private.sign(signed_text(version.name, version.manifest_digest))
        version.signature = Signature(key.kid, base64.b64encode(value).decode(), now)

    def fault(self, version: ModelVersion) -> str:
        """What is wrong with the signature of a version; nothing if it is right."""
        signature = version.signature
        if signature is None:
            return "it has no signature"
        key = self._keys.get(signature.key_id)
        if key is None:
            return f"it is signed with the key {signature.key_id}, which is none of the platform's"
        try:
            value = base64.b64decode(signature.value, validate=True)
            key.private.public_key().verify(value, signed_text(version.name, version.manifest_digest))
        except (InvalidSignature, ValueError):
            return "its signature does not fit its name and its manifest"
        return ""

    def public_key(self, key_id: str) -> str:
        """The public half of a key in base64; empty if there is no such key."""
        key = self._keys.get(key_id)
        return base64.b64encode(key.private.public_key().public_bytes_raw()).decode() if key else ""


async def _rows(uow: UnitOfWork) -> list[tuple[str, bytes]]:
    table = tables.model_signing_keys
    query = select(table.c.key_id, table.c.sealed).order_by(table.c.create_time, table.c.key_id)
    return [(row.key_id, row.sealed) for row in await (await uow.connection()).execute(query)]


def _aad(key_id: str) -> bytes:
    return f"training/model_signing_keys/{key_id}".encode()
