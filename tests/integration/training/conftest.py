"""Training as a service with real PostgreSQL, NATS and Ray; dataset is played by a servicer over a real blob store."""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import grpc
import pytest
from argosy.common.v1 import task_service_pb2_grpc
from argosy.dataset.v1 import dataset_service_pb2_grpc
from argosy.identity.v1 import quota_service_pb2_grpc, token_service_pb2_grpc

from deploy.local.nats import Server
from libs.common.blobs import BlobStore
from libs.common.testing.mesh import Mesh
from libs.common.testing.ray import RunningRay, ray_head
from libs.common.testing.service import running_service
from services.training.app import DEFINITION
from tests.integration.app.stubs import Identity
from tests.integration.app.stubs import served as serving
from tests.integration.training.peers import Caller, FakeDataset
from tests.quota import RoomForAll


@pytest.fixture(scope="module")
def ray() -> Iterator[RunningRay]:
    with ray_head() as running, pytest.MonkeyPatch.context() as patch:
        for name, value in running.environment.items():
            patch.setenv(name, value)
        yield running


@pytest.fixture
def mesh(tmp_path: Path) -> Mesh:
    return Mesh(tmp_path)


@pytest.fixture
def quota() -> RoomForAll:
    """Identity's ledger."""
    return RoomForAll()


@pytest.fixture
async def dataset(mesh: Mesh, tmp_path: Path, quota: RoomForAll) -> AsyncIterator[FakeDataset]:
    """The data layer, and identity for the engine; the mesh knows their addresses."""
    dataset, identity = FakeDataset(BlobStore(f"file://{tmp_path}/dataset")), Identity(mesh)

    def add_dataset(server: grpc.aio.Server) -> None:
        dataset_service_pb2_grpc.add_DatasetServiceServicer_to_server(dataset, server)
        task_service_pb2_grpc.add_TaskServiceServicer_to_server(dataset, server)

    def add_identity(server: grpc.aio.Server) -> None:
        token_service_pb2_grpc.add_TokenServiceServicer_to_server(identity, server)
        quota_service_pb2_grpc.add_QuotaServiceServicer_to_server(quota, server)

    async with serving(mesh, {"dataset": add_dataset, "identity": add_identity}):
        yield dataset


def training_service(mesh: Mesh, folder: Path, database_url: str, **settings: Any) -> AbstractAsyncContextManager[Any]:
    """The service, with the mesh's keys instead of a running identity."""
    definition = dataclasses.replace(DEFINITION, jwks=lambda _: mesh.jwks())
    return running_service(definition, mesh, database_url=database_url, blob_root=f"file://{folder}/blobs", **settings)


@pytest.fixture
async def worker(
    mesh: Mesh, dataset: FakeDataset, tmp_path: Path, database_url: str, nats_server: Server, ray: RunningRay
) -> AsyncIterator[Caller]:
    """An editor of acme; both roles in one process, with NATS and Ray."""
    settings = {"nats_url": nats_server.url(), "role": "all", "ray_address": ray.address}
    async with training_service(mesh, tmp_path, database_url, **settings) as service:
        caller = Caller(mesh, service=service)
        yield caller
        await caller.close()


@pytest.fixture
async def served(mesh: Any, dataset: FakeDataset, tmp_path: Path, database_url: str) -> AsyncIterator[Caller]:
    """An editor of acme, and the service itself."""
    async with training_service(mesh, tmp_path, database_url) as service:
        caller = Caller(mesh, service=service)
        yield caller
        await caller.close()
