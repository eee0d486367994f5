"""API keys: how one looks, what of it is kept, when it counts.

A key is `ak_<key id>_<secret>`: the id finds the row, the secret is 32 random bytes of which only a hash is kept.
"""

from __future__ import annotations

import re
import secrets
from dataclasses import dataclass
from datetime import datetime

from libs.common.domain import DomainError, Resource

_KEY = re.compile(r"ak_([a-z0-9]{8,63})_([A-Za-z0-9_-]{43})")
# 32 bytes: 256 bits cannot be guessed, with or without a slow hash (NIST SP 800-63B, 5.1.2.2 asks for at least 112).
_SECRET_BYTES = 32


@dataclass(frozen=True)
class PresentedKey:
    """A key as a caller sent it."""

    key_id: str
    text: str


def parse_key(text: str) -> PresentedKey:
    """Reads a key. Raises TOKEN_INVALID if it cannot be one."""
    match = _KEY.fullmatch(text)
    if match is None:
        raise DomainError("TOKEN_INVALID", "the API key is malformed: it must look like ak_<id>_<secret>")
    return PresentedKey(match.group(1), text)


def new_key_id() -> str:
    """16 lower-case letters and digits: 80 bits, so that two keys never meet."""
    alphabet = "abcdefghijklmnopqrstuvwxyz234567"
    return "".join(secrets.choice(alphabet) for _ in range(16))


def new_key_text(key_id: str) -> str:
    return f"ak_{key_id}_{secrets.token_urlsafe(_SECRET_BYTES)}"


@dataclass(kw_only=True)
class ApiKey(Resource):
    """What is kept of a key."""

    display_name: str = ""
    subject: str = ""
    key_id: str = ""
    key_hash: str = ""
    expire_time: datetime | None = None
    revoke_time: datetime | None = None
    requests_per_minute: int = 0
    tokens_per_minute: int = 0

    @property
    def prefix(self) -> str:
        return f"ak_{self.key_id}"

    def revoke(self, now: datetime) -> bool:
        """Revokes it; False if it was revoked before."""
        if self.revoke_time is not None:
            return False
        self.revoke_time = now
        return True

    def require_usable(self, now: datetime) -> None:
        """Raises TOKEN_REVOKED or TOKEN_EXPIRED."""
        if self.revoke_time is not None or self.delete_time is not None:
            raise DomainError("TOKEN_REVOKED", "the API key was revoked: ask an administrator for a new one")
        if self.expire_time is not None and self.expire_time <= now:
            raise DomainError("TOKEN_EXPIRED", "the API key has expired: ask an administrator for a new one")
