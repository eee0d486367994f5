"""Composition root of training: the only place that wires."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import psutil
from argosy.training.v1 import (
    algorithm_code_service_pb2,
    algorithm_service_pb2,
    automl_service_pb2,
    model_registry_service_pb2,
    model_service_pb2,
    outside_run_service_pb2,
    run_artifact_service_pb2,
    run_service_pb2,
    search_service_pb2,
    training_document_service_pb2,
    training_service_pb2,
)

from libs.common.blobs import BlobStore
from libs.common.clock import Clock
from libs.common.db.uow import Database
from libs.common.secrets import Keyring
from libs.common.service import Runtime, ServiceDefinition
from libs.common.tasks import QuotaLedger, TaskKind, Tasks
from services.training.clients.dataset import Datasets
from services.training.clients.samples import Samples
from services.training.config import TrainingSettings
from services.training.events.subscribers import LIVE, STOPPED, LiveVersions
from services.training.handlers import (
    algorithm_code,
    algorithms,
    automl,
    event_files,
    model_aliases,
    model_imports,
    model_projects,
    model_registry,
    model_versions,
    outside_runs,
    preflights,
    run_artifacts,
    run_metrics,
    runs,
    searches,
    training_documents,
    trainings,
)
from services.training.jobs.import_model import ImportTasks
from services.training.jobs.run import RunTasks
from services.training.jobs.search import SearchTasks
from services.training.jobs.sweep import sweep_forever
from services.training.store.signing import ModelSigner

NAME = "training"


@dataclass(frozen=True)
class App:
    """What handlers, subscribers and jobs share.

    Attributes:
        memory_bytes: of this machine, for the pre-flight.
        signer: signs model versions.
        quota: identity's ledger, for the pre-flight; None in a mesh without identity.
    """

    database: Database
    blobs: BlobStore
    clock: Clock
    datasets: Datasets
    tasks: Tasks
    memory_bytes: int
    signer: ModelSigner
    samples: Samples
    settings: TrainingSettings
    quota: QuotaLedger | None


async def build(runtime: Runtime) -> App:
    """Makes the service's own parts, and sweeps the blob store where calls are served."""
    if runtime.role != "jobs":
        runtime.background.start(sweep_forever(runtime.database, runtime.blobs, runtime.clock), name="sweep")
    settings: TrainingSettings = runtime.settings
    return App(
        database=runtime.database,
        blobs=runtime.blobs,
        clock=runtime.clock,
        datasets=Datasets(runtime.channels),
        tasks=Tasks(NAME),
        memory_bytes=psutil.virtual_memory().total,
        signer=await ModelSigner.load(runtime.database, Keyring.create_file(settings.key_path), runtime.clock),
        samples=Samples(),
        settings=settings,
        quota=runtime.quota,
    )


def _subscriptions(app: App) -> dict[str, object]:
    live = LiveVersions(app.clock)
    return {LIVE: live.deployment_live, STOPPED: live.deployment_stopped}


def _task_kinds(app: App) -> list[TaskKind]:
    runs = RunTasks(app.database, app.blobs, app.datasets, app.signer, app.clock)
    return [
        runs.kind(),
        SearchTasks(app.database, runs, app.clock).kind(),
        ImportTasks(app.database, app.blobs, app.datasets, app.signer, app.settings, app.clock).kind(),
    ]


DEFINITION: ServiceDefinition[App] = ServiceDefinition(
    name=NAME,
    build=build,
    protos=[
        training_service_pb2.DESCRIPTOR.services_by_name["TrainingService"],
        run_service_pb2.DESCRIPTOR.services_by_name["RunService"],
        model_service_pb2.DESCRIPTOR.services_by_name["ModelService"],
        model_registry_service_pb2.DESCRIPTOR.services_by_name["ModelRegistryService"],
        algorithm_service_pb2.DESCRIPTOR.services_by_name["AlgorithmService"],
        search_service_pb2.DESCRIPTOR.services_by_name["SearchService"],
        algorithm_code_service_pb2.DESCRIPTOR.services_by_name["AlgorithmCodeService"],
        training_document_service_pb2.DESCRIPTOR.services_by_name["TrainingDocumentService"],
        automl_service_pb2.DESCRIPTOR.services_by_name["AutomlService"],
        outside_run_service_pb2.DESCRIPTOR.services_by_name["OutsideRunService"],
        run_artifact_service_pb2.DESCRIPTOR.services_by_name["RunArtifactService"],
    ],
    handlers=[
        trainings,
        preflights,
        runs,
        run_metrics,
        model_projects,
        model_versions,
        model_registry,
        model_aliases,
        model_imports,
        algorithms,
        searches,
        algorithm_code,
        training_documents,
        automl,
        outside_runs,
        run_artifacts,
        event_files,
    ],
    settings=TrainingSettings,
    migrations=Path(__file__).parent / "migrations",
    subscriptions=_subscriptions,
    task_kinds=_task_kinds,
)
