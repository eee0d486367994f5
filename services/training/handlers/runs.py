"""Runs beside one another, and what people do with them: pause, resume, cancel, retry, clone."""

from __future__ import annotations

from typing import TYPE_CHECKING

from argosy.training.v1 import run_metrics_pb2, training_pb2
from argosy.training.v1 import run_service_pb2 as pb
from google.protobuf.descriptor import Descriptor
from google.protobuf.field_mask_pb2 import FieldMask

from libs.common.db.mapping import timestamp
from libs.common.domain import DomainError, invalid
from libs.common.ids import resource_id, uuid7
from libs.common.rpc.call import Call
from libs.common.rpc.interceptors.validate import require_valid
from libs.common.rpc.pagination import PageToken, page_size
from services.training.domain.runs import (
    EventKind,
    RunEvent,
    RunState,
    Value,
    parameters,
    require,
    require_started_here,
)
from services.training.domain.trainings import Training, TrainingRun, snapshot
from services.training.handlers.bases import given_numbers
from services.training.handlers.messages import PAGE_BYTES, run_message, spec_from, training_message
from services.training.handlers.trainings import MUTABLE, check_parts, parameters_from
from services.training.store.algorithms import entry_of
from services.training.store.repositories import TrainingRuns, Trainings
from services.training.store.run_events import RunEvents

if TYPE_CHECKING:
    from services.training.app import App

# Of a parameter in a comparison: texts of pages help nobody there.
_MOST_CHARACTERS = 200


async def pause_training_run(request: pb.PauseTrainingRunRequest, call: Call[App]) -> training_pb2.TrainingRun:
    run = await TrainingRuns(call.uow).get(request.name)
    require(run, "paused")
    if run.algorithm_version and run.state == RunState.RUNNING and not await _has_checkpoints(run, call):
        message = f"{run.name} runs an algorithm without checkpoints; cancel it and retry it later."
        raise DomainError("STATE_CONFLICT", message, name=run.name, state=run.state, wanted=str(RunState.PAUSED))
    await call.deps.tasks.pause(call.uow, run.task)
    return run_message(run)


async def _has_checkpoints(run: TrainingRun, call: Call[App]) -> bool:
    """Whether its algorithm writes some: own code may."""
    entry, running = await entry_of(call.uow, run.algorithm_version)
    return entry.program is not None or running.pauses


async def resume_training_run(request: pb.ResumeTrainingRunRequest, call: Call[App]) -> training_pb2.TrainingRun:
    run = await TrainingRuns(call.uow).get(request.name)
    require(run, "resumed")
    await call.deps.tasks.resume(call.uow, run.task)
    return await _queued(request.name, EventKind.RESUMED, call)


async def cancel_training_run(request: pb.CancelTrainingRunRequest, call: Call[App]) -> training_pb2.TrainingRun:
    run = await TrainingRuns(call.uow).get(request.name)
    require_started_here(run)
    await call.deps.tasks.cancel(call.uow, run.task)
    return run_message(run)


async def retry_training_run(request: pb.RetryTrainingRunRequest, call: Call[App]) -> training_pb2.TrainingRun:
    run = await TrainingRuns(call.uow).get(request.name)
    require(run, "retried")
    await call.deps.tasks.retry(call.uow, run.task)
    return await _queued(request.name, EventKind.RETRIED, call)


