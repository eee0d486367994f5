"""A gateway in front of a real training service, for the tests of the MLflow routes."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
from argosy.deploy.v1 import deploy_pb2, deploy_service_pb2, deploy_service_pb2_grpc
from argosy.identity.v1 import token_service_pb2_grpc

from deploy.local import postgres
from libs.common.testing.mesh import Mesh
from libs.common.testing.service import running_service
from services.gateway.app import DEFINITION as GATEWAY
from tests.integration.app.stubs import Add, Identity, served
from tests.integration.training.conftest import training_service
from tests.integration.training.peers import Caller


class Deploy(deploy_service_pb2_grpc.DeployServiceServicer):
    """Has no deployment."""

    async def GetDeployment(self, request: Any, context: Any) -> deploy_pb2.Deployment:
        await context.abort(grpc.StatusCode.NOT_FOUND, "")
        raise AssertionError

    async def WatchEndpoints(self, request: Any, context: Any) -> AsyncIterator[deploy_service_pb2.EndpointSet]:
        yield deploy_service_pb2.EndpointSet()
        await asyncio.Event().wait()


@asynccontextmanager
async def mlflow_door(folder: Path, server: postgres.Server, **settings: Any) -> AsyncGenerator[tuple[str, Caller]]:
    """Address of the gateway, and a caller of training."""
    mesh = Mesh(folder)
    # Nobody asks for an application or for data.
    mesh.peers["app"] = mesh.peers["dataset"] = "127.0.0.1:1"
    url = await server.create_service_database(f"mlflow_{secrets.token_hex(4)}", secrets.token_urlsafe())
    add: dict[str, Add] = {
        "identity": lambda made: token_service_pb2_grpc.add_TokenServiceServicer_to_server(Identity(mesh), made),
        "deploy": lambda made: deploy_service_pb2_grpc.add_DeployServiceServicer_to_server(Deploy(), made),
    }
    async with (
        served(mesh, add),
        training_service(mesh, folder, url, **settings) as training,
        running_service(GATEWAY, mesh, http_listen="127.0.0.1:0", requests_per_minute=1_000_000) as gateway,
    ):
        assert gateway.app is not None
        caller = Caller(mesh, service=training)
        yield f"http://127.0.0.1:{gateway.app.http.port}", caller
        await caller.close()
