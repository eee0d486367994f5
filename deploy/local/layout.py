"""Where a mesh keeps its things: the data folder, its format version and its ports."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

# Raised when the folders below change so that an older runner would misread them.
FORMAT = 1
DEFAULT_HOME = Path("~/.local/share/argosy")
DEFAULT_PORT_BASE = 7100
DEFAULT_HTTP_PORT = 8080
# Ray gives its workers ports from here (`ray start --help`), and refuses to start with another port among them.
_WORKER_PORTS = (10_002, 19_999)

SERVICES = ("identity", "dataset", "training", "deploy", "eval", "app", "aiops", "gateway")
# Services with long work of their own, which a second process carries.
WITH_JOBS = ("dataset", "training", "deploy", "eval")


class RunnerError(Exception):
    """Something that the person at the terminal can repair. The message says how."""


@dataclass(frozen=True, slots=True)
class Ports:
    """TCP ports of a mesh. All on 127.0.0.1 but Ray's, which listens on every interface behind its token."""

    base: int = DEFAULT_PORT_BASE
    http: int = DEFAULT_HTTP_PORT

    def check(self) -> None:
        """Raises RunnerError for a base that cannot work."""
        low, high = _WORKER_PORTS
        if not 1024 <= self.base <= 65_400 or low - 100 < self.base <= high:
            raise RunnerError(
                f"--port-base {self.base}: choose one from 1024 to 65400, but not from {low - 99} to {high}, "
                "which Ray's workers use"
            )
        if not 1024 <= self.http <= 65_535 and self.http != 80:
            raise RunnerError(f"--http-port {self.http}: choose one from 1024 to 65535")

    def service(self, name: str) -> int:
        """gRPC port of a service."""
        return self.base + 1 + SERVICES.index(name)

    @property
    def otlp_http(self) -> int:
        """OTLP over HTTP, received by aiops. OTLP over gRPC comes in at the port of aiops itself."""
        return self.base + 18

    @property
    def nats(self) -> int:
        return self.base + 22

    @property
    def nats_monitor(self) -> int:
        """Where the bus says over HTTP whether it can store."""
        return self.base + 23

    @property
    def postgres(self) -> int:
        return self.base + 32

    @property
    def ray(self) -> int:
        """Ray's global control service."""
        return self.base + 42

    def named(self) -> Iterator[tuple[str, int]]:
        """Every fixed port with the part that listens there."""
        yield from (("postgres", self.postgres), ("nats", self.nats), ("nats (monitoring)", self.nats_monitor))
        yield "ray", self.ray
        yield from ((name, self.service(name)) for name in SERVICES)
        yield from (("aiops (OTLP/HTTP)", self.otlp_http), ("gateway (HTTP)", self.http))


@dataclass(frozen=True, slots=True)
class Home:
    """The data folder of one mesh."""

    root: Path

    @classmethod
    def of(cls, path: str | Path | None = None) -> Home:
        """The folder that was named, else that of ARGOSY_HOME, else ~/.local/share/argosy."""
        chosen = path or os.environ.get("ARGOSY_HOME") or DEFAULT_HOME
        return cls(Path(chosen).expanduser().resolve())

    @property
    def pki(self) -> Path:
        return self.root / "pki"

    @property
    def secrets(self) -> Path:
        return self.root / "secrets"

    @property
    def logs(self) -> Path:
        return self.root / "logs"

    @property
    def run(self) -> Path:
        return self.root / "run"

    @property
    def records(self) -> Path:
        """A file a process: its pid and start time."""
        return self.run / "parts"

    @property
    def postgres(self) -> Path:
        return self.root / "postgres"

    @property
    def nats(self) -> Path:
        return self.root / "nats"

    @property
    def ray(self) -> Path:
        return self.root / "ray"

    @property
    def aiops(self) -> Path:
        return self.root / "aiops"

    @property
    def gateway(self) -> Path:
        """Journal of the usage ledger and the last known endpoints."""
        return self.root / "gateway"

    def blobs(self, service: str) -> Path:
        """Root of the blob store of a service."""
        return self.root / "blobs" / service

    def folders(self) -> Iterator[Path]:
        """Every folder that must exist before a process starts."""
        yield from (
            self.pki,
            self.secrets,
            self.logs,
            self.run,
            self.records,
            self.postgres,
            self.nats,
            self.ray,
            self.aiops,
            self.gateway,
        )
        yield from (self.blobs(name) for name in SERVICES)

    def prepare(self) -> None:
        """Creates what is missing and writes or checks the format.

        Raises:
            RunnerError: The folder was written by a newer Argosy, or cannot be written.
        """
        self.check_format()
        try:
            for folder in self.folders():
                folder.mkdir(parents=True, exist_ok=True)
            # Others on the machine may pass through to the database's folder, which belongs to a user of its own; the
            # rest is closed.
            self.secrets.chmod(0o700)
            self.logs.chmod(0o700)
            self.run.chmod(0o700)
        except OSError as error:
            raise RunnerError(f"the data folder {self.root} cannot be written: {error.strerror}") from error
        write_atomically(self.root / "FORMAT", f"{FORMAT}\n")

    def check_format(self) -> None:
        """Raises RunnerError when the folder has a newer format than this code knows."""
        path = self.root / "FORMAT"
        if not path.exists():
            return
        text = path.read_text().strip()
        if not text.isdigit() or int(text) > FORMAT:
            raise RunnerError(
                f"the data folder {self.root} has format {text}, this Argosy knows up to {FORMAT}: "
                "use the newer Argosy that wrote it"
            )

    def ports(self) -> Ports | None:
        """The ports that the mesh was last started with."""
        try:
            return Ports(**json.loads((self.run / "ports.json").read_text()))
        except (OSError, ValueError, TypeError):
            return None

    def keep_ports(self, ports: Ports) -> None:
        write_atomically(self.run / "ports.json", json.dumps(asdict(ports)) + "\n")


def write_atomically(path: Path, text: str, mode: int = 0o600) -> None:
    """Replaces a small file so that a reader sees the old text or the new one, after a power cut too."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
    with os.fdopen(descriptor, "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)


def is_free(port: int) -> bool:
    """Whether a server could listen on a port of 127.0.0.1 now."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        # Without it, connections of a server that has just gone would count as its port being taken.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
