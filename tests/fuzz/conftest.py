"""One mesh for all tests of a module."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import pytest

from deploy.local import nats, postgres
from tests.fuzz.fuzz_mesh import FuzzMesh


@pytest.fixture(scope="module")
async def fuzz_mesh(
    tmp_path_factory: pytest.TempPathFactory, postgres_server: postgres.Server, nats_server: nats.Server
) -> AsyncIterator[FuzzMesh]:
    """One mesh for all tests of a module."""
    async with AsyncExitStack() as stack:
        mesh = FuzzMesh(tmp_path_factory.mktemp("fuzz"), stack)
        await mesh.start(postgres_server, nats_server.url())
        yield mesh
