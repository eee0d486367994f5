"""Repositories of deploy: every SQL statement of the service is here."""

from __future__ import annotations

import dataclasses
from datetime import datetime
from typing import Any, TypeVar

from sqlalchemy import ColumnElement, RowMapping, insert, select, text
from sqlalchemy.dialects.postgresql import distinct_on

from libs.common.db.repository import Repository
from libs.common.db.uow import ANY_ORG, UnitOfWork
from libs.common.domain import DomainError
from services.deploy.domain.deployment import ENDED, SERVING, Deployment, Revision
from services.deploy.domain.deployment_config import DeploymentConfig
from services.deploy.domain.replica import GONE, READY, Replica
from services.deploy.domain.spec import Spec
from services.deploy.domain.transitions import Stateful, Transition
from services.deploy.domain.work_order import WorkOrder
from services.deploy.store import tables

S = TypeVar("S", bound=Stateful)


class DeploymentConfigs(Repository[DeploymentConfig]):
    """Deployment configurations."""

    table = tables.deployment_configs
    entity = DeploymentConfig

    def from_row(self, row: RowMapping) -> DeploymentConfig:
        config = super().from_row(row)
        config.spec = Spec.from_row(row["spec"])
        return config


class _StatefulRepository(Repository[S]):
    """Stores the transitions of a resource together with it."""

    async def insert(self, entity: S) -> S:
        await super().insert(entity)
        await self._store_transitions(entity)
        return entity

    async def save(self, entity: S) -> S:
        await super().save(entity)
        await self._store_transitions(entity)
        return entity

    async def _store_transitions(self, entity: S) -> None:
        if entity.pending:
            rows = [{"org": entity.org, **dataclasses.asdict(step)} for step in entity.pending]
            await (await self.uow.connection()).execute(insert(tables.transitions), rows)
            entity.pending.clear()


class WorkOrders(_StatefulRepository[WorkOrder]):
    """Work orders."""

    table = tables.work_orders
    entity = WorkOrder

    def from_row(self, row: RowMapping) -> WorkOrder:
        order = super().from_row(row)
        order.spec = Spec.from_row(row["spec"])
        return order

    async def by_task(self, task_uid: str, *, for_update: bool = False) -> WorkOrder:
        """The work order whose roll-out a task carries. Raises NOT_FOUND."""
        query = self.query().where(self.table.c.task_uid == task_uid)
        found = await self.fetch(query.with_for_update() if for_update else query)
        if not found:
            raise DomainError("NOT_FOUND", f"no work order has the task {task_uid}.", name=task_uid)
        return found[0]


class Deployments(_StatefulRepository[Deployment]):
    """Deployments."""

    table = tables.deployments
    entity = Deployment

    def to_row(self, entity: Deployment) -> dict[str, Any]:
        return {
            **super().to_row(entity),
            "current": entity.current and entity.current.to_row(),
            "target": entity.target and entity.target.to_row(),
        }

    def from_row(self, row: RowMapping) -> Deployment:
        deployment = super().from_row(row)
        deployment.current = row["current"] and Revision.from_row(row["current"])
        deployment.target = row["target"] and Revision.from_row(row["target"])
        return deployment

    async def to_reconcile(self) -> list[Deployment]:
        """Deployments that are not at rest, and those that still have replicas."""
        columns = self.table.c
        present = select(tables.replicas.c.deployment).where(tables.replicas.c.state != GONE)
        query = self.query().where(columns.state.not_in(ENDED) | columns.name.in_(present))
        return await self.fetch(query.order_by(columns.name))

    async def serving(self) -> list[Deployment]:
        """Deployments to which calls are routed."""
        return await self.fetch(self.query().where(self.table.c.state.in_(SERVING)).order_by(self.table.c.name))


class Replicas(Repository[Replica]):
    """Replicas."""

    table = tables.replicas
    entity = Replica

    def from_row(self, row: RowMapping) -> Replica:
        replica = super().from_row(row)
        replica.spec = Spec.from_row(row["spec"])
        return replica

    async def present(self, deployment: str | None = None) -> list[Replica]:
        """Replicas that are not gone, oldest first: of one deployment, or all."""
        query = self.query().where(self.table.c.state != GONE)
        if deployment is not None:
            query = query.where(self.table.c.deployment == deployment)
        return await self.fetch(query.order_by(self.table.c.create_time, self.table.c.uid))

    async def ready(self) -> list[Replica]:
        """Replicas of deployments that answer."""
        columns = self.table.c
        wanted: tuple[ColumnElement[bool], ...] = (
            columns.state == READY,
            columns.stopping.is_(False),
            columns.deployment != "",
        )
        return await self.fetch(self.query().where(*wanted).order_by(columns.create_time, columns.uid))

    async def leased_by(self, holder: str, model_version: str) -> Replica | None:
        """The replica that this holder has of this version. Calls for one holder wait for each other here."""
        connection = await self.uow.connection()
        await connection.execute(text("SELECT pg_advisory_xact_lock(hashtext(:holder))"), {"holder": holder})
        columns = self.table.c
        query = self.query().where(
            columns.holder == holder,
            columns.model_version == model_version,
            columns.state != GONE,
            columns.stopping.is_(False),
        )
        found = await self.fetch(query)
        return found[0] if found else None


class Transitions:
    """Reads the history of deployments.

    Args:
        uow: its organization limits what is seen.
    """

    def __init__(self, uow: UnitOfWork) -> None:
        self.uow = uow

    def _tenant(self) -> tuple[ColumnElement[bool], ...]:
        return () if self.uow.org == ANY_ORG else (tables.transitions.c.org == self.uow.org,)

    async def of(self, resource: str, page_size: int, after: str) -> tuple[list[Transition], str]:
        """One page of the steps of a resource, oldest first, and the position after it. Raises PAGE_TOKEN_INVALID."""
        columns = tables.transitions.c
        query = select(tables.transitions).where(columns.resource == resource, *self._tenant())
        if after:
            query = query.where(columns.id > _number(after))
        rows = (await (await self.uow.connection()).execute(query.order_by(columns.id).limit(page_size + 1))).mappings()
        found = list(rows)
        page = found[:page_size]
        return [_transition(row) for row in page], str(page[-1]["id"]) if len(found) > page_size else ""

    async def live_at(self, org: str, moment: datetime, page_size: int, after: str) -> tuple[list[Transition], str]:
        """The step by which each deployment came into the state that it had at `moment`, where that was a serving one.

        Args:
            org: organization id.
            after: name of the last deployment of the page before; empty: the first page.
        """
        columns = tables.transitions.c
        newest = (
            select(tables.transitions)
            .where(columns.org == org, columns.time <= moment, columns.resource.startswith(f"orgs/{org}/deployments/"))
            .where(columns.resource > after, *self._tenant())
            .ext(distinct_on(columns.resource))
            .order_by(columns.resource, columns.id.desc())
            .subquery()
        )
        query = select(newest).where(newest.c.to_state.in_(SERVING)).order_by(newest.c.resource).limit(page_size + 1)
        found = list((await (await self.uow.connection()).execute(query)).mappings())
        page = found[:page_size]
        return [_transition(row) for row in page], page[-1]["resource"] if len(found) > page_size else ""


def _transition(row: RowMapping) -> Transition:
    return Transition(**{field.name: row[field.name] for field in dataclasses.fields(Transition)})


def _number(position: str) -> int:
    if not position.isdecimal() or len(position) > 18:
        message = "page_token: is not one that this list gave"
        raise DomainError("PAGE_TOKEN_INVALID", message, field="page_token")
    return int(position)
