"""Processes known by pid and start time, found by their marks, ended with all that they started."""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy.local import processes
from deploy.local.processes import Identity

_SLEEP = "import time; time.sleep(60)"
# A child that leaves its parent, its session and its title behind, as Ray's workers and vLLM's engine do.
_ORPHAN = """
import os, subprocess, sys
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], start_new_session=True)
print(child.pid, flush=True)
"""


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    (tmp_path / "logs").mkdir()
    yield tmp_path
    processes.end(processes.belonging(tmp_path, []), grace=0)


def _spawn(home: Path, code: str, part: str = "part", **environment: str) -> Identity:
    marks = {processes.MARKER: str(home), processes.PART: part, "PATH": os.environ["PATH"], **environment}
    return processes.spawn([sys.executable, "-c", code], marks, home / "logs" / f"{part}.log", home)


def _until(condition: object, seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


def test_a_pid_with_another_start_time_is_somebody_else(home: Path) -> None:
    identity = _spawn(home, _SLEEP)
    assert identity.alive
    assert not Identity(identity.pid, identity.start + 1).alive


def test_a_signal_for_somebody_else_is_not_sent(home: Path) -> None:
    identity = _spawn(home, _SLEEP)
    processes.send(Identity(identity.pid, identity.start + 1), signal.SIGKILL)
    time.sleep(0.1)
    assert identity.alive


def test_a_zombie_is_not_alive(home: Path) -> None:
    identity = _spawn(home, "")
    _until(lambda: not identity.alive)
    os.waitpid(identity.pid, 0)


def test_the_leader_of_a_part_is_found_without_a_record(home: Path) -> None:
    identity = _spawn(home, _SLEEP, part="store")
    _until(lambda: processes.leader(home, "store") == identity)
    assert processes.leader(home, "other") is None
    assert processes.leader(home / "elsewhere", "store") is None


def test_an_orphan_in_a_session_of_its_own_is_found_by_its_marker(home: Path) -> None:
    parent = _spawn(home, _ORPHAN)
    _until(lambda: not parent.alive)
    orphan = int((home / "logs" / "part.log").read_text())
    assert {identity.pid for identity in processes.belonging(home, [])} == {orphan}


def test_an_orphan_without_its_environment_is_found_by_where_it_writes(home: Path) -> None:
    code = _ORPHAN.replace("start_new_session=True", "start_new_session=True, env={}")
    parent = _spawn(home, code)
    _until(lambda: not parent.alive)
    orphan = int((home / "logs" / "part.log").read_text())
    assert {identity.pid for identity in processes.belonging(home, [])} == {orphan}


def test_nobody_else_belongs_to_a_mesh(home: Path) -> None:
    other = home / "other"
    (other / "logs").mkdir(parents=True)
    stranger = _spawn(other, _SLEEP)
    assert processes.belonging(home, []) == set()
    processes.end([stranger], grace=0)


def test_the_caller_is_never_among_those_that_are_ended(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # `make down` runs in a shell that may write into the log folder.
    own = processes.identify(os.getpid())
    assert own is not None
    assert own not in processes.belonging(home, [own])


def test_one_that_ignores_the_signal_is_killed_after_its_grace(home: Path) -> None:
    code = (
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf', flush=True); time.sleep(60)"
    )
    deaf = _spawn(home, code)
    _until(lambda: "deaf" in (home / "logs" / "part.log").read_text())
    assert processes.end([deaf], grace=0.2) == {deaf}
    assert not deaf.alive


def test_one_that_listens_is_not_killed(home: Path) -> None:
    polite = _spawn(home, _SLEEP)
    assert processes.end([polite], grace=10) == set()
    assert not polite.alive


def test_the_listener_of_a_port_is_named() -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        assert f"(pid {os.getpid()})" in processes.listener(server.getsockname()[1])
