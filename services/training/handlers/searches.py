"""Searches for hyper-parameters."""

from __future__ import annotations

from typing import TYPE_CHECKING

import protovalidate
from argosy.training.v1 import search_pb2
from argosy.training.v1 import search_service_pb2 as pb

from libs.common.db.mapping import from_proto
from libs.common.domain import DomainError, Needs, Parent, inherit_secrecy
from libs.common.ids import resource_id, uuid7
from libs.common.rpc.call import Call
from libs.common.rpc.pagination import PageToken, page_size
from libs.common.tasks import store as task_store
from libs.common.tasks.kinds import DEFAULT_MAX_ATTEMPTS
from services.training.domain.estimate import Estimate, estimate
from services.training.domain.searches import HyperparameterSearch, SearchPlan
from services.training.domain.spec import TrainingSpec, invalid
from services.training.domain.spec_paths import with_values
from services.training.domain.trainings import Training
from services.training.handlers.algorithm_trainings import Plan
from services.training.handlers.messages import spec_message
from services.training.handlers.preflights import checked_training, read_training
from services.training.handlers.search_messages import plan_from, search_message, trial_message
from services.training.handlers.search_picture import picture
from services.training.handlers.search_report import report
from services.training.handlers.trainings import new_run
from services.training.store.algorithms import entry_of
from services.training.store.searches import Searches

if TYPE_CHECKING:
    from services.training.app import App

KIND = "training.search"
_VALIDATOR = protovalidate.Validator()


async def get_search(request: pb.GetSearchRequest, call: Call[App]) -> search_pb2.HyperparameterSearch:
    return search_message(await Searches(call.uow).get(request.name))


async def list_searches(request: pb.ListSearchesRequest, call: Call[App]) -> pb.ListSearchesResponse:
    found, position = await Searches(call.uow).list(
        request.parent, page_size(request.page_size), PageToken.decode(request), request.show_deleted
    )
    return pb.ListSearchesResponse(
        searches=[search_message(search) for search in found], next_page_token=PageToken.encode(request, position)
    )


async def create_search(request: pb.CreateSearchRequest, call: Call[App]) -> search_pb2.HyperparameterSearch:
    given, now, own = request.search, call.clock.now(), from_proto(request.search)
    plan = plan_from(given)
    if given.training.split("/")[1] != call.org:
        # Another organization's resources are not there for this one.
        raise DomainError("NOT_FOUND", f"{given.training} does not exist.", name=given.training)
    seen = await read_training(given.training, call)
    if not seen.runs_algorithm:
        plan.check(seen.spec, bool(seen.validation_version), bool(seen.base_model_version))
        _check_values(plan, seen.spec)

    def needs(training: Training, guess: Estimate | None) -> Needs:
        return plan.needs(training.spec, _estimate(plan, training, guess))

    training, versions, looked_at = await checked_training(seen, call, needs)
    run = await new_run(training, "search", versions, call)
    search = HyperparameterSearch(
        uid=uuid7(),
        name=f"{request.parent}/searches/{request.search_id or resource_id('search')}",
        create_time=now,
        update_time=now,
        creator=call.principal.subject,
        labels=own["labels"],
        secrecy=inherit_secrecy(own["secrecy"], run.secrecy),
        lineage=[Parent(training.name, relation="search_of"), *(parent for parent in run.lineage if parent.digest)],
        display_name=given.display_name,
        training=training.name,
        plan=plan,
        spec=run.spec,
        dataset_version=run.dataset_version,
        dataset_digest=run.dataset_digest,
        validation_version=run.validation_version,
        validation_digest=run.validation_digest,
        model_project=run.model_project,
        base_model_version=run.base_model_version,
    )
    if training.runs_algorithm:
        await _take_algorithm(search, looked_at, call)
    search.estimate = _estimate(plan, training, looked_at.guess)
    task = await call.deps.tasks.create(
        call.uow,
        search.org,
        KIND,
        search.name,
        {"search": search.name},
        search.creator,
        labels=search.labels,
        max_attempts=DEFAULT_MAX_ATTEMPTS + plan.days,
    )
    search.task = task.name
    await Searches(call.uow).insert(search)
    call.uow.emit("training.search.created", search)
    return search_message(search)


