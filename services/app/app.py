"""Composition root of the application layer: the only place that wires."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from argosy.app.v1 import app_service_pb2, chat_service_pb2

from libs.common.service import Runtime, ServiceDefinition
from libs.inference.callers import Callers
from libs.inference.replicas import Replicas
from services.app.config import AppSettings
from services.app.handlers import applications, chat, prompts


@dataclass
class App:
    """What the handlers of the application layer work with."""

    replicas: Replicas
    callers: Callers


async def build(runtime: Runtime) -> App:
    settings: AppSettings = runtime.settings
    replicas = Replicas(
        runtime.channels,
        runtime.certificates,
        runtime.clock,
        identity=settings.replica_identity,
        memory=settings.home / "run" / "endpoints-app.binpb",
    )
    runtime.resources.push_async_callback(replicas.close)
    replicas.restore()
    runtime.background.start(replicas.watch(), name="endpoints")
    return App(replicas=replicas, callers=Callers())


DEFINITION = ServiceDefinition[App](
    name="app",
    settings=AppSettings,
    build=build,
    protos=[
        app_service_pb2.DESCRIPTOR.services_by_name["AppService"],
        chat_service_pb2.DESCRIPTOR.services_by_name["ChatService"],
    ],
    handlers=[prompts, applications, chat],
    migrations=Path(__file__).parent / "migrations",
)
