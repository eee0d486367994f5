"""A gateway that answers what a test wants: a real HTTP server on a port of its own."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from argosy.client import settings


@dataclass
class Request:
    """What came in."""

    verb: str
    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class Answer:
    """What goes out. `cut` closes the connection after the body, without its end."""

    status: int = 200
    body: bytes = b"{}"
    headers: dict[str, str] = field(default_factory=dict)
    cut: bool = False


Respond = Callable[[Request], Answer]


@dataclass
class FakeGateway:
    """Keeps what came in and answers by `respond`."""

    url: str = ""
    requests: list[Request] = field(default_factory=list)
    respond: Respond = lambda _request: Answer()


@pytest.fixture
def gateway() -> Iterator[FakeGateway]:
    fake = FakeGateway()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _serve(self) -> None:
            length = int(self.headers.get("content-length", 0))
            headers = {name.lower(): value for name, value in self.headers.items()}
            request = Request(self.command, self.path, headers, self.rfile.read(length))
            fake.requests.append(request)
            answer = fake.respond(request)
            self.send_response(answer.status)
            for name, value in answer.headers.items():
                self.send_header(name, value)
            if answer.cut:
                # One byte more is promised than comes.
                self.send_header("content-length", str(len(answer.body) + 1))
                self.close_connection = True
            else:
                self.send_header("content-length", str(len(answer.body)))
            self.end_headers()
            self.wfile.write(answer.body)

        do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _serve  # noqa: N815 (names of http.server)

        def log_message(self, format: str, *args: object) -> None:
            """Says nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    fake.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    yield fake
    server.shutdown()
    server.server_close()


def failure(status: int, code: str, reason: str, message: str = "no", **metadata: str) -> Answer:
    """An error as the gateway words it."""
    info = {"@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": reason, "metadata": metadata}
    error = {
        "code": status,
        "status": code,
        "message": message,
        "reason": reason,
        "details": [info],
        "request_id": "r1",
    }
    return Answer(status, json.dumps({"error": error}).encode())


@pytest.fixture
def logged_in(gateway: FakeGateway, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A key is kept for the fake gateway, in an empty home."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    for name in ("ARGOSY_URL", "ARGOSY_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    settings.keep(settings.Login(gateway.url, "ak_kept", "orgs/acme"))
