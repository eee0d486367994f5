"""Trainings, runs, files and models as MLflow's routes need them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, TypeVar

from argosy.common.v1 import task_pb2, task_service_pb2, task_service_pb2_grpc
from argosy.training.v1 import (
    model_registry_service_pb2,
    model_registry_service_pb2_grpc,
    model_service_pb2,
    model_service_pb2_grpc,
    outside_run_service_pb2_grpc,
    run_artifact_service_pb2,
    run_artifact_service_pb2_grpc,
    training_pb2,
    training_service_pb2,
    training_service_pb2_grpc,
)
from google.protobuf.field_mask_pb2 import FieldMask

from libs.common.clock import Clock
from libs.common.errors import ArgosyError
from services.gateway.clients.backends import StubSource

Options = dict[str, Any]
T = TypeVar("T", training_pb2.Training, training_pb2.ModelProject, training_pb2.ModelVersion)

_PAGE = 1000
_DOWNLOAD_SECONDS = 3600.0
# Others write the same thing meanwhile; more often than this is contention.
_ATTEMPTS = 5
_POLL_SECONDS = 0.2
_BROKEN = frozenset({task_pb2.Task.STATE_FAILED, task_pb2.Task.STATE_CANCELLED})
_ENDED = _BROKEN | {task_pb2.Task.STATE_SUCCEEDED}


class OutsideRuns:
    """The way to training. Each method takes the keyword arguments of its calls: `metadata` and `timeout`.

    Args:
        channels: to training.
        clock: paces the questions whether a task has ended.

    Attributes:
        trainings, runs, artifacts, models, registry, tasks: stubs, for calls that need nothing around them.
    """

    def __init__(self, channels: StubSource, clock: Clock) -> None:
        stub = channels.stub
        self._clock = clock
        self.trainings: training_service_pb2_grpc.TrainingServiceStub = stub(
            training_service_pb2_grpc.TrainingServiceStub, "training"
        )
        self.runs: outside_run_service_pb2_grpc.OutsideRunServiceStub = stub(
            outside_run_service_pb2_grpc.OutsideRunServiceStub, "training"
        )
        self.artifacts: run_artifact_service_pb2_grpc.RunArtifactServiceStub = stub(
            run_artifact_service_pb2_grpc.RunArtifactServiceStub, "training"
        )
        self.models: model_service_pb2_grpc.ModelServiceStub = stub(model_service_pb2_grpc.ModelServiceStub, "training")
        self.tasks: task_service_pb2_grpc.TaskServiceStub = stub(task_service_pb2_grpc.TaskServiceStub, "training")
        self.registry: model_registry_service_pb2_grpc.ModelRegistryServiceStub = stub(
            model_registry_service_pb2_grpc.ModelRegistryServiceStub, "training"
        )

    async def all_trainings(self, org: str, options: Options) -> list[training_pb2.Training]:
        """Every training of an organization, newest first, deleted ones too."""
        found: list[training_pb2.Training] = []
        token = ""
        while True:
            request = training_service_pb2.ListTrainingsRequest(
                parent=f"orgs/{org}", page_size=_PAGE, page_token=token, show_deleted=True
            )
            page = await self.trainings.ListTrainings(request, **options)
            found += page.trainings
            token = page.next_page_token
            if not token:
                return found

    async def training(self, name: str, options: Options) -> training_pb2.Training | None:
        """A training, deleted or not; None if there is none."""
        request = training_service_pb2.GetTrainingRequest(name=name)
        try:
            return await self.trainings.GetTraining(request, **options)
        except ArgosyError as error:
            if not error.is_reason("NOT_FOUND"):
                raise
        # Only lists show what was deleted.
        everything = await self.all_trainings(name.split("/")[1], options)
        return next((training for training in everything if training.name == name), None)

    async def change(
        self,
        training: training_pb2.Training,
        field: str,
        change: Callable[[training_pb2.Training], None],
        options: Options,
    ) -> training_pb2.Training:
        """Changes one field of a training; again on what others made of it meanwhile."""

        def save(changed: training_pb2.Training) -> Awaitable[training_pb2.Training]:
            mask = FieldMask(paths=[field])
            request = training_service_pb2.UpdateTrainingRequest(training=changed, update_mask=mask)
            return self.trainings.UpdateTraining(request, **options)

        def read(name: str) -> Awaitable[training_pb2.Training]:
            return self.trainings.GetTraining(training_service_pb2.GetTrainingRequest(name=name), **options)

        return await _changed(training, change, save, read)

    async def change_project(
        self,
        project: training_pb2.ModelProject,
        field: str,
        change: Callable[[training_pb2.ModelProject], None],
        options: Options,
    ) -> training_pb2.ModelProject:
        """As `change`, of a model project."""

        def save(changed: training_pb2.ModelProject) -> Awaitable[training_pb2.ModelProject]:
            mask = FieldMask(paths=[field])
            request = model_service_pb2.UpdateModelProjectRequest(model_project=changed, update_mask=mask)
            return self.models.UpdateModelProject(request, **options)

        def read(name: str) -> Awaitable[training_pb2.ModelProject]:
            return self.models.GetModelProject(model_service_pb2.GetModelProjectRequest(name=name), **options)

        return await _changed(project, change, save, read)

    async def change_version(
        self,
        version: training_pb2.ModelVersion,
        field: str,
        change: Callable[[training_pb2.ModelVersion], None],
        options: Options,
    ) -> training_pb2.ModelVersion:
        """As `change`, of a model version."""

        def save(changed: training_pb2.ModelVersion) -> Awaitable[training_pb2.ModelVersion]:
            mask = FieldMask(paths=[field])
            request = model_registry_service_pb2.UpdateModelVersionRequest(model_version=changed, update_mask=mask)
            return self.registry.UpdateModelVersion(request, **options)

        def read(name: str) -> Awaitable[training_pb2.ModelVersion]:
            return self.models.GetModelVersion(model_service_pb2.GetModelVersionRequest(name=name), **options)

        return await _changed(version, change, save, read)

    async def children(
        self, run: str, folder: str, page_token: str, options: Options
    ) -> run_artifact_service_pb2.ListRunArtifactsResponse:
        """A page of the files and folders right in a folder of a run; empty: those of the run itself."""
        request = run_artifact_service_pb2.ListRunArtifactsRequest(
            parent=run, path=folder, children=True, page_size=_PAGE, page_token=page_token
        )
        return await self.artifacts.ListRunArtifacts(request, **options)

    async def files(self, run: str, path: str, options: Options) -> list[run_artifact_service_pb2.RunArtifact]:
        """The files of a run at a path and below it."""
        found: list[run_artifact_service_pb2.RunArtifact] = []
        token = ""
        while True:
            request = run_artifact_service_pb2.ListRunArtifactsRequest(
                parent=run, path=path, page_size=_PAGE, page_token=token
            )
            page = await self.artifacts.ListRunArtifacts(request, **options)
            found += page.run_artifacts
            token = page.next_page_token
            if not token:
                return found

    async def content(self, run: str, path: str, options: Options) -> AsyncIterator[bytes]:
        """The bytes of a file of a run."""
        request = run_artifact_service_pb2.DownloadRunArtifactRequest(name=run, path=path)
        answers = self.artifacts.DownloadRunArtifact(request, **options | {"timeout": _DOWNLOAD_SECONDS})
        try:
            async for answer in answers:
                yield answer.data
        finally:
            await answers.aclose()

    async def imported(
        self, request: model_registry_service_pb2.ImportModelRequest, seconds: float, options: Options
    ) -> task_pb2.Task:
        """The task of an import when it has ended, or after so many seconds; one that failed before is tried again."""
        name = (await self.registry.ImportModel(request, **options)).name
        # A request that is sent again gets the task as it was at first.
        task = await self.tasks.GetTask(task_service_pb2.GetTaskRequest(name=name), **options)
        if task.state in _BROKEN:
            task = await self._retried(name, options)
        end = self._clock.monotonic() + seconds
        while task.state not in _ENDED and self._clock.monotonic() < end:
            await self._clock.sleep(_POLL_SECONDS)
            task = await self.tasks.GetTask(task_service_pb2.GetTaskRequest(name=name), **options)
        return task

    async def _retried(self, name: str, options: Options) -> task_pb2.Task:
        try:
            return await self.tasks.RetryTask(task_service_pb2.RetryTaskRequest(name=name), **options)
        except ArgosyError as error:
            # Somebody else was faster.
            if not error.is_reason("STATE_CONFLICT"):
                raise
        return await self.tasks.GetTask(task_service_pb2.GetTaskRequest(name=name), **options)

    async def all_projects(self, org: str, options: Options) -> list[training_pb2.ModelProject]:
        """Every model project of an organization, newest first."""
        found: list[training_pb2.ModelProject] = []
        token = ""
        while True:
            request = model_service_pb2.ListModelProjectsRequest(
                parent=f"orgs/{org}", page_size=_PAGE, page_token=token
            )
            page = await self.models.ListModelProjects(request, **options)
            found += page.model_projects
            token = page.next_page_token
            if not token:
                return found

    async def versions(self, project: str, options: Options) -> list[training_pb2.ModelVersion]:
        """The versions of a model project, newest first."""
        found: list[training_pb2.ModelVersion] = []
        token = ""
        while True:
            request = model_service_pb2.ListModelVersionsRequest(parent=project, page_size=_PAGE, page_token=token)
            page = await self.models.ListModelVersions(request, **options)
            found += page.model_versions
            token = page.next_page_token
            if not token:
                return found

    async def aliases(self, project: str, options: Options) -> dict[str, str]:
        """Alias -> name of the version, of a model project."""
        request = model_registry_service_pb2.ListModelAliasesRequest(parent=project, page_size=_PAGE)
        page = await self.registry.ListModelAliases(request, **options)
        return {alias.name.rpartition("/")[2]: alias.model_version for alias in page.model_aliases}


async def _changed(
    resource: T, change: Callable[[T], None], save: Callable[[T], Awaitable[T]], read: Callable[[str], Awaitable[T]]
) -> T:
    for _ in range(_ATTEMPTS - 1):
        change(resource)
        try:
            return await save(resource)
        except ArgosyError as error:
            if not error.is_reason("ETAG_MISMATCH", "CONFLICT"):
                raise
        resource = await read(resource.name)
    change(resource)
    return await save(resource)
