"""The dataset service with real PostgreSQL, NATS and Ray."""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import pytest
from dataset_client import Client

from deploy.local.nats import Server
from libs.common.testing.mesh import Mesh
from libs.common.testing.ray import RunningRay, ray_head
from libs.common.testing.service import running_service
from services.dataset.app import DEFINITION


@pytest.fixture(scope="module")
def ray() -> Iterator[RunningRay]:
    with ray_head() as running, pytest.MonkeyPatch.context() as patch:
        for name, value in running.environment.items():
            patch.setenv(name, value)
        yield running


def dataset_service(mesh: Mesh, folder: Path, database_url: str, **settings: Any) -> AbstractAsyncContextManager[Any]:
    """The service, with the mesh's keys instead of a running identity."""
    definition = dataclasses.replace(DEFINITION, jwks=lambda _: mesh.jwks())
    return running_service(definition, mesh, database_url=database_url, blob_root=f"file://{folder}/blobs", **settings)


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
    async with dataset_service(mesh, tmp_path, database_url, **settings) as service:
        client = Client(mesh, service)
        yield client
        await client.close()
