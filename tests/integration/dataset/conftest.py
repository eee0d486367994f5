"""The dataset service with real PostgreSQL, NATS and Ray."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from dataset_client import Client, dataset_service

from deploy.local.nats import Server
from libs.common.testing.mesh import Mesh
from libs.common.testing.ray import RunningRay, ray_head


@pytest.fixture(scope="module")
def ray() -> Iterator[RunningRay]:
    with ray_head() as running, pytest.MonkeyPatch.context() as patch:
        for name, value in running.environment.items():
            patch.setenv(name, value)
        yield running


@pytest.fixture
async def client(tmp_path: Path, database_url: str) -> AsyncIterator[Client]:
    """All that needs no long work: role `rpc`, no bus."""
    mesh = Mesh(tmp_path)
    async with dataset_service(mesh, tmp_path, database_url) as service:
        client = Client(mesh, service)
        yield client
        await client.close()


@pytest.fixture
async def worker(tmp_path: Path, database_url: str, nats_server: Server, ray: RunningRay) -> AsyncIterator[Client]:
    """Both roles in one process, with NATS and Ray."""
    mesh = Mesh(tmp_path)
    settings = {"nats_url": nats_server.url(), "role": "all", "ray_address": ray.address}
    settings["import_networks"] = "127.0.0.1/32"
    async with dataset_service(mesh, tmp_path, database_url, **settings) as service:
        client = Client(mesh, service)
        yield client
        await client.close()
