"""Datasets: a named line of versions."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from libs.common.domain import DomainError, Resource, Secrecy

# After that the bytes may be gone.
UNDELETE_TIME = timedelta(days=30)
# Values of argosy.common.v1.Role.
_ROLE_ADMIN, _ROLE_SYSTEM = 4, 5


# What the files of a dataset must be, by its type (value of `DatasetType`); the other types have no files.
MEDIA_TYPES = {1: "image", 3: "video", 4: "audio"}
# Whose columns have types, also where a file has only texts.
TABLE = 5


class Visibility(enum.IntEnum):
    """Who sees a dataset; numbers as in dataset.proto."""

    UNSPECIFIED = 0
    USER = 1
    ORGANIZATION = 2
    PUBLIC = 3


def sees_all(subject: str, role: int) -> bool:
    """Whether a principal sees every dataset of its organization: administrators and services of the mesh do."""
    return role >= _ROLE_ADMIN or subject.startswith("services/")


def share_names(org: str, subject: str, department: str) -> set[str]:
    """What a share may name to reach a principal: its organization, itself, its department."""
    return {f"orgs/{org}", f"orgs/{org}/{subject}", department} - {""}


@dataclass(kw_only=True)
class Dataset(Resource):
    """A named line of versions.

    Attributes:
        type: value of `DatasetType`.
        source: where the data comes from, for people.
        latest_version: name of the newest version; empty while there is none.
        locked: while set, no new version can be made.
        version_count: versions ever made; the next one is called `v<version_count + 1>`.
        shared_with: names of users, service accounts, departments and organizations that may read it.
    """

    display_name: str = ""
    description: str = ""
    type: int = 0
    source: str = ""
    project_space: str = ""
    visibility: int = Visibility.ORGANIZATION
    latest_version: str = ""
    locked: bool = False
    version_count: int = 0
    shared_with: list[str] = field(default_factory=list[str])

    def require_unlocked(self) -> None:
        """Raises STATE_CONFLICT while the dataset is locked."""
        if self.locked:
            message = f"{self.name} is locked; no new version can be made."
            raise DomainError("STATE_CONFLICT", message, name=self.name, state="locked", wanted="unlocked")

    def is_visible_to(self, org: str, subject: str, role: int, department: str = "") -> bool:
        """Whether a principal may see the dataset. Nothing above INTERNAL leaves the organization.

        Args:
            org: its organization.
            subject: `users/alice`, or `services/training`.
            role: its role in `org`.
            department: resource name of its department, if it has one.
        """
        if org != self.org and role < _ROLE_SYSTEM:
            if self.delete_time is not None or self.secrecy > Secrecy.INTERNAL:
                return False
            return self.visibility == Visibility.PUBLIC or self._is_shared_with(org, subject, department)
        return self._is_own_of(subject, role) or self._is_shared_with(org, subject, department)

    def _is_own_of(self, subject: str, role: int) -> bool:
        return self.visibility != Visibility.USER or subject == self.creator or sees_all(subject, role)

    def _is_shared_with(self, org: str, subject: str, department: str) -> bool:
        return not share_names(org, subject, department).isdisjoint(self.shared_with)

    def require_writable(self, subject: str, role: int) -> None:
        """Raises ROLE_MISSING for somebody who sees it only because it was shared: shares are for reading."""
        if not self._is_own_of(subject, role):
            message = f"{self.name} is shared with {subject} to be read; its creator or an administrator can change it."
            raise DomainError("ROLE_MISSING", message, required_role="creator")

    def take_version_name(self) -> str:
        """The name of the next version."""
        self.version_count += 1
        return f"{self.name}/versions/v{self.version_count}"

    def raise_secrecy(self, secrecy: Secrecy) -> None:
        """Makes the dataset as confidential as what it now holds."""
        self.secrecy = max(self.secrecy, secrecy)

    def change_secrecy(self, secrecy: Secrecy) -> None:
        """Sets the secrecy that somebody asked for. Raises INVALID_FIELD for a lower one: data was derived under it."""
        if secrecy < self.secrecy:
            message = f"secrecy: is {self.secrecy.name} and cannot be lowered"
            raise DomainError("INVALID_FIELD", message, field="dataset.secrecy")
        self.secrecy = secrecy

    def require_undeletable(self, now: datetime) -> None:
        """Raises STATE_CONFLICT when it was deleted too long ago."""
        if self.delete_time is not None and now - self.delete_time > UNDELETE_TIME:
            message = f"{self.name} was deleted more than {UNDELETE_TIME.days} days ago."
            raise DomainError("STATE_CONFLICT", message, name=self.name, state="purged", wanted="deleted")
