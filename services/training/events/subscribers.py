"""What training learns from deploy: which versions of a model are live, and since when."""

from __future__ import annotations

from datetime import UTC, datetime

from argosy.common.v1 import event_pb2
from argosy.deploy.v1 import deploy_events_pb2

from libs.common.clock import Clock
from libs.common.db.uow import UnitOfWork
from services.training.domain.life_cycle import Event
from services.training.domain.models import ModelProject
from services.training.store.announcements import emit_moved
from services.training.store.registry import ModelDeployments
from services.training.store.repositories import ModelProjects, ModelVersions

LIVE, STOPPED = "deploy.deployment.live", "deploy.deployment.stopped"


class LiveVersions:
    """Keeps `ModelProject.live_version`, the times of deployments, and the stages of the versions.

    Args:
        clock: gives the times of changes.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock

    async def deployment_live(self, event: event_pb2.Event, uow: UnitOfWork) -> None:
        """A version answers requests from now on; another one of the same deployment does not any more."""
        change, time = _payload(event), _time(event)
        projects = ModelProjects(uow)
        project = await projects.find(_project(change.model_version), for_update=True)
        if project is None:
            return
        before = await ModelDeployments(uow).began(event.org, change.deployment, change.model_version, time)
        await self._show(project, change.model_version, uow)
        if before:
            await self._stopped(before, change.deployment, time, uow)
        await self._move(project, change.model_version, Event.WENT_LIVE, f"live as {change.deployment}", time, uow)

    async def deployment_stopped(self, event: event_pb2.Event, uow: UnitOfWork) -> None:
        """A version does not answer any more; another one may already have taken its place."""
        change, time = _payload(event), _time(event)
        # A deployment that went live before its times were kept is known by the event alone.
        before = await ModelDeployments(uow).ended(change.deployment, time) or change.model_version
        await self._stopped(before, change.deployment, time, uow)

    async def _stopped(self, version: str, deployment: str, time: datetime, uow: UnitOfWork) -> None:
        """A deployment left a version; others may still answer with it."""
        project = await ModelProjects(uow).find(_project(version), deleted=True, for_update=True)
        if project is None or await ModelDeployments(uow).live(version):
            return
        if project.live_version == version:
            await self._show(project, await ModelDeployments(uow).newest_live(project.name), uow)
        await self._move(project, version, Event.STOPPED, f"{deployment} does not answer with it any more", time, uow)

    async def _show(self, project: ModelProject, version: str, uow: UnitOfWork) -> None:
        """Says on the project which version is live."""
        project.live_version = version
        project.update_time = self._clock.now()
        await ModelProjects(uow).save(project)
        uow.emit("training.model_project.updated", project)

    async def _move(
        self, project: ModelProject, name: str, event: Event, reason: str, time: datetime, uow: UnitOfWork
    ) -> None:
        versions = ModelVersions(uow)
        version = await versions.find(name, for_update=True)
        if version is None:
            return
        version.happen(event, project.life_cycle, "services/deploy", time, reason)
        moved = list(version.new_transitions)
        if moved:
            await versions.save(version)
            emit_moved(uow, version, moved)


def _project(version: str) -> str:
    return version.rpartition("/versions/")[0]


def _time(event: event_pb2.Event) -> datetime:
    return event.occur_time.ToDatetime(UTC)


def _payload(event: event_pb2.Event) -> deploy_events_pb2.DeploymentChanged:
    change = deploy_events_pb2.DeploymentChanged()
    event.payload.Unpack(change)
    return change
