"""A web server for tests that counts who comes, and answers with whatever bytes a test wants."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress

# Gets the connection and the request's head.
Answering = Callable[[socket.socket, str], None]


class Web:
    """Listens on 127.0.0.1, and on ::1 where there is IPv6, at one port; speaks TLS when it has a context for it."""

    def __init__(self, answering: Answering, tls: ssl.SSLContext | None = None) -> None:
        self.heads: list[str] = []
        self.connections = 0
        self._answering = answering
        self._tls = tls
        self._listeners = [socket.create_server(("127.0.0.1", 0))]
        self.port: int = self._listeners[0].getsockname()[1]
        with suppress(OSError):
            self._listeners.append(socket.create_server(("::1", self.port), family=socket.AF_INET6))
        for listener in self._listeners:
            threading.Thread(target=self._accept, args=(listener,), daemon=True).start()

    def url(self, path: str = "/rows.jsonl", host: str = "127.0.0.1") -> str:
        return f"http://{host}:{self.port}{path}"

    def close(self) -> None:
        for listener in self._listeners:
            # Closing alone does not wake a thread that accepts.
            with suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)
            listener.close()

    def _accept(self, listener: socket.socket) -> None:
        with suppress(OSError):
            while True:
                connection, _ = listener.accept()
                self.connections += 1
                threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        head = b""
        with connection, suppress(OSError):
            if self._tls is not None:
                connection = self._tls.wrap_socket(connection, server_side=True)
            while b"\r\n\r\n" not in head and (data := connection.recv(65536)):
                head += data
            self.heads.append(head.decode("latin-1"))
            self._answering(connection, self.heads[-1])


@contextmanager
def web(answering: Answering, tls: ssl.SSLContext | None = None) -> Generator[Web]:
    """A running server."""
    server = Web(answering, tls)
    try:
        yield server
    finally:
        server.close()


def answer(body: bytes = b"", status: str = "200 OK", **headers: str) -> bytes:
    """A whole answer; `Content-Length` is stated unless the headers do so."""
    given = {"Content-Length": str(len(body)), **{name.replace("_", "-"): value for name, value in headers.items()}}
    head = "".join(f"{name}: {value}\r\n" for name, value in given.items())
    return f"HTTP/1.1 {status}\r\n{head}\r\n".encode() + body


def giving(data: bytes) -> Answering:
    """Answers every request with the same bytes."""
    return lambda connection, _head: connection.sendall(data)
