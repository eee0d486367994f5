"""The connection pool of one process."""

from __future__ import annotations

from typing import Any

from sqlalchemy import event, exc
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from libs.common.db import errors

# At most eight connections a process: six here, one for the relay's LISTEN and its leadership, one for a LISTEN of the
# service's own.
POOL_SIZE = 6
# Longer than a fork of a backend on a busy machine, shorter than the default deadline of ten seconds.
CONNECT_SECONDS = 5
POOL_WAIT_SECONDS = 5.0
_SESSION = {
    # Bounds for work without a deadline of its own; a unit of work with one sets less.
    "statement_timeout": "60000",
    # Somebody who holds a row longer than this is stuck, and CONFLICT is the better answer.
    "lock_timeout": "10000",
    # A process that hangs inside a transaction must not hold its locks for ever.
    "idle_in_transaction_session_timeout": "60000",
    # Our queries are short: compiling one takes longer than running it.
    "jit": "off",
    "timezone": "UTC",
}


def create_engine(url: str, application_name: str = "argosy", pool_size: int = POOL_SIZE) -> AsyncEngine:
    """An engine whose failures are errors of the catalogue and whose pool heals after a restart of PostgreSQL.

    Args:
        url: `postgresql+asyncpg://...`.
        application_name: shown in pg_stat_activity.
        pool_size: connections at most.
    """
    engine = create_async_engine(
        url,
        pool_size=pool_size,
        max_overflow=0,
        pool_timeout=POOL_WAIT_SECONDS,
        connect_args={
            "timeout": CONNECT_SECONDS,
            "server_settings": {**_SESSION, "application_name": application_name},
        },
    )
    errors.install(engine)
    event.listen(engine.sync_engine, "checkout", _refuse_closed)
    return engine


def _refuse_closed(connection: Any, *_: object) -> None:
    """The pool opens another connection instead of one that PostgreSQL has closed. asyncpg knows that by itself: its
    socket is read by the event loop all the time; `pool_pre_ping` would learn the same with three round trips.
    """
    if connection.driver_connection.is_closed():
        raise exc.DisconnectionError("PostgreSQL closed this connection")
