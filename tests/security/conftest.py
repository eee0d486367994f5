"""One mesh for all tests of this folder, and everything that it logs meanwhile."""

from __future__ import annotations

import logging
import secrets
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
import pytest_asyncio

from deploy.local import nats, postgres
from libs.common.obs.logs import JsonFormatter
from libs.common.testing.mesh import Mesh
from tests.security.world import World


class Lines(logging.Handler):
    """Every log line of the process, as a service writes it."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.setFormatter(JsonFormatter("security", "rpc"))
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(self.format(record))


@pytest.fixture(scope="session")
def log_lines() -> Iterator[Lines]:
    handler, root = Lines(), logging.getLogger()
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    yield handler
    root.setLevel(level)
    root.removeHandler(handler)


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def world(log_lines: Lines, postgres_server: postgres.Server, nats_server: nats.Server) -> AsyncIterator[World]:
    async def database(name: str) -> str:
        return await postgres_server.create_service_database(f"security_{name}", secrets.token_urlsafe())

    with tempfile.TemporaryDirectory(prefix="argosy-security-") as folder:
        async with AsyncExitStack() as stack:
            world = World(Mesh(Path(folder)), stack)
            await world.start(database, nats_server.url())
            yield world