async def delete_search(request: pb.DeleteSearchRequest, call: Call[App]) -> search_pb2.HyperparameterSearch:
    repository = Searches(call.uow)
    search = await repository.get(request.name)
    search.require_etag(request.etag)
    task = await task_store.get(call.uow, search.task)
    if not task.ended:
        message = f"{search.name} is at work; cancel {task.name} first."
        raise DomainError("STATE_CONFLICT", message, name=search.name, state=task.state, wanted="ended")
    await repository.soft_delete(search, call.clock.now())
    call.uow.emit("training.search.deleted", search)
    return search_message(search)


async def undelete_search(request: pb.UndeleteSearchRequest, call: Call[App]) -> search_pb2.HyperparameterSearch:
    repository = Searches(call.uow)
    search = await repository.get(request.name, deleted=True)
    search.require_etag(request.etag)
    await repository.undelete(search, call.clock.now())
    call.uow.emit("training.search.undeleted", search)
    return search_message(search)


async def list_search_trials(request: pb.ListSearchTrialsRequest, call: Call[App]) -> pb.ListSearchTrialsResponse:
    search = await Searches(call.uow).get(request.parent, deleted=True)
    found, position = await Searches(call.uow).trials(search, page_size(request.page_size), PageToken.decode(request))
    return pb.ListSearchTrialsResponse(
        search_trials=[trial_message(search, trial) for trial in found],
        next_page_token=PageToken.encode(request, position),
    )


async def get_search_report(request: pb.GetSearchReportRequest, call: Call[App]) -> search_pb2.SearchReport:
    search = await Searches(call.uow).get(request.name, deleted=True)
    return report(search, (await Searches(call.uow).trials(search))[0])


async def render_search_report(request: pb.RenderSearchReportRequest, call: Call[App]) -> pb.RenderSearchReportResponse:
    search = await Searches(call.uow).get(request.name, deleted=True)
    trials, _ = await Searches(call.uow).trials(search)
    return pb.RenderSearchReportResponse(svg=picture(search, report(search, trials)))


def _estimate(plan: SearchPlan, training: Training, guess: Estimate | None) -> dict[str, int]:
    """What the largest trial needs. Of an algorithm the values change little."""
    if guess is None:
        return {}
    if not training.runs_algorithm:
        based = guess.parameter_count if training.base_model_version else 0
        guess = estimate(plan.largest(training.spec), based)
    return {"memory_bytes": guess.memory_bytes, "storage_bytes": guess.storage_bytes}


async def _take_algorithm(search: HyperparameterSearch, looked_at: Plan, call: Call[App]) -> None:
    """Keeps which algorithm is searched, and its parameters; raises INVALID_FIELD where the space does not fit it."""
    entry, base = await entry_of(call.uow, looked_at.algorithm_version)
    kinds = {name: part["type"] for name, part in base.parameters["properties"].items()}
    given = looked_at.parameters or {}
    search.algorithm_version = entry.name
    # JSON has one kind of number: 1 is a number with fractions where such a one stands.
    search.parameters = {name: float(value) if kinds[name] == "number" else value for name, value in given.items()}
    search.plan.check_algorithm(entry, base, search.parameters)


def _check_values(plan: SearchPlan, spec: TrainingSpec) -> None:
    """Every end of a range and every choice must be allowed where it goes; what they do together, trials find out."""
    document = spec.to_json()
    for index, dimension in enumerate(plan.space.dimensions):
        for value in dimension.ends:
            what = f"cannot set {dimension.path} to {value!r}"
            try:
                message = spec_message(TrainingSpec.from_json(with_values(document, {dimension.path: value})))
            except (TypeError, ValueError):
                raise invalid(f"search.space[{index}]", what) from None
            for violation in _VALIDATOR.collect_violations(message):
                raise invalid(f"search.space[{index}]", f"{what}, which {violation.proto.message}")
