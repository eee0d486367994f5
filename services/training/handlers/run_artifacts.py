"""Files of outside runs: taken in parts, given back as they came."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

from argosy.training.v1 import run_artifact_service_pb2 as pb

from libs.common.db.mapping import timestamp
from libs.common.domain import DomainError
from libs.common.rpc.call import Call
from libs.common.rpc.pagination import PageToken, page_size
from services.training.domain.outside_runs import check_path, require_outside_run
from services.training.store.repositories import TrainingRuns
from services.training.store.run_artifacts import Artifact, Child, RunArtifacts

if TYPE_CHECKING:
    from services.training.app import App


async def append_run_artifact(request: pb.AppendRunArtifactRequest, call: Call[App]) -> pb.RunArtifact:
    check_path(request.path)
    most = call.deps.settings.artifact_max_bytes
    if request.offset + len(request.data) > most:
        raise DomainError("TOO_LARGE", f"A file of a run has at most {most:,} bytes.", limit=str(most))
    run = await TrainingRuns(call.uow).get(request.name)
    require_outside_run(run)
    # Nobody waits for the disk with a lock in hand; a blob that no row names in the end goes with the sweep.
    part = await call.deps.blobs.put(request.data) if request.data else None
    run = await TrainingRuns(call.uow).get(request.name, for_update=True)
    artifacts = RunArtifacts(call.uow, run)
    return _message(
        await artifacts.append(request.path, request.upload_id, request.offset, part, request.last, call.clock.now())
    )


async def list_run_artifacts(request: pb.ListRunArtifactsRequest, call: Call[App]) -> pb.ListRunArtifactsResponse:
    run = await TrainingRuns(call.uow).get(request.parent, deleted=True)
    size, after = page_size(request.page_size), PageToken.decode(request)
    if request.children:
        children = await RunArtifacts(call.uow, run).children(request.path, size + 1, after)
        return pb.ListRunArtifactsResponse(
            run_artifacts=[_child_message(request.path, child) for child in children[:size]],
            next_page_token=PageToken.encode(request, children[size - 1].name if len(children) > size else ""),
        )
    found = await RunArtifacts(call.uow, run).list(request.path, size + 1, after)
    return pb.ListRunArtifactsResponse(
        run_artifacts=[_message(artifact) for artifact in found[:size]],
        next_page_token=PageToken.encode(request, found[size - 1].path if len(found) > size else ""),
    )


async def download_run_artifact(
    request: pb.DownloadRunArtifactRequest, call: Call[App]
) -> AsyncIterator[pb.DownloadRunArtifactResponse]:
    run = await TrainingRuns(call.uow).get(request.name, deleted=True)
    artifact = await RunArtifacts(call.uow, run).get(request.path)
    # A download may take an hour; the connection is for others meanwhile.
    await call.uow.rollback()
    for part in artifact.parts:
        async for chunk in call.deps.blobs.get(part):
            yield pb.DownloadRunArtifactResponse(data=chunk)


async def remove_run_artifacts(request: pb.RemoveRunArtifactsRequest, call: Call[App]) -> pb.RemoveRunArtifactsResponse:
    run = await TrainingRuns(call.uow).get(request.name, for_update=True)
    require_outside_run(run)
    removed = await RunArtifacts(call.uow, run).remove(request.path)
    if not removed:
        raise DomainError("NOT_FOUND", f"{run.name} has no file {request.path!r}.", name=f"{run.name}/{request.path}")
    return pb.RemoveRunArtifactsResponse(removed_count=removed)


def _message(artifact: Artifact) -> pb.RunArtifact:
    return pb.RunArtifact(
        path=artifact.path,
        size=artifact.size,
        create_time=timestamp(artifact.create_time),
        complete=artifact.complete,
    )


def _child_message(folder: str, child: Child) -> pb.RunArtifact:
    path = f"{folder}/{child.name}" if folder else child.name
    if child.folder:
        return pb.RunArtifact(path=path, folder=True)
    return pb.RunArtifact(path=path, size=child.size, create_time=timestamp(child.create_time), complete=True)
