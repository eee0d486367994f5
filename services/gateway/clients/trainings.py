"""Fine-tuning jobs of the OpenAI routes: trainings with one run each, and the models that they begin and end with."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from argosy.common.v1 import task_pb2, task_service_pb2, task_service_pb2_grpc
from argosy.training.v1 import (
    model_service_pb2,
    model_service_pb2_grpc,
    run_service_pb2,
    run_service_pb2_grpc,
    training_pb2,
    training_service_pb2,
    training_service_pb2_grpc,
)

from libs.common.errors import ArgosyError
from services.gateway.clients.applications import Metadata
from services.gateway.clients.backends import StubSource
from services.gateway.domain import openai_names as names
from services.gateway.http.caller import Caller

_SECONDS = 10.0
# The pre-flight of a run asks dataset.
_RUN_SECONDS = 30.0
_METRICS_PAGE = 10_000
_ON_THE_WAY = (training_pb2.TrainingRun.STATE_QUEUED, training_pb2.TrainingRun.STATE_RUNNING)
_ACTIVE = "state != SUCCEEDED AND state != FAILED AND state != CANCELLED"
# On the training, and so on its run, its task and its model version: what OpenAI says of a job, and training does not.
JOB_LABEL = "openai-job"
MODEL_LABEL, BASE_LABEL, SUFFIX_LABEL = "openai-model", "openai-base", "openai-suffix"
TRAINING_FILE_LABEL, VALIDATION_FILE_LABEL = "openai-training-file", "openai-validation-file"
METHOD_LABEL, METADATA_LABEL = "openai-method", "openai-metadata"


@dataclass(frozen=True)
class Job:
    """A fine-tuning job.

    Attributes:
        training: with the labels of the job.
        run: None where the gateway ended between the two calls that begin a job.
        task: of the run.
    """

    training: training_pb2.Training
    run: training_pb2.TrainingRun | None = None
    task: task_pb2.Task | None = None

    @property
    def id(self) -> str:
        """`ftjob-...`."""
        return self.training.name.rpartition("/")[2]

    @property
    def model(self) -> names.FineTuned:
        """The name that its model has, or will have."""
        org, labels = self.training.name.split("/")[1], self.training.labels
        return names.FineTuned(labels[BASE_LABEL], org, labels[SUFFIX_LABEL], self.id)


# What no repetition changes; after anything else, the same Idempotency-Key goes on where it was.
_LASTING = ("PREFLIGHT_FAILED", "INVALID_FIELD", "CONTENT_INVALID", "ROLE_MISSING")


class Trainings:
    """The way to trainings and models.

    Args:
        channels: to training.
    """

    def __init__(self, channels: StubSource) -> None:
        self._trainings: training_service_pb2_grpc.TrainingServiceStub = channels.stub(
            training_service_pb2_grpc.TrainingServiceStub, "training"
        )
        self._models: model_service_pb2_grpc.ModelServiceStub = channels.stub(
            model_service_pb2_grpc.ModelServiceStub, "training"
        )
        self._runs: run_service_pb2_grpc.RunServiceStub = channels.stub(run_service_pb2_grpc.RunServiceStub, "training")
        self._tasks: task_service_pb2_grpc.TaskServiceStub = channels.stub(
            task_service_pb2_grpc.TaskServiceStub, "training"
        )

    async def begin(self, training: training_pb2.Training, caller: Caller, metadata: Metadata) -> Job:
        """Makes the project, the training and its run. The same id again gives the same job.

        Raises:
            ArgosyError: What training refuses; nothing is left then.
        """
        call = _call(caller, metadata)
        parent, _, job_id = training.name.rpartition("/trainings/")
        project = training_pb2.ModelProject(
            display_name=f"Fine-tuned {training.labels[BASE_LABEL]}", labels=training.labels
        )
        created_project = await self._models.CreateModelProject(
            model_service_pb2.CreateModelProjectRequest(
                parent=parent, model_project_id=job_id, model_project=project, request_id=f"{job_id}-project"
            ),
            **call,
        )
        try:
            created = await self._trainings.CreateTraining(
                training_service_pb2.CreateTrainingRequest(
                    parent=parent, training_id=job_id, training=training, request_id=f"{job_id}-training"
                ),
                **call,
            )
            run = await self._trainings.RunTraining(
                training_service_pb2.RunTrainingRequest(name=created.name, request_id=f"{job_id}-run"),
                **call | {"timeout": _RUN_SECONDS},
            )
        except ArgosyError as error:
            if error.is_reason(*_LASTING):
                # Gone already where an earlier request with this key was refused.
                with suppress(ArgosyError):
                    await self._trainings.DeleteTraining(
                        training_service_pb2.DeleteTrainingRequest(name=training.name), **call
                    )
                with suppress(ArgosyError):
                    await self._models.DeleteModelProject(
                        model_service_pb2.DeleteModelProjectRequest(name=created_project.name), **call
                    )
            raise
        return Job(created, run, await self._task(run.task, caller, metadata))

    async def job(self, name: str, caller: Caller, metadata: Metadata) -> Job | None:
        """A job by the name of its training; None if there is none."""
        try:
            training = await self._trainings.GetTraining(
                training_service_pb2.GetTrainingRequest(name=name), **_call(caller, metadata)
            )
        except ArgosyError as error:
            if error.is_reason("NOT_FOUND"):
                return None
            raise
        return await self.state(training, caller, metadata) if _is_job(training) else None

    async def state(self, training: training_pb2.Training, caller: Caller, metadata: Metadata) -> Job:
        """How far a job has come."""
        request = training_service_pb2.GetTrainingRunRequest(name=f"{training.name}/runs/{names.RUN}")
        run = await _or_none(self._trainings.GetTrainingRun(request, **_call(caller, metadata)))
        if run is None:
            return Job(training)
        task = await self._task(run.task, caller, metadata)
        if task.HasField("end_time") and run.state in _ON_THE_WAY:
            # It has ended between the two, and has its results.
            run = await self._trainings.GetTrainingRun(request, **_call(caller, metadata))
        return Job(training, run, task)

    async def jobs(
        self, after: str, size: int, caller: Caller, metadata: Metadata
    ) -> AsyncIterator[training_pb2.Training]:
        """The trainings of jobs, newest first.

        Args:
            after: name of the training that they stand behind; empty: from the newest.
            size: how many are read at once.
        """
        request = training_service_pb2.ListTrainingsRequest(
            parent=f"orgs/{caller.org}", labels=[JOB_LABEL], after=after, page_size=size
        )
        async for page in _pages(self._trainings.ListTrainings, request, caller, metadata):
            for training in page.trainings:
                if _is_job(training):
                    yield training

    async def cancel(self, task: str, caller: Caller, metadata: Metadata) -> task_pb2.Task:
        """Asks the task of a run to stop."""
        return await self._tasks.CancelTask(task_service_pb2.CancelTaskRequest(name=task), **_call(caller, metadata))

    async def pause(self, run: str, caller: Caller, metadata: Metadata) -> None:
        """Asks a run to stop at its next checkpoint."""
        await self._runs.PauseTrainingRun(run_service_pb2.PauseTrainingRunRequest(name=run), **_call(caller, metadata))

    async def resume(self, run: str, caller: Caller, metadata: Metadata) -> None:
        """Queues a paused run again."""
        await self._runs.ResumeTrainingRun(
            run_service_pb2.ResumeTrainingRunRequest(name=run), **_call(caller, metadata)
        )

    async def running_with(self, file_id: str, caller: Caller, metadata: Metadata) -> str:
        """A job that has not ended and reads this file; empty: none."""
        # One look at the state of all: a run that moves on between two looks would be seen by neither.
        for label in (TRAINING_FILE_LABEL, VALIDATION_FILE_LABEL):
            request = training_service_pb2.ListTrainingRunsRequest(
                parent=f"orgs/{caller.org}/trainings/-",
                filter=f'labels.{label} = "{file_id}" AND {_ACTIVE}',
                page_size=1,
            )
            page = await self._trainings.ListTrainingRuns(request, **_call(caller, metadata))
            for run in page.training_runs:
                return run.labels[JOB_LABEL]
        return ""

    async def metrics(self, task: str, caller: Caller, metadata: Metadata) -> list[task_pb2.TaskMetrics]:
        """The curves of a run, in order."""
        request = task_service_pb2.ListTaskMetricsRequest(parent=task, page_size=_METRICS_PAGE)
        pages = _pages(self._tasks.ListTaskMetrics, request, caller, metadata)
        return [point async for page in pages for point in page.metrics]

    async def newest_metrics(
        self, task: str, before: int, size: int, caller: Caller, metadata: Metadata
    ) -> AsyncIterator[task_pb2.TaskMetrics]:
        """The points of a run before a sequence, newest first; read by the `size`."""
        request = task_service_pb2.ListTaskMetricsRequest(parent=task, before_sequence=before, page_size=size)
        async for page in _pages(self._tasks.ListTaskMetrics, request, caller, metadata):
            for point in page.metrics:
                yield point

    async def newest_logs(
        self, task: str, before: int, size: int, caller: Caller, metadata: Metadata
    ) -> AsyncIterator[task_pb2.TaskLog]:
        """The log lines of a run before a sequence, newest first; read by the `size`."""
        request = task_service_pb2.ListTaskLogsRequest(parent=task, before_sequence=before, page_size=size)
        async for page in _pages(self._tasks.ListTaskLogs, request, caller, metadata):
            for line in page.logs:
                yield line

    async def version(self, name: str, caller: Caller, metadata: Metadata) -> training_pb2.ModelVersion | None:
        """A model version; None if there is none."""
        request = model_service_pb2.GetModelVersionRequest(name=name)
        return await _or_none(self._models.GetModelVersion(request, **_call(caller, metadata)))

    async def tuned(self, version: str, caller: Caller, metadata: Metadata) -> names.FineTuned | None:
        """The name of the model that a job made; None if there is no such version any more."""
        found = await self.version(version, caller, metadata)
        if found is None or JOB_LABEL not in found.labels:
            return None
        _, org, _, job_id, *_ = version.split("/")
        return names.FineTuned(found.labels[BASE_LABEL], org, found.labels[SUFFIX_LABEL], job_id)

    async def newest_version(self, project: str, caller: Caller, metadata: Metadata) -> str:
        """The live version of a project, else its newest one; empty if there is none."""
        request = model_service_pb2.GetModelProjectRequest(name=project)
        found = await _or_none(self._models.GetModelProject(request, **_call(caller, metadata)))
        if found is None or found.live_version:
            return found.live_version if found is not None else ""
        versions = model_service_pb2.ListModelVersionsRequest(parent=project, page_size=1)
        page = await self._models.ListModelVersions(versions, **_call(caller, metadata))
        return page.model_versions[0].name if page.model_versions else ""

    async def learning_rate(self, run: str, caller: Caller, metadata: Metadata) -> float:
        """The highest learning rate of a run; 0 if there is no such run any more."""
        request = training_service_pb2.GetTrainingRunRequest(name=run)
        found = await _or_none(self._trainings.GetTrainingRun(request, **_call(caller, metadata)))
        return max((phase.learning_rate for phase in found.spec.phases), default=0.0) if found is not None else 0.0

    async def _task(self, name: str, caller: Caller, metadata: Metadata) -> task_pb2.Task:
        return await self._tasks.GetTask(task_service_pb2.GetTaskRequest(name=name), **_call(caller, metadata))


def _is_job(training: training_pb2.Training) -> bool:
    """Whether a training was made here; labels may be written by everybody who may write trainings."""
    job_id = training.name.rpartition("/")[2]
    return names.is_job(job_id) and training.labels[JOB_LABEL] == job_id


async def _pages(read: Any, request: Any, caller: Caller, metadata: Metadata) -> AsyncIterator[Any]:
    """The pages of a list, from the one that is asked for on."""
    while True:
        page = await read(request, **_call(caller, metadata))
        yield page
        request.page_token = page.next_page_token
        if not request.page_token:
            return


async def _or_none(answer: Any) -> Any:
    """What a call gives; None where it says that there is nothing of this name."""
    try:
        return await answer
    except ArgosyError as error:
        if error.is_reason("NOT_FOUND"):
            return None
        raise


def _call(caller: Caller, metadata: Metadata) -> dict[str, Any]:
    """What each call carries."""
    return {"metadata": (caller.authorization, *metadata), "timeout": _SECONDS}
