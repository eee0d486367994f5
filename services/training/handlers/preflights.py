"""The pre-flight of a training: what a run would do, need and end by, looked at before anything is spent."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from argosy.training.v1 import run_costs_pb2
from argosy.training.v1 import training_service_pb2 as pb

from libs.common.db.uow import UnitOfWork
from libs.common.domain import DomainError, Needs
from libs.common.errors import ArgosyError
from libs.common.rpc.call import Call
from services.training.clients.dataset import DatasetVersion
from services.training.clients.samples import Sample
from services.training.domain.costs import expected, needs_of
from services.training.domain.estimate import Estimate, Rates, estimate, work_of
from services.training.domain.preflight import DataFacts, Finding, preflight
from services.training.domain.trainings import Training
from services.training.handlers.algorithm_messages import struct
from services.training.handlers.algorithm_trainings import Plan, plan
from services.training.handlers.bases import base_of
from services.training.handlers.row_samples import sample_findings, sample_message, sampled, stops_by_rows
from services.training.store.machine_rates import MachineRates
from services.training.store.repositories import ModelProjects, ModelVersions, Trainings

if TYPE_CHECKING:
    from services.training.app import App

_SAMPLE_ROWS = 100
# What is to be reserved for what a training is started as, from what a run would need, as far as that is known.
NeedsOf = Callable[[Training, Estimate | None], Needs]
# Checks after which there is no use in looking at more rows.
_OF_ROWS = ("schema", "template")


async def preflight_training(request: pb.PreflightTrainingRequest, call: Call[App]) -> pb.PreflightTrainingResponse:
    training = await read_training(request.name, call)
    sample = None
    try:
        _, looked_at, sample = await _look(training, not training.runs_algorithm, needs_of_run, call)
    except (ArgosyError, DomainError) as error:
        if error.reason not in ("NOT_FOUND", "CONTENT_INVALID"):
            raise
        looked_at = Plan([Finding("schema", True, error.message)])
    guess = looked_at.guess or Estimate(0.0, 0, 0, 0, 0)
    cost = expected(training.spec, guess).to_json() if looked_at.guess is not None else None
    return pb.PreflightTrainingResponse(
        findings=[
            pb.PreflightFinding(check=finding.check, blocking=finding.blocking, message=finding.message)
            for finding in looked_at.findings
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


def needs_of_run(training: Training, guess: Estimate | None) -> Needs:
    """What a run of the training reserves."""
    return needs_of(training.spec, expected(training.spec, guess).to_json() if guess is not None else {})


async def checked_training(
    seen: Training, call: Call[App], needs: NeedsOf = needs_of_run
) -> tuple[Training, list[tuple[str, DatasetVersion]], Plan]:
    """A training that the pre-flight found nothing blocking about, locked, the versions that it reads, and what it
    would do.

    Args:
        seen: as `read_training` gave it.
        needs: what is asked of quotas.
    """
    versions, looked_at, _ = await _look(seen, stops_by_rows(seen), needs, call)
    first = next(iter(looked_at.findings), None)
    if first is not None and first.blocking:
        raise DomainError("PREFLIGHT_FAILED", first.message, check=first.check, detail=first.message)
    training = await Trainings(call.uow).get(seen.name, for_update=True)
    if training.version != seen.version:
        raise DomainError("CONFLICT", f"{training.name} was changed at the same time.", name=training.name)
    return training, versions, looked_at


async def read_training(name: str, call: Call[App]) -> Training:
    """The training, in a transaction of its own: peers are asked next, and no transaction waits for them."""
    async with _reading(call) as uow:
        training = await Trainings(uow).get(name)
    training.require_started_here()
    return training


async def _parts(training: Training, call: Call[App]) -> int:
    """The parameters of its base (0: none). Raises NOT_FOUND where something that it names in this service is gone."""
    async with _reading(call) as uow:
        await ModelProjects(uow).get(training.model_project)
        for version in training.spec.frozen_versions:
            await ModelVersions(uow).get(version)
        if not training.base_model_version:
            return 0
        return (await base_of(training.base_model_version, uow, call.deps.blobs)).parameter_count


@asynccontextmanager
async def _reading(call: Call[App]) -> AsyncGenerator[UnitOfWork]:
    uow = call.deps.database.unit_of_work(call.org, call.principal.subject, deadline=call.deadline, read_only=True)
    try:
        yield uow
    finally:
        await uow.rollback()


async def _versions(training: Training, call: Call[App]) -> list[tuple[str, DatasetVersion]]:
    """The dataset versions that it reads, as its caller may see them, with the field that names each."""
    fields = [field for field in ("dataset_version", "validation_version") if getattr(training, field)]
    datasets, metadata = call.deps.datasets, call.forward()
    return [(field, await datasets.version(getattr(training, field), metadata)) for field in fields]


async def _look(
    training: Training, rows: bool, needs: NeedsOf, call: Call[App]
) -> tuple[list[tuple[str, DatasetVersion]], Plan, Sample | None]:
    """The pre-flight: the versions that a run reads, what was found, blocking first, and what their rows are like.

    Args:
        rows: whether a sample of the rows is looked at; not where something is wrong with their columns already.
    """
    base_parameters, versions = await _parts(training, call), await _versions(training, call)
    looked_at, sample = await _planned(training, base_parameters, versions, call), None
    looked_at.findings.extend(await _quota(training, needs(training, looked_at.guess), call))
    if rows and not any(finding.blocking and finding.check in _OF_ROWS for finding in looked_at.findings):
        sample = await sampled(training, versions, call)
        told = any(finding.check == "template" for finding in looked_at.findings)
        looked_at.findings.extend(sample_findings(sample, told))
    looked_at.findings.sort(key=lambda finding: not finding.blocking)
    return versions, looked_at, sample


async def _planned(
    training: Training, base_parameters: int, versions: list[tuple[str, DatasetVersion]], call: Call[App]
) -> Plan:
    """What is found without a look at many rows, and for an algorithm also what a run would do."""
    first = versions[0][1] if versions else None
    reads = first is not None and first.row_count > 0
    sample = await call.deps.datasets.sample(first.name, _SAMPLE_ROWS, call.forward()) if first and reads else []
    facts = [
        DataFacts(field, version.name, version.row_count, version.columns, sample if version is first else ())
        for field, version in versions
    ]
    if training.runs_algorithm:
        return await plan(training, facts, call)
    guess = estimate(training.spec, base_parameters, work_of(training.spec, facts), await _rates(training, call))
    return Plan(preflight(training.spec, facts, guess, call.deps.memory_bytes), guess=guess)


async def _rates(training: Training, call: Call[App]) -> Rates:
    """What the last run with as many threads measured."""
    async with call.deps.database.system(read_only=True) as uow:
        return await MachineRates(uow).expected(max(1, training.spec.threads_per_worker)) or Rates()


async def _quota(training: Training, needs: Needs, call: Call[App]) -> list[Finding]:
    """Whether the quotas of the caller, of the departments above and of the organization have room."""
    if call.deps.quota is None:
        return []
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
