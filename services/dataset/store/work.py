"""The rows of human work."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Column, ColumnElement, Select, and_, func, insert, or_, select

from libs.common.auth.principal import Principal
from libs.common.db.repository import Repository, resource_row
from services.dataset.domain.datasets import sees_all
from services.dataset.domain.human_work import (
    PENDING,
    AssignmentState,
    ItemState,
    WorkAssignment,
    WorkItem,
    WorkProject,
    WorkTemplate,
)
from services.dataset.store import tables


class WorkTemplates(Repository[WorkTemplate]):
    table = tables.work_templates
    entity = WorkTemplate


class WorkProjects(Repository[WorkProject]):
    table = tables.work_projects
    entity = WorkProject

    async def list_of(
        self, parent: str, principal: Principal, page_size: int, after: str
    ) -> tuple[list[WorkProject], str]:
        """One page of those that the principal has a part in, newest first."""
        columns, subject = self.table.c, principal.subject
        among = [_names(column, subject) for column in (columns.annotators, columns.reviewers, columns.managers)]
        part = or_(columns.creator == subject, func.cardinality(columns.annotators) == 0, *among)
        filters = () if sees_all(subject, principal.role) else (part,)
        return await self.list(parent, page_size, after, filters=filters)


@dataclass(frozen=True)
class Counts:
    """How far a project is; see `WorkProgress`."""

    by_state: dict[str, int]
    gold_items: int
    answers: int


class WorkItems(Repository[WorkItem]):
    table = tables.work_items
    entity = WorkItem

    async def insert_all(self, items: Iterable[WorkItem]) -> None:
        """Stores new items in one statement."""
        rows = [{**resource_row(item), **self.to_row(item), "version": 1} for item in items]
        await (await self.uow.connection()).execute(insert(self.table), rows)

    async def list_of(self, project: WorkProject, state: str, page_size: int, after: str) -> tuple[list[WorkItem], str]:
        """One page of a project, of one state if it is given, newest first."""
        filters = (self.table.c.state == state,) if state else ()
        return await self.list(project.name, page_size, after, filters=filters)

    async def in_hands(self, subject: str, person: str, now: datetime) -> list[WorkItem]:
        """Those about a subject that somebody has to answer or to review now."""
        columns, assignments = self.table.c, tables.work_assignments.c
        answering = select(assignments.uid).where(
            assignments.org == columns.org,
            assignments.parent == columns.name,
            assignments.annotator == person,
            assignments.state.in_(PENDING),
            assignments.lease_expire_time > now,
        )
        reviewing = and_(columns.reviewer == person, columns.review_expire_time > now)
        query = self.query().where(columns.subject == subject, or_(answering.exists(), reviewing))
        return await self.fetch(query)

    async def named(self, names: Iterable[str]) -> list[WorkItem]:
        """Those with these names."""
        return await self.fetch(self.query().where(self.table.c.name.in_(list(names))))

    async def proposed(self, project: WorkProject) -> list[dict[str, Any]]:
        """What was proposed for the items that people have answered, with what became of it, for statistics."""
        columns, connection = self.table.c, await self.uow.connection()
        query = select(columns.proposal, columns.answer).where(
            columns.org == project.org,
            columns.parent == project.name,
            columns.state == ItemState.ACCEPTED,
            columns.proposal.is_not(None),
            columns.submitted > 0,
        )
        rows = await connection.execute(query.order_by(columns.position))
        return [{"proposal": proposal, "answer": answer} for proposal, answer in rows]

    async def next_for(
        self, project: WorkProject, subject: str, now: datetime, *, gold: bool, beyond: tuple[int, int] | None = None
    ) -> WorkItem | None:
        """The first item of the queue that may have a place for somebody, locked; others who ask at the same time get
        the ones behind it.

        Args:
            gold: one whose answer is known; else one whose answer is not.
            beyond: priority and position of one that had no place after all.
        """
        columns = self.table.c
        left_behind = columns.lease_expire_time <= now
        free = [~_names(columns.refusers, subject), or_(~_names(columns.holders, subject), left_behind)]
        if gold:
            free.append(columns.gold.is_not(None))
        else:
            free += [
                columns.gold.is_(None),
                or_(func.cardinality(columns.holders) < project.overlap, left_behind),
            ]
        query = self._queue(project, ItemState.OPEN).where(*free)
        if beyond is not None:
            priority, position = beyond
            behind = and_(columns.priority == priority, columns.position > position)
            query = query.where(or_(columns.priority < priority, behind))
        return await self._first(query)

    async def next_review(self, project: WorkProject, subject: str, now: datetime) -> WorkItem | None:
        """The first item that somebody may review, locked; disputes come first."""
        columns = self.table.c
        own = and_(columns.reviewer == subject, columns.review_expire_time > now)
        free = or_(columns.reviewer == "", columns.review_expire_time <= now, own)
        for state in (ItemState.DISPUTED, ItemState.IN_REVIEW):
            query = self._queue(project, state).where(free, ~_names(columns.holders, subject))
            if state is ItemState.DISPUTED:
                query = query.where(columns.excluded_reviewer != subject)
            if found := await self._first(query.order_by(None).order_by(own.desc(), *self._order())):
                return found
        return None

    def _queue(self, project: WorkProject, state: ItemState) -> Select[Any]:
        columns = self.table.c
        query = self.query().where(
            columns.parent == project.name, columns.state == state, columns.state != ItemState.ACCEPTED
        )
        return query.order_by(*self._order())

    def _order(self) -> tuple[ColumnElement[Any], ...]:
        return self.table.c.priority.desc(), self.table.c.position

    async def _first(self, query: Select[Any]) -> WorkItem | None:
        found = await self.fetch(query.limit(1).with_for_update(skip_locked=True))
        return found[0] if found else None

    async def count(self, project: WorkProject) -> Counts:
        """How many items and answers there are."""
        columns, connection = self.table.c, await self.uow.connection()
        known = columns.gold.is_not(None)
        query = (
            select(columns.state, known, func.count(), func.sum(columns.submitted))
            .where(columns.org == project.org, columns.parent == project.name)
            .group_by(columns.state, known)
        )
        by_state: dict[str, int] = {}
        gold = answers = 0
        for state, is_known, items, submitted in await connection.execute(query):
            answers += submitted
            if is_known:
                gold += items
            else:
                by_state[state] = items
        return Counts(by_state, gold, answers)


@dataclass(frozen=True)
class Record:
    """What somebody did in a project: items taken, answers where the right one is known, and those that were right."""

    taken: int
    known: int
    right: int


class WorkAssignments(Repository[WorkAssignment]):
    table = tables.work_assignments
    entity = WorkAssignment

    async def of_item(self, item: WorkItem) -> list[WorkAssignment]:
        """All of an item, oldest first."""
        return await self.fetch(self.query().where(self.table.c.parent == item.name).order_by(self.table.c.uid))

    async def held(self, project: WorkProject, subject: str, now: datetime) -> list[WorkAssignment]:
        """Those that somebody is working on, what was returned included, oldest first."""
        columns = self.table.c
        query = self.query().where(
            columns.annotator == subject,
            columns.project == project.name,
            columns.state.in_(PENDING),
            columns.lease_expire_time > now,
        )
        return await self.fetch(query.order_by(columns.uid))

    async def record(self, project: WorkProject, subject: str) -> Record:
        """What somebody did."""
        columns, connection = self.table.c, await self.uow.connection()
        query = select(func.count(), func.count(columns.right), func.count().filter(columns.right)).where(
            columns.org == project.org, columns.annotator == subject, columns.project == project.name
        )
        return Record(*(await connection.execute(query)).one())

    async def pending(self, parent: str, subject: str, page_size: int, after: str) -> tuple[list[WorkAssignment], str]:
        """One page of what waits for somebody, in all projects, newest first."""
        columns = self.table.c
        mine = and_(columns.org == parent.split("/")[1], columns.annotator == subject, columns.state.in_(PENDING))
        projects = tables.work_projects.c
        there = select(projects.uid).where(
            projects.org == columns.org, projects.name == columns.project, projects.delete_time.is_(None)
        )
        return await self.list(None, page_size, after, filters=(mine, there.exists()))

    async def answers(self, project: WorkProject) -> list[dict[str, Any]]:
        """All submitted answers with what is needed to judge them, for statistics."""
        columns, connection = self.table.c, await self.uow.connection()
        query = select(columns.parent, columns.annotator, columns.answer, columns.right, columns.active_seconds).where(
            columns.org == project.org,
            columns.project == project.name,
            columns.state == AssignmentState.SUBMITTED,
        )
        names = ("item", "worker", "answer", "right", "seconds")
        return [dict(zip(names, row, strict=True)) for row in await connection.execute(query.order_by(columns.uid))]


def _names(column: Column[Any], subject: str) -> ColumnElement[bool]:
    """Whether a list of subjects has this one."""
    return column.contains([subject])
