"""The annotation model: requests are read, and versions looked at for what they ask."""

from __future__ import annotations

from typing import TYPE_CHECKING

from argosy.common.v1 import task_pb2
from argosy.dataset.v1 import annotation_pb2
from argosy.dataset.v1 import annotation_service_pb2 as pb

from libs.common.errors import invalid_field, not_found
from libs.common.ids import org_of
from libs.common.rpc.call import Call
from services.dataset.domain.datasets import MEDIA_TYPES
from services.dataset.domain.detectors import LEAST_SCORE
from services.dataset.domain.target_lists import TargetList
from services.dataset.domain.targets import read_targets as read_by_rules
from services.dataset.domain.tasks import ANNOTATE
from services.dataset.store.detectors import Detectors
from services.dataset.store.visible import visible_version

if TYPE_CHECKING:
    from services.dataset.app import App

_RULES = "rules"


async def read_targets(request: pb.ReadTargetsRequest, call: Call[App]) -> annotation_pb2.TargetReading:
    found = await _read(request, call)
    return annotation_pb2.TargetReading(
        targets=found.targets, excluded=found.excluded, unread=found.unread, reader=found.reader
    )


async def _read(request: pb.ReadTargetsRequest, call: Call[App]) -> TargetList:
    if not request.HasField("language_model"):
        reading = read_by_rules(request.request)
        targets, excluded = ([one.label for one in side] for side in (reading.targets, reading.excluded))
        return TargetList(tuple(targets), tuple(excluded), reading.unread, _RULES)
    model = request.language_model
    if bool(model.deployment) == bool(model.uri):
        raise invalid_field("language_model", "names either a deployment or a uri")
    for name in (model.deployment, model.secret):
        if name and org_of(name) != call.org:
            raise not_found(name)
    if model.deployment:
        return await call.deps.models.ask_replica(model.deployment, request.request, call.principal, call.request_id)
    if not model.model:
        raise invalid_field("language_model.model", "is missing: what the model is called there")
    return await call.deps.models.ask_elsewhere(model, request.request)


async def annotate_version(request: pb.AnnotateVersionRequest, call: Call[App]) -> task_pb2.Task:
    dataset, version = await visible_version(call.uow, request.name, call.principal, writing=True)
    dataset.require_unlocked()
    if MEDIA_TYPES.get(dataset.type) != "image":
        raise invalid_field("name", "is no version of a dataset of images")
    detector = await Detectors(call.uow).get(request.detector)
    detector.require_answers(request.targets, "targets")
    detector.require_answers(request.excluded, "excluded")
    work = {
        "version": version.name,
        "detector": detector.name,
        "targets": list(request.targets),
        "excluded": list(request.excluded),
        "least_score": request.least_score or LEAST_SCORE,
    }
    return await call.deps.tasks.create(call.uow, call.org, ANNOTATE, version.name, work, call.principal.subject)
