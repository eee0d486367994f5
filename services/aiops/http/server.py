"""Listens for OTLP/HTTP."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import uvicorn


async def serve(application: Any, listen: str) -> None:
    """Runs until cancelled. Raises OSError when the port is taken."""
    host, _, port = listen.rpartition(":")
    listener = socket.create_server((host, int(port)))
    config = uvicorn.Config(
        application, lifespan="off", log_config=None, access_log=False, server_header=False, ws="none"
    )
    server = uvicorn.Server(config)
    try:
        await server._serve([listener])
    except asyncio.CancelledError:
        await server.shutdown([listener])
        raise
