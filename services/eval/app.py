"""Composition root of evaluation: the only place that wires."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from argosy.eval.v1 import eval_service_pb2

from libs.common.blobs import BlobStore
from libs.common.clock import Clock
from libs.common.db.uow import Database
from libs.common.service import Runtime, ServiceDefinition
from libs.common.tasks import Tasks
from services.eval.clients.dataset import DatasetClient
from services.eval.clients.training import TrainingClient
from services.eval.config import EvalSettings
from services.eval.handlers import evaluations
from services.eval.jobs.evaluate import Evaluate
from services.eval.jobs.gates import GateRecorder


@dataclass
class App:
    """What the handlers and jobs of evaluation work with."""

    database: Database
    blobs: BlobStore
    tasks: Tasks
    dataset: DatasetClient
    training: TrainingClient
    recorder: GateRecorder
    clock: Clock


async def build(runtime: Runtime) -> App:
    training = TrainingClient(runtime.channels)
    recorder = GateRecorder(runtime.database, training, runtime.clock)
    if runtime.role in ("jobs", "all"):
        runtime.background.start(recorder.run(), name="gates")
    return App(
        database=runtime.database,
        blobs=runtime.blobs,
        tasks=runtime.tasks,
        dataset=DatasetClient(runtime.channels),
        training=training,
        recorder=recorder,
        clock=runtime.clock,
    )


DEFINITION = ServiceDefinition[App](
    name="eval",
    settings=EvalSettings,
    build=build,
    protos=[eval_service_pb2.DESCRIPTOR.services_by_name["EvalService"]],
    handlers=[evaluations],
    task_kinds=lambda app: [Evaluate(app).kind()],
    migrations=Path(__file__).parent / "migrations",
)
