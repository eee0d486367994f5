"""A small service: one table of notes, and the infrastructure."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass

import pytest
from alembic.operations import Operations
from sqlalchemy import Column, Integer, Text

from libs.common.clock import SYSTEM_CLOCK
from libs.common.db.engine import create_engine
from libs.common.db.infrastructure import create_infrastructure, create_resource_table
from libs.common.db.repository import Repository
from libs.common.db.tables import new_metadata, resource_table
from libs.common.db.uow import Database
from libs.common.domain import Resource
from libs.common.ids import uuid7
from libs.common.testing.database import apply

COLUMNS = (("body", Text), ("count", Integer))
NOTES = resource_table(new_metadata(), "notes", *(Column(name, kind, nullable=False) for name, kind in COLUMNS))


@dataclass(kw_only=True)
class Note(Resource):
    body: str = ""
    count: int = 0


class Notes(Repository[Note]):
    table = NOTES
    entity = Note


def note(name: str, **fields: object) -> Note:
    now = SYSTEM_CLOCK.now()
    values = {"uid": uuid7(), "name": name, "create_time": now, "update_time": now, "creator": "users/alice", **fields}
    return Note(**values)  # type: ignore[arg-type]


def create_notes(op: Operations) -> None:
    create_infrastructure(op)
    create_resource_table(op, "notes", *(Column(name, kind, nullable=False) for name, kind in COLUMNS))


@pytest.fixture
async def bare_database(database_url: str) -> AsyncIterator[Database]:
    """A database without tables."""
    result = Database(create_engine(database_url), "notes")
    yield result
    await result.close()


@pytest.fixture
async def database(bare_database: Database, database_url: str) -> Database:
    """The database of the small service."""
    await apply(database_url, create_notes)
    return bare_database
