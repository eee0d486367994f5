"""What deploy tells others, in the transaction that makes it true."""

from __future__ import annotations

from argosy.deploy.v1 import deploy_events_pb2
from sqlalchemy import func, select, update

from libs.common.db.uow import UnitOfWork
from services.deploy.domain.deployment import Deployment
from services.deploy.store import tables

# Channel of LISTEN/NOTIFY for WatchEndpoints.
ENDPOINTS_CHANNEL = "endpoints"


def emit_live(uow: UnitOfWork, deployment: Deployment) -> None:
    """`deploy.deployment.live`: a revision is served from now on."""
    uow.emit("deploy.deployment.live", deployment, _changed(deployment))


def emit_stopped(uow: UnitOfWork, deployment: Deployment) -> None:
    """`deploy.deployment.stopped`: nothing is served under this name any more."""
    uow.emit("deploy.deployment.stopped", deployment, _changed(deployment))


async def endpoints_changed(uow: UnitOfWork) -> None:
    """Counts a change of what WatchEndpoints shows, and wakes its streams when this commits."""
    connection = await uow.connection()
    counter = tables.endpoint_revision
    await connection.execute(update(counter).values(revision=counter.c.revision + 1))
    await connection.execute(select(func.pg_notify(ENDPOINTS_CHANNEL, "")))


def _changed(deployment: Deployment) -> deploy_events_pb2.DeploymentChanged:
    revision = deployment.shown
    return deploy_events_pb2.DeploymentChanged(
        deployment=deployment.name,
        model_version=revision.model_version if revision else "",
        state=deployment.state,
    )
