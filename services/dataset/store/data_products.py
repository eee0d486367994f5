"""The rows of the catalogue."""

from __future__ import annotations

from sqlalchemy import ColumnElement

from libs.common.auth.principal import Principal
from libs.common.db.repository import Repository
from libs.common.domain import DomainError, Secrecy
from services.dataset.domain.data_products import DataProduct
from services.dataset.domain.datasets import Visibility
from services.dataset.store import tables


class DataProducts(Repository[DataProduct]):
    table = tables.data_products
    entity = DataProduct

    async def visible(self, name: str, principal: Principal) -> DataProduct:
        """The product, if the principal may see it. Raises NOT_FOUND otherwise."""
        product = await self.get(name)
        if not product.is_visible_to(principal.org):
            raise DomainError("NOT_FOUND", f"{name} does not exist.", name=name)
        return product

    async def list_of(
        self, parent: str, page_size: int, after: str, search: str, type: int
    ) -> tuple[list[DataProduct], str]:
        """One page of an organization, newest first."""
        return await self.list(parent, page_size, after, filters=self._wanted(search, type))

    async def list_public(self, page_size: int, after: str, search: str, type: int) -> tuple[list[DataProduct], str]:
        """One page of what every organization sees, newest first. For a unit of work across organizations."""
        columns = self.table.c
        public = [columns.visibility == Visibility.PUBLIC, columns.secrecy <= Secrecy.INTERNAL]
        return await self.list(None, page_size, after, filters=[*public, *self._wanted(search, type)])

    def _wanted(self, search: str, type: int) -> list[ColumnElement[bool]]:
        columns = self.table.c
        found = tables.having_words(
            search, columns.id, columns.display_name, columns.description, tables.joined(columns.tags)
        )
        return [*found, columns.type == type] if type else found

    async def offers(self, version: str, org: str) -> bool:
        """Whether a product that members of an organization see offers this version."""
        found = await self.fetch(
            self.query().where(self.table.c.dataset_version == version, self.table.c.delete_time.is_(None))
        )
        return any(product.is_visible_to(org) for product in found)
