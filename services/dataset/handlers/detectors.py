"""Detectors: made by a task, and looked at."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from argosy.common.v1 import task_pb2
from argosy.dataset.v1 import annotation_pb2
from argosy.dataset.v1 import annotation_service_pb2 as pb

from libs.common.db.mapping import from_proto, to_proto
from libs.common.errors import ArgosyError
from libs.common.ids import resource_id
from libs.common.rpc.call import Call
from libs.common.rpc.pagination import PageToken, page_size
from services.dataset.domain.detectors import DEFAULT_STEPS, Detector, DetectorKind, require_source
from services.dataset.domain.tasks import MAKE_DETECTOR
from services.dataset.domain.uploads import UploadState
from services.dataset.handlers.work_messages import to_struct
from services.dataset.store.detectors import Detectors
from services.dataset.store.repositories import Uploads

if TYPE_CHECKING:
    from services.dataset.app import App

_FIELDS = ("display_name", "description", "manifest_digest", "byte_count", "task")


def message(detector: Detector) -> annotation_pb2.Detector:
    """The detector as callers see it."""
    shown = annotation_pb2.Detector(
        **{field: getattr(detector, field) for field in _FIELDS},
        kind=annotation_pb2.DetectorKind.Name(detector.kind),
        card=to_struct(detector.card),
    )
    return to_proto(detector, shown)


async def get_detector(request: pb.GetDetectorRequest, call: Call[App]) -> annotation_pb2.Detector:
    return message(await Detectors(call.uow).get(request.name))


async def list_detectors(request: pb.ListDetectorsRequest, call: Call[App]) -> pb.ListDetectorsResponse:
    found, position = await Detectors(call.uow).list(
        request.parent, page_size(request.page_size), PageToken.decode(request)
    )
    return pb.ListDetectorsResponse(
        detectors=[message(one) for one in found], next_page_token=PageToken.encode(request, position)
    )


async def create_detector(request: pb.CreateDetectorRequest, call: Call[App]) -> task_pb2.Task:
    given = request.detector
    require_source(given.kind, request.upload, request.training_steps)
    name = f"{request.parent}/detectors/{request.detector_id or resource_id('dt')}"
    if await Detectors(call.uow).find(name) is not None:
        raise ArgosyError("ALREADY_EXISTS", f"{name} exists.", metadata={"name": name})
    standard = from_proto(given)
    work: dict[str, Any] = {
        "detector": name,
        "kind": given.kind,
        "display_name": given.display_name,
        "description": given.description,
        "labels": standard["labels"],
        "secrecy": int(standard["secrecy"]),
    }
    if given.kind == DetectorKind.BUILT_IN:
        work |= {"steps": request.training_steps or DEFAULT_STEPS, "seed": request.seed}
    else:
        upload = await Uploads(call.uow).alive(request.upload, call.clock.now())
        upload.require_state(UploadState.COMMITTED)
        work["upload"] = upload.name
    return await call.deps.tasks.create(call.uow, call.org, MAKE_DETECTOR, name, work, call.principal.subject)


async def delete_detector(request: pb.DeleteDetectorRequest, call: Call[App]) -> annotation_pb2.Detector:
    detectors = Detectors(call.uow)
    detector = await detectors.get(request.name, for_update=True)
    detector.require_etag(request.etag)
    await detectors.soft_delete(detector, call.clock.now())
    return message(detector)
