"""Versions: immutable states of a dataset."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from libs.common.domain import Parent, Resource, Secrecy, inherit_secrecy, invalid
from services.dataset.domain.datasets import Dataset

MAX_TAGS = 32


@dataclass(frozen=True)
class Content:
    """What an engine wrote.

    Attributes:
        manifest_digest: SHA-256 of the manifest in the blob store.
        content_digest: SHA-256 over the row ids in order.
        columns: `name` and `type` of each column, in order.
        report: fields of `argosy.dataset.v1.Report`.
        new_byte_count: bytes of rows that no earlier version had.
    """

    manifest_digest: str
    content_digest: str
    row_count: int
    byte_count: int
    columns: list[dict[str, str]]
    report: dict[str, Any] = field(default_factory=dict[str, Any])
    new_byte_count: int = 0


@dataclass(kw_only=True)
class DatasetVersion(Resource):
    """An immutable state of a dataset; only labels and tags change. See `Content` for the other attributes."""

    manifest_digest: str
    content_digest: str
    row_count: int
    byte_count: int
    columns: list[dict[str, str]]
    tags: list[str] = field(default_factory=list[str])
    task: str = ""
    report: dict[str, Any] = field(default_factory=dict[str, Any])
    new_byte_count: int = 0

    @property
    def column_names(self) -> list[str]:
        """Names of the columns in order."""
        return [column["name"] for column in self.columns]

    def as_parent(self, relation: str) -> Parent:
        """This version in the lineage of what was made of it."""
        return Parent(self.name, self.manifest_digest, relation)

    def require_column(self, name: str, field_name: str) -> None:
        """Raises INVALID_FIELD, naming `field_name`, if the version has no such column."""
        if name not in self.column_names:
            have = ", ".join(self.column_names[:20])
            raise invalid(field_name, f"no column {name!r}; there are {have}")

    def retag(self, add: Iterable[str], remove: Iterable[str]) -> None:
        """Adds and removes tags. Raises INVALID_FIELD for too many."""
        kept = [tag for tag in self.tags if tag not in set(remove)]
        self.tags = list(dict.fromkeys([*kept, *add]))
        if len(self.tags) > MAX_TAGS:
            raise invalid("add_tags", f"a version has at most {MAX_TAGS} tags")


def new_version(
    dataset: Dataset,
    content: Content,
    *,
    uid: str,
    now: datetime,
    creator: str,
    task: str = "",
    lineage: Iterable[Parent] = (),
    parents_secrecy: Iterable[Secrecy] = (),
) -> DatasetVersion:
    """The next version of a dataset, which becomes its latest.

    Args:
        parents_secrecy: of all that the content was made of; dataset and version become at least as confidential.

    Raises:
        DomainError: STATE_CONFLICT while the dataset is locked.
    """
    dataset.require_unlocked()
    secrecy = inherit_secrecy(dataset.secrecy, *parents_secrecy)
    dataset.raise_secrecy(secrecy)
    version = DatasetVersion(
        uid=uid,
        name=dataset.take_version_name(),
        create_time=now,
        update_time=now,
        creator=creator,
        secrecy=secrecy,
        lineage=list(lineage),
        manifest_digest=content.manifest_digest,
        content_digest=content.content_digest,
        row_count=content.row_count,
        byte_count=content.byte_count,
        columns=content.columns,
        task=task,
        report=content.report,
        new_byte_count=content.new_byte_count,
    )
    dataset.latest_version = version.name
    dataset.update_time = now
    return version
