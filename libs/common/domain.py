"""What every domain shares: an error with a reason, the fields of every resource, and what work holds of quotas.

Standard library only.
"""

from __future__ import annotations

import enum
import hashlib
from dataclasses import dataclass, field
from datetime import datetime


class DomainError(Exception):
    """A rule says no, or something that the work needs is away.

    Args:
        reason: name in `argosy/common/v1/error_reason.proto` without `ERROR_REASON_`.
        message: one sentence for the caller; no internals.
        metadata: what error_reason.proto says that the reason carries. `field` names the field at fault.
    """

    def __init__(self, reason: str, message: str, **metadata: str) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.metadata = metadata


def invalid(field_path: str, problem: str) -> DomainError:
    """INVALID_FIELD that names the field."""
    return DomainError("INVALID_FIELD", f"{field_path}: {problem}", field=field_path)


class Secrecy(enum.IntEnum):
    """How confidential a resource is; numbers as in resource.proto."""

    UNSPECIFIED = 0
    PUBLIC = 1
    INTERNAL = 2
    CONFIDENTIAL = 3
    SECRET = 4


def inherit_secrecy(own: Secrecy | int, *parents: Secrecy | int) -> Secrecy:
    """At least as confidential as every parent; `INTERNAL` when nobody said anything."""
    highest = Secrecy(max(own, *parents, 0))
    return highest if highest is not Secrecy.UNSPECIFIED else Secrecy.INTERNAL


@dataclass(frozen=True, slots=True)
class Parent:
    """One parent of a derived resource.

    Attributes:
        name: resource name.
        digest: SHA-256 of its manifest in hexadecimal, where it is immutable content.
        relation: what it was to the child, such as `cleaned_from`.
    """

    name: str
    digest: str = ""
    relation: str = ""


@dataclass(kw_only=True)
class Resource:
    """The fields that every resource has. Entities subclass it.

    Attributes:
        uid: UUIDv7.
        name: resource name, `orgs/{org}/...`.
        creator: who created it, such as `users/alice`.
        create_time, update_time: aware, UTC.
        delete_time: when it was deleted softly; None while it lives.
        version: version counter of its row; 0 before it is stored. Only the repository changes it.
        state: name of its state, empty where it has none.
    """

    uid: str
    name: str
    create_time: datetime
    update_time: datetime
    creator: str = ""
    delete_time: datetime | None = None
    version: int = 0
    state: str = ""
    labels: dict[str, str] = field(default_factory=dict)
    secrecy: Secrecy = Secrecy.INTERNAL
    lineage: list[Parent] = field(default_factory=list)

    @property
    def org(self) -> str:
        """Id of the organization that owns it."""
        return self.name.split("/")[1]

    @property
    def id(self) -> str:
        """Last part of the name."""
        return self.name.rsplit("/", 1)[1]

    @property
    def parent(self) -> str:
        """Name without its collection and id: `orgs/acme` of `orgs/acme/datasets/news`; empty for an organization."""
        return self.name.rsplit("/", 2)[0] if self.name.count("/") > 1 else ""

    @property
    def etag(self) -> str:
        """Changes with every change of the row."""
        return hashlib.sha256(f"{self.uid}/{self.version}".encode()).hexdigest()[:16]

    def require_etag(self, etag: str) -> None:
        """Raises ETAG_MISMATCH if the caller saw another version; an empty etag asks for nothing."""
        if etag and etag != self.etag:
            raise DomainError("ETAG_MISMATCH", f"{self.name} has changed; read it again.", name=self.name)


@dataclass(frozen=True)
class Needs:
    """What a task holds while it runs.

    Attributes:
        cpus, gpus: at once.
        memory_bytes: at once.
        seconds: for how long, as far as it is known; 0: unknown.
        storage_bytes: that it will write and keep.
    """

    cpus: float = 0.0
    gpus: float = 0.0
    memory_bytes: int = 0
    seconds: float = 0.0
    storage_bytes: int = 0

    def __bool__(self) -> bool:
        return bool(self.cpus or self.gpus or self.memory_bytes or self.storage_bytes)
