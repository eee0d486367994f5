"""Grants: what a Ray worker gets instead of a service's keys and database. Short-lived, bearer, JSON in base64.

A read grant names the files of one manifest and, where they are encrypted, the key of each. A write grant names one
label, under which its holder writes and reads back. A grant says nothing that its holder could use elsewhere: with
encryption at rest, files outside of it stay unreadable even for code that ignores this module.
"""

from __future__ import annotations

import base64
import hashlib
from dataclasses import dataclass, field
from datetime import datetime, timedelta

import orjson

from libs.common.domain import DomainError


@dataclass(frozen=True)
class GrantedFile:
    """One blob that a read grant opens: its file, and that file's key when it is encrypted."""

    path: str
    key: bytes | None = None


@dataclass(frozen=True)
class Grant:
    """What a grant says.

    Attributes:
        root_url: Where the store is.
        holder: For whom it was made (a task's carrier); for logs.
        expires: From then on it is refused.
        files: Read grant: blobs by SHA-256.
        label: Write grant: label of the files; empty for a read grant.
        key_id: Write grant: id of the ring's key behind `key`; empty in a store without encryption.
        key: Write grant: key that wraps the file keys of the label.
    """

    root_url: str
    holder: str
    expires: datetime
    files: dict[str, GrantedFile] = field(default_factory=dict)
    label: str = ""
    key_id: str = ""
    key: bytes | None = None

    def encode(self) -> str:
        document = {
            "root": self.root_url,
            "holder": self.holder,
            "expires": self.expires.isoformat(),
            "files": {digest: [file.path, _text(file.key)] for digest, file in self.files.items()},
            "label": self.label,
            "key_id": self.key_id,
            "key": _text(self.key),
        }
        return base64.urlsafe_b64encode(orjson.dumps(document)).decode()

    @classmethod
    def decode(cls, text: str) -> Grant:
        """Reads a grant.

        Raises:
            DomainError: GRANT_DENIED, it is not one.
        """
        try:
            document = orjson.loads(base64.urlsafe_b64decode(text))
            return cls(
                document["root"],
                document["holder"],
                datetime.fromisoformat(document["expires"]),
                {digest: GrantedFile(path, _bytes(key)) for digest, (path, key) in document["files"].items()},
                document["label"],
                document["key_id"],
                _bytes(document["key"]),
            )
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise DomainError("GRANT_DENIED", "this is not a grant") from error

    def check(self, now: datetime) -> None:
        """Refuses an expired grant.

        Raises:
            DomainError: GRANT_DENIED.
        """
        if now >= self.expires:
            raise DomainError("GRANT_DENIED", f"the grant expired at {self.expires:%Y-%m-%d %H:%M:%S} UTC")


def expiry(now: datetime, ttl: float) -> datetime:
    """`ttl` seconds from now."""
    return now + timedelta(seconds=ttl)


def _text(key: bytes | None) -> str:
    return "" if key is None else base64.b64encode(key).decode()


def _bytes(text: str) -> bytes | None:
    return base64.b64decode(text) if text else None


def label_of(prefix: str) -> str:
    """Of the files that the holders of a write grant for a prefix write."""
    return hashlib.sha256(prefix.encode()).hexdigest()[:16]
