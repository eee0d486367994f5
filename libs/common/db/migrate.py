"""Migrations at start, one process at a time."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from alembic.config import Config
from alembic.runtime.environment import EnvironmentContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, text
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import NullPool

from libs.common.db import errors
from libs.common.db.tables import new_metadata
from libs.common.domain import DomainError

_log = logging.getLogger(__name__)
# Any number that nothing else in a service's database locks.
_LOCK = 7_305_001
# Long enough for another process to migrate first.
_LOCK_SECONDS = 600


class DatabaseTooNewError(Exception):
    """The database was migrated by newer code; starting would misread it."""


async def migrate(url: str, migrations: Path) -> None:
    """Brings the database to the newest revision in `migrations`, all of it or nothing.

    Args:
        url: `postgresql+asyncpg://...` of the service's role.
        migrations: the service's folder, with its revisions in `versions/`. It needs no env.py.

    Raises:
        DatabaseTooNewError: the database has a revision that the code does not know.
        DomainError: DATABASE_UNAVAILABLE.
    """
    engine = create_async_engine(url, poolclass=NullPool, connect_args={"timeout": 10})
    errors.install(engine)
    try:
        async with engine.begin() as connection:
            # Migrations are not bound by one organization.
            await connection.execute(text("SELECT set_config('argosy.org', '*', true)"))
            await connection.execute(text(f"SET LOCAL lock_timeout = '{_LOCK_SECONDS}s'"))
            await connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _LOCK})
            await connection.run_sync(_upgrade, migrations)
    except OSError as failure:
        raise errors.unavailable() from failure
    except DomainError:
        raise
    finally:
        await engine.dispose()


def _upgrade(connection: Connection, migrations: Path) -> None:
    # Alembic's own folder has to be named, though only the revisions in it are used.
    config = Config()
    config.set_main_option("script_location", str(migrations).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    scripts = ScriptDirectory.from_config(config)

    def step(current: Any, _: Any) -> Any:
        _require_known(scripts, current)
        return scripts._upgrade_revs("head", current)

    with EnvironmentContext(config, scripts, fn=step, destination_rev="head") as environment:
        environment.configure(
            connection=connection,
            target_metadata=new_metadata(),
            transactional_ddl=True,
            transaction_per_migration=False,
        )
        before = environment.get_context().get_current_heads()
        environment.run_migrations()
        after = environment.get_context().get_current_heads()
    if before != after:
        _log.info("database migrated from %s to %s", ", ".join(before) or "nothing", ", ".join(after))


def _require_known(scripts: ScriptDirectory, current: Any) -> None:
    known = {script.revision for script in scripts.walk_revisions()}
    for revision in (current,) if isinstance(current, str) else current or ():
        if revision not in known:
            message = f"the database has revision {revision}, which this code does not know: run the newer version"
            raise DatabaseTooNewError(message)
