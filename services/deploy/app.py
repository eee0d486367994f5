"""The composition of deploy."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from argosy.deploy.v1 import deploy_service_pb2

from libs.common.clock import Clock
from libs.common.db.uow import Database
from libs.common.service import Runtime, ServiceDefinition
from libs.common.tasks import Tasks
from services.deploy.clients.training import Training
from services.deploy.config import DeploySettings
from services.deploy.handlers import deployment_configs, deployments, endpoints, replicas, work_orders
from services.deploy.jobs.replica_host import ReplicaHost
from services.deploy.jobs.rollout import rollout_kind
from services.deploy.jobs.supervisor import Supervisor
from services.deploy.store.endpoint_feed import EndpointFeed

NAME = "deploy"


@dataclass(frozen=True)
class App:
    """What handlers and jobs share."""

    database: Database
    clock: Clock
    training: Training
    tasks: Tasks
    endpoints: EndpointFeed


async def build(runtime: Runtime) -> App:
    """Starts the endpoint feed where calls are served, and the supervisor where long work runs."""
    settings: DeploySettings = runtime.settings
    app = App(
        database=runtime.database,
        clock=runtime.clock,
        training=Training(runtime.channels),
        tasks=Tasks(NAME),
        endpoints=EndpointFeed(runtime.database, runtime.clock, settings.endpoints_seconds),
    )
    if runtime.role in ("rpc", "all"):
        runtime.background.start(app.endpoints.run(), name="endpoints")
    if runtime.role in ("jobs", "all"):
        supervisor = Supervisor(
            runtime.database,
            ReplicaHost(runtime.driver, app.training, runtime.channels, settings),
            runtime.clock,
            beat_seconds=settings.reconcile_seconds,
            health_seconds=settings.health_seconds,
            start_seconds=settings.start_seconds,
        )
        runtime.background.start(supervisor.run(), name="supervisor")
    return app


DEFINITION: ServiceDefinition[App] = ServiceDefinition(
    name=NAME,
    build=build,
    protos=[deploy_service_pb2.DESCRIPTOR.services_by_name["DeployService"]],
    handlers=[deployment_configs, work_orders, deployments, replicas, endpoints],
    settings=DeploySettings,
    migrations=Path(__file__).parent / "migrations",
    task_kinds=lambda app: [rollout_kind(app.database, app.clock)],
)
