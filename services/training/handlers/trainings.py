"""Trainings and their runs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from argosy.training.v1 import run_costs_pb2, training_pb2
from argosy.training.v1 import training_service_pb2 as pb

from libs.common.db.mapping import from_proto
from libs.common.db.repository import position
from libs.common.domain import DomainError, Parent, inherit_secrecy
from libs.common.errors import ArgosyError
from libs.common.ids import resource_id, uuid7
from libs.common.rpc.call import Call
from libs.common.rpc.masks import fields_to_change
from libs.common.rpc.pagination import PageToken, page_size
from libs.common.rpc.structs import from_struct
from libs.common.tasks import Needs
from services.training.clients.dataset import DatasetVersion
from services.training.domain.costs import booked, expected
from services.training.domain.estimate import Estimate, Rates, estimate, work_of
from services.training.domain.preflight import DataFacts, Finding, preflight
from services.training.domain.run_filter import Comparison, Ordering, parse_filter, parse_order
from services.training.domain.runs import EventKind, RunEvent, RunState
from services.training.domain.schemas import MOST_BYTES
from services.training.domain.spec import invalid
from services.training.domain.trainings import Training, TrainingRun, snapshot
from services.training.handlers.algorithm_messages import struct
from services.training.handlers.algorithm_trainings import Plan, plan, require_algorithm
from services.training.handlers.bases import base_of, fit_to_base, given_numbers
from services.training.handlers.messages import PAGE_BYTES, run_message, spec_from, training_message
from services.training.handlers.row_samples import sample_findings, sample_message, sampled
from services.training.store.machine_rates import MachineRates
from services.training.store.registry import ModelAliases
from services.training.store.repositories import ModelProjects, ModelVersions, TrainingRuns, Trainings
from services.training.store.run_events import RunEvents

if TYPE_CHECKING:
    from services.training.app import App

KIND = "training.run"
MUTABLE = frozenset(
    {
        "display_name",
        "description",
        "labels",
        "dataset_version",
        "validation_version",
        "model_project",
        "base_model_version",
        "spec",
        "algorithm_version",
        "parameters",
        "task",
    }
)
_SAMPLE_ROWS = 100
# AIP-159: the runs of all trainings.
ANY_TRAINING = "-"


async def get_training(request: pb.GetTrainingRequest, call: Call[App]) -> training_pb2.Training:
    return training_message(await Trainings(call.uow).get(request.name))


async def list_trainings(request: pb.ListTrainingsRequest, call: Call[App]) -> pb.ListTrainingsResponse:
    trainings, begin = Trainings(call.uow), PageToken.decode(request)
    if request.after and not begin:
        begin = position(await trainings.get(request.after, deleted=True))
    found, following = await trainings.list(
        request.parent,
        page_size(request.page_size),
        begin,
        request.show_deleted,
        [trainings.labelled(*label.partition("=")) for label in request.labels],
    )
    return pb.ListTrainingsResponse(
        trainings=[training_message(training) for training in found],
        next_page_token=PageToken.encode(request, following),
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
        algorithm_version=given.algorithm_version,
        parameters=parameters_from(given),
        task=given.task,
        outside=given.outside,
    )
    await check_parts(training, given_numbers(given.spec.architecture), call)
    await Trainings(call.uow).insert(training)
    call.uow.emit("training.training.created", training)
    return training_message(training)


async def update_training(request: pb.UpdateTrainingRequest, call: Call[App]) -> training_pb2.Training:
    repository = Trainings(call.uow)
    training = await repository.get(request.training.name)
    training.require_etag(request.training.etag)
    given = request.training
    await change(training, given, fields_to_change(given, request.update_mask, MUTABLE), call)
    training.update_time = call.clock.now()
    await repository.save(training)
    call.uow.emit("training.training.updated", training)
    return training_message(training)


async def change(training: Training, given: training_pb2.Training, fields: Iterable[str], call: Call[App]) -> None:
    """Gives a training other values and looks whether they are in order; nothing is stored."""
    numbers = {"sequence_length": training.spec.architecture.sequence_length}
    for field in fields:
        if field in ("spec", "base_model_version"):
            # What was written for another base or another spec binds no more.
            numbers = given_numbers(given.spec.architecture)
        if field == "spec":
            training.spec = spec_from(given.spec)
        elif field == "parameters":
            training.parameters = parameters_from(given)
        else:
            setattr(training, field, dict(given.labels) if field == "labels" else getattr(given, field))
    await check_parts(training, numbers, call)


async def delete_training(request: pb.DeleteTrainingRequest, call: Call[App]) -> training_pb2.Training:
    repository = Trainings(call.uow)
    training = await repository.get(request.name)
    training.require_etag(request.etag)
    now = call.clock.now()
    await repository.soft_delete(training, now)
    if training.outside:
        await TrainingRuns(call.uow).soft_delete_all(training.name, now)
    call.uow.emit("training.training.deleted", training)
    return training_message(training)


async def undelete_training(request: pb.UndeleteTrainingRequest, call: Call[App]) -> training_pb2.Training:
    repository = Trainings(call.uow)
    training = await repository.get(request.name, deleted=True)
    training.require_etag(request.etag)
    deleted, now = training.delete_time, call.clock.now()
    await repository.undelete(training, now)
    if training.outside and deleted is not None:
        await TrainingRuns(call.uow).undelete_all(training.name, deleted, now)
    call.uow.emit("training.training.undeleted", training)
    return training_message(training)


async def run_training(request: pb.RunTrainingRequest, call: Call[App]) -> training_pb2.TrainingRun:
    training, versions, looked_at = await checked_training(request.name, call)
    repository = Trainings(call.uow)
    run = await new_run(training, request.run_id or training.next_run_id(), versions, call)
    task = await call.deps.tasks.create(
        call.uow, run.org, KIND, run.name, {"run": run.name}, run.creator, labels=run.labels
    )
    run.task = task.name
    if training.runs_algorithm:
        looked_at.write_out(training, run)
    if looked_at.guess is not None:
        run.estimate = expected(run.spec, looked_at.guess).to_json()
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
        found = TrainingRuns(call.uow).newest(request.parent, size + 1, after, request.show_deleted)
    else:
        if training != ANY_TRAINING:
            conditions = [Comparison("training", "=", training), *conditions]
        found = TrainingRuns(call.uow).search(org, conditions, ordering, size + 1, after, request.show_deleted)
    answer, last, size_bytes = pb.ListTrainingRunsResponse(), "", 0
    async for run, here in found:
        message = run_message(run)
        size_bytes += message.ByteSize()
        if len(answer.training_runs) == size or (last and size_bytes > PAGE_BYTES):
            answer.next_page_token = PageToken.encode(request, last)
            break
        answer.training_runs.append(message)
        last = here
    return answer


async def preflight_training(request: pb.PreflightTrainingRequest, call: Call[App]) -> pb.PreflightTrainingResponse:
    training, base_parameters = await _read(request.name, call)
    looked_at, sample = Plan([]), None
    try:
        versions = await _versions(training, call)
        looked_at = await _look(training, base_parameters, versions, call)
        if not training.runs_algorithm and not any(finding.check == "schema" for finding in looked_at.findings):
            sample = await sampled(training, versions[0][1], call)
            looked_at.findings.extend(sample_findings(sample))
    except ArgosyError as error:
        if error.reason != "NOT_FOUND":
            raise
        looked_at = Plan([Finding("schema", True, error.message)])
    guess = looked_at.guess or Estimate(0.0, 0, 0, 0, 0)
    cost = expected(training.spec, guess).to_json() if looked_at.guess is not None else None
    return pb.PreflightTrainingResponse(
        findings=[
            pb.PreflightFinding(check=finding.check, blocking=finding.blocking, message=finding.message)
            for finding in sorted(looked_at.findings, key=lambda finding: not finding.blocking)
        ],
        seconds=guess.seconds,
        memory_bytes=guess.memory_bytes,
        parameter_count=guess.parameter_count,
        trained_parameter_count=guess.trained_parameter_count,
        cost=run_costs_pb2.RunCost(**cost) if cost is not None else None,
        sample=sample_message(sample) if sample is not None else None,
        algorithm_version=looked_at.algorithm_version,
        parameters=struct(looked_at.parameters or {}),
    )


async def checked_training(name: str, call: Call[App]) -> tuple[Training, list[tuple[str, DatasetVersion]], Plan]:
    """A training that the pre-flight found nothing blocking about, locked, the versions that it reads, and what it
    would do.
    """
    seen, base_parameters = await _read(name, call)
    versions = await _versions(seen, call)
    looked_at = await _look(seen, base_parameters, versions, call)
    blocking = [finding for finding in looked_at.findings if finding.blocking]
    if blocking:
        first = blocking[0]
        raise DomainError("PREFLIGHT_FAILED", first.message, check=first.check, detail=first.message)
    training = await Trainings(call.uow).get(name, for_update=True)
    if training.version != seen.version:
        raise DomainError("CONFLICT", f"{training.name} was changed at the same time.", name=training.name)
    return training, versions, looked_at


async def check_parts(training: Training, given: Mapping[str, int], call: Call[App]) -> None:
    """What a training names in this service must be there; data is looked at by the pre-flight. An alias becomes the
    version that it stands for, and the spec gets the shape of its base.

    Args:
        given: numbers of the architecture that the caller wrote.
    """
    training.check()
    if training.outside:
        return
    await require_algorithm(training, call)
    await ModelProjects(call.uow).get(training.model_project)
    if "/aliases/" in training.base_model_version:
        # Kept is the version: where the alias leads later changes no training.
        training.base_model_version = (await ModelAliases(call.uow).get(training.base_model_version)).model_version
    await fit_to_base(training, given, call)
    for name in training.spec.frozen_versions:
        if (await ModelVersions(call.uow).get(name)).is_adapter:
            raise invalid(
                "spec.phases", f"name {name}, an adapter: only a complete model can be asked, as `merge` makes it"
            )


async def _read(name: str, call: Call[App]) -> tuple[Training, int]:
    """The training, and the parameters of its base (0: none), in a transaction of its own: peers are asked next, and
    no transaction waits for them."""
    uow = call.deps.database.unit_of_work(call.org, call.principal.subject, deadline=call.deadline, read_only=True)
    try:
        training = await Trainings(uow).get(name)
        training.require_started_here()
        if not training.base_model_version:
            return training, 0
        return training, (await base_of(training.base_model_version, uow, call.deps.blobs)).parameter_count
    finally:
        await uow.rollback()


async def _versions(training: Training, call: Call[App]) -> list[tuple[str, DatasetVersion]]:
    """The dataset versions that it reads, as its caller may see them, with the field that names each."""
    fields = [field for field in ("dataset_version", "validation_version") if getattr(training, field)]
    datasets, metadata = call.deps.datasets, call.forward()
    return [(field, await datasets.version(getattr(training, field), metadata)) for field in fields]


def parameters_from(given: training_pb2.Training) -> dict[str, Any]:
    return from_struct(given.parameters, "training.parameters", MOST_BYTES)


async def _look(
    training: Training, base_parameters: int, versions: list[tuple[str, DatasetVersion]], call: Call[App]
) -> Plan:
    """The pre-flight: what was found, and for an algorithm also what a run would do."""
    first = versions[0][1] if versions else None
    reads = first is not None and first.row_count > 0
    sample = await call.deps.datasets.sample(first.name, _SAMPLE_ROWS, call.forward()) if first and reads else []
    facts = [
        DataFacts(field, version.name, version.row_count, version.columns, sample if version is first else ())
        for field, version in versions
    ]
    if training.runs_algorithm:
        looked_at = await plan(training, facts, call)
    else:
        guess = estimate(training.spec, base_parameters, work_of(training.spec, facts), await _rates(training, call))
        looked_at = Plan(preflight(training.spec, facts, guess, call.deps.memory_bytes), guess=guess)
    looked_at.findings.extend(await _quota(training, looked_at, call))
    looked_at.findings.sort(key=lambda finding: not finding.blocking)
    return looked_at


async def _rates(training: Training, call: Call[App]) -> Rates:
    """What the last run with as many threads measured."""
    async with call.deps.database.system(read_only=True) as uow:
        return await MachineRates(uow).newest(max(1, training.spec.threads_per_worker)) or Rates()


async def _quota(training: Training, looked_at: Plan, call: Call[App]) -> list[Finding]:
    """Whether the quotas of the caller, of the departments above and of the organization have room for a run."""
    if call.deps.quota is None:
        return []
    guess = looked_at.guess or Estimate(0.0, 0, 0, 0, 0)
    cpus, gpus = booked(training.spec)
    needs = Needs(cpus, gpus, guess.memory_bytes, guess.seconds, guess.storage_bytes)
    try:
        impossible, waiting_for = await call.deps.quota.check(training.org, call.principal.subject, needs)
    except ArgosyError as error:
        if error.reason not in ("PEER_UNAVAILABLE", "DEADLINE_EXCEEDED", "OVERLOADED"):
            raise
        # The start asks again, and waits for the answer.
        return [Finding("quota", False, "Nobody could be asked whether there is quota for a run.")]
    if impossible:
        return [Finding("quota", True, f"There is no quota for this: {impossible}.")]
    return [Finding("quota", False, f"A run has to wait for quota: {waiting_for}.")] if waiting_for else []


async def new_run(
    training: Training, run_id: str, versions: list[tuple[str, DatasetVersion]], call: Call[App]
) -> TrainingRun:
    """A run with everything as it is now; at least as confidential as all that it learns from."""
    now, found = call.clock.now(), dict(versions)
    lineage = [Parent(training.name, relation="run_of")]
    relations = {"dataset_version": "trained_on", "validation_version": "validated_on"}
    lineage += [Parent(version.name, version.manifest_digest, relations[field]) for field, version in versions]
    project = await ModelProjects(call.uow).get(training.model_project)
    secrecy = inherit_secrecy(training.secrecy, project.secrecy, *(version.secrecy for version in found.values()))
    if training.base_model_version:
        base = await ModelVersions(call.uow).get(training.base_model_version)
        lineage.append(Parent(base.name, base.manifest_digest, "fine_tuned_from"))
        secrecy = inherit_secrecy(secrecy, base.secrecy)
        if base.is_adapter:
            complete = await ModelVersions(call.uow).get(base.base_model_version)
            lineage.append(Parent(complete.name, complete.manifest_digest, "adapted_from"))
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
        dataset_digest=found["dataset_version"].manifest_digest if "dataset_version" in found else "",
        validation_digest=found["validation_version"].manifest_digest if "validation_version" in found else "",
        **snapshot(training),
    )
