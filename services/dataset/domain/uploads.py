"""Uploads: files on their way in, part by part."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from datetime import datetime, timedelta

from libs.common.domain import DomainError, Resource, invalid

# How long an upload may take.
OPEN_TIME = timedelta(days=1)
# How long a committed one can be imported.
COMMITTED_TIME = timedelta(days=7)


class UploadState(enum.StrEnum):
    """States of an upload, as `Upload.State` names them."""

    OPEN = "OPEN"
    COMMITTED = "COMMITTED"


@dataclass(frozen=True)
class UploadPart:
    """One part that has arrived: its place, size and SHA-256 in hexadecimal, which is also its blob."""

    offset: int
    size: int
    sha256: str


@dataclass(kw_only=True)
class Upload(Resource):
    """A file on its way in.

    Attributes:
        size: bytes that the file will have; 0: not known yet.
        offset: bytes that have arrived and are safe.
        digest: SHA-256 of the whole once committed.
        manifest_digest: manifest of the parts once committed.
    """

    expire_time: datetime
    file_name: str
    size: int = 0
    offset: int = 0
    digest: str = ""
    manifest_digest: str = ""

    def require_alive(self, now: datetime) -> None:
        """Raises NOT_FOUND when it has expired."""
        if now >= self.expire_time:
            raise DomainError("NOT_FOUND", f"{self.name} does not exist.", name=self.name)

    def require_state(self, wanted: UploadState) -> None:
        """Raises STATE_CONFLICT in any other state."""
        if self.state != wanted:
            message = f"{self.name} is {self.state}; this needs {wanted}."
            raise DomainError("STATE_CONFLICT", message, name=self.name, state=self.state, wanted=wanted)

    def append(self, part: UploadPart) -> None:
        """Takes the next part.

        Raises:
            DomainError: OFFSET_MISMATCH if the upload stands elsewhere; INVALID_FIELD for more bytes than announced.
        """
        self.require_state(UploadState.OPEN)
        if part.offset != self.offset:
            message = f"{self.name} stands at {self.offset}, not at {part.offset}."
            metadata = {"offset": str(self.offset), "received": str(part.offset)}
            raise DomainError("OFFSET_MISMATCH", message, **metadata)
        if self.size and part.offset + part.size > self.size:
            raise invalid("data", f"goes beyond the announced {self.size} bytes")
        self.offset += part.size

    def require_complete(self) -> None:
        """Raises INVALID_FIELD when bytes are missing."""
        if not self.offset:
            raise invalid("name", "nothing has been uploaded")
        if self.size and self.offset != self.size:
            message = f"size: {self.offset} of the announced {self.size} bytes have arrived"
            raise DomainError("INVALID_FIELD", message, field="size")

    def commit(self, digest: str, manifest_digest: str, now: datetime) -> None:
        """Closes it."""
        self.require_state(UploadState.OPEN)
        self.state = UploadState.COMMITTED
        self.digest, self.manifest_digest = digest, manifest_digest
        self.size = self.offset
        self.expire_time = now + COMMITTED_TIME
        self.update_time = now
