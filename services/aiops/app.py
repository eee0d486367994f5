"""Composition root of aiops: the only place that wires."""

from __future__ import annotations

from dataclasses import dataclass

import grpc
from argosy.aiops.v1 import audit_service_pb2, telemetry_service_pb2

from libs.common.service import Runtime, ServiceDefinition
from services.aiops.clients.identity import Keys
from services.aiops.config import AiopsSettings
from services.aiops.handlers import audit, telemetry
from services.aiops.handlers.otlp import OtlpReceiver
from services.aiops.http import server
from services.aiops.http.otlp import OtlpHttp
from services.aiops.store.telemetry import Caps, TelemetryStore


@dataclass
class App:
    """What the handlers of aiops work with."""

    store: TelemetryStore


async def build(runtime: Runtime) -> App:
    settings: AiopsSettings = runtime.settings
    caps = Caps(bytes_per_signal=settings.bytes_per_signal, seconds_in_memory=settings.seconds_in_memory)
    store = TelemetryStore(settings.store_path, caps, runtime.clock.monotonic)
    runtime.resources.callback(store.close)
    runtime.background.start(store.run(), name="telemetry store")
    if settings.http_listen:
        door = OtlpHttp(store, Keys(runtime.channels, runtime.clock).org_of_key)
        runtime.background.start(server.serve(door, settings.http_listen), name="OTLP/HTTP")
    return App(store)


def _servicers(app: App, raw: grpc.aio.Server) -> None:
    raw.add_generic_rpc_handlers((OtlpReceiver(app.store),))


DEFINITION = ServiceDefinition[App](
    name="aiops",
    settings=AiopsSettings,
    build=build,
    protos=[
        telemetry_service_pb2.DESCRIPTOR.services_by_name["TelemetryService"],
        audit_service_pb2.DESCRIPTOR.services_by_name["AuditService"],
    ],
    handlers=[telemetry, audit],
    servicers=_servicers,
)
