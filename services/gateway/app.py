"""Puts the gateway together."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from libs.common.obs.sender import OtlpSender
from libs.common.service import Runtime, ServiceDefinition
from libs.inference.replicas import Replicas
from services.gateway.clients.applications import Applications
from services.gateway.clients.backends import Backends
from services.gateway.clients.datasets import Datasets
from services.gateway.clients.deployments import Deployments
from services.gateway.clients.identity import Keys
from services.gateway.clients.ledger import Ledger
from services.gateway.clients.outside_runs import OutsideRuns
from services.gateway.clients.reporter import Reporter
from services.gateway.clients.trainings import Trainings
from services.gateway.config import Settings
from services.gateway.http.door import Door
from services.gateway.http.methods import Methods
from services.gateway.http.mlflow.door import Mlflow
from services.gateway.http.openai.base_models import BaseModels
from services.gateway.http.openai.files import Files
from services.gateway.http.openai.handlers import OpenAi
from services.gateway.http.openai.jobs import Jobs
from services.gateway.http.pages import Pages
from services.gateway.http.routes import default_table
from services.gateway.http.server import HttpServer
from services.gateway.http.uploads import Uploads


@dataclass
class App:
    """The parts of a running gateway."""

    door: Door
    http: HttpServer
    replicas: Replicas
    ledger: Ledger


async def build(runtime: Runtime) -> App:
    """Wires everything and starts to listen."""
    settings: Settings = runtime.settings
    clock = runtime.clock
    table = default_table()
    backends = Backends(runtime.channels)
    keys = Keys(
        runtime.channels,
        runtime.verifier,
        clock,
        requests_per_minute=settings.requests_per_minute,
        tokens_per_minute=settings.tokens_per_minute,
    )
    replicas = Replicas(
        runtime.channels,
        runtime.certificates,
        clock,
        identity=settings.replica_identity,
        memory=settings.journal / "endpoints.binpb",
    )
    runtime.resources.push_async_callback(replicas.close)
    ledger = Ledger(runtime.channels, settings.journal / "usage", clock)
    reporter = Reporter(_sender(settings), settings.access_log)
    deployments, trainings = Deployments(runtime.channels), Trainings(runtime.channels)
    datasets = Datasets(runtime.channels, clock)
    openai = OpenAi(keys, replicas, Applications(runtime.channels), deployments, trainings, ledger.add)
    files = Files(keys, datasets, trainings)
    jobs = Jobs(keys, datasets, trainings, BaseModels(trainings, replicas, deployments))
    mlflow = Mlflow(keys, OutsideRuns(runtime.channels, clock))
    pages = Pages(table, lambda: True, reporter.prometheus)
    door = Door(
        table=table,
        methods=Methods(backends),
        uploads=Uploads(backends),
        authenticator=keys,
        fixed={**openai.handlers(), **files.handlers(), **jobs.handlers(), **mlflow.handlers(), **pages.handlers()},
        prefixed={**openai.prefixed(), **files.prefixed(), **jobs.prefixed(), **mlflow.prefixed()},
        record=reporter.record,
        max_requests=settings.max_requests,
        clock=clock,
    )
    http = HttpServer(door, settings.http_listen, clock, settings.drain_seconds)
    # In this order they end in reverse: the last requests still reach the ledger and the reporter.
    ledger.open()
    replicas.restore()
    runtime.resources.callback(ledger.close)
    runtime.resources.push_async_callback(asyncio.to_thread, reporter.close)
    runtime.resources.push_async_callback(ledger.flush)
    runtime.background.start(ledger.run(), name="usage ledger")
    runtime.background.start(replicas.watch(), name="endpoints")
    await http.start()
    runtime.background.start(http.serve(), name="http")
    return App(door, http, replicas, ledger)


def _sender(settings: Settings) -> OtlpSender | None:
    return OtlpSender(settings.otlp, settings.pki_dir, "gateway") if settings.otlp else None


DEFINITION = ServiceDefinition(name="gateway", build=build, settings=Settings)
