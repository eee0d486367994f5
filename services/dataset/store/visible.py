"""A version that somebody may see: one whose dataset is there and visible, or that is published for him; and single
rows that he was given as work."""

from __future__ import annotations

from datetime import datetime

from libs.common.auth.principal import Principal
from libs.common.db.uow import UnitOfWork
from libs.common.domain import DomainError, Secrecy
from services.dataset.domain.datasets import Dataset
from services.dataset.domain.versions import DatasetVersion
from services.dataset.store.data_products import DataProducts
from services.dataset.store.repositories import Datasets, DatasetVersions
from services.dataset.store.work import WorkItems, WorkProjects


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


async def visible_row(uow: UnitOfWork, name: str, principal: Principal, now: datetime) -> DatasetVersion:
    """The version of a row, if the principal may see the version, or has the row in his hands as work.

    Args:
        name: of the row, `{version}/rows/{row_id}`; whether the version has it is not looked at.

    Raises:
        DomainError: NOT_FOUND.
    """
    version_name = name.rsplit("/rows/", 1)[0]
    try:
        return (await visible_version(uow, version_name, principal))[1]
    except DomainError as error:
        if error.reason != "NOT_FOUND" or not await _is_work_of(uow, name, version_name, principal, now):
            raise
    return await DatasetVersions(uow).get(version_name)


async def _is_work_of(uow: UnitOfWork, name: str, version_name: str, principal: Principal, now: datetime) -> bool:
    """Whether a project about the version gave the row to the principal, to answer it or to review it.

    Anybody may make a project and write any subject into its items. So it counts only if its source is the version,
    which only somebody who saw it could say, and if that person can still be seen to see it: by the visibility of the
    dataset, or by a share with him or his organization.
    """
    # Whoever has the same name in another organization is somebody else.
    if principal.org != uow.org:
        return False
    dataset = await Datasets(uow).find(version_name.rsplit("/versions/", 1)[0])
    if dataset is None:
        return False
    for item in await WorkItems(uow).in_hands(name, principal.subject, now):
        project = await WorkProjects(uow).find(item.parent)
        if project is None or project.source != version_name:
            continue
        if dataset.is_visible_to(project.org, project.creator, role=0):
            return True
    return False
