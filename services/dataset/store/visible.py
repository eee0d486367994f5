"""A version that somebody may see: one whose dataset is there and visible."""

from __future__ import annotations

from libs.common.auth.principal import Principal
from libs.common.db.uow import UnitOfWork
from libs.common.domain import DomainError
from services.dataset.domain.datasets import Dataset
from services.dataset.domain.versions import DatasetVersion
from services.dataset.store.repositories import Datasets, DatasetVersions


async def visible_version(
    uow: UnitOfWork, name: str, principal: Principal, *, lock_dataset: bool = False
) -> tuple[Dataset, DatasetVersion]:
    """The version and its dataset, if the principal may see them.

    Args:
        name: of the version.
        lock_dataset: locks the dataset's row, which serialises everything that changes its versions.

    Raises:
        DomainError: NOT_FOUND.
    """
    version = await DatasetVersions(uow).get(name)
    try:
        dataset = await Datasets(uow).visible(version.parent, principal, for_update=lock_dataset)
    except DomainError as error:
        if error.reason != "NOT_FOUND":
            raise
        # Word for word what a version that does not exist gives: nobody learns which versions a hidden dataset has.
        raise DomainError("NOT_FOUND", f"{name} does not exist.", name=name) from None
    return dataset, version
