"""What training learns from deploy: which version of a model is live."""

from __future__ import annotations

from argosy.common.v1 import event_pb2
from argosy.deploy.v1 import deploy_events_pb2

from libs.common.clock import Clock
from libs.common.db.uow import UnitOfWork
from services.training.store.repositories import ModelProjects

LIVE, STOPPED = "deploy.deployment.live", "deploy.deployment.stopped"


class LiveVersions:
    """Keeps `ModelProject.live_version`.

    Args:
        clock: gives the times of changes.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock

    async def deployment_live(self, event: event_pb2.Event, uow: UnitOfWork) -> None:
        """A version answers requests from now on."""
        await self._set(_payload(event), uow, live=True)

    async def deployment_stopped(self, event: event_pb2.Event, uow: UnitOfWork) -> None:
        """A version does not answer any more; another one may already have taken its place."""
        await self._set(_payload(event), uow, live=False)

    async def _set(self, change: deploy_events_pb2.DeploymentChanged, uow: UnitOfWork, *, live: bool) -> None:
        repository = ModelProjects(uow)
        project = await repository.find(change.model_version.rpartition("/versions/")[0], for_update=True)
        if project is None or (not live and project.live_version != change.model_version):
            return
        project.live_version = change.model_version if live else ""
        project.update_time = self._clock.now()
        await repository.save(project)
        uow.emit("training.model_project.updated", project)


def _payload(event: event_pb2.Event) -> deploy_events_pb2.DeploymentChanged:
    change = deploy_events_pb2.DeploymentChanged()
    event.payload.Unpack(change)
    return change
