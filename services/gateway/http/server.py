"""Listens for HTTP: uvicorn's protocol on httptools and uvloop, without the parts of uvicorn that a part of a service
has no use for.
"""

from __future__ import annotations

import asyncio
import logging
from email.utils import format_datetime
from typing import Any

import uvicorn
from uvicorn.server import ServerState

from libs.common.clock import Clock
from services.gateway.http.protocol import DoorProtocol

_log = logging.getLogger(__name__)

# Longer than load balancers and browsers keep an idle connection by default would only hold memory; shorter makes
# clients reconnect.
_KEEP_ALIVE_SECONDS = 65
_BACKLOG = 2048


class HttpServer:
    """One listening socket.

    Args:
        application: ASGI.
        listen: `host:port`; port 0 takes a free one.
        clock: for the header Date.
        grace: seconds that requests in flight get at the end.
    """

    def __init__(self, application: Any, listen: str, clock: Clock, grace: float) -> None:
        self._host, _, port = listen.rpartition(":")
        self.port = int(port)
        self._clock = clock
        self._grace = grace
        self._state = ServerState()
        self._server: asyncio.Server | None = None
        self._config = uvicorn.Config(
            application,
            http=DoorProtocol,
            ws="none",
            lifespan="off",
            interface="asgi3",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            date_header=False,
            timeout_keep_alive=_KEEP_ALIVE_SECONDS,
        )

    async def start(self) -> None:
        """Listens. Raises OSError if the port is taken."""
        self._config.load()
        self._set_date()
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(self._protocol, self._host, self.port, backlog=_BACKLOG)
        self.port = self._server.sockets[0].getsockname()[1]
        _log.info("HTTP on %s:%d", self._host, self.port)

    async def serve(self) -> None:
        """Runs until it is cancelled; then takes no more connections and lets requests in flight finish."""
        try:
            while True:
                await self._clock.sleep(1.0)
                self._set_date()
        finally:
            if self._server is not None:
                self._server.close()
            await self._drain()

    def _protocol(self) -> DoorProtocol:
        return DoorProtocol(self._config, self._state, {})

    def _set_date(self) -> None:
        date = format_datetime(self._clock.now(), usegmt=True)
        self._state.default_headers = [(b"date", date.encode())]

    async def _drain(self) -> None:
        for connection in list(self._state.connections):
            connection.shutdown()
        if self._state.tasks:
            _, late = await asyncio.wait(list(self._state.tasks), timeout=self._grace)
            for task in late:
                task.cancel()
        for connection in list(self._state.connections):
            connection.transport.close()  # type: ignore[union-attr]
