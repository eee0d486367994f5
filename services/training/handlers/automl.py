"""What runs of AutoML find, as data and as a picture."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from argosy.training.v1 import automl_pb2
from argosy.training.v1 import automl_service_pb2 as pb
from google.protobuf.json_format import ParseDict

from libs.common.domain import DomainError
from libs.common.rpc.call import Call
from libs.common.tasks import store as task_store
from services.training.handlers.leaderboard_picture import picture
from services.training.store.repositories import ModelVersions, TrainingRuns

if TYPE_CHECKING:
    from services.training.app import App

_FILE = "report.json"
_MOST_BYTES = 8 << 20


async def get_leaderboard(request: pb.GetLeaderboardRequest, call: Call[App]) -> automl_pb2.Leaderboard:
    return await _leaderboard(request.name, call)


async def render_leaderboard(request: pb.RenderLeaderboardRequest, call: Call[App]) -> pb.RenderLeaderboardResponse:
    return pb.RenderLeaderboardResponse(svg=picture(await _leaderboard(request.name, call)))


async def _leaderboard(name: str, call: Call[App]) -> automl_pb2.Leaderboard:
    """What the model version says; before there is one, what the newest checkpoint of the run says."""
    run = await TrainingRuns(call.uow).get(name)
    if run.model_version:
        version = await ModelVersions(call.uow).get(run.model_version, deleted=True)
        file = next((file for file in version.files if file.path == _FILE and file.size <= _MOST_BYTES), None)
        report = None
        if file is not None and version.architecture == "automl":
            report = json.loads(await call.deps.blobs.read(file.sha256))
    else:
        report = ((await task_store.get(call.uow, run.task)).checkpoint or {}).get("report")
    if report is None:
        message = f"{name} has no leaderboard: it is no run of AutoML, or has not tried a model yet."
        raise DomainError("STATE_CONFLICT", message, name=name, state=run.state, wanted="a model that was tried")
    return ParseDict({**report, "name": name}, automl_pb2.Leaderboard(), ignore_unknown_fields=True)
