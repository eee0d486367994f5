"""A service inside the test's process, on a free port, with the real database and bus that the test gives it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

from libs.common.aio import Background
from libs.common.service import RunningService, ServiceDefinition
from libs.common.testing.mesh import Mesh

_START_SECONDS = 30.0


@asynccontextmanager
async def running_service(
    definition: ServiceDefinition[Any],
    mesh: Mesh,
    *,
    database_url: str = "",
    nats_url: str = "",
    role: str = "rpc",
    **settings: Any,
) -> AsyncGenerator[RunningService[Any]]:
    """Starts a service and waits until it is ready; drains it at the end.

    Args:
        definition: of the service.
        mesh: gives certificates; gets the address into its `peers`.
        database_url: of an empty database; empty if the service has none.
        nats_url: of a server with JetStream; empty: events stay in the outbox.
        role: `rpc`, `jobs` or `all`.
        settings: further settings of the service.

    Raises whatever stopped the start.
    """
    if definition.jwks is None and "identity" not in mesh.peers:
        # Nobody else is there to ask which keys sign the tokens of this mesh.
        definition = replace(definition, jwks=lambda app: mesh.jwks())
    given: dict[str, Any] = {
        "listen": "127.0.0.1:0",
        "home": mesh.folder,
        "pki_dir": mesh.pki,
        "peers": dict(mesh.peers),
        "database_url": database_url,
        "nats_url": nats_url,
        "otlp": "",
        "drain_seconds": 1.0,
    }
    service: RunningService[Any] = RunningService(definition, definition.settings(**given | settings), role)
    async with Background(f"test-{definition.name}") as background:
        running = background.start(service.serve(), name="serve")
        try:
            async with asyncio.timeout(_START_SECONDS):
                await service.ready.wait()
            mesh.peers[definition.name] = f"127.0.0.1:{service.port}"
            yield service
        finally:
            service.stop()
            await asyncio.wait((running,))
