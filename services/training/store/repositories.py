"""Training's rows."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import ColumnElement, RowMapping, func, insert, select, update
from sqlalchemy.dialects.postgresql import insert as insert_or

from libs.common.db.repository import Repository, position
from libs.common.db.uow import ANY_ORG
from libs.common.domain import DomainError
from services.training.domain.life_cycle import DEFAULT, LifeCycle
from services.training.domain.models import Gate, ModelFile, ModelProject, ModelVersion, Signature, Transition
from services.training.domain.run_filter import Comparison, Ordering
from services.training.domain.spec import TrainingSpec
from services.training.domain.trainings import Checkpoint, Training, TrainingRun
from services.training.store import run_search, tables

# So many runs, of some MB each where they are large, are read at once for a page.
RUNS_AT_ONCE = 50


class Trainings(Repository[Training]):
    table = tables.trainings
    entity = Training

    def from_row(self, row: RowMapping) -> Training:
        training = super().from_row(row)
        training.spec = TrainingSpec.from_json(row["spec"])
        return training

    def labelled(self, name: str, valued: str, value: str) -> ColumnElement[bool]:
        """Having a label, with a value if there is one, as `str.partition` cuts `name=value`."""
        labels = self.table.c.labels
        return labels.contains({name: value}) if valued else labels.has_key(name)


class TrainingRuns(Repository[TrainingRun]):
    """Runs; whoever stores one stores what it is found by in the same transaction."""

    table = tables.training_runs
    entity = TrainingRun

    def to_row(self, entity: TrainingRun) -> dict[str, Any]:
        checkpoint = entity.checkpoint.to_json() if entity.checkpoint else None
        return {**super().to_row(entity), "checkpoint": checkpoint}

    def from_row(self, row: RowMapping) -> TrainingRun:
        run = super().from_row(row)
        run.spec = TrainingSpec.from_json(row["spec"])
        run.checkpoint = Checkpoint.from_json(row["checkpoint"]) if row["checkpoint"] else None
        return run

    async def insert(self, entity: TrainingRun) -> TrainingRun:
        stored = await super().insert(entity)
        await run_search.remember(self.uow, stored)
        return stored

    async def save(self, entity: TrainingRun) -> TrainingRun:
        stored = await super().save(entity)
        await run_search.remember(self.uow, stored)
        return stored

    async def newest(
        self, training: str, size: int, after: str, show_deleted: bool
    ) -> AsyncIterator[tuple[TrainingRun, str]]:
        """At most `size` runs of a training behind a position, newest first, each with its own position."""
        while size > 0:
            found, after = await self.list(training, min(size, RUNS_AT_ONCE), after, show_deleted)
            for run in found:
                yield run, position(run)
            size = size - len(found) if after else 0

    async def search(
        self, org: str, conditions: Sequence[Comparison], ordering: Ordering, size: int, after: str, show_deleted: bool
    ) -> AsyncIterator[tuple[TrainingRun, str]]:
        """The runs that meet all conditions, behind a position, each with its own; looked for by the `size`."""
        while True:
            found = await run_search.search(self.uow, org, conditions, ordering, size, after)
            for start in range(0, len(found), RUNS_AT_ONCE):
                places = dict(found[start : start + RUNS_AT_ONCE])
                for run in await self.of(list(places)):
                    if show_deleted or run.delete_time is None:
                        yield run, run_search.position((run.uid, places[run.uid]))
            if len(found) < size:
                return
            after = run_search.position(found[-1])

    async def of(self, uids: Sequence[str]) -> list[TrainingRun]:
        """The runs with these uids, in their order; those of other organizations are left out."""
        runs = {run.uid: run for run in await self.fetch(self.query().where(self.table.c.uid.in_(uids)))}
        return [runs[uid] for uid in uids if uid in runs]

    async def soft_delete_all(self, training: str, now: datetime) -> None:
        """Deletes the runs of a training, all at the moment by which `undelete_all` knows them."""
        columns = self.table.c
        change = update(self.table).where(columns.parent == training, columns.delete_time.is_(None), *self._tenant())
        change = change.values(delete_time=now, update_time=now, version=columns.version + 1)
        await (await self.uow.connection()).execute(change)

    async def undelete_all(self, training: str, deleted: datetime, now: datetime) -> None:
        """Brings back the runs of a training that were deleted with it."""
        columns = self.table.c
        change = update(self.table).where(columns.parent == training, columns.delete_time == deleted, *self._tenant())
        change = change.values(delete_time=None, update_time=now, version=columns.version + 1)
        await (await self.uow.connection()).execute(change)

    async def named(self, names: Sequence[str]) -> list[TrainingRun]:
        """The runs with these names, in their order. Raises NOT_FOUND for the first that is not there."""
        here = self.query().where(self.table.c.name.in_(names), self.table.c.delete_time.is_(None))
        runs = {run.name: run for run in await self.fetch(here)}
        missing = next((name for name in names if name not in runs), None)
        if missing is not None:
            raise DomainError("NOT_FOUND", f"{missing} does not exist.", name=missing)
        return [runs[name] for name in names]


class ModelProjects(Repository[ModelProject]):
    table = tables.model_projects
    entity = ModelProject

    def to_row(self, entity: ModelProject) -> dict[str, Any]:
        cycle = None if entity.life_cycle == DEFAULT else entity.life_cycle.to_json()
        return {**super().to_row(entity), "life_cycle": cycle}

    def from_row(self, row: RowMapping) -> ModelProject:
        project = super().from_row(row)
        project.life_cycle = LifeCycle.from_json(row["life_cycle"]) if row["life_cycle"] else DEFAULT
        return project


class ModelVersions(Repository[ModelVersion]):
    """Versions; whoever saves one stores its new transitions in the same transaction."""

    table = tables.model_versions
    entity = ModelVersion

    def to_row(self, entity: ModelVersion) -> dict[str, Any]:
        signature = entity.signature and {**asdict(entity.signature), "time": entity.signature.time.isoformat()}
        gates = [_gate_to_json(gate) for gate in entity.gates]
        return {**super().to_row(entity), "gates": gates, "signature": signature}

    def from_row(self, row: RowMapping) -> ModelVersion:
        version = super().from_row(row)
        version.files = [ModelFile(**file) for file in row["files"]]
        version.gates = [_gate_from_json(gate) for gate in row["gates"]]
        if (signed := row["signature"]) is not None:
            version.signature = Signature(**signed | {"time": datetime.fromisoformat(signed["time"])})
        return version

    async def stages(self, project: str) -> dict[str, int]:
        """Stages in which versions of a project stand, deleted ones too, with their number."""
        columns = self.table.c
        query = select(columns.stage, func.count()).where(columns.parent == project, *self._tenant())
        rows = await (await self.uow.connection()).execute(query.group_by(columns.stage))
        return {row[0]: row[1] for row in rows}

    async def newest(self, project: str) -> ModelVersion | None:
        """The newest version of a project."""
        found, _ = await self.list(project, 1)
        return found[0] if found else None

    async def insert(self, entity: ModelVersion) -> ModelVersion:
        stored = await super().insert(entity)
        await self._store_transitions(stored)
        return stored

    async def save(self, entity: ModelVersion) -> ModelVersion:
        stored = await super().save(entity)
        await self._store_transitions(stored)
        return stored

    async def _store_transitions(self, version: ModelVersion) -> None:
        new, version.new_transitions = version.new_transitions, []
        if new:
            rows = [{**asdict(each), "org": version.org, "model_version": version.name} for each in new]
            await (await self.uow.connection()).execute(insert(tables.model_version_transitions), rows)

    async def transitions(self, version: str, page_size: int, after: str) -> tuple[list[Transition], str]:
        """One page of the stages that a version had, oldest first, and the position for the next page."""
        table = tables.model_version_transitions
        query = select(table).where(table.c.model_version == version, *self._own(table.c.org))
        query = query.where(table.c.id > position_of(after)).order_by(table.c.id).limit(page_size + 1)
        rows = list((await (await self.uow.connection()).execute(query)).mappings())
        found = [_transition(row) for row in rows[:page_size]]
        return found, str(rows[page_size - 1]["id"]) if len(rows) > page_size else ""

    async def newest_transitions(self, version: str, count: int) -> list[Transition]:
        """The newest stages that a version got, newest first."""
        table = tables.model_version_transitions
        query = select(table).where(table.c.model_version == version, *self._own(table.c.org))
        query = query.order_by(table.c.id.desc()).limit(count)
        return [_transition(row) for row in (await (await self.uow.connection()).execute(query)).mappings()]

    async def keep_decision(self, version: ModelVersion, gate: Gate) -> bool:
        """Stores the verdict of an evaluation; False if this evaluation had decided this gate before."""
        row = {**asdict(gate), "org": version.org, "model_version": version.name}
        statement = insert_or(tables.gate_decisions).values(row).on_conflict_do_nothing()
        return (await (await self.uow.connection()).execute(statement)).rowcount == 1

    def _own(self, org: Any) -> tuple[Any, ...]:
        return () if self.uow.org == ANY_ORG else (org == self.uow.org,)


def position_of(after: str) -> int:
    """A page's position in a table that is read by its id. Raises PAGE_TOKEN_INVALID."""
    try:
        return int(after or "0")
    except ValueError:
        message = "page_token: is not one that this list gave"
        raise DomainError("PAGE_TOKEN_INVALID", message, field="page_token") from None


def _transition(row: RowMapping) -> Transition:
    values = {name: row[name] for name in Transition.__dataclass_fields__}
    return Transition(**values | {"time": row["time"].astimezone(UTC)})


def _gate_to_json(gate: Gate) -> dict[str, Any]:
    return {**asdict(gate), "decide_time": gate.decide_time.isoformat()}


def _gate_from_json(data: dict[str, Any]) -> Gate:
    data = data | {"decide_time": datetime.fromisoformat(data["decide_time"])}
    return Gate(**data)
