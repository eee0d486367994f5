"""A version that somebody may see: one whose dataset is there and visible, or that is published for him."""

from __future__ import annotations

from libs.common.auth.principal import Principal
from libs.common.db.uow import UnitOfWork
from libs.common.domain import DomainError, Secrecy
from services.dataset.domain.datasets import Dataset
from services.dataset.domain.versions import DatasetVersion
from services.dataset.store.data_products import DataProducts
from services.dataset.store.repositories import Datasets, DatasetVersions


async def visible_version(
    uow: UnitOfWork, name: str, principal: Principal, *, lock_dataset: bool = False, writing: bool = False
) -> tuple[Dataset, DatasetVersion]:
    """The version and its dataset, if the principal may see them.

    Args:
        name: of the version.
        lock_dataset: locks the dataset's row, which serialises everything that changes its versions; implies `writing`.
        writing: only for somebody who may change the dataset.

    Raises:
        DomainError: NOT_FOUND; ROLE_MISSING for somebody who may only read it.
    """
    version = await DatasetVersions(uow).get(name)
    try:
        dataset = await Datasets(uow).visible(version.parent, principal, for_update=lock_dataset, writing=writing)
    except DomainError as error:
        if error.reason != "NOT_FOUND":
            raise
        dataset = await Datasets(uow).find(version.parent)
        if dataset is not None and not (lock_dataset or writing):
            # What became more confidential since it was published leaves the organization no more.
            open_to = principal.org == dataset.org or dataset.secrecy <= Secrecy.INTERNAL
            if open_to and await DataProducts(uow).offers(version.name, principal.org):
                return dataset, version
        # Word for word what a version that does not exist gives: nobody learns which versions a hidden dataset has.
        raise DomainError("NOT_FOUND", f"{name} does not exist.", name=name) from None
    return dataset, version
