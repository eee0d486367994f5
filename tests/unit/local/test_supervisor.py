"""The supervisor on processes that sleep: it restarts, backs off, waits for what must come first, and adopts."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from deploy.local import processes
from deploy.local.layout import Home
from deploy.local.processes import Identity
from deploy.local.supervisor import Supervisor, details, held, recorded
from deploy.local.topology import Part

_SLEEP = "import time; time.sleep(60)"


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Home]:
    home = Home(tmp_path)
    home.prepare()
    yield home
    processes.end(processes.belonging(tmp_path, []), grace=0)


def _part(home: Home, name: str, code: str = _SLEEP, **more: object) -> Part:
    environment = {"PATH": os.environ["PATH"]}
    return Part(name, [sys.executable, "-c", code], environment, home.root, 0, **more)  # type: ignore[arg-type]


@contextmanager
def _running(home: Home, parts: list[Part], monkeypatch: pytest.MonkeyPatch) -> Generator[Supervisor]:
    # Certificates and reaping are not what these tests are about; reaping would take the children of other tests.
    monkeypatch.setattr("deploy.local.supervisor.certificates.renew", lambda _home: [])
    monkeypatch.setattr("deploy.local.supervisor.processes.reap", lambda: None)
    supervisor = Supervisor(home, parts)
    thread = threading.Thread(target=supervisor.run, daemon=True)
    thread.start()
    try:
        yield supervisor
    finally:
        supervisor.leave()
        thread.join(5)


def _until(condition: Callable[[], object], seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


def _identity(home: Home, name: str) -> Identity | None:
    return recorded(home.records / f"{name}.json")


def test_a_killed_part_comes_back(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    with _running(home, [_part(home, "a")], monkeypatch):
        _until(lambda: _identity(home, "a"))
        first = _identity(home, "a")
        assert first is not None
        os.kill(first.pid, signal.SIGKILL)
        _until(lambda: (now := _identity(home, "a")) is not None and now != first)
        assert details(home.records / "a.json")["restarts"] == 1


def test_a_part_that_says_that_it_is_broken_is_started_again(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deploy.local.supervisor._LOOK", 0.1)
    trouble = [""]
    with _running(home, [_part(home, "a", broken=lambda: trouble[0])], monkeypatch):
        _until(lambda: _identity(home, "a"))
        first = _identity(home, "a")
        time.sleep(0.7)
        assert _identity(home, "a") == first
        trouble[0] = "it cannot write"
        _until(lambda: details(home.records / "a.json")["restarts"] == 1)
        trouble[0] = ""
        _until(lambda: (now := _identity(home, "a")) is not None and now != first)


def test_parts_outlive_their_supervisor_and_the_next_one_adopts_them(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = [_part(home, "a"), _part(home, "b")]
    with _running(home, parts, monkeypatch):
        _until(lambda: _identity(home, "a") and _identity(home, "b"))
    before = _identity(home, "a"), _identity(home, "b")
    # The record of one is lost, as if the supervisor had been killed before it could write it.
    (home.records / "b.json").unlink()
    with _running(home, parts, monkeypatch):
        _until(lambda: _identity(home, "b"))
        assert (_identity(home, "a"), _identity(home, "b")) == before


def test_a_record_of_a_recycled_pid_is_not_adopted(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    own = processes.identify(os.getpid())
    assert own is not None
    (home.records / "a.json").write_text(f'{{"pid": {own.pid}, "start": {own.start + 1}}}')
    with _running(home, [_part(home, "a")], monkeypatch):
        _until(lambda: _identity(home, "a"))
        assert _identity(home, "a") != own


def test_a_part_that_fails_at_once_is_started_ever_more_rarely(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    with _running(home, [_part(home, "a", "raise SystemExit(1)")], monkeypatch):
        _until(lambda: int(details(home.records / "a.json").get("restarts", 0)) >= 3)
        count = int(details(home.records / "a.json")["restarts"])
        time.sleep(1.5)
        # Unchecked it would have been started a dozen times.
        assert int(details(home.records / "a.json")["restarts"]) - count <= 2


def test_a_part_waits_until_what_it_needs_is_settled(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    answers, settled = ["no answer"], []
    store = _part(home, "store", probe=lambda: answers[0], settle=lambda: settled.append(True))
    with _running(home, [store, _part(home, "user", after=("store",))], monkeypatch):
        _until(lambda: _identity(home, "store"))
        time.sleep(0.6)
        assert _identity(home, "user") is None
        answers[0] = ""
        _until(lambda: _identity(home, "user"))
        assert settled == [True]


def test_a_part_that_cannot_be_prepared_says_why_and_does_not_stop_the_others(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> None:
        raise OSError("no room")

    with _running(home, [_part(home, "bad", prepare=fail), _part(home, "good")], monkeypatch):
        _until(lambda: _identity(home, "good"))
        assert "no room" in str(details(home.records / "bad.json")["trouble"])


def test_one_folder_has_one_supervisor(home: Home) -> None:
    first = held(home)
    assert first is not None
    assert held(home) is None
    first.close()
    again = held(home)
    assert again is not None
    again.close()
