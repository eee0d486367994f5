"""Data products: versions that are offered to others."""

from __future__ import annotations

from dataclasses import dataclass, field

from libs.common.domain import DomainError, Resource, Secrecy, inherit_secrecy
from services.dataset.domain.datasets import Dataset, Visibility
from services.dataset.domain.versions import DatasetVersion


@dataclass(kw_only=True)
class DataProduct(Resource):
    """A version in the catalogue. See `DataProduct` of catalogue.proto for the attributes."""

    dataset_version: str = ""
    display_name: str = ""
    description: str = ""
    licence: str = ""
    tags: list[str] = field(default_factory=list[str])
    visibility: int = Visibility.ORGANIZATION
    type: int = 0
    row_count: int = 0
    byte_count: int = 0
    columns: list[dict[str, str]] = field(default_factory=list[dict[str, str]])

    def offer(self, dataset: Dataset, version: DatasetVersion) -> None:
        """Makes a version the one that is offered."""
        self.dataset_version, self.type = version.name, dataset.type
        self.row_count, self.byte_count, self.columns = version.row_count, version.byte_count, version.columns
        self.secrecy = inherit_secrecy(self.secrecy, dataset.secrecy, version.secrecy)
        self.lineage = [version.as_parent("publishes")]

    def require_publishable(self) -> None:
        """Raises STATE_CONFLICT for what is too confidential for everybody."""
        if self.visibility == Visibility.PUBLIC and self.secrecy > Secrecy.INTERNAL:
            message = f"{self.dataset_version} is {self.secrecy.name}: it cannot be published for every organization."
            raise DomainError(
                "STATE_CONFLICT", message, name=self.dataset_version, state=self.secrecy.name, wanted="INTERNAL"
            )

    def is_visible_to(self, org: str) -> bool:
        """Whether members of an organization see it."""
        return org == self.org or (self.visibility == Visibility.PUBLIC and self.secrecy <= Secrecy.INTERNAL)
