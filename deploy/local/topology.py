"""Every process of a mesh on one machine: what starts it, what it gets to know, and when it is ready."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from deploy.local import health, nats, postgres, ray
from deploy.local.credentials import Credentials
from deploy.local.layout import SERVICES, WITH_JOBS, Home, Ports

ROOT = Path(__file__).resolve().parent.parent.parent

# What a process inherits from the person's shell. Everything else it gets from here, so that a start does not depend on
# who started it.
_INHERITED = (
    "PATH",
    "HOME",
    "USER",
    "LANG",
    "LC_ALL",
    "TZ",
    "TMPDIR",
    "LD_LIBRARY_PATH",
    "CUDA_VISIBLE_DEVICES",
    # Decisions of the operator: how far imports reach outside.
    "ARGOSY_DATASET_IMPORT_NETWORKS",
    "ARGOSY_DATASET_IMPORT_MAX_BYTES",
    "ARGOSY_DATASET_IMPORT_MAX_SECONDS",
    "ARGOSY_DATASET_IMPORT_SQLITE_FOLDER",
)
# Nothing phones home and nothing is looked up on a model hub. One thread a library call: processes are the unit of
# parallelism here.
_QUIET = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "ORT_DISABLE_TELEMETRY": "1",
    "PYTHONUNBUFFERED": "1",
    # glibc otherwise keeps an arena a thread: tens of MB for each process of an idle mesh.
    "MALLOC_ARENA_MAX": "2",
}


def nothing() -> None:
    """A step that a part does not need."""


def always_ready() -> str:
    """A part that nobody can ask."""
    return ""


@dataclass(frozen=True)
class Part:
    """One process of the mesh.

    Attributes:
        name: unique; also the name of its log.
        command: program and arguments.
        environment: all of it.
        folder: working directory.
        rank: parts of a higher rank are stopped before those of a lower.
        probe: empty when it is ready, else what it says.
        broken: empty unless only a new start mends it, else why; asked while it runs.
        announces: words in its log that say that it is up, for a part that nobody can ask.
        prepare: runs before each start.
        settle: runs once it answers; parts that come after it wait for this.
        after: names of the parts that must be settled first.
        ports: on which it will listen.
        stop: how it is asked to stop.
        whole: whether everything that it started is asked with it.
        grace: seconds between that and SIGKILL.
    """

    name: str
    command: Sequence[str]
    environment: Mapping[str, str]
    folder: Path
    rank: int
    probe: Callable[[], str] = always_ready
    broken: Callable[[], str] = always_ready
    announces: str = ""
    prepare: Callable[[], None] = nothing
    settle: Callable[[], None] = nothing
    after: tuple[str, ...] = ()
    ports: tuple[int, ...] = field(default=())
    stop: signal.Signals = signal.SIGTERM
    whole: bool = False
    grace: float = 15.0


def inherited() -> dict[str, str]:
    """The part of the environment that every process gets."""
    return {**{name: os.environ[name] for name in _INHERITED if name in os.environ}, **_QUIET}


def common_environment(home: Home, ports: Ports) -> dict[str, str]:
    """What every process of the mesh knows, Ray's workers included. No password is in it."""
    return {
        **inherited(),
        "ARGOSY_HOME": str(home.root),
        "ARGOSY_PKI_DIR": str(home.pki),
        "ARGOSY_OTLP": f"127.0.0.1:{ports.service('aiops')}",
        **ray_head(home, ports).environment(),
    }


def ray_head(home: Home, ports: Ports) -> ray.RayHead:
    """The Ray head of a mesh."""
    return ray.RayHead(home.ray, ports.ray)


def service_environment(home: Home, ports: Ports, credentials: Credentials, name: str) -> dict[str, str]:
    """What the processes of one service know beside that."""
    own = f"ARGOSY_{name.upper()}_"
    password = credentials.database[name]
    return {
        **common_environment(home, ports),
        "OMP_NUM_THREADS": "1",
        f"{own}LISTEN": f"127.0.0.1:{ports.service(name)}",
        f"{own}DATABASE_URL": f"postgresql+asyncpg://{name}:{password}@127.0.0.1:{ports.postgres}/{name}",
        "ARGOSY_NATS_URL": f"nats://{name}:{credentials.bus[name]}@127.0.0.1:{ports.nats}",
        "ARGOSY_PEERS": json.dumps({peer: f"127.0.0.1:{ports.service(peer)}" for peer in SERVICES}),
        "ARGOSY_RAY_ADDRESS": f"127.0.0.1:{ports.ray}",
        "ARGOSY_BLOB_ROOT": f"file://{home.blobs(name)}",
        "ARGOSY_BLOB_KEY_FILE": str(credentials.blob_key_file),
        **(_OWN[name](home, ports) if name in _OWN else {}),
    }


