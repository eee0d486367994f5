"""Profiles of versions: counted by a task, read as figures or as a page."""

from __future__ import annotations

from typing import TYPE_CHECKING

from argosy.common.v1 import task_pb2
from argosy.dataset.v1 import dataset_pb2
from argosy.dataset.v1 import dataset_service_pb2 as pb
from google.protobuf import json_format

from libs.common.db.mapping import timestamp
from libs.common.errors import ArgosyError
from libs.common.rpc.call import Call
from services.dataset.domain.findings import Findings
from services.dataset.domain.tasks import PROFILE
from services.dataset.handlers.profile_page import page
from services.dataset.store.repositories import Profiles
from services.dataset.store.visible import visible_version

if TYPE_CHECKING:
    from services.dataset.app import App


async def profile_version(request: pb.ProfileVersionRequest, call: Call[App]) -> task_pb2.Task:
    _, version = await visible_version(call.uow, request.name, call.principal)
    work = {"version": version.name}
    return await call.deps.tasks.create(call.uow, call.org, PROFILE, version.name, work, call.principal.subject)


async def get_version_profile(request: pb.GetVersionProfileRequest, call: Call[App]) -> dataset_pb2.VersionProfile:
    return _message(await _profile(request.name, call))


async def render_version_profile(
    request: pb.RenderVersionProfileRequest, call: Call[App]
) -> pb.RenderVersionProfileResponse:
    return pb.RenderVersionProfileResponse(html=page(_message(await _profile(request.name, call))))


async def _profile(name: str, call: Call[App]) -> Findings:
    _, version = await visible_version(call.uow, name, call.principal)
    profile = await Profiles(call.uow).find(version.name)
    if profile is None:
        message = f"{version.name} was not profiled yet: ProfileVersion counts it."
        raise ArgosyError("NOT_FOUND", message, metadata={"name": version.name})
    return profile


def _message(profile: Findings) -> dataset_pb2.VersionProfile:
    found = json_format.ParseDict(profile.figures, dataset_pb2.VersionProfile())
    found.version = profile.name
    found.task = profile.task
    found.profile_time.CopyFrom(timestamp(profile.update_time))
    return found
