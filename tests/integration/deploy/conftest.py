"""Deploy as a service with real PostgreSQL and NATS; identity and training are played by servicers on the wire."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from argosy.common.v1 import options_pb2
from argosy.identity.v1 import token_service_pb2_grpc
from argosy.training.v1 import model_service_pb2_grpc

from deploy.local import nats
from libs.common.blobs import BlobStore
from libs.common.service import RunningService
from libs.common.testing.mesh import Mesh
from libs.common.testing.service import running_service
from services.deploy.app import DEFINITION
from tests.integration.deploy.peers import Caller, FakeIdentity, FakeTraining


@pytest.fixture
def mesh(tmp_path: Path) -> Mesh:
    return Mesh(tmp_path)


@pytest.fixture
async def training(mesh: Mesh, tmp_path: Path) -> AsyncIterator[FakeTraining]:
    """The stubs of both peers; the mesh knows their addresses."""
    training = FakeTraining(BlobStore(f"file://{tmp_path}/blobs"))
    servers = []
    for name in ("training", "identity"):
        server = grpc.aio.server()
        mesh.peers[name] = (
            f"127.0.0.1:{server.add_secure_port('127.0.0.1:0', mesh.certificates(name).server_credentials())}"
        )
        if name == "training":
            model_service_pb2_grpc.add_ModelServiceServicer_to_server(training, server)
        else:
            token_service_pb2_grpc.add_TokenServiceServicer_to_server(FakeIdentity(mesh), server)
        await server.start()
        servers.append(server)
    yield training
    for server in servers:
        await server.stop(0)


@pytest.fixture
async def service(
    mesh: Mesh, training: FakeTraining, database_url: str, nats_server: nats.Server
) -> AsyncIterator[RunningService[Any]]:
    """Deploy as it answers calls; nothing supervises replicas."""
    async with running_service(DEFINITION, mesh, database_url=database_url, nats_url=nats_server.url()) as service:
        yield service


@pytest.fixture
async def alice(mesh: Mesh, service: RunningService[Any]) -> AsyncIterator[Caller]:
    """An approver, so that only the rule about the second person stands between her and her own order."""
    caller = Caller(mesh, "users/alice", options_pb2.ROLE_APPROVER)
    yield caller
    await caller.close()


@pytest.fixture
async def bob(mesh: Mesh, service: RunningService[Any]) -> AsyncIterator[Caller]:
    caller = Caller(mesh, "users/bob", options_pb2.ROLE_APPROVER)
    yield caller
    await caller.close()
