"""Migrations at start."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Connection, MetaData, text

from libs.common.db.migrate import DatabaseTooNewError, migrate
from libs.common.db.tables import infrastructure
from libs.common.db.uow import Database
from libs.common.domain import DomainError
from tests.integration.common.conftest import NOTES

FIRST = """
import sqlalchemy as sa
from alembic import op
from libs.common.db.infrastructure import create_infrastructure, create_resource_table
revision = "0001"
down_revision = None
def upgrade():
    create_infrastructure(op)
    body, count = sa.Column("body", sa.Text, nullable=False), sa.Column("count", sa.Integer, nullable=False)
    create_resource_table(op, "notes", body, count)
"""
SECOND = """
from alembic import op
revision = "0002"
down_revision = "0001"
def upgrade():
    op.execute("CREATE TABLE more (id int)")
    {more}
"""


@pytest.fixture
def chain(tmp_path: Path) -> Path:
    (tmp_path / "versions").mkdir()
    (tmp_path / "versions" / "0001_first.py").write_text(FIRST)
    return tmp_path


def second(chain: Path, more: str = "") -> None:
    (chain / "versions" / "0002_second.py").write_text(SECOND.format(more=more))


async def revision(database: Database) -> list[str]:
    async with database.reading() as connection:
        return list((await connection.execute(text("SELECT version_num FROM alembic_version"))).scalars())


async def test_the_tables_are_what_the_code_says(bare_database: Database, database_url: str, chain: Path) -> None:
    await migrate(database_url, chain)
    wanted = MetaData(naming_convention=infrastructure.naming_convention)
    for table in (*infrastructure.sorted_tables, NOTES):
        table.to_metadata(wanted)

    def difference(connection: Connection) -> list[object]:
        options = {"compare_type": True, "compare_server_default": True}
        return compare_metadata(MigrationContext.configure(connection, opts=options), wanted)

    async with bare_database.engine.connect() as connection:
        assert await connection.run_sync(difference) == []
        policies = (await connection.execute(text("SELECT tablename FROM pg_policies"))).scalars().all()
        forced = text("SELECT relname FROM pg_class WHERE relrowsecurity AND relforcerowsecurity")
        assert set((await connection.execute(forced)).scalars()) == set(policies) == {"outbox", "idempotency", "notes"}


async def test_many_processes_start_at_once(bare_database: Database, database_url: str, chain: Path) -> None:
    await asyncio.gather(*(migrate(database_url, chain) for _ in range(5)))
    assert await revision(bare_database) == ["0001"]


async def test_a_database_of_the_previous_version_is_brought_up(
    bare_database: Database, database_url: str, chain: Path
) -> None:
    await migrate(database_url, chain)
    second(chain)
    await migrate(database_url, chain)
    await migrate(database_url, chain)
    assert await revision(bare_database) == ["0002"]


async def test_a_migration_that_fails_changes_nothing(bare_database: Database, database_url: str, chain: Path) -> None:
    await migrate(database_url, chain)
    second(chain, 'raise RuntimeError("half way")')
    with pytest.raises(RuntimeError, match="half way"):
        await migrate(database_url, chain)
    assert await revision(bare_database) == ["0001"]
    async with bare_database.reading() as connection:
        assert (await connection.execute(text("SELECT to_regclass('more')"))).scalar_one() is None


async def test_a_newer_database_is_refused(bare_database: Database, database_url: str, chain: Path) -> None:
    second(chain)
    await migrate(database_url, chain)
    (chain / "versions" / "0002_second.py").unlink()
    with pytest.raises(DatabaseTooNewError, match="0002"):
        await migrate(database_url, chain)


async def test_an_absent_database_is_said_to_be_away(chain: Path) -> None:
    with pytest.raises(DomainError) as caught:
        await migrate("postgresql+asyncpg://a:b@127.0.0.1:1/a", chain)
    assert caught.value.reason == "DATABASE_UNAVAILABLE"
