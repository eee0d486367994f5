"""Puts the gateway together."""

from __future__ import annotations

from dataclasses import dataclass

from libs.common.service import Runtime, ServiceDefinition
from services.gateway.clients.backends import Backends
from services.gateway.clients.identity import Keys
from services.gateway.config import Settings
from services.gateway.http.door import Door
from services.gateway.http.methods import Methods
from services.gateway.http.pages import Pages
from services.gateway.http.routes import default_table
from services.gateway.http.server import HttpServer
from services.gateway.http.uploads import Uploads


@dataclass
class App:
    """The parts of a running gateway."""

    door: Door
    http: HttpServer


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
    pages = Pages(table, lambda: True, lambda: b"")
    door = Door(
        table=table,
        methods=Methods(backends),
        uploads=Uploads(backends),
        authenticator=keys,
        fixed=pages.handlers(),
        prefixed={},
        record=lambda exchange: None,
        max_requests=settings.max_requests,
        clock=clock,
    )
    http = HttpServer(door, settings.http_listen, clock, settings.drain_seconds)
    runtime.background.start(http.serve(), name="http")
    return App(door, http)


DEFINITION = ServiceDefinition(name="gateway", build=build, settings=Settings)
