"""uvicorn's HTTP protocol with what a public door needs besides: limits on heads, JSON for what is not HTTP, news of a
lost client.
"""

from __future__ import annotations

from asyncio import Transport
from asyncio.events import TimerHandle
from collections.abc import Callable

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from libs.common.errors import ArgosyError
from services.gateway.http.errors import error_body

# The largest head that the gateway reads: a JWT, cookies of a proxy, trace state.
HEAD_BYTES = 64 * 1024
# A head that is not complete by then comes from a client that only wants to hold the connection.
HEAD_SECONDS = 10.0
_OK = STATUS_LINE[200]


class DoorProtocol(HttpToolsProtocol):
    """One connection. Puts itself into the scope as `argosy.connection`."""

    on_lost: Callable[[], object] | None = None
    _head_bytes = 0
    _in_head = True
    _head_timer: TimerHandle | None = None

    def connection_made(self, transport: Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._head_timer = self.loop.call_later(HEAD_SECONDS, self._head_too_slow)

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        super().connection_lost(exc)
        lost, self.on_lost = self.on_lost, None
        if lost is not None:
            lost()

    def data_received(self, data: bytes) -> None:
        if self._in_head:
            self._head_bytes += len(data)
        super().data_received(data)
        if not self._in_head or self.transport.is_closing():
            return
        # Many small requests in one piece each reset the count; one endless head does not.
        if self._head_bytes > HEAD_BYTES:
            self._refuse(431, ArgosyError("TOO_LARGE", f"The head is larger than {HEAD_BYTES} bytes."))
        elif self._head_timer is None:
            self._head_timer = self.loop.call_later(HEAD_SECONDS, self._head_too_slow)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self.scope["argosy.connection"] = self  # type: ignore[typeddict-unknown-key]
        self._in_head = True

    def on_headers_complete(self) -> None:
        self._in_head = False
        self._head_bytes = 0
        if self._head_timer is not None:
            self._stop_timer()
        super().on_headers_complete()

    def send_400_response(self, msg: str) -> None:
        self._refuse(400, ArgosyError("BODY_INVALID", "This is not a valid HTTP request."))

    def reply(self, cycle: RequestResponseCycle, head: bytes, body: bytes) -> bool:
        """Sends a whole answer in one write, instead of the two messages of ASGI with a check of every header.

        Args:
            cycle: of the request that is answered; `self.cycle` may be one that a client sent ahead.
            head: header lines, each with its line break; they must be known to be clean.
            body: of the answer.

        Returns False, having sent nothing, where the usual way must be taken.
        """
        if cycle.response_started or not cycle.keep_alive or cycle.scope["method"] == "HEAD":
            return False
        if self.flow.write_paused or cycle.disconnected:
            return False
        cycle.response_started = cycle.response_complete = True
        cycle.waiting_for_100_continue = False
        lines = b"".join(b"%s: %s\r\n" % line for line in self.server_state.default_headers)
        self.transport.write(b"%s%s%scontent-length: %d\r\n\r\n%s" % (_OK, lines, head, len(body), body))
        cycle.message_event.set()
        cycle.on_response()
        return True

    def _head_too_slow(self) -> None:
        self._head_timer = None
        if self._head_bytes == 0:
            self.transport.close()  # browsers open connections ahead of need
        elif self._in_head and not self.transport.is_closing():
            self._refuse(408, ArgosyError("BODY_INVALID", f"No request came within {HEAD_SECONDS:.0f} seconds."))

    def _stop_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _refuse(self, status: int, error: ArgosyError) -> None:
        body = error_body(error, status, "")
        head = b"content-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n\r\n" % len(body)
        self.transport.write(STATUS_LINE[status] + head + body)
        self.transport.close()
