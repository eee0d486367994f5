"""What plays the peer of training in its tests, and what calls it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import grpc
from argosy.common.v1 import resource_pb2, task_pb2, task_service_pb2, task_service_pb2_grpc
from argosy.dataset.v1 import dataset_pb2, dataset_service_pb2, dataset_service_pb2_grpc
from argosy.training.v1 import (
    algorithm_code_service_pb2_grpc,
    algorithm_service_pb2_grpc,
    automl_service_pb2_grpc,
    model_registry_service_pb2_grpc,
    model_service_pb2,
    model_service_pb2_grpc,
    outside_run_service_pb2_grpc,
    run_artifact_service_pb2_grpc,
    run_service_pb2_grpc,
    search_service_pb2_grpc,
    training_document_service_pb2_grpc,
    training_pb2,
    training_service_pb2_grpc,
)
from argosy.training.v1 import training_service_pb2 as pb

from libs.common.blobs import BlobStore, nested_manifests
from libs.common.errors import ArgosyError, from_rpc_error
from libs.common.service import RunningService
from libs.common.testing.mesh import Mesh
from tests.unit.training.samples import TEMPLATE, rows, write_version

TRAIN = "orgs/acme/datasets/docs/versions/1"
HELDOUT = "orgs/acme/datasets/docs-test/versions/1"
PROJECT = "orgs/acme/modelProjects/packages"
DEADLINE = 30.0


class FakeDataset(dataset_service_pb2_grpc.DatasetServiceServicer, task_service_pb2_grpc.TaskServiceServicer):
    """Two versions of 200 and 30 rows in a real store, in the real format; `leaked` of the 30 leak, it says."""

    def __init__(self, blobs: BlobStore) -> None:
        self.blobs = blobs
        self.rows = {TRAIN: rows(200), HELDOUT: rows(30, seed=99)}
        self.digests = {name: write_version(blobs, content) for name, content in self.rows.items()}
        self.types: dict[str, dict[str, str]] = {}
        self.secrecy: int = resource_pb2.SECRECY_CONFIDENTIAL
        self.holders: list[str] = []
        self.leaked = 0
        self.compared: list[str] = []
        self.uploads: dict[str, tuple[str, str, int]] = {}

    def upload(self, file_name: str, content: bytes, piece: int = 1000) -> str:
        """A committed upload of a file in pieces; its name."""
        pieces = [self.blobs.put_sync(content[at : at + piece]) for at in range(0, len(content), piece)]
        manifest = self.blobs.commit_sync({"blobs": [{"sha256": each.sha256, "size": each.size} for each in pieces]})
        name = f"orgs/acme/uploads/up-{len(self.uploads)}"
        self.uploads[name] = (file_name, manifest, len(content))
        return name

    async def GetUpload(self, request: Any, context: Any) -> dataset_pb2.Upload:
        if request.name == "orgs/acme/uploads/open":
            return dataset_pb2.Upload(name=request.name, state=dataset_pb2.Upload.STATE_OPEN)
        if request.name not in self.uploads:
            await context.abort(grpc.StatusCode.NOT_FOUND, "no such upload")
        return dataset_pb2.Upload(name=request.name, state=dataset_pb2.Upload.STATE_COMMITTED)

    async def GrantUploadRead(self, request: Any, context: Any) -> dataset_service_pb2.GrantUploadReadResponse:
        file_name, manifest, size = self.uploads[request.name]
        grant = await self.blobs.grant(manifest, request.holder, request.ttl_seconds)
        return dataset_service_pb2.GrantUploadReadResponse(
            manifest_digest=manifest, grant=grant, file_name=file_name, size=size
        )

    def add(self, name: str, rows: list[dict[str, Any]], files: Mapping[str, bytes] | None = None) -> str:
        """Another version, with the types that its columns really have; its name."""
        self.rows[name] = rows
        self.digests[name] = digest = write_version(self.blobs, rows, files)
        columns = self.blobs.load_manifest_sync(digest)["columns"]
        self.types[name] = {column["name"]: column["kind"] for column in columns}
        return name

    async def GetDatasetVersion(self, request: Any, context: Any) -> dataset_pb2.DatasetVersion:
        if request.name not in self.rows:
            await context.abort(grpc.StatusCode.NOT_FOUND, "no such version")
        names = sorted({name for row in self.rows[request.name] for name in row})
        types = self.types.get(request.name, dict.fromkeys(names, "string"))
        return dataset_pb2.DatasetVersion(
            name=request.name,
            manifest_digest=self.digests[request.name],
            row_count=len(self.rows[request.name]),
            columns=[dataset_pb2.Column(name=name, type=kind) for name, kind in types.items()],
            secrecy=self.secrecy,  # type: ignore[arg-type]
        )

    async def PreviewRows(self, request: Any, context: Any) -> dataset_service_pb2.PreviewRowsResponse:
        answer = dataset_service_pb2.PreviewRowsResponse()
        for row in self.rows[request.parent][: request.page_size]:
            answer.rows.add().fields.update(row)
        return answer

    async def GrantRead(self, request: Any, context: Any) -> dataset_service_pb2.GrantReadResponse:
        self.holders.append(request.holder)
        digest = self.digests[request.name]
        grant = await self.blobs.grant(digest, request.holder, request.ttl_seconds)
        media = nested_manifests(await self.blobs.load_manifest(digest)) if request.media else []
        media_grant = await self.blobs.grant(media[0], request.holder, request.ttl_seconds) if media else ""
        return dataset_service_pb2.GrantReadResponse(manifest_digest=digest, grant=grant, media_grant=media_grant)

    async def CheckLeakage(self, request: Any, context: Any) -> task_pb2.Task:
        self.compared.append(f"{request.name} in {request.train_version} by {request.text_column}")
        return task_pb2.Task(name="orgs/acme/dataset/tasks/t", state=task_pb2.Task.STATE_QUEUED)

    async def GetTask(self, request: Any, context: Any) -> task_pb2.Task:
        return task_pb2.Task(name=request.name, state=task_pb2.Task.STATE_SUCCEEDED)

    async def GetLeakageCheck(self, request: Any, context: Any) -> dataset_pb2.LeakageCheck:
        return dataset_pb2.LeakageCheck(test_rows=30, near_rows=self.leaked, leaked_share=self.leaked / 30)


class Caller:
    """Calls training as one principal.

    Args:
        identity: whose certificate is shown.
        principal: further arguments of `Mesh.token`.
    """

    def __init__(
        self, mesh: Mesh, identity: str = "gateway", *, service: RunningService[Any] | None = None, **principal: Any
    ) -> None:
        self.mesh = mesh
        self.service = service
        self._metadata = mesh.metadata(**principal)
        self._channel = mesh.channel("training", identity)
        self._stubs = (
            training_service_pb2_grpc.TrainingServiceStub(self._channel),
            run_service_pb2_grpc.RunServiceStub(self._channel),
            automl_service_pb2_grpc.AutomlServiceStub(self._channel),
            model_service_pb2_grpc.ModelServiceStub(self._channel),
            model_registry_service_pb2_grpc.ModelRegistryServiceStub(self._channel),
            algorithm_service_pb2_grpc.AlgorithmServiceStub(self._channel),
            search_service_pb2_grpc.SearchServiceStub(self._channel),
            algorithm_code_service_pb2_grpc.AlgorithmCodeServiceStub(self._channel),
            training_document_service_pb2_grpc.TrainingDocumentServiceStub(self._channel),
            outside_run_service_pb2_grpc.OutsideRunServiceStub(self._channel),
            run_artifact_service_pb2_grpc.RunArtifactServiceStub(self._channel),
            task_service_pb2_grpc.TaskServiceStub(self._channel),
        )

    def __getattr__(self, rpc: str) -> Any:
        method = next(getattr(stub, rpc) for stub in self._stubs if hasattr(stub, rpc))
        return lambda request, timeout=DEADLINE: method(request, metadata=self._metadata, timeout=timeout)

    def other(self, identity: str = "gateway", **principal: Any) -> Caller:
        """The same service as somebody else."""
        return Caller(self.mesh, identity, service=self.service, **principal)

    async def close(self) -> None:
        await self._channel.close()

    async def project(self) -> training_pb2.ModelProject:
        return await self.CreateModelProject(
            model_service_pb2.CreateModelProjectRequest(
                parent="orgs/acme", model_project_id="packages", model_project=training_pb2.ModelProject()
            )
        )

    async def training(self, **fields: Any) -> training_pb2.Training:
        """A training of the small spec."""
        return await self.CreateTraining(
            pb.CreateTrainingRequest(
                parent="orgs/acme", training_id="packages", training=training_of(**fields), request_id="create-1"
            )
        )

    async def finish(self, task: str) -> task_pb2.Task:
        """Watches a task to its end."""
        last = task_pb2.Task()
        async for event in self.watch(task):
            if event.HasField("task"):
                last = event.task
        return last

    def watch(self, task: str) -> Any:
        """The events of a task; a machine that is busy with other tests starts workers slowly."""
        return self.WatchTask(task_service_pb2.WatchTaskRequest(name=task), timeout=150)


def spec_of(pretrain: int = 20, sft: int = 20, **fields: Any) -> training_pb2.TrainingSpec:
    """Two workers and a model of twenty thousand parameters."""
    usual: dict[str, Any] = {
        "phases": [
            training_pb2.Phase(
                method=training_pb2.Phase.METHOD_PRETRAIN, steps=pretrain, batch_size=12, learning_rate=0.01
            ),
            training_pb2.Phase(
                method=training_pb2.Phase.METHOD_SFT,
                steps=sft,
                batch_size=12,
                learning_rate=0.01,
                prompt_template=TEMPLATE,
            ),
        ],
        "architecture": training_pb2.Architecture(
            vocabulary_size=400, hidden_size=32, intermediate_size=64, layers=1, heads=2, sequence_length=32
        ),
        "workers": 2,
        "seed": 7,
        "checkpoint_every": 8,
    }
    return training_pb2.TrainingSpec(**{**usual, **fields})


def training_of(**fields: Any) -> training_pb2.Training:
    """A training as a caller writes it."""
    usual: dict[str, Any] = {
        "dataset_version": TRAIN,
        "validation_version": HELDOUT,
        "model_project": PROJECT,
        "spec": spec_of(),
    }
    return training_pb2.Training(**{**usual, **fields})


async def refusal(call: Any) -> ArgosyError:
    """The error that a call ends with."""
    try:
        await call
    except grpc.aio.AioRpcError as error:
        return from_rpc_error(error)
    raise AssertionError("the call was answered")
