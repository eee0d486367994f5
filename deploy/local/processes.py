"""Processes by identity: a pid alone may belong to somebody else by now, a pid with its start time never does."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

# Every process that the runner starts carries it, and so does what that process starts: this is how `down` finds
# orphans.
MARKER = "ARGOSY_SUPERVISED_HOME"
PART = "ARGOSY_SUPERVISED_PART"
_PROC = Path("/proc")
_PR_SET_CHILD_SUBREAPER = 36
# Fields of /proc/<pid>/stat after the name, see proc(5): state is the first, ppid the second, session the fourth, start
# time the twentieth.
_STATE, _PARENT, _SESSION, _START = 0, 1, 3, 19


@dataclass(frozen=True, slots=True)
class Identity:
    """One process for as long as it lives."""

    pid: int
    # Clock ticks after boot.
    start: int

    @property
    def alive(self) -> bool:
        """Whether it still runs. A zombie does not."""
        fields = _stat(self.pid)
        return fields is not None and fields[_STATE] not in "ZX" and int(fields[_START]) == self.start


def _stat(pid: int) -> list[str] | None:
    try:
        text = (_PROC / str(pid) / "stat").read_text()
    except OSError:
        return None
    # The name is in parentheses and may hold anything, parentheses too.
    return text.rpartition(")")[2].split()


def identify(pid: int) -> Identity | None:
    """The identity of a process; None: there is none, or it is dead already."""
    fields = _stat(pid)
    return None if fields is None or fields[_STATE] in "ZX" else Identity(pid, int(fields[_START]))


def command_line(pid: int) -> str:
    """What was typed to start it, as far as it can be read."""
    try:
        return (_PROC / str(pid) / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    except OSError:
        return ""


def spawn(command: Sequence[str], environment: Mapping[str, str], log: Path, folder: Path) -> Identity:
    """Starts a process in a session of its own that writes to a log file itself, so that it needs nobody to live.

    Args:
        command: program and arguments.
        environment: the whole environment.
        log: standard output and error, appended.
        folder: its working directory.
    Raises:
        OSError: the program cannot be started.
    """
    with log.open("ab") as output:
        process = subprocess.Popen(
            list(command),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=dict(environment),
            cwd=folder,
            start_new_session=True,
        )
    # The supervisor reaps by pid; Popen must not warn that its child still runs.
    process.returncode = 0
    found = identify(process.pid)
    return found or Identity(process.pid, -1)


def adopt_orphans() -> None:
    """Makes this process the parent of descendants whose parent dies, so that `reap` takes them off the table
    (prctl(2)).
    """
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def reap() -> None:
    """Takes dead children off the process table. Only for a process that waits for none of them by itself."""
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def send(identity: Identity, number: signal.Signals) -> None:
    """Signals exactly this process, or nobody."""
    if identity.alive:
        with contextlib.suppress(ProcessLookupError):
            os.kill(identity.pid, number)


def belonging(home: Path, roots: Iterable[Identity]) -> set[Identity]:
    """Every living process that was started for a mesh: the given ones, what descends from them, what shares their
    session, what
    carries the marker, and what writes its output into the data folder.

    One sign is not enough: a worker may have lost its parent, a program that shows a title of its own overwrites its
    environment. Never the caller or what called it.
    """
    table = _table()
    spared = _ancestors(os.getpid(), table)
    root_pids = {root.pid for root in roots if root.alive}
    found = {pid for pid in root_pids if pid in table}
    for pid, (_, session, _start) in table.items():
        if pid not in spared and (session in root_pids or _has(pid, f"{MARKER}={home}") or _writes_into(pid, home)):
            found.add(pid)
    return _with_descendants(found - spared, table, spared)


def belonging_to(roots: Iterable[Identity]) -> set[Identity]:
    """The given processes that live, what descends from them and what shares their session."""
    table = _table()
    pids = {root.pid for root in roots if root.alive}
    return _with_descendants(
        {pid for pid, (_, session, _start) in table.items() if pid in pids or session in pids}, table, set()
    )


def _with_descendants(pids: set[int], table: Mapping[int, tuple[int, int, int]], spared: set[int]) -> set[Identity]:
    found = set(pids)
    grew = True
    while grew:
        children = {pid for pid, (parent, _, _start) in table.items() if parent in found} - found - spared
        found |= children
        grew = bool(children)
    return {Identity(pid, table[pid][2]) for pid in found}


def _table() -> dict[int, tuple[int, int, int]]:
    """pid -> (parent, session, start) of all living processes."""
    table: dict[int, tuple[int, int, int]] = {}
    for entry in os.scandir(_PROC):
        if entry.name.isdigit() and (fields := _stat(int(entry.name))) and fields[_STATE] not in "ZX":
            table[int(entry.name)] = (int(fields[_PARENT]), int(fields[_SESSION]), int(fields[_START]))
    return table


def _ancestors(pid: int, table: Mapping[int, tuple[int, int, int]]) -> set[int]:
    line = set()
    while pid in table and pid not in line:
        line.add(pid)
        pid = table[pid][0]
    return line


def leader(home: Path, part: str) -> Identity | None:
    """The process that was started for one part of a mesh, found without any record: it leads a session and carries
    both marks.
    """
    for pid, (_, session, start) in _table().items():
        if session == pid and _has(pid, f"{MARKER}={home}", f"{PART}={part}"):
            return Identity(pid, start)
    return None


def _has(pid: int, *variables: str) -> bool:
    try:
        environment = (_PROC / str(pid) / "environ").read_bytes().split(b"\0")
    except OSError:
        return False
    return all(variable.encode() in environment for variable in variables)


def _writes_into(pid: int, home: Path) -> bool:
    for number in ("1", "2"):
        try:
            target = os.readlink(_PROC / str(pid) / "fd" / number)
        except OSError:
            continue
        if target.startswith((f"{home}/logs/", f"{home}/ray/")):
            return True
    return False


def end(identities: Iterable[Identity], *, grace: float, first: signal.Signals = signal.SIGTERM) -> set[Identity]:
    """Asks processes to stop, waits, kills those that stay, waits until they are gone.

    Args:
        grace: seconds between asking and killing.
        first: how to ask.
    Returns:
        those that had to be killed.
    """
    left = {identity for identity in identities if identity.alive}
    for identity in left:
        send(identity, first)
    left = wait_gone(left, grace)
    killed = set(left)
    for identity in left:
        send(identity, signal.SIGKILL)
    wait_gone(left, 10)
    return killed


def wait_gone(identities: Iterable[Identity], seconds: float) -> set[Identity]:
    """Waits until processes are gone; gives those that are still there after the time."""
    deadline = time.monotonic() + seconds
    left = set(identities)
    while True:
        left = {identity for identity in left if identity.alive}
        if not left or time.monotonic() >= deadline:
            return left
        time.sleep(0.02)


def listener(port: int) -> str:
    """Who listens on a TCP port of this machine, for people: `nginx (pid 123)`; empty: nobody that can be seen."""
    import psutil

    try:
        connections = psutil.net_connections("tcp")
    except psutil.AccessDenied:
        return ""
    for connection in connections:
        if (
            connection.status == psutil.CONN_LISTEN
            and connection.laddr
            and connection.laddr[1] == port
            and connection.pid
        ):
            line = command_line(connection.pid)
            return f"{line[:80]} (pid {connection.pid})"
    return ""


def free_port() -> int:
    """A TCP port of 127.0.0.1 that nobody listens on now."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
