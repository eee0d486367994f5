"""Pages of the gateway itself: health, the API description and the page that shows it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

from services.gateway.http.door import Handler
from services.gateway.http.exchange import JSON, Exchange
from services.gateway.http.openapi import to_bytes
from services.gateway.http.routes import RouteTable

_STATIC = Path(__file__).resolve().parent / "static"
# The page runs its own script and asks this server, nothing else.
_PAGE_POLICY = b"default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; frame-ancestors 'none'"
_TEXT = b"text/plain; version=0.0.4; charset=utf-8"


class Pages:
    """Handlers for what no service is behind.

    Args:
        table: what the API description describes.
        ready: whether this process takes requests.
        metrics: the figures of this process in Prometheus' text format.
    """

    def __init__(self, table: RouteTable, ready: Callable[[], bool], metrics: Callable[[], bytes]) -> None:
        self._table = table
        self._ready = ready
        self._metrics = metrics
        self._description: bytes | None = None

    def handlers(self) -> dict[str, dict[str, Handler]]:
        """Path -> HTTP method -> handler."""
        return {
            "/": {"GET": self._root},
            "/healthz": {"GET": self._healthz},
            "/readyz": {"GET": self._readyz},
            "/metrics": {"GET": self._figures},
            "/openapi.json": {"GET": self._openapi},
            "/docs": {"GET": _file("docs.html", b"text/html; charset=utf-8")},
            "/docs/app.js": {"GET": _file("docs.js", b"text/javascript; charset=utf-8")},
            "/docs/style.css": {"GET": _file("docs.css", b"text/css; charset=utf-8")},
        }

    async def _root(self, exchange: Exchange) -> None:
        await exchange.respond(307, b"", b"text/plain", ((b"location", b"/docs"),))

    async def _healthz(self, exchange: Exchange) -> None:
        await exchange.respond(200, b'{"status":"ok"}')

    async def _readyz(self, exchange: Exchange) -> None:
        if self._ready():
            await exchange.respond(200, b'{"status":"ready"}')
        else:
            await exchange.respond(503, b'{"status":"not ready"}')

    async def _figures(self, exchange: Exchange) -> None:
        await exchange.respond(200, self._metrics(), _TEXT)

    async def _openapi(self, exchange: Exchange) -> None:
        if self._description is None:
            self._description = await asyncio.to_thread(to_bytes, self._table)
        await exchange.respond(200, self._description, JSON)


def _file(name: str, content_type: bytes) -> Handler:
    content = (_STATIC / name).read_bytes()

    async def handler(exchange: Exchange) -> None:
        await exchange.respond(200, content, content_type, ((b"content-security-policy", _PAGE_POLICY),))

    return handler
