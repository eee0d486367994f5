"""PostgreSQL's LISTEN, for those who would otherwise have to look often."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager

import asyncpg

from libs.common.db.engine import CONNECT_SECONDS
from libs.common.db.uow import ANY_ORG, Database

_COMMAND_SECONDS = 10


@asynccontextmanager
async def listening(
    database: Database, channel: str, ring: Callable[..., object]
) -> AsyncGenerator[asyncpg.Connection]:
    """A connection beside the pool that calls `ring` at each NOTIFY on a channel, and when it is closed.

    What was notified before it listened is not repeated: look once when the block begins. A connection that died in
    silence is noticed when something is asked on it, so ask on a beat.

    Args:
        database: of the service.
        channel: of NOTIFY.
        ring: gets whatever asyncpg gives; must not wait.
    Raises:
        CONNECTION_LOST (libs.common.db.errors): PostgreSQL is away.
    """
    url = database.engine.url
    connection = await asyncpg.connect(
        host=url.host,
        port=url.port,
        user=url.username,
        password=url.password,
        database=url.database,
        timeout=CONNECT_SECONDS,  # type: ignore[arg-type]
        command_timeout=_COMMAND_SECONDS,
        server_settings={"application_name": f"{database.service} {channel}", "argosy.org": ANY_ORG},
    )
    try:
        await connection.add_listener(channel, ring)
        connection.add_termination_listener(ring)
        yield connection
    finally:
        connection.terminate()