async def clone_training(request: pb.CloneTrainingRequest, call: Call[App]) -> training_pb2.Training:
    run = await TrainingRuns(call.uow).get(request.name)
    require_started_here(run)
    for path in request.update_mask.paths:
        if path.split(".")[0] not in MUTABLE:
            raise invalid("update_mask", f"{path} is not one of {', '.join(sorted(MUTABLE))}")
    now = call.clock.now()
    training = Training(
        uid=uuid7(),
        name=f"orgs/{run.org}/trainings/{request.training_id or resource_id('training')}",
        create_time=now,
        update_time=now,
        creator=call.principal.subject,
        labels=dict(run.labels),
        secrecy=run.secrecy,
        **snapshot(run),
    )
    if run.algorithm_version:
        entry, _ = await entry_of(call.uow, run.algorithm_version)
        # Those that the version fixes are no training's to set.
        training.parameters = {name: run.parameters[name] for name in entry.parameters.get("properties", {})}
    wanted = training_message(training)
    _merge(request, wanted)
    training.labels, training.spec = dict(wanted.labels), spec_from(wanted.spec)
    training.parameters = parameters_from(wanted)
    for name in MUTABLE - {"labels", "spec", "parameters"}:
        setattr(training, name, getattr(wanted, name))
    own = {"sequence_length": wanted.spec.architecture.sequence_length}
    await check_parts(training, own | given_numbers(request.training.spec.architecture), call)
    await Trainings(call.uow).insert(training)
    call.uow.emit("training.training.created", training)
    return training_message(training)


async def compare_runs(request: pb.CompareRunsRequest, call: Call[App]) -> pb.CompareRunsResponse:
    runs = await TrainingRuns(call.uow).named(request.runs)
    given = {run.name: parameters(run) for run in runs}
    names = sorted({name for values in given.values() for name in values})
    differing = [name for name in names if len({values.get(name) for values in given.values()}) > 1]
    results = sorted({name for run in runs for name in run.results})
    answer = pb.CompareRunsResponse(
        parameters=[
            run_metrics_pb2.ComparedParameter(
                name=name, values={run: _shown(values[name]) for run, values in given.items() if name in values}
            )
            for name in differing
        ],
        results=[
            run_metrics_pb2.ComparedResult(
                name=name, values={run.name: run.results[name] for run in runs if name in run.results}
            )
            for name in results
        ],
    )
    if answer.ByteSize() > PAGE_BYTES:
        message = f"runs: they differ in {len(differing):,} parameters and have {len(results):,} results; compare fewer"
        raise DomainError("TOO_LARGE", message, limit=str(PAGE_BYTES))
    return answer


async def list_run_events(request: pb.ListRunEventsRequest, call: Call[App]) -> pb.ListRunEventsResponse:
    run = await TrainingRuns(call.uow).get(request.parent)
    found, position = await RunEvents(call.uow).list(run, page_size(request.page_size), PageToken.decode(request))
    return pb.ListRunEventsResponse(
        events=[
            run_metrics_pb2.RunEvent(
                kind=f"KIND_{event.kind}",
                time=timestamp(event.time),
                message=event.message,
                details=event.details,
            )
            for event in found
        ],
        next_page_token=PageToken.encode(request, position),
    )


async def _queued(name: str, kind: EventKind, call: Call[App]) -> training_pb2.TrainingRun:
    """The run in its new state. Its task was locked before it, as the worker does."""
    run = await TrainingRuns(call.uow).get(name, for_update=True)
    run.state, run.update_time = RunState.QUEUED, call.clock.now()
    await TrainingRuns(call.uow).save(run)
    actor = call.principal.subject
    await RunEvents(call.uow).add(run, RunEvent(kind, run.update_time, f"{kind.lower()} by {actor}", {"actor": actor}))
    return run_message(run)


def _merge(request: pb.CloneTrainingRequest, wanted: training_pb2.Training) -> None:
    """Puts the fields of the mask into the training."""
    for path in request.update_mask.paths:
        descriptor: Descriptor = training_pb2.Training.DESCRIPTOR  # pyrefly: ignore[bad-assignment]
        if not FieldMask(paths=[path]).IsValidForDescriptor(descriptor):
            raise invalid("update_mask", f"{path} is no field of a training")
    request.update_mask.MergeMessage(request.training, wanted, True, True)
    require_valid(wanted, "training")


def _shown(value: Value) -> str:
    return f"{value:.10g}" if isinstance(value, float) else value[:_MOST_CHARACTERS]
