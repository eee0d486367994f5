"""What is done to a mesh: each kind of process killed, the bus wiped, each store on a full disk.

`INJURIES` is the register of them (tests/chaos/REGISTER.md says what each proves).
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from deploy.local import mesh as runner
from deploy.local import processes
from deploy.local.layout import SERVICES, WITH_JOBS, Home
from deploy.local.processes import Identity
from deploy.local.topology import topology
from tests.mesh import Mesh

# How long a disk stays full: longer than any call is repeated inside the platform, shorter than a person waits.
_FULL_SECONDS = 8.0

# Stores, and the MiB of the file system that each gets. The write-ahead log of PostgreSQL alone may take 256; 512 were
# too few for the blobs of all full jobs and of the training behind them.
STORES = {"postgres": 700, "nats": 96, "blobs": 1024, "aiops": 256, "gateway": 32}


# Whether the job is still in a stage in which the injury means something.
InTime = Callable[[], bool]


@dataclass(frozen=True)
class Injury:
    """Something bad that happens to a mesh once.

    Attributes:
        name: unique.
        stages: of the main job in which it means something: first and last.
        harm: does it while it is in time; says what it did, for people, or raises NobodyThere.
    """

    name: str
    stages: tuple[int, int]
    harm: Callable[[Mesh, InTime], str]


class NobodyThere(Exception):
    """There was no process of the kind to kill."""


def _kill(identity: Identity) -> str:
    line = processes.command_line(identity.pid)[:60]
    processes.send(identity, signal.SIGKILL)
    return f"kill -9 {identity.pid} ({line})"


def _until_found(find: Callable[[], Identity | None], kind: str, in_time: InTime) -> Identity:
    while (found := find()) is None:
        if not in_time():
            raise NobodyThere(kind)
        time.sleep(0.1)
    return found


def _part(name: str) -> Callable[[Mesh, InTime], str]:
    """Kills a process that the supervisor started."""

    def harm(mesh: Mesh, in_time: InTime) -> str:
        (part,) = (part for part in topology(mesh.home, mesh.ports) if part.name == name)
        return _kill(_until_found(lambda: runner.running(mesh.home, part), name, in_time))

    return harm


def _titled(*words: str) -> Callable[[Mesh, InTime], str]:
    """Kills one process of the mesh whose command line has one of these words; the youngest, which surely works."""

    def harm(mesh: Mesh, in_time: InTime) -> str:
        def find() -> Identity | None:
            found = [
                identity
                for identity in processes.belonging(mesh.home.root, [])
                if any(word in processes.command_line(identity.pid) for word in words)
            ]
            return max(found, key=lambda identity: (identity.start, identity.pid), default=None)

        return _kill(_until_found(find, words[0], in_time))

    return harm


def _supervisor(mesh: Mesh, in_time: InTime) -> str:
    """Nobody starts it again but a person."""
    text = _kill(_until_found(lambda: runner.supervisor_of(mesh.home), "supervisor", in_time))
    time.sleep(2.0)
    mesh.up()
    return f"{text}, argosy up"


def _wipe(mesh: Mesh, in_time: InTime) -> str:
    """Loses every event that the bus held."""
    store = mesh.home.nats / "store"
    lost = store.with_name("lost")
    # Out of its sight while it runs, so that the next one, which the supervisor starts at once, finds nothing.
    store.rename(lost)
    text = _part("nats")(mesh, in_time)
    shutil.rmtree(lost)
    return f"{text}, its store is gone"


def folder(home: Home, store: str) -> Path:
    """Where a store lies."""
    return home.root / store


def _fill(store: str) -> Callable[[Mesh, InTime], str]:
    def harm(mesh: Mesh, _: InTime) -> str:
        place = folder(mesh.home, store)
        filler = place / "filler"
        filled = 0
        try:
            end = time.monotonic() + _FULL_SECONDS
            with filler.open("wb") as file:
                while time.monotonic() < end:
                    # What is deleted meanwhile is taken again.
                    filled += _take_all(file.fileno(), place)
                    time.sleep(0.2)
        finally:
            filler.unlink()
        return f"{store}: no byte free for {_FULL_SECONDS:.0f} s, {filled >> 20} MiB taken"

    return harm


def _take_all(descriptor: int, place: Path) -> int:
    status = os.statvfs(place)
    free = status.f_bavail * status.f_frsize
    if free:
        with suppress(OSError):
            os.posix_fallocate(descriptor, os.fstat(descriptor).st_size, free)
            return free
    return 0


@contextmanager
def small_disks(home: Home) -> Generator[bool]:
    """A file system of its own, and of limited size, for each store. Says whether this user may make them."""
    mounted: list[Path] = []
    try:
        for store, size in STORES.items():
            place = folder(home, store)
            place.mkdir(parents=True, exist_ok=True)
            mount = ["mount", "-t", "tmpfs", "-o", f"size={size}m,mode=0711", "tmpfs", str(place)]
            if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode != 0:
                break
            mounted.append(place)
        yield len(mounted) == len(STORES)
    finally:
        for place in mounted:
            subprocess.run(["umount", "--lazy", str(place)], check=True)


_PARTS = ("postgres", "nats", "ray", *SERVICES, *(f"{name}-jobs" for name in WITH_JOBS))
KILLS = [
    *(Injury(name, (3, 9), _part(name)) for name in _PARTS),
    Injury("supervisor", (3, 9), _supervisor),
    Injury("raylet", (3, 8), _titled("/raylet/raylet")),
    # The child of a jobs process that holds its connection to Ray.
    Injury("driver", (4, 8), _titled("libs.compute.driver")),
    # Carries one attempt of one task.
    Injury("carrier", (4, 7), _titled("ray::TaskCarrier")),
    Injury("train-worker", (6, 6), _titled("ray::RayTrainWorker")),
    Injury("replica", (7, 9), _titled("ray::ActorHost")),
    Injury("replica-engine", (7, 9), _titled("VLLM::EngineCore")),
]
LOSSES = [
    Injury("nats-wiped", (6, 9), _wipe),
    *(Injury(f"{store}-full", (3, 9), _fill(store)) for store in STORES),
]
INJURIES = [*KILLS, *LOSSES]
