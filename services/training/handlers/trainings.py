"""Trainings and their runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from argosy.training.v1 import training_pb2
from argosy.training.v1 import training_service_pb2 as pb

from libs.common.db.mapping import from_proto
from libs.common.domain import DomainError, Parent, inherit_secrecy
from libs.common.errors import ArgosyError
from libs.common.ids import resource_id, uuid7
from libs.common.rpc.call import Call
from libs.common.rpc.masks import fields_to_change
from libs.common.rpc.pagination import PageToken, page_size
from services.training.clients.dataset import DatasetVersion
from services.training.domain.estimate import estimate
from services.training.domain.preflight import DataFacts, Finding, preflight
from services.training.domain.run_filter import Comparison, Ordering, parse_filter, parse_order
from services.training.domain.runs import EventKind, RunEvent, RunState
from services.training.domain.trainings import Training, TrainingRun, snapshot
from services.training.handlers.messages import run_message, spec_from, training_message
from services.training.store.registry import ModelAliases
from services.training.store.repositories import ModelProjects, ModelVersions, TrainingRuns, Trainings
from services.training.store.run_events import RunEvents

if TYPE_CHECKING:
    from services.training.app import App

KIND = "training.run"
_MUTABLE = frozenset(
    {
        "display_name",
        "description",
        "labels",
        "dataset_version",
        "validation_version",
        "model_project",
        "base_model_version",
        "spec",
    }
)
_SAMPLE_ROWS = 100
# AIP-159: the runs of all trainings.
ANY_TRAINING = "-"


async def get_training(request: pb.GetTrainingRequest, call: Call[App]) -> training_pb2.Training:
    return training_message(await Trainings(call.uow).get(request.name))


async def list_trainings(request: pb.ListTrainingsRequest, call: Call[App]) -> pb.ListTrainingsResponse:
    found, position = await Trainings(call.uow).list(
        request.parent, page_size(request.page_size), PageToken.decode(request), request.show_deleted
    )
    return pb.ListTrainingsResponse(
        trainings=[training_message(training) for training in found],
        next_page_token=PageToken.encode(request, position),
    )


async def create_training(request: pb.CreateTrainingRequest, call: Call[App]) -> training_pb2.Training:
    given, now = request.training, call.clock.now()
    own = from_proto(given)
    training = Training(
        uid=uuid7(),
        name=f"{request.parent}/trainings/{request.training_id or resource_id('training')}",
        create_time=now,
        update_time=now,
        creator=call.principal.subject,
        labels=own["labels"],
        secrecy=inherit_secrecy(own["secrecy"]),
        display_name=given.display_name,
        description=given.description,
        dataset_version=given.dataset_version,
        validation_version=given.validation_version,
        model_project=given.model_project,
        base_model_version=given.base_model_version,
        spec=spec_from(given.spec),
    )
    await _check(training, call)
    await Trainings(call.uow).insert(training)
    call.uow.emit("training.training.created", training)
    return training_message(training)


async def update_training(request: pb.UpdateTrainingRequest, call: Call[App]) -> training_pb2.Training:
    repository = Trainings(call.uow)
    training = await repository.get(request.training.name)
    training.require_etag(request.training.etag)
    given = request.training
    for field in fields_to_change(given, request.update_mask, _MUTABLE):
        if field == "spec":
            training.spec = spec_from(given.spec)
        else:
            setattr(training, field, dict(given.labels) if field == "labels" else getattr(given, field))
    training.update_time = call.clock.now()
    await _check(training, call)
    await repository.save(training)
    call.uow.emit("training.training.updated", training)
    return training_message(training)


async def delete_training(request: pb.DeleteTrainingRequest, call: Call[App]) -> training_pb2.Training:
    repository = Trainings(call.uow)
    training = await repository.get(request.name)
    training.require_etag(request.etag)
    await repository.soft_delete(training, call.clock.now())
    call.uow.emit("training.training.deleted", training)
    return training_message(training)


async def undelete_training(request: pb.UndeleteTrainingRequest, call: Call[App]) -> training_pb2.Training:
    repository = Trainings(call.uow)
    training = await repository.get(request.name, deleted=True)
    training.require_etag(request.etag)
    await repository.undelete(training, call.clock.now())
    call.uow.emit("training.training.undeleted", training)
    return training_message(training)


async def run_training(request: pb.RunTrainingRequest, call: Call[App]) -> training_pb2.TrainingRun:
    training = await _read(request.name, call)
    versions = await _versions(training, call)
    blocking = [finding for finding in await _findings(training, versions, call) if finding.blocking]
    if blocking:
        first = blocking[0]
        raise DomainError("PREFLIGHT_FAILED", first.message, check=first.check, detail=first.message)
    repository = Trainings(call.uow)
    seen, training = training, await repository.get(request.name, for_update=True)
    if training.version != seen.version:
        raise DomainError("CONFLICT", f"{training.name} was changed at the same time.", name=training.name)
    run = await _new_run(training, request.run_id or training.next_run_id(), versions, call)
    task = await call.deps.tasks.create(
        call.uow, run.org, KIND, run.name, {"run": run.name}, run.creator, labels=run.labels
    )
    run.task = task.name
    await repository.save(training)
    await TrainingRuns(call.uow).insert(run)
    await RunEvents(call.uow).add(run, RunEvent(EventKind.CREATED, run.create_time, f"created by {run.creator}"))
    call.uow.emit("training.run.created", run)
    return run_message(run)


async def get_training_run(request: pb.GetTrainingRunRequest, call: Call[App]) -> training_pb2.TrainingRun:
    return run_message(await TrainingRuns(call.uow).get(request.name))


async def list_training_runs(request: pb.ListTrainingRunsRequest, call: Call[App]) -> pb.ListTrainingRunsResponse:
    conditions, ordering = parse_filter(request.filter), parse_order(request.order_by)
    size, after = page_size(request.page_size), PageToken.decode(request)
    _, org, _, training = request.parent.split("/")
    if training != ANY_TRAINING:
        await Trainings(call.uow).get(request.parent, deleted=True)
    if training != ANY_TRAINING and not conditions and ordering == Ordering():
        found, position = await TrainingRuns(call.uow).list(request.parent, size, after, request.show_deleted)
    else:
        if training != ANY_TRAINING:
            conditions = [Comparison("training", "=", training), *conditions]
        found, position = await TrainingRuns(call.uow).search(
            org, conditions, ordering, size, after, request.show_deleted
        )
    return pb.ListTrainingRunsResponse(
        training_runs=[run_message(run) for run in found], next_page_token=PageToken.encode(request, position)
    )


async def preflight_training(request: pb.PreflightTrainingRequest, call: Call[App]) -> pb.PreflightTrainingResponse:
    training = await _read(request.name, call)
    findings: list[Finding] = []
    try:
        findings = await _findings(training, await _versions(training, call), call)
    except ArgosyError as error:
        if error.reason != "NOT_FOUND":
            raise
        findings = [Finding("schema", True, error.message)]
    guess = estimate(training.spec)
    return pb.PreflightTrainingResponse(
        findings=[
            pb.PreflightFinding(check=finding.check, blocking=finding.blocking, message=finding.message)
            for finding in findings
        ],
        seconds=guess.seconds,
        memory_bytes=guess.memory_bytes,
        parameter_count=guess.parameter_count,
    )


async def _check(training: Training, call: Call[App]) -> None:
    """What a training names in this service must be there; data is looked at by the pre-flight."""
    training.check()
    await ModelProjects(call.uow).get(training.model_project)
    if "/aliases/" in training.base_model_version:
        # Kept is the version: where the alias leads later changes no training.
        training.base_model_version = (await ModelAliases(call.uow).get(training.base_model_version)).model_version
    for version in (training.base_model_version, *training.spec.frozen_versions):
        if version:
            await ModelVersions(call.uow).get(version)


async def _read(name: str, call: Call[App]) -> Training:
    """The training in a transaction of its own: peers are asked next, and no transaction waits for them."""
    uow = call.deps.database.unit_of_work(call.org, call.principal.subject, deadline=call.deadline, read_only=True)
    try:
        return await Trainings(uow).get(name)
    finally:
        await uow.rollback()


async def _versions(training: Training, call: Call[App]) -> list[tuple[str, DatasetVersion]]:
    """The dataset versions that it reads, as its caller may see them, with the field that names each."""
    fields = [field for field in ("dataset_version", "validation_version") if getattr(training, field)]
    datasets, metadata = call.deps.datasets, call.forward()
    return [(field, await datasets.version(getattr(training, field), metadata)) for field in fields]


async def _findings(training: Training, versions: list[tuple[str, DatasetVersion]], call: Call[App]) -> list[Finding]:
    first = versions[0][1]
    sample = await call.deps.datasets.sample(first.name, _SAMPLE_ROWS, call.forward()) if first.row_count else []
    facts = [
        DataFacts(field, version.name, version.row_count, version.columns, sample if version is first else ())
        for field, version in versions
    ]
    return preflight(training.spec, facts, estimate(training.spec), call.deps.memory_bytes)


async def _new_run(
    training: Training, run_id: str, versions: list[tuple[str, DatasetVersion]], call: Call[App]
) -> TrainingRun:
    """A run with everything as it is now; at least as confidential as all that it learns from."""
    now, found = call.clock.now(), dict(versions)
    lineage = [Parent(training.name, relation="run_of")]
    relations = {"dataset_version": "trained_on", "validation_version": "validated_on"}
    lineage += [Parent(version.name, version.manifest_digest, relations[field]) for field, version in versions]
    secrecy = inherit_secrecy(training.secrecy, *(version.secrecy for version in found.values()))
    if training.base_model_version:
        base = await ModelVersions(call.uow).get(training.base_model_version)
        lineage.append(Parent(base.name, base.manifest_digest, "fine_tuned_from"))
        secrecy = inherit_secrecy(secrecy, base.secrecy)
    for name in training.spec.frozen_versions:
        frozen = await ModelVersions(call.uow).get(name)
        lineage.append(Parent(frozen.name, frozen.manifest_digest, "learned_from"))
        secrecy = inherit_secrecy(secrecy, frozen.secrecy)
    return TrainingRun(
        uid=uuid7(),
        name=f"{training.name}/runs/{run_id}",
        create_time=now,
        update_time=now,
        creator=call.principal.subject,
        state=RunState.QUEUED,
        labels=dict(training.labels),
        secrecy=secrecy,
        lineage=lineage,
        dataset_digest=found["dataset_version"].manifest_digest,
        validation_digest=found["validation_version"].manifest_digest if "validation_version" in found else "",
        **snapshot(training),
    )
