"""How the dataset service is put together."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from argosy.dataset.v1 import annotation_service_pb2, catalogue_service_pb2, dataset_service_pb2, human_work_service_pb2

from libs.common.blobs import BlobStore
from libs.common.db.uow import Database
from libs.common.http.links import Networks
from libs.common.service import Runtime, ServiceDefinition
from libs.common.tasks import TaskKind, Tasks
from libs.inference.replicas import Replicas
from services.dataset.clients.language_models import LanguageModels
from services.dataset.clients.rows import VersionRows
from services.dataset.config import DatasetSettings, networks
from services.dataset.domain.sources import NETWORKS_SETTING
from services.dataset.handlers import (
    annotation,
    augmentation,
    catalogue,
    cleaning,
    datasets,
    detectors,
    exports,
    leakage,
    profiles,
    reviews,
    rows,
    streams,
    tasks,
    uploads,
    versions,
    work,
    work_items,
    work_projects,
)
from services.dataset.jobs.kinds import Kinds
from services.dataset.jobs.receiving import Receiving
from services.dataset.jobs.rolling import Rolling
from services.dataset.jobs.sweep import sweep_forever


@dataclass(frozen=True)
class App:
    """What handlers and jobs use."""

    database: Database
    blobs: BlobStore
    tasks: Tasks
    rows: VersionRows
    networks: Networks
    rolling: Rolling
    models: LanguageModels
    kinds: list[TaskKind]


async def build(runtime: Runtime) -> App:
    """Makes the service's own parts."""
    kinds = Kinds(runtime.database, runtime.blobs, runtime.clock, runtime.settings).all()
    allowed = Networks(networks(runtime.settings.import_networks), NETWORKS_SETTING)
    queue = Tasks(runtime.name)
    rolling = Rolling(runtime.database, runtime.blobs, queue, runtime.clock)
    if runtime.role != "jobs":
        runtime.background.start(sweep_forever(runtime.database, runtime.blobs, runtime.clock), name="sweep")
        runtime.background.start(rolling.run(), name="rolling")
    if runtime.role != "rpc":
        receiving = Receiving(runtime.database, runtime.blobs, runtime.channels, allowed, runtime.clock)
        runtime.background.start(receiving.run(), name="receiving")
    models = LanguageModels(_replicas(runtime), allowed, runtime.channels)
    return App(runtime.database, runtime.blobs, queue, VersionRows(runtime.blobs), allowed, rolling, models, kinds)


def _replicas(runtime: Runtime) -> Replicas | None:
    settings: DatasetSettings = runtime.settings
    if "deploy" not in settings.peers:
        return None
    replicas = Replicas(
        runtime.channels,
        runtime.certificates,
        runtime.clock,
        identity=settings.replica_identity,
        memory=settings.home / "run" / "endpoints-dataset.binpb",
    )
    runtime.resources.push_async_callback(replicas.close)
    return replicas


DEFINITION = ServiceDefinition(
    name="dataset",
    build=build,
    protos=[
        annotation_service_pb2.DESCRIPTOR.services_by_name["AnnotationService"],
        dataset_service_pb2.DESCRIPTOR.services_by_name["DatasetService"],
        catalogue_service_pb2.DESCRIPTOR.services_by_name["CatalogueService"],
        human_work_service_pb2.DESCRIPTOR.services_by_name["HumanWorkService"],
    ],
    handlers=[
        annotation,
        augmentation,
        catalogue,
        cleaning,
        datasets,
        detectors,
        versions,
        exports,
        leakage,
        profiles,
        rows,
        streams,
        tasks,
        uploads,
        work,
        work_items,
        work_projects,
        reviews,
    ],
    settings=DatasetSettings,
    migrations=Path(__file__).parent / "migrations",
    task_kinds=lambda app: app.kinds,
)