def _aiops(home: Home, ports: Ports) -> dict[str, str]:
    return {
        "ARGOSY_AIOPS_HTTP_LISTEN": f"127.0.0.1:{ports.otlp_http}",
    }


def _gateway(home: Home, ports: Ports) -> dict[str, str]:
    return {"ARGOSY_GATEWAY_HTTP_LISTEN": f"127.0.0.1:{ports.http}"}


_OWN: dict[str, Callable[[Home, Ports], dict[str, str]]] = {
    "aiops": _aiops,
    "gateway": _gateway,
}


def topology(home: Home, ports: Ports) -> list[Part]:
    """All parts of a mesh, in the order in which they start."""
    credentials = Credentials(home)
    return [*_stores(home, ports, credentials), *_services(home, ports, credentials)]


def _stores(home: Home, ports: Ports, credentials: Credentials) -> list[Part]:
    head = ray_head(home, ports)
    password_file = credentials.database_file("postgres")
    config = home.nats / "nats.conf"
    return [
        # Ray takes longest, so it starts first.
        Part(
            name="ray",
            command=head.command(),
            environment=common_environment(home, ports),
            folder=ROOT,
            rank=1,
            probe=lambda: "" if head.answers() else "no answer",
            prepare=head.prepare,
            ports=(ports.ray,),
            # Nothing that Ray holds is lost with it: checkpoints are in the blob store.
            whole=True,
            grace=5.0,
        ),
        Part(
            name="postgres",
            command=postgres.command(home.postgres, ports.postgres, password_file),
            environment=inherited(),
            folder=ROOT,
            rank=0,
            probe=partial(postgres.probe, ports.postgres),
            settle=partial(
                postgres.create_service_databases_now,
                ports.postgres,
                credentials.database["postgres"],
                {name: credentials.database[name] for name in SERVICES},
            ),
            ports=(ports.postgres,),
            stop=postgres.STOP_FAST,
            grace=30.0,
        ),
        Part(
            name="nats",
            command=nats.command(config),
            environment=inherited(),
            folder=home.nats,
            rank=0,
            probe=partial(nats.probe, ports.nats),
            broken=partial(nats.broken, ports.nats_monitor, home.nats),
            prepare=partial(
                nats.write_config, config, home.nats / "store", ports.nats, credentials.bus, ports.nats_monitor
            ),
            ports=(ports.nats, ports.nats_monitor),
        ),
    ]


def _services(home: Home, ports: Ports, credentials: Credentials) -> list[Part]:
    parts = []
    for name in SERVICES:
        environment = service_environment(home, ports, credentials, name)
        for role in ("rpc", "jobs") if name in WITH_JOBS else ("rpc",):
            rpc = role == "rpc"
            parts.append(
                Part(
                    name=name if rpc else f"{name}-{role}",
                    command=[sys.executable, "-m", f"services.{name}", "--role", role],
                    environment=environment,
                    folder=ROOT,
                    rank=2,
                    probe=_probe(home, ports, name) if rpc else always_ready,
                    announces="" if rpc else f"{name} is up",
                    after=("postgres",),
                    ports=_listens(ports, name) if rpc else (),
                )
            )
    return parts


def _listens(ports: Ports, name: str) -> tuple[int, ...]:
    extra = {"gateway": (ports.http,), "aiops": (ports.otlp_http,)}
    return (ports.service(name), *extra.get(name, ()))


def _probe(home: Home, ports: Ports, name: str) -> Callable[[], str]:
    asked = partial(health.grpc_service, home.pki, name, ports.service(name))
    if name != "gateway":
        return asked
    return lambda: asked() or health.http(ports.http, "/healthz")
