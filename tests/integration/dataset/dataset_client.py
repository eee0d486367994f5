"""A client of the dataset service for tests."""

from __future__ import annotations

import dataclasses
import hashlib
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import grpc
from argosy.common.v1 import task_pb2, task_service_pb2, task_service_pb2_grpc
from argosy.dataset.v1 import (
    annotation_service_pb2_grpc,
    catalogue_service_pb2_grpc,
    dataset_pb2,
    dataset_service_pb2_grpc,
    human_work_service_pb2_grpc,
)
from argosy.dataset.v1 import dataset_service_pb2 as pb

from libs.common.errors import ArgosyError, from_rpc_error
from libs.common.service import RunningService
from libs.common.testing.mesh import Mesh
from libs.common.testing.service import running_service
from services.dataset.app import DEFINITION, App

DEADLINE = 30.0


class Client:
    """Calls the service as one principal."""

    def __init__(self, mesh: Mesh, service: RunningService[App], identity: str = "operator", **principal: Any) -> None:
        self.mesh = mesh
        self.service = service
        self._metadata = mesh.metadata(**principal)
        self._channel = mesh.channel("dataset", identity)
        self._tasks = task_service_pb2_grpc.TaskServiceStub(self._channel)
        self._stubs = (
            dataset_service_pb2_grpc.DatasetServiceStub(self._channel),
            catalogue_service_pb2_grpc.CatalogueServiceStub(self._channel),
            human_work_service_pb2_grpc.HumanWorkServiceStub(self._channel),
            annotation_service_pb2_grpc.AnnotationServiceStub(self._channel),
            self._tasks,
        )

    def __getattr__(self, rpc: str) -> Any:
        stub = next(stub for stub in self._stubs if hasattr(stub, rpc))

        def call(request: Any, **options: Any) -> Any:
            return getattr(stub, rpc)(request, metadata=self._metadata, timeout=DEADLINE, **options)

        return call

    @property
    def app(self) -> App:
        """What the service's handlers use."""
        assert self.service.app is not None
        return self.service.app

    def other(self, **principal: Any) -> Client:
        """The same service as somebody else."""
        return Client(self.mesh, self.service, **principal)

    def as_peer(self, name: str) -> Client:
        """The same service as another service of the mesh, for the same user."""
        return Client(self.mesh, self.service, name)

    async def close(self) -> None:
        await self._channel.close()

    async def dataset(self, dataset_id: str, **fields: Any) -> dataset_pb2.Dataset:
        request = pb.CreateDatasetRequest(
            parent="orgs/acme", dataset_id=dataset_id, dataset=dataset_pb2.Dataset(**fields)
        )
        return await self.CreateDataset(request)

    async def upload(self, data: bytes, file_name: str = "rows.jsonl", part: int = 1 << 20) -> dataset_pb2.Upload:
        """Uploads bytes in parts and commits them."""
        upload = await self.CreateUpload(
            pb.CreateUploadRequest(parent="orgs/acme", file_name=file_name, size=len(data))
        )
        for offset in range(0, len(data), part):
            await self.AppendUpload(append(upload.name, data, offset, part))
        return await self.CommitUpload(
            pb.CommitUploadRequest(name=upload.name, sha256=hashlib.sha256(data).hexdigest())
        )

    async def finish(self, task: task_pb2.Task) -> task_pb2.Task:
        """Watches a task to its end."""
        last = task
        async for event in self._tasks.WatchTask(
            task_service_pb2.WatchTaskRequest(name=task.name), metadata=self._metadata, timeout=90
        ):
            if event.HasField("task"):
                last = event.task
        return last

    async def imported(self, dataset: str, data: bytes, file_name: str = "rows.jsonl") -> dataset_pb2.DatasetVersion:
        """Uploads and imports bytes."""
        upload = await self.upload(data, file_name)
        task = await self.finish(await self.ImportVersion(pb.ImportVersionRequest(parent=dataset, upload=upload.name)))
        assert task.state == task_pb2.Task.STATE_SUCCEEDED, task
        return await self.GetDatasetVersion(pb.GetDatasetVersionRequest(name=str(task.result["version"])))


def dataset_service(mesh: Mesh, folder: Path, database_url: str, **settings: Any) -> AbstractAsyncContextManager[Any]:
    """The service, with the mesh's keys instead of a running identity."""
    definition = dataclasses.replace(DEFINITION, jwks=lambda _: mesh.jwks())
    return running_service(definition, mesh, database_url=database_url, blob_root=f"file://{folder}/blobs", **settings)


def append(name: str, data: bytes, offset: int, size: int) -> pb.AppendUploadRequest:
    piece = data[offset : offset + size]
    return pb.AppendUploadRequest(name=name, offset=offset, data=piece, sha256=hashlib.sha256(piece).hexdigest())


async def refusal(call: Any) -> ArgosyError:
    """The error that a call ends with."""
    try:
        answer = await call
    except grpc.RpcError as error:
        return from_rpc_error(error)
    raise AssertionError(f"the call succeeded: {answer}")
