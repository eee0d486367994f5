"""Tables in a test database."""

from __future__ import annotations

from collections.abc import Callable

from alembic.migration import MigrationContext
from alembic.operations import Operations
from sqlalchemy import Connection
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import NullPool

from libs.common.db.tables import new_metadata


async def apply(url: str, migration: Callable[[Operations], None]) -> None:
    """Runs one migration function outside a chain.

    Args:
        url: `postgresql+asyncpg://...`.
        migration: gets alembic's operations, as `upgrade` of a revision does.
    """

    def run(connection: Connection) -> None:
        context = MigrationContext.configure(connection, opts={"target_metadata": new_metadata()})
        migration(Operations(context))

    engine = create_async_engine(url, poolclass=NullPool)
    try:
        async with engine.begin() as connection:
            await connection.run_sync(run)
    finally:
        await engine.dispose()
