"""Evaluations and their samples."""

from __future__ import annotations

from typing import TYPE_CHECKING

import orjson
from argosy.eval.v1 import eval_pb2
from argosy.eval.v1 import eval_service_pb2 as pb
from argosy.training.v1 import training_pb2
from google.protobuf import json_format

from libs.common.db.mapping import from_proto, to_proto
from libs.common.domain import DomainError, Parent, inherit_secrecy
from libs.common.errors import ArgosyError
from libs.common.ids import resource_id, uuid7
from libs.common.rpc.call import Call
from libs.common.rpc.pagination import PageToken, page_size
from services.eval.domain.evaluations import GATE_RECORDED, QUEUED, TASK_KIND, Evaluation
from services.eval.store.repositories import Evaluations

if TYPE_CHECKING:
    from services.eval.app import App


def message(evaluation: Evaluation) -> eval_pb2.Evaluation:
    shown = eval_pb2.Evaluation(
        display_name=evaluation.display_name,
        model_version=evaluation.model_version,
        dataset_version=evaluation.dataset_version,
        baseline_version=evaluation.baseline_version,
        task=evaluation.task,
        model_digest=evaluation.model_digest,
    )
    json_format.ParseDict(evaluation.spec, shown.spec)
    if evaluation.report:
        json_format.ParseDict(evaluation.report, shown.report)
        if evaluation.gate_state == GATE_RECORDED:
            shown.report.verdict.recorded = True
    return to_proto(evaluation, shown)


async def get_evaluation(request: pb.GetEvaluationRequest, call: Call[App]) -> eval_pb2.Evaluation:
    return message(await Evaluations(call.uow).get(request.name))


async def list_evaluations(request: pb.ListEvaluationsRequest, call: Call[App]) -> pb.ListEvaluationsResponse:
    found, position = await Evaluations(call.uow).list(
        request.parent, page_size(request.page_size), PageToken.decode(request), request.show_deleted
    )
    return pb.ListEvaluationsResponse(
        evaluations=[message(e) for e in found], next_page_token=PageToken.encode(request, position)
    )


async def create_evaluation(request: pb.CreateEvaluationRequest, call: Call[App]) -> eval_pb2.Evaluation:
    wanted, deps = request.evaluation, call.deps
    _require(wanted)
    model = await deps.training.model_version(wanted.model_version, call.forward())
    dataset = await deps.dataset.version(wanted.dataset_version, call.forward())
    secrecies = [model.secrecy, dataset.secrecy]
    parents = [
        Parent(model.name, model.manifest_digest, "evaluates"),
        Parent(dataset.name, dataset.manifest_digest, "evaluated_on"),
    ]
    if wanted.baseline_version:
        baseline = await deps.dataset.version(wanted.baseline_version, call.forward())
        secrecies.append(baseline.secrecy)
        parents.append(Parent(baseline.name, baseline.manifest_digest, "baselines_fitted_on"))
    own, now = from_proto(wanted), call.clock.now()
    evaluation = Evaluation(
        uid=uuid7(),
        name=f"{request.parent}/evaluations/{request.evaluation_id or resource_id('eval')}",
        create_time=now,
        update_time=now,
        creator=call.principal.subject,
        state=QUEUED,
        labels=own["labels"],
        secrecy=inherit_secrecy(own["secrecy"], *secrecies),
        lineage=parents,
        display_name=wanted.display_name,
        model_version=model.name,
        dataset_version=dataset.name,
        baseline_version=wanted.baseline_version,
        spec=json_format.MessageToDict(wanted.spec, preserving_proto_field_name=True),
        model_digest=model.manifest_digest,
        traceparent=call.traceparent,
    )
    work = {"evaluation": evaluation.name, "trained_on": await _trained_on(model, call)}
    task = await deps.tasks.create(call.uow, evaluation.org, TASK_KIND, evaluation.name, work, call.principal.subject)
    evaluation.task = task.name
    await Evaluations(call.uow).insert(evaluation)
    call.uow.emit("eval.evaluation.created", evaluation)
    return message(evaluation)


async def _trained_on(model: training_pb2.ModelVersion, call: Call[App]) -> list[str]:
    """The dataset versions that a model and the models that it learned from were trained on, as far as known."""
    found: list[str] = []
    for parent in model.lineage.parents:
        if parent.relation == "trained_on":
            found.append(parent.name)
        elif parent.relation in ("fine_tuned_from", "learned_from"):
            try:
                base = await call.deps.training.model_version(parent.name, call.forward())
            except ArgosyError as error:
                # What a model that is gone has learned, nobody knows any more.
                if not error.is_reason("NOT_FOUND"):
                    raise
                continue
            found += await _trained_on(base, call)
    return list(dict.fromkeys(found))


def _require(wanted: eval_pb2.Evaluation) -> None:
    for field in ("model_version", "dataset_version"):
        if not getattr(wanted, field):
            raise DomainError("INVALID_FIELD", f"evaluation.{field}: must be set", field=f"evaluation.{field}")
    template = wanted.spec.prompt_template
    if template and "{text}" not in template:
        field = "evaluation.spec.prompt_template"
        raise DomainError("INVALID_FIELD", f"{field}: must contain {{text}}, the place of the input", field=field)


async def list_samples(request: pb.ListSamplesRequest, call: Call[App]) -> pb.ListSamplesResponse:
    evaluation = await Evaluations(call.uow).get(request.parent)
    if not evaluation.samples_digest:
        text = f"{evaluation.name} has no samples: it is {evaluation.state}."
        raise DomainError("STATE_CONFLICT", text, name=evaluation.name, state=evaluation.state, wanted="SUCCEEDED")
    start, size = int(PageToken.decode(request) or 0), page_size(request.page_size)
    lines = (await call.deps.blobs.read(evaluation.samples_digest)).splitlines()
    if request.mistakes_only:
        lines = [line for line in lines if not orjson.loads(line)["correct"]]
    more = str(start + size) if len(lines) > start + size else ""
    return pb.ListSamplesResponse(
        samples=[eval_pb2.Sample(**orjson.loads(line)) for line in lines[start : start + size]],
        next_page_token=PageToken.encode(request, more),
    )
